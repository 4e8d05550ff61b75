import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dit_tracer.digits.models import BUILDERS, build
from dit_tracer.digits.scenes import BACKGROUNDS, COLOURS, DIRECTIONS, FRAMES, LARGE_PLACES, PLACES, Scene
from dit_tracer.digits.score import (
    _known_hands,
    _unseen_hands,
    asked_motions,
    asked_scenes,
    clip_grid,
    clip_scores,
    grid,
    main,
    real_clips,
    real_pictures,
    render_clips,
    scores,
)

ASKED = asked_scenes(400, seed=1)
MOVING = asked_motions(200, seed=1)


def changed(scene: Scene, **words: object) -> Scene:
    """The scene with other words for its figure."""
    return replace(scene, figures=(replace(scene.figures[0], **words),))


def after(names: object, name: str) -> str:
    """The next of some names, the first after the last."""
    names = list(names)
    return names[(names.index(name) + 1) % len(names)]


def scored(drawn: list[Scene]) -> dict[str, float]:
    """Scores of the scenes that were drawn against those that were asked for."""
    return scores(real_pictures(drawn), ASKED)


def test_real_scenes_score_close_to_one():
    found = scored(ASKED)
    assert found["digit"] >= 0.95
    assert found["colour"] >= 0.99
    assert found["place"] >= 0.99
    assert found["background"] == 1.0


def test_real_scenes_are_drawn_by_hands_the_classifier_has_not_seen():
    for known, unseen in zip(_known_hands(8), _unseen_hands(8)):
        assert min(len(known), len(unseen)) >= 87
        assert not np.shares_memory(known, unseen)


def test_another_digit_is_found_and_nothing_else():
    found = scored([changed(scene, digit=(scene.figures[0].digit + 1) % 10) for scene in ASKED])
    assert found["digit"] < 0.05
    assert min(found["colour"], found["place"], found["background"]) >= 0.99


def test_another_colour_is_found_and_nothing_else():
    found = scored([changed(scene, colour=after(COLOURS, scene.figures[0].colour)) for scene in ASKED])
    assert found["colour"] < 0.01
    assert found["digit"] >= 0.9
    assert min(found["place"], found["background"]) >= 0.99


def test_another_place_is_found_and_the_digit_is_missing_there():
    places = {"small": PLACES, "large": LARGE_PLACES}
    moved = [changed(s, place=after(places[s.figures[0].size], s.figures[0].place)) for s in ASKED]
    found = scored(moved)
    assert found["place"] < 0.01
    assert found["digit"] < 0.5
    assert min(found["colour"], found["background"]) >= 0.99


def test_another_background_is_found_and_colour_and_place_are_not_blamed():
    found = scored([replace(scene, background=after(BACKGROUNDS, scene.background)) for scene in ASKED])
    assert found["background"] == 0.0
    assert min(found["colour"], found["place"]) >= 0.99


def test_noise_and_blank_pictures_score_near_chance():
    shape = (len(ASKED), 3, 16, 16)
    for pictures in (np.random.default_rng(0).random(shape, np.float32), np.full(shape, 0.5, np.float32)):
        found = scores(pictures, ASKED)
        assert max(found["digit"], found["colour"], found["place"]) < 0.25
        assert found["background"] < 0.5


def test_asked_scenes_hold_every_digit_equally_often_and_repeat():
    digits = [scene.figures[0].digit for scene in ASKED]
    assert digits == list(range(10)) * 40
    assert asked_scenes(400, seed=1) == ASKED


def test_grid_holds_ten_columns_of_enlarged_pictures():
    pictures = np.zeros((25, 3, 16, 16), np.float32)
    pictures[11, 0] = 1
    sheet = np.asarray(grid(pictures, zoom=4, gap=2))
    assert sheet.shape == (2 * 64 + 2, 10 * 64 + 9 * 2, 3)
    assert (sheet[66:130, 66:130] == (255, 0, 0)).all()
    assert (sheet[64:66] == 255).all() and (sheet[:64, :64] == 0).all()


def test_real_clips_score_close_to_one():
    found = clip_scores(real_clips(MOVING), MOVING)
    assert found["digit"] == found["steady"] >= 0.95
    assert min(found["colour"], found["direction"], found["background"]) >= 0.99


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("digit", lambda motion: replace(motion, digit=(motion.digit + 1) % 10)),
        ("colour", lambda motion: replace(motion, colour=after(COLOURS, motion.colour))),
        ("direction", lambda motion: replace(motion, direction=after(DIRECTIONS, motion.direction))),
        ("background", lambda motion: replace(motion, background=after(BACKGROUNDS, motion.background))),
    ],
)
def test_of_a_clip_what_is_wrong_is_found(word, change):
    found = clip_scores(real_clips([change(motion) for motion in MOVING]), MOVING)
    assert found[word] < 0.05
    assert min(found[other] for other in ("colour", "background") if other != word) >= 0.99


def test_a_clip_that_stands_still_or_runs_backwards_does_not_move_as_asked():
    clips = real_clips(MOVING)
    still = clips[:, :, FRAMES // 2 :][:, :, :1].repeat(FRAMES, axis=2)
    for wrong in (still, clips[:, :, ::-1]):
        assert clip_scores(wrong, MOVING)["direction"] == 0


def test_a_clip_that_turns_into_another_digit_is_not_steady():
    clips, others = (real_clips(motions) for motions in (MOVING, [replace(m, digit=9 - m.digit) for m in MOVING]))
    clips[:, :, -1] = others[:, :, -1]
    found = clip_scores(clips, MOVING)
    assert found["digit"] >= 0.95 and found["steady"] < 0.05


def test_noise_and_blank_clips_score_near_chance():
    shape = (len(MOVING), 3, FRAMES, 16, 16)
    for clips in (np.random.default_rng(0).random(shape, np.float32), np.full(shape, 0.5, np.float32)):
        found = clip_scores(clips, MOVING)
        assert max(found["digit"], found["colour"], found["direction"], found["steady"]) < 0.25
        assert found["background"] < 0.5


def test_grid_of_clips_holds_two_clips_a_row():
    clips = np.zeros((5, 3, FRAMES, 16, 16), np.float32)
    clips[3, 0, 7] = 1
    sheet = np.asarray(clip_grid(clips))
    assert sheet.shape == (2 * 64 + 2, 16 * 64 + 15 * 2, 3)
    assert (sheet[66:, 15 * 66 :] == (255, 0, 0)).all() and (sheet[66:, : 15 * 66 - 2, 0] != 255).any()


def test_clips_are_drawn_as_the_pipeline_draws_one_caption():
    pipeline = build("digits-latte")
    torch.nn.init.normal_(pipeline.transformer.proj_out.weight)
    captions = [str(motion) for motion in MOVING[:3]]
    together = render_clips(pipeline, captions, steps=3, guidance=2.0)
    for i, caption in enumerate(captions):
        alone = pipeline(
            caption,
            negative_prompt="",
            height=16,
            width=16,
            video_length=FRAMES,
            num_inference_steps=3,
            guidance_scale=2.0,
            clean_caption=False,
            generator=torch.Generator().manual_seed(i),
            output_type="np",
        ).frames[0]
        assert np.allclose(alone.transpose(3, 0, 1, 2), together[i], atol=1e-4)


@pytest.mark.parametrize("name", BUILDERS)
def test_an_untrained_model_is_scored_the_same_twice(tmp_path, name):
    build(name).save_pretrained(tmp_path)
    command = [str(tmp_path), "--count", "10", "--steps", "2", "--json", "-o", str(tmp_path / "grid.png"), "--force"]
    first, second = (CliRunner().invoke(main, command, catch_exceptions=False) for _ in range(2))
    assert first.stdout == second.stdout
    real = "real clips" if name == "digits-latte" else "real scenes"
    assert json.loads(first.stdout).keys() == {"count", "steps", "guidance", "model", real}
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize("broken", [None, "{", "{}", '{"_class_name": "NoSuchPipeline"}'])
def test_a_bad_folder_is_one_line(tmp_path, broken):
    if broken:
        (tmp_path / "model_index.json").write_text(broken)
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1 and str(tmp_path) in result.stderr


def test_an_existing_grid_is_kept(tmp_path):
    (tmp_path / "grid.png").write_bytes(b"mine")
    result = CliRunner().invoke(main, [str(tmp_path), "-o", str(tmp_path / "grid.png")])
    assert result.exit_code == 1 and "--force" in result.stderr
    assert (tmp_path / "grid.png").read_bytes() == b"mine"

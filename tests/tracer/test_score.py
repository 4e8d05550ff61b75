import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from dit_tracer.digits.models import BUILDERS, build
from dit_tracer.digits.scenes import BACKGROUNDS, COLOURS, LARGE_PLACES, PLACES, Scene
from dit_tracer.digits.score import _known_hands, _unseen_hands, asked_scenes, grid, main, real_pictures, scores

ASKED = asked_scenes(400, seed=1)


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


@pytest.mark.parametrize("name", BUILDERS)
def test_an_untrained_model_is_scored_the_same_twice(tmp_path, name):
    build(name).save_pretrained(tmp_path)
    command = [str(tmp_path), "--count", "10", "--steps", "2", "--json", "-o", str(tmp_path / "grid.png"), "--force"]
    first, second = (CliRunner().invoke(main, command, catch_exceptions=False) for _ in range(2))
    assert first.stdout == second.stdout
    assert json.loads(first.stdout).keys() == {"count", "steps", "guidance", "model", "real scenes"}
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

"""The bundled models, and how they are made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dit_tracer.digits.captions import FIRST_MOTIONS, captions, motions
from dit_tracer.digits.models import BUILDERS, KEPT, MOTION_TOKENS, TEXT_TOKENS, begin_with_images, build
from dit_tracer.digits.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    LANES,
    SIDE,
    Figure,
    Motion,
    Scene,
    all_motions,
    draw,
    draw_motion,
    motion_vocabulary,
    random_scene,
    single_scenes,
    vocabulary,
)
from dit_tracer.digits.scenes import DIGITS as DIGITS_BY_NAME
from dit_tracer.digits.train import Recipe, Trainer, numbered
from dit_tracer.models.catalog import BUNDLED, DIGITS
from dit_tracer.models.loading import load
from safetensors import safe_open


def test_every_caption_is_made_of_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    scenes = single_scenes() + [random_scene(rng) for _ in range(2000)]
    assert {word for scene in scenes for word in str(scene).split()} == set(vocabulary())
    assert max(len(str(scene).split()) for scene in scenes) < TEXT_TOKENS


def test_there_are_thousands_of_captions() -> None:
    assert len({str(scene) for scene in single_scenes()}) == 3360


def test_caption_reads_like_a_sentence() -> None:
    figures = Figure("small", "red", 7, "top left"), Figure("small", "blue", 5, "bottom right")
    caption = "a small red seven at the top left and a small blue five at the bottom right on a dark background"
    assert str(Scene(figures, "dark")) == caption


def test_scene_has_its_digits_where_it_says() -> None:
    rng = np.random.default_rng(1)
    for scene in (random_scene(rng) for _ in range(300)):
        image = draw(scene, rng)
        assert image.shape == (3, SIDE, SIDE) and image.min() >= 0 and image.max() <= 1
        plain = np.ones((SIDE, SIDE), bool)
        for figure in scene.figures:
            (top, left), side = figure.corner, {"small": 8, "large": 12}[figure.size]
            window = image[:, top : top + side, left : left + side]
            assert abs(window - np.array(COLOURS[figure.colour])[:, None, None]).sum(0).min() < 0.2
            plain[top : top + side, left : left + side] = False
        assert np.allclose(image[:, plain], BACKGROUNDS[scene.background])


def test_every_caption_of_a_motion_is_of_one_length_and_of_its_vocabulary() -> None:
    captions = [str(motion) for motion in all_motions()]
    assert len(set(captions)) == 960
    assert {len(caption.split()) + 1 for caption in captions} == {MOTION_TOKENS}
    assert {word for caption in captions for word in caption.split()} == set(motion_vocabulary())
    assert str(Motion("red", 7, "right", "dark")) == "a small red seven moving right on a dark background"


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_motion_goes_a_pixel_each_frame_the_way_it_says(direction: str) -> None:
    rng = np.random.default_rng(1)
    clip = draw_motion(Motion("red", 8, direction, "dark"), rng)
    assert clip.shape == (3, FRAMES, SIDE, SIDE) and clip.min() >= 0 and clip.max() <= 1
    for earlier, later in zip(clip.swapaxes(0, 1), clip.swapaxes(0, 1)[1:]):
        assert np.array_equal(np.roll(earlier, DIRECTIONS[direction], axis=(1, 2)), later)
        assert not np.array_equal(earlier, later)


def test_a_motion_stays_in_the_picture() -> None:
    corners = [motion.corner(lane, i) for motion in all_motions() for lane in LANES for i in (0, FRAMES - 1)]
    assert np.min(corners) == 0 and np.max(corners) == SIDE - 8


def test_default_captions_of_motions_are_distinct_and_balanced() -> None:
    first = motions(16)
    assert first == list(FIRST_MOTIONS) == motions(960)[:16]
    assert set(motions(960)) == {str(motion) for motion in all_motions()}
    words = Counter(" ".join(first).split())
    assert min(words[word] for word in (*DIGITS_BY_NAME, *COLOURS, *BACKGROUNDS, *DIRECTIONS)) >= 1
    with pytest.raises(ValueError, match="there are 960"):
        motions(961)


def test_default_captions_are_distinct_and_balanced() -> None:
    first = captions(16)
    assert len(set(first)) == 16 and first == captions(100)[:16] and len(set(captions(100))) == 100
    words = Counter(" ".join(first).split())
    assert min(words[word] for word in (*DIGITS_BY_NAME, *COLOURS, *BACKGROUNDS)) >= 1


def test_captions_need_no_scikit_learn() -> None:
    code = "import sys; from dit_tracer.digits.captions import captions; captions(40); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_latents_are_the_pixels() -> None:
    vae = build("digits-flux").vae
    x = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        z = vae.encode(x).latents * vae.config.scaling_factor
        assert torch.allclose(z, x, atol=1e-6)
        assert torch.allclose(vae.decode(z / vae.config.scaling_factor).sample, x, atol=2e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_training_goes_on_where_it_stopped(name: str, tmp_path: Path) -> None:
    recipe = Recipe(iterations=8, batch=4, warmup=2, stills=1, clips=1)
    straight, stopped = Trainer(name, recipe, "cpu"), Trainer(name, recipe, "cpu")
    losses = [straight.step() for _ in range(4)]
    for _ in range(2):
        stopped.step()
    stopped.save(tmp_path / "state.safetensors")
    resumed = Trainer(name, replace(recipe), "cpu")
    resumed.load(tmp_path / "state.safetensors")
    assert [resumed.step() for _ in range(2)] == losses[2:]
    for key, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[key]), key
        assert torch.equal(straight.average[key], resumed.average[key]), key


def test_the_video_model_begins_as_digits_pixart_with_some_layers_left_out() -> None:
    latte, pixart = build("digits-latte", seed=3), load(BUNDLED["digits-pixart"], device="cpu")
    begin_with_images(latte, pixart)
    layers = pixart.transformer.transformer_blocks
    pixart.transformer.transformer_blocks = torch.nn.ModuleList(layers[i] for i in KEPT)
    noisy, timestep = torch.randn(2, 3, SIDE, SIDE), torch.tensor([300, 800])
    captions = ["a small red seven on a dark background", "a small blue four on a light background"]
    with torch.no_grad():
        texts = [p.text_encoder(p.tokenizer(captions, return_tensors="pt").input_ids)[0] for p in (latte, pixart)]
        video = latte.transformer(
            noisy[:, :, None], timestep, texts[0], enable_temporal_attentions=False, return_dict=False
        )[0]
        nothing = {"resolution": None, "aspect_ratio": None}
        image = pixart.transformer(noisy, texts[1], timestep, nothing, return_dict=False)[0]
    assert torch.equal(*texts)
    assert torch.equal(video[:, :3, 0], image) and not video[:, 3:].any()


def test_a_clip_is_what_its_frames_are_until_temporal_attention_learns() -> None:
    trainer = Trainer("digits-latte", Recipe(batch=4, warmup=1, stills=3), "cpu")
    for _ in range(3):
        trainer.step()
    transformer = trainer.pipeline.transformer
    clips, text = torch.randn(2, 3, FRAMES, SIDE, SIDE), torch.randn(2, MOTION_TOKENS, 96)
    timestep, numbers = torch.tensor([300, 700]), torch.arange(FRAMES).repeat(2)
    with torch.no_grad():
        whole = transformer(clips, timestep, text, return_dict=False)[0]
        with numbered(transformer, numbers):
            apart = transformer(
                clips.transpose(1, 2).reshape(-1, 3, 1, SIDE, SIDE),
                timestep.repeat_interleave(FRAMES),
                text.repeat_interleave(FRAMES, dim=0),
                enable_temporal_attentions=False,
                return_dict=False,
            )[0]
    assert whole.abs().max() > 1e-3
    assert torch.allclose(whole, apart.reshape(2, FRAMES, -1, SIDE, SIDE).transpose(1, 2), atol=1e-6)


def test_the_video_model_learns_stills_first_then_clips() -> None:
    trainer = Trainer("digits-latte", Recipe(batch=4, clips=2, warmup=1, stills=2), "cpu")
    temporal = trainer.weights["transformer.temporal_transformer_blocks.0.attn1.to_out.0.weight"]
    seen = []
    for _ in range(5):
        trainer.step()
        seen.append(temporal.abs().max().item())
    assert seen[0] == seen[1] == 0 < seen[2] < 1 and seen[3] == seen[2] != seen[4]


def test_trained_folder_is_an_ordinary_one(tmp_path: Path) -> None:
    trainer = Trainer("digits-pixart", Recipe(iterations=1, batch=2), "cpu")
    trainer.step()
    trainer.export(tmp_path / "mine", {"name": "mine"})
    again = load(replace(BUNDLED["digits-pixart"], source=str(tmp_path / "mine")), device="cpu")
    stored = again.transformer.pos_embed.proj.weight
    assert torch.equal(stored, trainer.average["transformer.pos_embed.proj.weight"].half().float())


def test_trained_folder_is_read_by_older_transformers(tmp_path: Path) -> None:
    """They know CLIP's weights by another name, and would draw at random what they do not find."""
    trainer = Trainer("digits-flux", Recipe(iterations=1, batch=2), "cpu")
    trainer.step()
    trainer.export(tmp_path / "mine", {"name": "mine"})
    for folder in (tmp_path / "mine", DIGITS / "digits-flux"):
        with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as file:
            assert all(key.startswith("text_model.") for key in file.keys())


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_folder_is_small_and_plain(name: str) -> None:
    files = [file for file in (DIGITS / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= (6_000_000 if name == "digits-latte" else 5_000_000)
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_model_is_of_stock_classes_in_float16(name: str) -> None:
    parts = json.loads((DIGITS / name / "model_index.json").read_text())
    homes = {value[0] for value in parts.values() if isinstance(value, list)}
    assert homes <= {"diffusers", "transformers", None}
    weights = DIGITS / name / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_folder_needs_nothing_but_from_pretrained(name: str) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(BUNDLED[name].source)
    assert {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    pipeline("a large cyan two at the center on a dark background", num_inference_steps=2, **BUNDLED[name].call)


@pytest.mark.parametrize("name", [name for name in BUNDLED if name != "digits-latte"])
def test_bundled_model_draws_what_is_asked(name: str) -> None:
    """A red ring on a dark ground; the measured scores stand in docs/models.md."""
    from dit_tracer.digits.score import scores

    pipeline = load(BUNDLED[name], device="cpu")
    scene = Scene((Figure("large", "red", 0, "center"),), "dark")
    generator = torch.Generator().manual_seed(0)
    image = pipeline(
        str(scene), num_inference_steps=28, generator=generator, output_type="np", **BUNDLED[name].call
    ).images[0]
    assert scores(image.transpose(2, 0, 1)[None], [scene]) == {"digit": 1, "colour": 1, "place": 1, "background": 1}


def test_bundled_video_model_draws_what_is_asked() -> None:
    """A red ring going down on a dark ground; the measured scores stand in docs/models.md."""
    from diffusers import DiffusionPipeline
    from dit_tracer.digits.score import clip_scores, render_clips

    pipeline = DiffusionPipeline.from_pretrained(DIGITS / "digits-latte", torch_dtype=torch.float32)
    motion = Motion("red", 0, "down", "dark")
    clips = render_clips(pipeline, [str(motion)], steps=28, guidance=2.0)
    found = clip_scores(clips, [motion])
    assert found == {"digit": 1, "colour": 1, "direction": 1, "background": 1, "steady": 1}

"""The bundled models, and how they are made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from dit_tracer.digits.captions import captions
from dit_tracer.digits.models import BUILDERS, TEXT_TOKENS, build
from dit_tracer.digits.scenes import (
    BACKGROUNDS,
    COLOURS,
    SIDE,
    Figure,
    Scene,
    draw,
    random_scene,
    single_scenes,
    vocabulary,
)
from dit_tracer.digits.scenes import DIGITS as DIGITS_BY_NAME
from dit_tracer.digits.train import Recipe, Trainer
from dit_tracer.models.catalog import DIGITS, MODELS
from dit_tracer.models.loading import load


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
    recipe = Recipe(iterations=8, batch=4, warmup=2)
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


def test_trained_folder_is_an_ordinary_one(tmp_path: Path) -> None:
    trainer = Trainer("digits-pixart", Recipe(iterations=1, batch=2), "cpu")
    trainer.step()
    trainer.export(tmp_path / "mine", {"name": "mine"})
    again = load(replace(MODELS["digits-pixart"], source=str(tmp_path / "mine")), device="cpu")
    stored = again.transformer.pos_embed.proj.weight
    assert torch.equal(stored, trainer.average["transformer.pos_embed.proj.weight"].half().float())


@pytest.mark.parametrize("name", MODELS)
def test_bundled_folder_is_small_and_plain(name: str) -> None:
    files = [file for file in (DIGITS / name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 5_000_000
    assert {file.suffix for file in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", MODELS)
def test_bundled_model_is_of_stock_classes_in_float16(name: str) -> None:
    parts = json.loads((DIGITS / name / "model_index.json").read_text())
    homes = {value[0] for value in parts.values() if isinstance(value, list)}
    assert homes <= {"diffusers", "transformers", None}
    from safetensors import safe_open

    weights = DIGITS / name / "transformer" / "diffusion_pytorch_model.safetensors"
    with safe_open(weights, "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F16"}


@pytest.mark.parametrize("name", MODELS)
def test_bundled_folder_needs_nothing_but_from_pretrained(name: str) -> None:
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(MODELS[name].source)
    assert {part.dtype for part in pipeline.components.values() if isinstance(part, torch.nn.Module)} == {torch.float32}
    pipeline("a large cyan two at the center on a dark background", num_inference_steps=2, **MODELS[name].call)


@pytest.mark.parametrize(("name", "caption"), product(MODELS, ["a large red zero at the center on a dark background"]))
def test_bundled_model_draws_what_is_asked(name: str, caption: str) -> None:
    """A red ring on a dark ground; the measured scores stand in docs/models.md."""
    from dit_tracer.digits.score import scores

    pipeline = load(MODELS[name], device="cpu")
    generator = torch.Generator().manual_seed(0)
    image = pipeline(
        caption, num_inference_steps=28, generator=generator, output_type="np", **MODELS[name].call
    ).images[0]
    scene = Scene((Figure("large", "red", 0, "center"),), "dark")
    assert scores(image.transpose(2, 0, 1)[None], [scene]) == {"digit": 1, "colour": 1, "place": 1, "background": 1}

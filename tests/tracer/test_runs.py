"""Prompts that bring arguments along, several seeds, and pipelines that are called in other ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from dit_formats import open_trace
from dit_formats.prompts import Request, read_requests
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.settings import Sample, What
from dit_tracer.runs import Outcome, run
from dit_tracer.work import Task, Work, plan
from PIL import Image

SD3 = find("tiny:sd3")


def trace(pipeline: Any, work: Work, path: Path, **call: Any) -> Outcome:
    settings = {"model": "mine", "sample": Sample(64, 64), "what": What(), "defaults": {"num_inference_steps": 2}}
    return run(lambda: pipeline, work, path, call=call, quiet=True, **settings)


def sums(path: Path) -> dict[tuple[str, int], np.ndarray]:
    """Sums over the latent stream by text and seed."""
    with open_trace(path) as opened:
        found = opened.step_sums("latent")
        return {(prompt.text, prompt.seed): found[row] for row, prompt in enumerate(opened.prompts)}


def requests(*lines: tuple[str, dict[str, Any]]) -> list[Request]:
    return [Request(text, arguments) for text, arguments in lines]


def test_texts_vary_and_numbers_are_settings() -> None:
    work = plan(
        requests(("a", {"height": 16, "negative_prompt": "x"}), ("b", {"height": 16, "image": "b.png"})), seeds=[4]
    )
    assert work.shared == {"height": 16}
    assert work.varies == ("image", "negative_prompt")
    assert work.tasks == [Task("a", 4, {"negative_prompt": "x"}), Task("b", 4, {"image": "b.png"})]


def test_limit_counts_prompts_and_changes_no_setting() -> None:
    """A trace begun with few prompts must be open to the rest, so the rest is looked at from the start."""
    lines = requests(("a", {}), ("a", {}), ("b", {}), ("c", {"negative_prompt": "x"}))
    few, all_of_them = plan(lines, [0, 1], 2), plan(lines, [0, 1])
    assert [(task.text, task.seed) for task in few.tasks] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert few.varies == all_of_them.varies == ("negative_prompt",)
    assert all_of_them.tasks[:4] == few.tasks


def test_prompt_with_a_seed_of_its_own_has_that_alone() -> None:
    work = plan(requests(("a", {"seed": 5}), ("a", {"seed": 6}), ("b", {})), seeds=[0, 1])
    assert [(task.text, task.seed) for task in work.tasks] == [("a", 5), ("a", 6), ("b", 0), ("b", 1)]
    assert (work.shared, work.varies) == ({}, ())


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([("a", {"height": 16}), ("b", {"height": 32})], "prompts differ in height .16 and 32."),
        ([("a", {"height": 16}), ("b", {})], "prompts differ in height .16 and none."),
        ([("a", {"negative_prompt": "x"}), ("a", {"negative_prompt": "y"})], "'a' with seed 1 comes twice"),
        ([("a", {"seed": True})], "gives the seed True"),
        ([("a", {"seed": "1"})], "gives the seed '1'"),
    ],
)
def test_prompts_that_do_not_make_one_trace_are_refused(lines: list[Any], said: str) -> None:
    with pytest.raises(LookupError, match=said):
        plan(requests(*lines), [1])


def test_negative_prompts_reach_the_pipeline_one_by_one(tmp_path: Path) -> None:
    """Prompts of one trace may differ in it; each is what a run with that negative prompt alone gives."""
    pipeline = tiny.build("sd3")
    lines = requests(("a", {"negative_prompt": "a green bus"}), ("b", {"negative_prompt": "snow"}), ("c", {}))
    outcome = trace(pipeline, plan(lines, [0]), tmp_path / "all", **SD3.call)
    assert outcome == Outcome(traced=3)
    alone = trace(pipeline, plan([Request("b")], [0]), tmp_path / "alone", **SD3.call, negative_prompt="snow")
    without = trace(pipeline, plan([Request("b")], [0]), tmp_path / "without", **SD3.call)
    assert alone == without == Outcome(traced=1)
    found = sums(tmp_path / "all")
    assert np.array_equal(found["b", 0], sums(tmp_path / "alone")["b", 0], equal_nan=True)
    assert not np.array_equal(found["b", 0], sums(tmp_path / "without")["b", 0], equal_nan=True)


def test_run_goes_on_with_prompts_that_vary(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    lines = requests(("a", {"negative_prompt": "x"}), ("b", {"negative_prompt": "y"}))
    assert trace(pipeline, plan(lines, [0], 1), tmp_path / "t", **SD3.call) == Outcome(traced=1)
    assert trace(pipeline, plan(lines, [0]), tmp_path / "t", **SD3.call) == Outcome(traced=1, present=1)


def test_pictures_of_a_list_are_opened(tmp_path: Path) -> None:
    """Image to image: a red and a blue picture, found beside the list that names them."""
    pipeline = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.build("sd3").components)
    pipeline.set_progress_bar_config(disable=True)
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a", "image": "red.png", "seed": 1}\n{"prompt": "a", "image": "blue.png", "seed": 2}\n'
        '{"prompt": "b", "image": "red.png", "seed": 1}\n'
    )
    work = plan(read_requests(str(tmp_path / "p.jsonl")), [0])
    assert trace(pipeline, work, tmp_path / "t", max_sequence_length=32) == Outcome(traced=3)
    found = sums(tmp_path / "t")
    first = {key: value[..., 0, :, 0] for key, value in found.items()}  # the first layer has met no text yet
    assert list(first) == [("a", 1), ("a", 2), ("b", 1)]
    assert not np.array_equal(first["a", 1], first["a", 2], equal_nan=True)


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
def test_file_that_is_no_picture_is_refused_before_anything_runs(content: bytes, tmp_path: Path) -> None:
    pipeline = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.build("sd3").components)
    picture = tmp_path / "a.png"
    picture.write_bytes(content)
    with pytest.raises(LookupError, match="a.png: no picture"):
        trace(pipeline, plan(requests(("a", {"image": str(picture)})), [0]), tmp_path / "t")
    assert not (tmp_path / "t").exists()


def dit() -> Any:
    """DiT draws one of 1000 classes and has a number for none of them."""
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    names = {0: "tench, Tinca tinca", 1: "goldfish"}
    pipeline = diffusers.DiTPipeline(transformer.eval(), vae, diffusers.DDIMScheduler(), id2label=names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_class_conditional_pipeline_takes_numbers_and_names(tmp_path: Path) -> None:
    pipeline = dit()
    assert trace(pipeline, plan([Request("1"), Request("0")], [0]), tmp_path / "t") == Outcome(traced=2)
    assert trace(pipeline, plan([Request("1"), Request("0")], [0]), tmp_path / "t") == Outcome(present=2)
    assert trace(pipeline, plan([Request("goldfish")], [0]), tmp_path / "t") == Outcome(traced=1)
    found = sums(tmp_path / "t")
    assert np.array_equal(found["1", 0], found["goldfish", 0], equal_nan=True)
    with pytest.raises(LookupError, match="DiTPipeline draws classes, not texts; 'a red bus' is none"):
        trace(pipeline, plan([Request("a red bus")], [0]), tmp_path / "other")


class Bare(diffusers.StableDiffusion3Pipeline):
    """A pipeline that is called with what nobody gives it."""

    def __call__(self, prompt: str, style: str) -> None:
        raise AssertionError


class Mute(diffusers.StableDiffusion3Pipeline):
    """A pipeline that is told neither text nor class."""

    def __call__(self, latents: Any = None) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Bare, "Bare needs style; give it with --pipeline-kwargs"), (Mute, "Mute takes neither prompt nor class_labels")],
)
def test_pipeline_that_cannot_be_called_names_the_argument(kind: type, said: str, tmp_path: Path) -> None:
    pipeline = kind(**tiny.build("sd3").components)
    with pytest.raises(LookupError, match=said):
        trace(pipeline, plan([Request("a")], [0]), tmp_path / "t")

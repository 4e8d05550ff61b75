"""Streams and branches of the twins: whose tokens, which guidance half, which call; against hooks of the test's own."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import dit_analyzer
import dit_formats
import dit_tracer
import numpy as np
import pytest
import torch
from dit_formats.reader import Trace
from dit_tracer.models import catalog, tiny
from dit_tracer.recording.settings import Sample
from numpy.typing import NDArray

PROMPT = "a red bus"
LONG = "an old photograph of a blue lighthouse in a storm at night"
STEPS = 4

UNCOND_FIRST, COND_FIRST = ("uncond", "cond"), ("cond", "uncond")

BATCHED = {
    "pixart-alpha": ("transformer.transformer_blocks.1.attn1", UNCOND_FIRST),
    "sd3": ("transformer.transformer_blocks.2.attn", UNCOND_FIRST),
    "sd3.5": ("transformer.transformer_blocks.1.attn2", UNCOND_FIRST),
    "cogvideox-5b": ("transformer.transformer_blocks.1.attn1", UNCOND_FIRST),
    "open-sora": ("transformer.temporal_blocks.1.attn", COND_FIRST),
    "latte-1": ("transformer.temporal_transformer_blocks.1.attn1", UNCOND_FIRST),
    "mochi-1-preview": ("transformer.transformer_blocks.2.attn1", UNCOND_FIRST),
    "ltx": ("transformer.transformer_blocks.1.attn1", UNCOND_FIRST),
    "sana": ("transformer.transformer_blocks.1.attn1", UNCOND_FIRST),
    "z-image": ("transformer.layers.1.attention", COND_FIRST),
    "stable-diffusion": ("unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1", UNCOND_FIRST),
}
"""A late self-attention layer, and how the halves of the batch lie by what each pipeline's source says."""

TWO_CALLS = {
    "flux.1-dev": "transformer.single_transformer_blocks.2.attn",
    "wan2.1": "transformer.blocks.1.attn1",
    "qwen-image": "transformer.transformer_blocks.1.attn",
    "lumina2": "transformer.layers.1.attn",
}
"""A late layer of a transformer that is called twice a step, first for the prompt."""

FURTHER = {"flux.1-dev": {"true_cfg_scale": 3.0, "negative_prompt": "a green fox"}}
"""What it takes beside a twin's own arguments to guide it."""

UNGUIDED = {
    "flux.1-dev": {"true_cfg_scale": 1.0},
    "qwen-image": {"true_cfg_scale": 1.0},
    "z-image": {"guidance_scale": 0.0},
}
"""What turns guidance off, where it is not a guidance_scale of 1."""

IMAGES = {
    "flux.1-dev": ("num_images_per_prompt", ("cond",)),
    "pixart-alpha": ("num_images_per_prompt", UNCOND_FIRST),
    "latte-1": ("num_images_per_prompt", UNCOND_FIRST),
    "mochi-1-preview": ("num_videos_per_prompt", UNCOND_FIRST),
    "z-image": ("num_images_per_prompt", COND_FIRST),
}
"""Twins that make several images of a prompt at once, and the branches of their batch, each holding all images."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        yield
    torch.set_num_threads(threads)


@cache
def twin(name: str) -> Any:
    return tiny.build(name)


def trace(name: str, path: Path, *prompts: str, sample: Sample | None = None, **changes: Any) -> Trace:
    """The trace of these prompts, or of the usual one; `changes` are arguments of the pipeline's call."""
    call = catalog.find(f"tiny:{name}").call | {"num_inference_steps": STEPS, "output_type": "latent"} | changes
    with dit_tracer.record(twin(name), path, sample=sample, stack=False) as recorder:
        for prompt in prompts or (PROMPT,):
            with recorder.prompt(prompt):
                twin(name)(prompt, generator=torch.Generator().manual_seed(0), **call)
    return dit_formats.open_trace(path)


@contextmanager
def outputs_of(name: str, path: str) -> Iterator[list[torch.Tensor]]:
    """What the module at this path returns, call by call; of several tensors the first."""
    part, _, inside = path.partition(".")
    seen: list[torch.Tensor] = []

    def note(module: torch.nn.Module, args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handle = getattr(twin(name), part).get_submodule(inside).register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def place(trace: Trace, layer: str) -> int:
    return [one.name for one in trace.layers].index(layer)


def sums(trace: Trace, layer: str, kind: str = "a", prompt: int = 0) -> dict[str, NDArray[np.float64]]:
    """Sum of |x| by branch, (step): of latent tokens, and of text tokens too where the layer joins them before."""
    at = place(trace, layer)
    streams = ("latent", "text") if trace.layers[at].type == "single" else ("latent",)
    found = sum(trace.step_sums(s)[prompt, :, trace.kinds(s).index(kind), at, 0] for s in streams)
    return dict(zip(trace.branches("latent"), found))


def counts(trace: Trace, stream: str, kind: str, layer: int = 0) -> NDArray[np.float64]:
    """Elements (prompt, branch, step)."""
    return trace.step_sums(stream)[:, :, trace.kinds(stream).index(kind), layer, 3]


def sizes(parts: list[torch.Tensor]) -> list[float]:
    return [float(part.double().abs().sum()) for part in parts]


# Guidance ----------------------------------------------------------------------


@pytest.mark.parametrize("name", BATCHED)
def test_halves_of_a_batch_are_named_as_the_pipeline_laid_them(name: str, tmp_path: Path) -> None:
    layer, order = BATCHED[name]
    with outputs_of(name, layer) as seen, trace(name, tmp_path / "a.trace") as found:
        by_branch = sums(found, layer)
    assert set(by_branch) == {"cond", "uncond"} and len(by_branch["cond"]) == len(seen)
    for half, branch in enumerate(order):
        np.testing.assert_allclose(by_branch[branch], sizes([output.chunk(2)[half] for output in seen]), rtol=2e-7)


@pytest.mark.parametrize("name", TWO_CALLS)
def test_two_calls_in_a_step_are_cond_and_uncond(name: str, tmp_path: Path) -> None:
    layer = TWO_CALLS[name]
    with outputs_of(name, layer) as seen, trace(name, tmp_path / "a.trace", **FURTHER.get(name, {})) as found:
        by_branch = sums(found, layer)
    assert set(by_branch) == {"cond", "uncond"} and len(seen) == 2 * STEPS
    np.testing.assert_allclose(by_branch["cond"], sizes(seen[0::2]), rtol=2e-7)
    np.testing.assert_allclose(by_branch["uncond"], sizes(seen[1::2]), rtol=2e-7)


@pytest.mark.parametrize("name", [*BATCHED, *TWO_CALLS])
def test_cond_is_what_the_prompt_alone_gives(name: str, tmp_path: Path) -> None:
    """At the first step, whose noise is the same with guidance and without; without, there is `cond` alone."""
    layer = TWO_CALLS.get(name) or BATCHED[name][0]
    further = FURTHER.get(name, {})
    with trace(name, tmp_path / "guided.trace", **further) as found:
        guided = sums(found, layer)
    with trace(name, tmp_path / "alone.trace", **further | UNGUIDED.get(name, {"guidance_scale": 1.0})) as found:
        alone = sums(found, layer)
    assert set(alone) == {"cond"}
    assert guided["cond"][0] == pytest.approx(alone["cond"][0], rel=1e-5)
    assert guided["uncond"][0] != pytest.approx(alone["cond"][0], rel=1e-4)


def test_a_third_call_in_a_step_is_a_branch_of_its_own(tmp_path: Path) -> None:
    """SD3 that skips a layer: after the guided batch, from the second step on, the prompt without that layer."""
    layer = "transformer.transformer_blocks.2.attn"
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    with outputs_of("sd3", layer) as seen, outputs_of("sd3", f"{layer}.to_k") as keys:
        with trace("sd3", tmp_path / "a.trace", **skip) as found:
            by_branch, recorded = sums(found, layer), found.geometry("latent", "recorded")
            view = dit_analyzer.paper_view(dit_analyzer.distances(found))
    assert [len(output) for output in seen] == [2, 2, 1, 2, 1, 2, 1]
    assert found.branches("latent") == ("call1", "cond", "uncond")
    batches = [output for output in seen if len(output) == 2]
    for half, branch in enumerate(UNCOND_FIRST):
        np.testing.assert_allclose(by_branch[branch], sizes([output[half] for output in batches]), rtol=2e-7)
    np.testing.assert_allclose(by_branch["call1"], [np.nan, *sizes([x for x in seen if len(x) == 1])], rtol=2e-7)
    assert (recorded[0] == np.array([[0, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]])).all() and recorded[1:].all()
    halves = [key for key in keys if len(key) == 2]
    expected = [float((after - before).abs().mean()) for before, after in zip(halves, halves[1:])]
    np.testing.assert_allclose(view["l1"].sel(kind="k")[0, 2], expected, rtol=1e-5)


def test_two_transformers_share_the_steps(tmp_path: Path) -> None:
    """Wan 2.2: each is recorded where it ran; between the last step of one and the first of the other is no change."""
    calls: list[str] = []
    handles = [
        getattr(twin("wan2.2"), part).register_forward_hook(lambda *_, part=part: calls.append(part))
        for part in ("transformer", "transformer_2")
    ]
    with trace("wan2.2", tmp_path / "a.trace", num_inference_steps=6) as found:
        owners = np.array([layer.name.partition(".")[0] for layer in found.layers])
        recorded, l1 = found.geometry("latent", "recorded"), dit_analyzer.distances(found)["l1"]
        view = dit_analyzer.paper_view(dit_analyzer.distances(found))["l1"]
    for handle in handles:
        handle.remove()
    assert set(owners) == {"transformer", "transformer_2"} and calls[0::2] == calls[1::2]
    ran = np.array([call == owners for call in calls[0::2]]).T  # (layer, step)
    assert 1 < ran[0].sum() < 5
    both = ran[:, 1:] & ran[:, :-1]  # (layer, transition)
    a = found.kinds("latent").index("a")
    assert (recorded[:, a] == ran).all()
    assert (l1.sel(stream="latent", kind="a", prompt=0).notnull().values == both).all()
    self_layers = [place(found, name) for name in view.layer_name.values]
    assert (view[0].notnull().values == both[self_layers]).all()
    assert not both.any(0).all(), "the transition at the switch belongs to neither"


# Streams -----------------------------------------------------------------------


def test_text_of_mochi_is_as_long_as_the_prompt(tmp_path: Path) -> None:
    """Tokens that a prompt does not have are counted nowhere and NaN in the sample; A of text is half as wide."""
    longest = catalog.find("tiny:mochi-1-preview").call["max_sequence_length"]
    lengths = [len(twin("mochi-1-preview").tokenizer(text).input_ids) for text in (PROMPT, LONG, "")]
    assert lengths[0] < lengths[1] < longest and lengths[2] == 1
    everything = Sample(latent=10**9, text=10**9)
    with trace("mochi-1-preview", tmp_path / "a.trace", PROMPT, LONG, sample=everything) as found:
        assert found.branches("text") == ("cond", "uncond")
        for kind, width in {"k": 32, "v": 32, "o": 32, "a": 16}.items():
            of_text, at = counts(found, "text", kind), found.kinds("text").index(kind)
            expected = width * np.array([[lengths[0], lengths[2]], [lengths[1], lengths[2]]])
            assert (of_text == expected[..., None]).all(), kind
            assert (counts(found, "latent", kind) == 32 * 32).all()
            assert (found.geometry("text", "num_tokens")[at] == longest).all()
            tokens = found.geometry("text", "token")[at, 0]
            for prompt in range(2):
                sample = found.samples("text", prompt)[:, at, 0]
                for branch, length in enumerate((lengths[prompt], lengths[2])):
                    missing = np.isnan(sample[branch]).all(-1)
                    assert (missing == ((tokens < 0) | (tokens >= length))).all()
                    assert np.isfinite(sample[branch][~missing]).all()
        assert (found.step_sums("text")[..., 4, :] == 0).all(), "what does not exist is not non-finite"


@pytest.mark.parametrize("prompts", [(PROMPT, LONG), (LONG, PROMPT)])
def test_text_of_latte_is_as_long_as_the_prompt(prompts: tuple[str, str], tmp_path: Path) -> None:
    """Its cross-attention gets the tokens of the prompt once for every frame."""
    lengths = np.array([len(twin("latte-1").tokenizer(text).input_ids) for text in prompts])
    with trace("latte-1", tmp_path / "a.trace", *prompts) as found:
        cross = place(found, "transformer.transformer_blocks.0.attn2")
        of_text = counts(found, "text", "k", cross)
    assert (of_text == 4 * 32 * lengths[:, None, None]).all()


def test_text_of_mochi_may_be_nothing(tmp_path: Path) -> None:
    """As the original has it for an empty negative prompt."""
    pipeline = twin("mochi-1-preview")
    pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    try:
        with trace("mochi-1-preview", tmp_path / "a.trace") as found:
            of_text = counts(found, "text", "k")
            latent = dit_analyzer.paper_view(dit_analyzer.distances(found))["l1"]
    finally:
        pipeline.register_to_config(force_zeros_for_empty_prompt=False)
    assert (of_text[0, 0] > 0).all() and (of_text[0, 1] == 0).all()
    assert latent.notnull().all()


def test_second_attention_of_sd35_is_a_layer_of_latent_tokens_alone(tmp_path: Path) -> None:
    block = "transformer.transformer_blocks.0"
    with outputs_of("sd3.5", f"{block}.attn.to_v") as joint, outputs_of("sd3.5", f"{block}.attn2.to_v") as second:
        with trace("sd3.5", tmp_path / "a.trace") as found:
            first, other = place(found, f"{block}.attn"), place(found, f"{block}.attn2")
            values = {seen: sums(found, f"{block}.{seen}", "v") for seen in ("attn", "attn2")}
    assert [layer.type for layer in found.layers] == ["joint", "self", "joint", "self", "joint"]
    assert other == first + 1
    for name, seen in {"attn": joint, "attn2": second}.items():
        for half, branch in enumerate(UNCOND_FIRST):
            np.testing.assert_allclose(values[name][branch], sizes([output[half] for output in seen]), rtol=2e-7)
    recorded = found.geometry("text", "recorded")
    assert recorded[:, :, first].all() and not recorded[:, :, other].any()


# Several images of one prompt --------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_one_prompt_are_told_apart(name: str, tmp_path: Path) -> None:
    argument, branches = IMAGES[name]
    layer = TWO_CALLS.get(name) or BATCHED[name][0]
    with outputs_of(name, layer) as seen, trace(name, tmp_path / "a.trace", **{argument: 2}) as found:
        by_image = [sums(found, layer, prompt=image) for image in range(2)]
    assert [(prompt.text, prompt.seed, prompt.image) for prompt in found.prompts] == [(PROMPT, 0, 0), (PROMPT, 0, 1)]
    parts = [output.chunk(2 * len(branches)) for output in seen]
    for image in range(2):
        for half, branch in enumerate(branches):
            expected = sizes([part[2 * half + image] for part in parts])
            np.testing.assert_allclose(by_image[image][branch], expected, rtol=2e-7)
    assert by_image[0]["cond"][-1] != pytest.approx(by_image[1]["cond"][-1], rel=1e-4)


def test_images_of_one_prompt_are_told_apart_in_two_calls(tmp_path: Path) -> None:
    layer = TWO_CALLS["wan2.1"]
    with outputs_of("wan2.1", layer) as seen, trace("wan2.1", tmp_path / "a.trace", num_videos_per_prompt=2) as found:
        by_image = [sums(found, layer, prompt=image) for image in range(2)]
    for image in range(2):
        for call, branch in enumerate(("cond", "uncond")):
            expected = sizes([output[image] for output in seen[call::2]])
            np.testing.assert_allclose(by_image[image][branch], expected, rtol=2e-7)


def test_perturbed_attention_guidance_is_refused(tmp_path: Path) -> None:
    """Its perturbed layers attend to a part of the batch only."""
    from diffusers import StableDiffusion3PAGPipeline

    call = catalog.find("tiny:sd3").call | {"num_inference_steps": STEPS, "output_type": "latent"}
    for scale in (0.0, 3.0):
        parts = {k: v for k, v in tiny.build("sd3").components.items() if not k.startswith(("image", "feature"))}
        pipeline = StableDiffusion3PAGPipeline(**parts, pag_applied_layers=["blocks.1"])
        with dit_tracer.record(pipeline, tmp_path / f"{scale}.trace") as recorder:
            refused = pytest.raises(ValueError, match="pag_scale=0") if scale else nullcontext()
            with refused, recorder.prompt(PROMPT):
                pipeline(PROMPT, pag_scale=scale, **call)

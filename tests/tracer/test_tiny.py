"""Twins: the pipelines that they claim to be, alive in every layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from dit_tracer.models import tiny
from dit_tracer.models.catalog import SEVEN, TWINS, find

STEPS = 3

NAMES = [name for name in tiny.TWINS if tiny.available(name)]

TWO_CALLS = {"wan2.1", "wan2.2", "qwen-image", "lumina2"}
"""Guidance halves are two calls; the first layer may see the same in both."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


@cache
def twin(name: str) -> Any:
    return tiny.build(name)


def generate(pipeline: Any, name: str, prompt: str) -> torch.Tensor:
    call = find(f"tiny:{name}").call | {"num_inference_steps": STEPS, "output_type": "latent"}
    return pipeline(prompt=prompt, generator=torch.Generator().manual_seed(0), **call)[0]


def attentions(pipeline: Any) -> dict[str, torch.nn.Module]:
    """Attention modules of the denoisers."""
    return {
        f"{part}.{path}": module
        for part in ("transformer", "transformer_2", "unet")
        if isinstance(getattr(pipeline, part, None), torch.nn.Module)
        for path, module in getattr(pipeline, part).named_modules()
        if isinstance(module, (Attention, MochiAttention, AttentionModuleMixin))
    }


def test_the_catalog_and_the_builders_know_the_same_twins() -> None:
    assert [f"tiny:{name}" for name in tiny.TWINS] == list(TWINS)
    with pytest.raises(LookupError, match="unknown twin 'sd4'; known are flux.1-dev"):
        tiny.build("tiny:sd4")


@pytest.mark.parametrize("name", NAMES)
def test_a_twin_is_its_familys_pipeline_in_miniature(name: str) -> None:
    pipeline = twin(name)
    assert type(pipeline).__name__ == find(f"tiny:{name}").pipeline
    if name in SEVEN:
        assert type(pipeline).__name__ == SEVEN[name].pipeline
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    weights = [weight for module in modules for weight in module.parameters()]
    assert sum(weight.numel() for weight in weights) < 1e6
    assert not any(module.training for module in modules)
    assert all(weight.isfinite().all() and weight.any() for weight in weights)  # nothing starts at zero


@pytest.mark.parametrize("name", NAMES)
def test_prompts_differ_and_the_same_prompt_does_not(name: str) -> None:
    first, again = (generate(twin(name), name, "a red bus") for _ in range(2))
    assert first.isfinite().all() and torch.equal(first, again)
    assert not torch.equal(first, generate(twin(name), name, "a blue bus"))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_every_weight(name: str) -> None:
    state = torch.get_rng_state()
    same, other = tiny.build(f"tiny:{name}"), tiny.build(name, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(generate(same, name, "a red bus"), generate(twin(name), name, "a red bus"))
    assert not torch.equal(generate(other, name, "a red bus"), generate(same, name, "a red bus"))


@pytest.mark.parametrize("name", NAMES)
def test_every_attention_layer_changes_from_step_to_step(name: str) -> None:
    """And none gives zero."""
    pipeline = twin(name)
    stride = 2 if name in TWO_CALLS else 1
    outputs: dict[str, list[torch.Tensor]] = {path: [] for path in attentions(pipeline)}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, path=path: outputs[path].append(output[0] if isinstance(output, tuple) else output)
        )
        for path, module in attentions(pipeline).items()
    ]
    generate(pipeline, name, "a red bus")
    for hook in hooks:
        hook.remove()
    refiners = [path for path in outputs if "context_refiner" in path]  # see the text alone: the same at every step
    for path in set(outputs) - set(refiners):
        seen = outputs[path]
        assert seen, path
        assert all(0 < output.abs().mean() < 100 for output in seen), path
        assert all(not torch.equal(one, next_) for one, next_ in zip(seen, seen[stride:])), path
    assert outputs


def test_wans_two_transformers_share_the_steps() -> None:
    pipeline, calls = twin("wan2.2"), []
    hooks = [
        getattr(pipeline, part).register_forward_hook(lambda *_, part=part: calls.append(part))
        for part in ("transformer", "transformer_2")
    ]
    generate(pipeline, "wan2.2", "a red bus")
    for hook in hooks:
        hook.remove()
    assert 0 < calls.count("transformer") < len(calls) == 2 * STEPS
    assert calls == sorted(calls)


def test_text_of_qwen_is_as_long_as_the_prompt() -> None:
    pipeline = twin("qwen-image")
    short, long = (pipeline.encode_prompt(prompt)[0].shape[1] for prompt in ("a red bus", "a red bus and a blue fox"))
    assert 0 < short < long


def test_a_twin_is_saved_and_loaded_like_any_pipeline(tmp_path: Path) -> None:
    twin("sd3").save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert torch.equal(generate(loaded, "sd3", "a red bus"), generate(twin("sd3"), "sd3", "a red bus"))


def test_any_text_can_be_written() -> None:
    tokenizer = tiny.build("sd3").tokenizer
    ids = tokenizer("Łódź 🚌 #42").input_ids
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "Łódź 🚌 #42"
    assert len(tokenizer("a red cat playing the piano").input_ids) == 7

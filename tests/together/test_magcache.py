"""MagCache ratios of a trace in the real library: they are what it calibrates itself, and skip what was said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import dit_tracer
import numpy as np
import pytest
import torch
from diffusers.hooks import MagCacheConfig, apply_mag_cache
from dit_analyzer.plans import magcache
from dit_analyzer.plans.coefficients import COEFFICIENT_TARGETS, FILE
from dit_formats import open_trace
from dit_formats.plan import PlanError
from dit_tracer.models.catalog import find
from dit_tracer.models.loading import load

pytestmark = pytest.mark.slow
STEPS = 12
PROMPTS = ("a red three", "two blue sevens")


def generate(pipeline: Any, name: str, prompt: str = PROMPTS[0], seed: int = 0) -> torch.Tensor:
    call = find(name).call | {"num_inference_steps": STEPS, "output_type": "latent"}
    return pipeline(prompt, generator=torch.Generator().manual_seed(seed), return_dict=False, **call)[0]


def trace_of(name: str, folder: Path, prompts: int = 2) -> Path:
    pipeline = load(find(name), device="cpu")
    with dit_tracer.record(pipeline, folder / "a.trace") as recorder:
        for seed, prompt in enumerate(PROMPTS[:prompts]):
            with recorder.prompt(prompt, seed=seed):
                generate(pipeline, name, prompt, seed)
    return folder / "a.trace"


@pytest.fixture(scope="module", params=["digits-flux", "digits-pixart"])
def model(request: pytest.FixtureRequest) -> str:
    """One without guidance, and one that has both halves in one batch."""
    return request.param


@pytest.fixture(scope="module")
def path(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trace_of(model, tmp_path_factory.mktemp(model))


class Counted:
    """The steps in which a block in the middle was computed."""

    def __init__(self, pipeline: Any) -> None:
        self.begin()
        pipeline.transformer.register_forward_pre_hook(self._begin, with_kwargs=True)
        attention = pipeline.transformer.transformer_blocks[1]
        attention = attention.attn if hasattr(attention, "attn") else attention.attn1
        attention.register_forward_pre_hook(self._compute, with_kwargs=True)

    def begin(self) -> None:
        self.steps: list[int] = []
        self._step = -1

    def _begin(self, *_: Any) -> None:
        self._step += 1

    def _compute(self, *_: Any) -> None:
        self.steps.append(self._step)


def test_ratios_are_those_that_diffusers_calibrates(model: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = load(find(model), device="cpu")
    apply_mag_cache(pipeline.transformer, MagCacheConfig(num_inference_steps=STEPS, calibrate=True))
    with open_trace(path) as trace:
        found = magcache.ratios(trace)
    for prompt, text in enumerate(PROMPTS):
        capsys.readouterr()
        generate(pipeline, model, text, prompt)
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0")]
        assert len(printed) == 1
        np.testing.assert_allclose(found.by_prompt[prompt].mean(0), json.loads(printed[0]), rtol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_the_library_skips_the_steps_that_were_said_in_every_generation(
    model: str, path: Path, tmp_path: Path, share: float
) -> None:
    with open_trace(path) as trace:
        made = COEFFICIENT_TARGETS["magcache"](trace, share=share)
    assert made.ran_here
    file = tmp_path / f"ratios{made.ending}"
    file.write_text(made.text)
    config = json.loads(made.text)["config"]
    said = magcache.skipped(
        config["mag_ratios"], config["threshold"], config["max_skip_steps"], config["retention_ratio"]
    )
    assert share * STEPS <= said.sum() < STEPS - 1
    pipeline = load(find(model), device="cpu")
    counted = Counted(pipeline)
    exec(made.snippet.replace(FILE, str(file)), {"pipe": pipeline})
    for seed in range(2):
        generate(pipeline, model, seed=seed)
    assert counted.steps == [step for step in range(2 * STEPS) if not said[step % STEPS]]


def test_the_rule_is_the_library_s_at_any_setting() -> None:
    """Hooks that are applied again replace those before."""
    pipeline = load(find("digits-flux"), device="cpu")
    counted, numbers = Counted(pipeline), set()
    ratios = np.round(np.exp(np.random.default_rng(0).normal(0, 0.05, STEPS)), 6)
    for threshold, retention, max_skip in itertools.product((0.01, 0.1, 1.0), (0.0, 0.3), (1, 4)):
        said = magcache.skipped(ratios, threshold, max_skip, retention)
        apply_mag_cache(pipeline.transformer, MagCacheConfig(threshold, max_skip, retention, STEPS, ratios.tolist()))
        counted.begin()
        generate(pipeline, "digits-flux")
        assert counted.steps == np.flatnonzero(~said).tolist()
        numbers.add(int(said.sum()))
    assert len(numbers) > 3


def test_two_calls_a_step_skip_the_same_steps_in_their_own_cache_contexts(tmp_path: Path) -> None:
    name = "tiny:wan2.1"
    with open_trace(trace_of(name, tmp_path)) as trace:
        config = json.loads(COEFFICIENT_TARGETS["magcache"](trace).text)["config"]
    said = magcache.skipped(config["mag_ratios"], config["threshold"])
    pipeline = load(find(name), device="cpu")
    calls: list[int] = []
    pipeline.transformer.blocks[1].attn1.register_forward_pre_hook(lambda *_: calls.append(1))
    apply_mag_cache(pipeline.transformer, MagCacheConfig(**config))
    generate(pipeline, name)
    assert len(calls) == 2 * (~said).sum() < 2 * STEPS


def test_latte_is_refused_as_the_library_fails_on_it(tmp_path: Path) -> None:
    path = trace_of("digits-latte", tmp_path, prompts=1)
    with open_trace(path) as trace:
        with pytest.raises(PlanError, match="reshapes its states"):
            COEFFICIENT_TARGETS["magcache"](trace)
        config = json.loads(COEFFICIENT_TARGETS["magcache"](trace, force=True).text)["config"]
    pipeline = load(find("digits-latte"), device="cpu")
    apply_mag_cache(pipeline.transformer, MagCacheConfig(**config))
    with pytest.raises(RuntimeError):
        generate(pipeline, "digits-latte")

"""One more generation, timed: where its time goes, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dit_formats import open_trace
from dit_formats.schema import Timing
from dit_tracer import runs
from dit_tracer.calls import generate
from dit_tracer.cli import main
from dit_tracer.models import loading
from dit_tracer.models.catalog import find
from dit_tracer.recording.settings import Sample, What
from dit_tracer.recording.timing import timed
from dit_tracer.work import Task, Work


def build(name: str) -> Any:
    return loading.load(find(name), device="cpu")


def trace(name: str, path: Path, prompts: int = 1, what: What | None = None, pipeline: Any = None, **more: Any) -> None:
    pipeline, call = pipeline or build(name), find(name).call | {"num_inference_steps": 3}
    settings = {"model": name, "sample": Sample(64, 16), "what": what or What(), "quiet": True}
    work = Work([Task(f"prompt {n}", 0) for n in range(prompts)])
    assert runs.run(lambda: pipeline, work, path, call=call, **settings | more).traced


def timing(path: Path) -> Timing:
    with open_trace(path) as opened:
        assert opened.timing is not None
        return opened.timing


@pytest.mark.parametrize("name", ["tiny:flux.1-dev", "tiny:pixart-alpha", "tiny:wan2.1", "tiny:mochi-1-preview"])
def test_parts_take_less_than_the_whole(name: str, tmp_path: Path) -> None:
    trace(name, tmp_path / "t", time=True)
    found = timing(tmp_path / "t")
    assert len(found.steps) == 3
    assert (found.steps > 0).all()
    whole = np.median(found.steps)
    assert np.nansum(found.layers["a"]) + np.nansum(found.layers["f"]) < whole
    assert not np.isnan(found.layers["a"]).any()
    assert (found.layers["q"] + found.layers["k"] + found.layers["v"] < found.layers["a"]).all()


@pytest.mark.parametrize("kinds", [("k", "v", "a"), ("k", "v", "a", "f")])
def test_feed_forward_time_is_told_once(kinds: tuple[str, ...], tmp_path: Path) -> None:
    """By the layer before it, or by itself where it is a layer; FLUX's single blocks have none."""
    trace("tiny:flux.1-dev", tmp_path / "t", what=What(kinds), time=True)
    found = timing(tmp_path / "t").layers
    with open_trace(tmp_path / "t") as opened:
        names = [layer.name.removeprefix("transformer.") for layer in opened.layers]
    told = [name for name, seconds in zip(names, found["f"]) if not np.isnan(seconds)]
    if "f" in kinds:
        assert told == [name for name in names if ".ff" in name]
        assert np.isnan(found["a"][[".ff" in name for name in names]]).all()
    else:
        assert told == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]


def test_layers_that_run_in_some_steps_only_are_timed_in_those() -> None:
    """Wan 2.2 has one network for the noisy steps, another for the rest; a layer's time is that of its own steps."""
    name = "tiny:wan2.2"
    pipeline, call = build(name), find(name).call | {"num_inference_steps": 6}
    found = timed(pipeline, lambda: generate(pipeline, Task("a", 0), call), What())
    assert len(found.layers["a"]) == len({*pipeline.transformer.blocks, *pipeline.transformer_2.blocks}) * 2
    assert (found.layers["a"] > 0).all()


def test_fused_projections_have_no_time_of_their_own() -> None:
    name = "tiny:flux.1-dev"
    pipeline = build(name)
    pipeline.transformer.fuse_qkv_projections()
    found = timed(pipeline, lambda: generate(pipeline, Task("a", 0), find(name).call), What())
    assert {"k", "v"}.isdisjoint(found.layers)
    assert (found.layers["a"] > 0).all()


@pytest.mark.parametrize("name", ["tiny:sd3", "tiny:latte-1"])
def test_numbers_are_those_of_a_run_that_times_nothing(name: str, tmp_path: Path) -> None:
    for time in (False, True):
        trace(name, tmp_path / str(time), time=time)
    with open_trace(tmp_path / "False") as without, open_trace(tmp_path / "True") as timed_too:
        assert without.timing is None
        assert without.layers == timed_too.layers
        assert without.run.settings == timed_too.run.settings
        assert without.streams == timed_too.streams
        for stream in without.streams:
            assert np.array_equal(without.samples(stream, 0), timed_too.samples(stream, 0), equal_nan=True)
            assert np.array_equal(without.step_sums(stream), timed_too.step_sums(stream), equal_nan=True)


def test_trace_that_has_a_timing_is_not_timed_again(tmp_path: Path) -> None:
    calls, pipeline = [], build("tiny:pixart-alpha")
    pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    trace("tiny:pixart-alpha", tmp_path / "t", 1, pipeline=pipeline, time=True)
    assert len(calls) == 2 + 1 + 3 + 3  # looked at, warming up, timed, recorded
    first = timing(tmp_path / "t").steps
    trace("tiny:pixart-alpha", tmp_path / "t", 2, pipeline=pipeline, time=True)
    assert len(calls) == 9 + 2 + 3
    assert np.array_equal(timing(tmp_path / "t").steps, first)


def test_command_times_when_asked(tmp_path: Path) -> None:
    command = ["run", "digits-flux", "-n", "1", "--steps", "3", "--sample", "0", "--device", "cpu", "-q"]
    assert CliRunner().invoke(main, [*command, "-o", str(tmp_path / "t"), "--time"]).exit_code == 0
    assert set(timing(tmp_path / "t").layers) == {"q", "k", "v", "a", "f"}


def test_run_without_timing_goes_on_with_it(tmp_path: Path) -> None:
    trace("tiny:pixart-alpha", tmp_path / "t", 1)
    trace("tiny:pixart-alpha", tmp_path / "t", 2, time=True)
    assert len(timing(tmp_path / "t").steps) == 3


def test_pipeline_is_as_it_was_after_timing() -> None:
    """No hook is left, the scheduler steps as before, and torch's own randomness is where it was."""
    name = "tiny:sd3"
    pipeline, call = build(name), find(name).call | {"num_inference_steps": 2}
    step, state = type(pipeline.scheduler).step, torch.random.get_rng_state()
    timed(pipeline, lambda: generate(pipeline, Task("a", 0), call), What())
    assert type(pipeline.scheduler).step is step
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipeline.transformer.modules())
    assert torch.equal(torch.random.get_rng_state(), state)

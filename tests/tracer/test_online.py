"""Policies at work in real pipelines in miniature, and in a bundled model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dit_analyzer.plans.policy import Settings, changes_of, simulated
from dit_formats import open_trace
from dit_formats.plan import LINEAR, STEPS, Plan, PlanError, Request, Row
from dit_formats.policy import MODEL_INPUT, MODULATED, SIGNALS, Policy, write_policy
from dit_tracer.calls import parameters, subject
from dit_tracer.cli import main
from dit_tracer.counting import counting
from dit_tracer.models import loading, tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.recorder import record
from dit_tracer.recording.sites import find_networks
from dit_tracer.replay.comparing import compare
from dit_tracer.replay.online import Online, largest_change
from dit_tracer.replay.report import as_json, lines_of
from dit_tracer.replay.schedules import of_policy
from dit_tracer.work import Task

NUM_STEPS = 8
TWINS = ("flux.1-dev", "pixart-alpha", "sd3", "wan2.1", "latte-1", "cogvideox-5b", "z-image")


def policy_for(signal: str = MODEL_INPUT, threshold: float = 0.0, steps: int = NUM_STEPS, **changes: Any) -> Policy:
    times = tuple(np.linspace(900, 100, steps))
    request = Request("twin", {}, None, "P", "T", "S", "0" * 64, steps, times, times, "float32", {})
    row = Row("all", ("layer",), (True,) * steps)
    static = Plan(request, STEPS, "reuse", times, (row,), {"layer": "self"})
    values = {"coefficients": (1.0, 0.0), "predictor": "reuse", "most": 0, "first": 1, "last": 0} | changes
    return Policy(request, signal, threshold, levels=times, static=static, **values)


def generate(pipeline: Any, name: str, steps: int = NUM_STEPS, seed: int = 1) -> torch.Tensor:
    """Final latents."""
    call = find(name).call | {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}
    call |= {"generator": torch.Generator().manual_seed(seed)}
    known = parameters(pipeline)
    return pipeline(**subject(pipeline, "a fox"), **{k: v for k, v in call.items() if k in known})[0]


def online(pipeline: Any, name: str, policy: Policy, **changes: Any) -> tuple[torch.Tensor, Online]:
    with Online(pipeline, policy) as running:
        return generate(pipeline, name, **changes), running


def middling(pipeline: Any, name: str, signal: str) -> float:
    """A threshold that computes some steps and reuses others."""
    _, running = online(pipeline, name, policy_for(signal))
    return 1.5 * float(np.nanmedian(running.changes))


def state_of(pipeline: Any) -> list[Any]:
    """What hooks and replaced functions would leave behind."""
    modules = [module for network in find_networks(pipeline).values() for module in network.modules()]
    hooks = [(len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in vars(m)) for m in modules]
    return [*hooks, type(pipeline.scheduler).step]


def in_stack(layers: Iterable[str]) -> list[str]:
    """Of these layers, those in the stack of blocks; what refines text or image before it runs in every step."""
    found = [layer for layer in layers if "refiner" not in layer]
    assert found
    return found


@pytest.fixture(scope="module")
def flux() -> Any:
    return tiny.build("flux.1-dev")


def test_nothing_before_is_no_change_that_is_known() -> None:
    one = (torch.ones(2, 3),)
    assert np.isnan(largest_change((), ())) and np.isnan(largest_change((), one))
    assert np.isnan(largest_change(one, (torch.ones(3, 3),)))


def test_the_largest_change_over_halves_counts() -> None:
    before = torch.full((2, 2), 2.0), torch.full((2, 2), -4.0)
    now = torch.full((2, 2), 2.5), torch.full((2, 2), -7.0)
    assert largest_change(before, now) == pytest.approx(0.75)
    assert largest_change(now, now) == 0


@pytest.mark.parametrize("signal", SIGNALS)
def test_one_step_is_computed(flux: Any, signal: str) -> None:
    policy = policy_for(signal, 1e9, steps=1)
    found, running = online(flux, "tiny:flux.1-dev", policy, steps=1)
    assert torch.equal(found, generate(flux, "tiny:flux.1-dev", steps=1))
    assert running.mask == [True] and running.computed_share == 1


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", TWINS)
def test_a_policy_runs_as_it_is_simulated(name: str, signal: str) -> None:
    """Threshold 0 gives the uncached bits; another computes the steps of the rule, fed what was measured in the run."""
    pipeline, model = tiny.build(name), f"tiny:{name}"
    left = state_of(pipeline)
    uncached = generate(pipeline, model)
    same, running = online(pipeline, model, policy_for(signal))
    assert torch.equal(same, uncached) and running.mask == [True] * NUM_STEPS
    policy = policy_for(signal, 1.5 * float(np.median(running.changes[1:])))
    with counting(pipeline) as counted:
        other, running = online(pipeline, model, policy)
    assert 0 < running.computed_share < 1 and not torch.equal(other, uncached)
    assert running.mask == simulated(running.changes[1:], policy.threshold).tolist()
    assert all(counted.computed(layer) == running.mask for layer in in_stack(counted.by_layer))
    assert state_of(pipeline) == left and torch.equal(generate(pipeline, model), uncached)


@pytest.mark.parametrize("signal", SIGNALS)
def test_two_calls_a_step_are_left_out_together(signal: str) -> None:
    pipeline = tiny.build("wan2.1")
    calls: list[int] = []
    with Online(pipeline, policy_for(signal, middling(pipeline, "tiny:wan2.1", signal))) as running:
        block = pipeline.transformer.blocks[-1]
        hook = block.register_forward_hook(lambda *_: calls.append(len(running.mask) - 1))
        generate(pipeline, "tiny:wan2.1")
        hook.remove()
    assert 0 < running.computed_share < 1
    assert [calls.count(step) for step in range(NUM_STEPS)] == [2 * computed for computed in running.mask]


def test_no_more_steps_are_reused_in_a_row_than_allowed(flux: Any) -> None:
    _, running = online(flux, "tiny:flux.1-dev", policy_for(MODULATED, 1e9, most=2, first=2, last=1))
    assert np.array(running.mask).astype(int).tolist() == [1, 1, 0, 0, 1, 0, 0, 1]


def test_linear_prediction_differs_from_reuse_and_starts_with_the_third_value(flux: Any) -> None:
    name, policy = "tiny:flux.1-dev", policy_for(MODEL_INPUT, 1e9, first=2)
    linear = replace(policy, predictor=LINEAR)
    assert not torch.equal(online(flux, name, policy)[0], online(flux, name, linear)[0])
    alone = replace(policy, first=1)
    assert torch.equal(online(flux, name, alone)[0], online(flux, name, replace(alone, predictor=LINEAR))[0])


@pytest.mark.parametrize("signal", SIGNALS)
def test_nothing_of_an_earlier_generation_is_used(flux: Any, signal: str) -> None:
    name, policy = "tiny:flux.1-dev", policy_for(signal, middling(flux, "tiny:flux.1-dev", signal))
    alone, first = online(flux, name, policy, seed=2)
    with Online(flux, policy) as running:
        generate(flux, name, seed=1)
        running.reset()
        after = generate(flux, name, seed=2)
    assert torch.equal(after, alone) and running.mask == first.mask
    np.testing.assert_array_equal(running.changes, first.changes)


@pytest.mark.parametrize("signal", SIGNALS)
def test_all_is_undone_after_an_error(flux: Any, signal: str) -> None:
    name, left, uncached = "tiny:flux.1-dev", state_of(flux), generate(flux, "tiny:flux.1-dev")

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), Online(flux, policy_for(signal, 1e9)) as running:
        hook = flux.transformer.transformer_blocks[0].register_forward_hook(fail)
        try:
            generate(flux, name)
        finally:
            hook.remove()
    assert state_of(flux) == left and not running._kept
    assert torch.equal(generate(flux, name), uncached)


def test_a_network_without_a_stack_of_blocks_is_refused(flux: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dit_tracer.replay.online.find_blocks", lambda *_: [])
    with pytest.raises(PlanError, match="use model_input"):
        Online(flux, policy_for(MODULATED))
    assert online(flux, "tiny:flux.1-dev", policy_for(MODEL_INPUT))[1].computed_share == 1


@pytest.mark.parametrize("name", ["digits-flux", "tiny:pixart-alpha", "tiny:lumina2", "tiny:wan2.2"])
def test_changes_of_a_run_are_those_that_a_trace_recorded(name: str, tmp_path: Path) -> None:
    pipeline = tiny.build(name) if name.startswith("tiny:") else loading.load(find(name), device="cpu")
    with record(pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a fox", seed=1):
        generate(pipeline, name)
    for signal in SIGNALS:
        _, running = online(pipeline, name, policy_for(signal))
        with open_trace(tmp_path / "a.trace") as trace:
            recorded = changes_of(trace, signal)[0]
        assert np.isnan(running.changes[0]) and np.isfinite(recorded).sum() >= NUM_STEPS - 2
        np.testing.assert_allclose(running.changes[1:], recorded, rtol=1e-5)  # NaN where wan2.2 changes its network


def test_a_bundled_model_computes_what_the_rule_says() -> None:
    pipeline = loading.load(find("digits-flux"), device="cpu")
    settings = Settings(MODULATED, (3.0, 0.5, 0.0), 3, 2, 1)
    rule = {name: value for name, value in vars(settings).items() if name != "signal"}
    threshold = 6 * middling(pipeline, "digits-flux", MODULATED)
    _, running = online(pipeline, "digits-flux", policy_for(MODULATED, threshold, **rule))
    assert 0 < running.computed_share < 1
    assert running.mask == simulated(running.changes[1:], threshold, settings).tolist()


def test_a_replay_runs_a_policy_beside_its_static_plan(flux: Any) -> None:
    name, tasks = "tiny:flux.1-dev", [Task("a fox", 1), Task("a hare", 2)]
    call = find(name).call | {"num_inference_steps": NUM_STEPS}
    call = {key: value for key, value in call.items() if key in parameters(flux)}
    every = of_policy("policy", "static plan", policy_for(MODEL_INPUT))
    uncached, policy, static = compare(flux, tasks, call, every)
    assert policy.share == static.share == 1 and policy.measures["error"] == static.measures["error"] == [0, 0]
    some = of_policy("policy", "static plan", policy_for(MODEL_INPUT, middling(flux, name, MODEL_INPUT)))
    outcomes = compare(flux, tasks, call, some)
    policy = outcomes[1]
    assert 0 < policy.share < 1 and policy.share == pytest.approx(np.mean(policy.measures["share"]))
    assert len(policy.measures["share"]) == 2 and min(policy.measures["error"]) > 0
    table = "\n".join(lines_of(outcomes, {}))
    assert f"policy computed {policy.share:.1%}" in table and "static plan 100.0%" in table
    record = as_json(outcomes, {}, {})["schedules"][1]
    assert record["computed_share"] == policy.share and record["prompts"]["share"] == policy.measures["share"]


def test_the_command_takes_a_policy_and_refuses_engines_for_it(tmp_path: Path) -> None:
    policy = policy_for(MODULATED, 0.1)
    request = replace(policy.request, model="tiny:flux.1-dev", call={"num_inference_steps": NUM_STEPS})
    policy = replace(policy, request=request, static=replace(policy.static, request=request))
    write_policy(tmp_path / "policy.json", policy)
    asked = ["replay", str(tmp_path / "policy.json"), "-n", "1", "--alone", "--device", "cpu", "--json"]
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code != 0 and "--transfer" in refused.stderr
    engine = CliRunner().invoke(main, [*asked, "--transfer", "--engine", "cache-dit"])
    assert engine.exit_code != 0 and "replay it without --engine" in engine.stderr
    done = CliRunner().invoke(main, [*asked, "--transfer"])
    assert done.exit_code == 0, done.stderr
    names = [one["schedule"] for one in json.loads(done.stdout)["schedules"]]
    assert names == ["uncached", "policy", "static plan"]

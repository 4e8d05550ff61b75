"""Plans at work in pipelines in miniature: what is computed is counted, and what stands in is compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from diffusers import FlowMatchEulerDiscreteScheduler
from dit_formats.plan import GRID, TYPES, PlanError, Row
from dit_tracer.calls import parameters, subject
from dit_tracer.counting import Counted, counting
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import UnsupportedError, find_networks
from dit_tracer.replay.caching import Caching
from dit_tracer.replay.grid import chosen_steps
from torch.utils._pytree import tree_leaves, tree_map
from zoo.planned import MASK, STEPS_RUN, by_layers, by_steps, layers_of, plan_of, types_of

TWINS = ("flux.1-dev", "pixart-alpha", "sd3", "cogvideox-5b", "latte-1", "wan2.1")
CALLS = {"wan2.1": 2}
"""Calls of the network in a step, where it is not one."""


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def twin(request: pytest.FixtureRequest, built: dict[str, Any]) -> tuple[str, Any]:
    name = request.param
    if name not in built:
        built[name] = tiny.build(name)
    return name, built[name]


def generate(pipeline: Any, name: str, **changes: Any) -> torch.Tensor:
    """Final latents."""
    call = find(f"tiny:{name}").call | {"num_inference_steps": STEPS_RUN, "output_type": "latent"} | changes
    call |= {"generator": torch.Generator().manual_seed(1), "return_dict": False}
    known = parameters(pipeline)
    with torch.no_grad():
        return pipeline(**subject(pipeline, "a fox"), **{k: v for k, v in call.items() if k in known})[0]


def counted(pipeline: Any, name: str, plan: Any) -> tuple[Counted, torch.Tensor]:
    with Caching(pipeline, plan), counting(pipeline) as found:
        latents = generate(pipeline, name)
    return found, latents


@contextmanager
def returned(module: torch.nn.Module) -> Iterator[list[Any]]:
    """Copies of all that a module returned, computed or not."""
    seen: list[Any] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        seen.append(tree_map(lambda x: x.detach().clone() if isinstance(x, torch.Tensor) else x, output))

    handle = module.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def types_plan(pipeline: Any) -> Any:
    kinds = types_of(pipeline)
    rows = [(kind, [n for n, k in kinds.items() if k == kind], mask)
            for kind, mask in (("attention", MASK), ("ff", [1, 0, 1, 0, 1, 0, 1, 0]))]  # fmt: skip
    return plan_of(pipeline, rows, TYPES)


PLANS = {"step": by_steps, "type": types_plan, "layer": by_layers}


@pytest.mark.parametrize("twin", TWINS, indirect=True)
@pytest.mark.parametrize("per", PLANS)
def test_what_is_computed_is_what_the_plan_says(twin: tuple[str, Any], per: str) -> None:
    name, pipeline = twin
    plan = PLANS[per](pipeline)
    found, latents = counted(pipeline, name, plan)
    calls = CALLS.get(name, 1)
    assert found.by_layer == {layer: [calls * c for c in plan.of_layer(layer)] for layer in layers_of(pipeline)}
    assert torch.isfinite(latents).all() and not torch.equal(latents, generate(pipeline, name))


@pytest.mark.parametrize("twin", TWINS, indirect=True)
@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_a_plan_that_computes_everything_changes_no_bit(twin: tuple[str, Any], predictor: str) -> None:
    name, pipeline = twin
    plain = generate(pipeline, name)
    whole = by_steps(pipeline, [1] * STEPS_RUN, predictor=predictor)
    nearly = by_layers(pipeline, predictor=predictor)
    every = replace(nearly, rows=tuple(replace(row, compute=(True,) * STEPS_RUN) for row in nearly.rows))
    for plan in (whole, every):
        with Caching(pipeline, plan):
            assert torch.equal(generate(pipeline, name), plain)


@pytest.mark.parametrize("twin", TWINS, indirect=True)
@pytest.mark.parametrize("predictor", ["reuse", "linear"])
def test_what_stands_in_is_the_last_value_or_the_line_through_the_last_two(
    twin: tuple[str, Any], predictor: str
) -> None:
    """Also that a pipeline changes nothing in place that is kept, and that branches are kept apart."""
    name, pipeline = twin
    levels = tuple(float(x) for x in np.linspace(1, 0.1, STEPS_RUN) ** 2)
    plan = by_steps(pipeline, predictor=predictor, levels=levels)
    (network,) = find_networks(pipeline).values()
    with Caching(pipeline, plan), returned(network) as seen:
        generate(pipeline, name)
    calls = CALLS.get(name, 1)
    assert len(seen) == calls * STEPS_RUN
    for branch in range(calls):
        outputs = [tree_leaves(one)[0].double() for one in seen[branch::calls]]
        for step in range(STEPS_RUN):
            past = [one for one in range(step) if MASK[one]]
            if MASK[step]:
                continue
            last, before = past[-1], past[-2]
            if predictor == "reuse":
                assert torch.equal(outputs[step], outputs[last])
                continue
            ahead = (levels[step] - levels[last]) / (levels[last] - levels[before])
            line = outputs[last] + (outputs[last] - outputs[before]) * ahead
            torch.testing.assert_close(outputs[step], line, rtol=1e-5, atol=1e-5 * float(line.abs().max()))
    if calls == 2:
        assert not torch.equal(tree_leaves(seen[4])[0], tree_leaves(seen[5])[0])  # step 2 is left out in both


@pytest.mark.parametrize("twin", ["flux.1-dev", "sd3"], indirect=True)
def test_before_two_are_computed_a_line_is_the_last_value(twin: tuple[str, Any]) -> None:
    name, pipeline = twin
    masks = [1, 0, 0, 0, 0, 0, 0, 0]
    reused, predicted = (by_steps(pipeline, masks, predictor=one) for one in ("reuse", "linear"))
    assert torch.equal(counted(pipeline, name, reused)[1], counted(pipeline, name, predicted)[1])


@pytest.mark.parametrize("twin", TWINS, indirect=True)
@pytest.mark.parametrize("per", ["step", "layer"])
def test_a_second_generation_is_the_same_and_all_is_undone(twin: tuple[str, Any], per: str) -> None:
    name, pipeline = twin
    plain, plan = generate(pipeline, name), PLANS[per](pipeline)
    with Caching(pipeline, plan) as caching:
        first = generate(pipeline, name)
        caching.reset()
        assert torch.equal(generate(pipeline, name), first)
    assert all("forward" not in vars(m) for net in find_networks(pipeline).values() for m in net.modules())
    assert torch.equal(generate(pipeline, name), plain)


@pytest.mark.parametrize("twin", ["flux.1-dev", "wan2.1"], indirect=True)
@pytest.mark.parametrize("per", ["step", "layer"])
def test_all_is_undone_after_an_error_in_the_middle(twin: tuple[str, Any], per: str) -> None:
    name, pipeline = twin
    plain, steps = generate(pipeline, name), iter(range(4))

    def failing(step: Any, *args: Any, **kwargs: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    scheduler = pipeline.scheduler
    with (
        pytest.raises(KeyboardInterrupt),
        around(type(scheduler), "step", scheduler, failing),
        Caching(pipeline, PLANS[per](pipeline)),
    ):
        generate(pipeline, name)
    assert torch.equal(generate(pipeline, name), plain)


@pytest.mark.parametrize("twin", ["pixart-alpha"], indirect=True)
def test_a_pipeline_where_setting_up_fails_is_left_as_it_was(
    twin: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pipeline = twin
    plain, placed = generate(pipeline, name), []

    def failing(self: Any, module: Any, mask: Any) -> Any:
        if placed:
            raise RuntimeError("no more")
        placed.append(module)
        return module.forward

    monkeypatch.setattr(Caching, "_wrapped", failing)
    with pytest.raises(RuntimeError, match="no more"), Caching(pipeline, by_layers(pipeline)):
        pass
    assert placed and all("forward" not in vars(module) for module in pipeline.transformer.modules())
    assert torch.equal(generate(pipeline, name), plain)


@pytest.mark.parametrize("twin", ["flux.1-dev"], indirect=True)
def test_layers_that_the_model_has_not_are_named(twin: tuple[str, Any]) -> None:
    plan = by_layers(twin[1])
    row = Row("more", ("transformer.blocks.90.attn", "transformer.blocks.91.attn"), (True,) * STEPS_RUN)
    more = replace(plan, rows=(*plan.rows, row), types=plan.types | dict.fromkeys(row.layers, "self"))
    with pytest.raises(PlanError, match=r"does not have: transformer.blocks.90.attn and 1 more"):
        Caching(twin[1], more)


@pytest.mark.parametrize(("name", "per"), [("flux.1-dev", "step"), ("flux.1-dev", "layer"), ("pixart-alpha", "step")])
def test_in_bfloat16_lines_are_drawn_in_float32_and_rounded_once(name: str, per: str) -> None:
    pipeline = tiny.build(name).to(torch.bfloat16)
    plan = PLANS[per](pipeline, predictor="linear")
    module = pipeline.transformer if per == "step" else pipeline.transformer.transformer_blocks[0].attn
    mask = MASK if per == "step" else [1, 1, 0, 1, 0, 1, 0, 1]
    with Caching(pipeline, plan), returned(module) as seen:
        generate(pipeline, name)
    outputs = [tree_leaves(one)[0] for one in seen]
    assert {one.dtype for one in outputs} == {torch.bfloat16}
    step = mask.index(0)
    last, before = (outputs[step - n].float() for n in (1, 2))
    ahead = (plan.levels[step] - plan.levels[step - 1]) / (plan.levels[step - 1] - plan.levels[step - 2])
    assert torch.equal(outputs[step], torch.lerp(before, last, 1 + ahead).bfloat16())


@pytest.mark.parametrize("twin", ["flux.1-dev", "wan2.1"], indirect=True)
@pytest.mark.parametrize("per", ["step", "layer"])
def test_hooks_that_replace_forward_as_offloading_does_are_kept(twin: tuple[str, Any], per: str) -> None:
    """Accelerate puts a function of its own in the place of a network's forward, and of each layer's."""
    name, pipeline = twin
    plan = PLANS[per](pipeline)
    expected, moved = counted(pipeline, name, plan), []

    class Mover(ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            moved.append(module)
            return args, kwargs

    hooked = [m for net in find_networks(pipeline).values() for m in net.modules()]
    for module in hooked:
        add_hook_to_module(module, Mover())
    try:
        forwards = [vars(module)["forward"] for module in hooked]
        found, latents = counted(pipeline, name, plan)
        assert [vars(module)["forward"] for module in hooked] == forwards
    finally:
        for module in hooked:
            remove_hook_from_module(module)
    assert torch.equal(latents, expected[1]) and found.by_layer == expected[0].by_layer
    steps = CALLS.get(name, 1) * (sum(MASK) if per == "step" else STEPS_RUN)
    assert sum(module is hooked[0] for module in moved) == steps


def test_networks_that_take_turns_keep_their_own(built: dict[str, Any]) -> None:
    """The second computes its first step whatever the plan says: there is nothing of its own to reuse."""
    pipeline = built.setdefault("wan2.2", tiny.build("wan2.2"))
    with counting(pipeline) as plain:
        generate(pipeline, "wan2.2")
    runs = {layer: np.array(found) > 0 for layer, found in plain.by_layer.items()}
    begins = {int(one.argmax()) for one in runs.values()}
    assert len(begins) == 2  # the second network begins later
    plan = by_steps(pipeline, [1, 0, 0, 0, 0, 0, 0, 0])
    found, _ = counted(pipeline, "wan2.2", plan)
    for layer, one in runs.items():
        assert found.computed(layer) == [step == one.argmax() for step in range(STEPS_RUN)]
    found, _ = counted(pipeline, "wan2.2", by_steps(pipeline))
    for layer, one in runs.items():
        assert found.computed(layer) == [
            bool(one[step] and (MASK[step] or step == one.argmax())) for step in range(STEPS_RUN)
        ]


@pytest.mark.parametrize("twin", ["flux.1-dev"], indirect=True)
def test_a_generation_of_another_size_is_not_answered_with_the_first(twin: tuple[str, Any]) -> None:
    name, pipeline = twin
    with Caching(pipeline, by_steps(pipeline)) as caching:
        generate(pipeline, name)
        caching._clock.reset()  # the step alone, as if nobody had said that a new generation begins
        other = generate(pipeline, name, height=32)
    assert torch.isfinite(other).all()


# Grids -----------------------------------------------------------------------------


@pytest.mark.parametrize("twin", ["flux.1-dev", "sd3"], indirect=True)
@pytest.mark.parametrize("mask", [MASK, [1, 0, 1, 0, 1, 0, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0], [1] * 8])
def test_chosen_levels_of_an_euler_solver_are_the_same_as_reused_predictions(
    twin: tuple[str, Any], mask: list[int]
) -> None:
    name, pipeline = twin
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    _, reused = counted(pipeline, name, by_steps(pipeline, mask))
    with chosen_steps(pipeline, [bool(one) for one in mask]), counting(pipeline) as found:
        grid = generate(pipeline, name)
    torch.testing.assert_close(grid, reused, rtol=1e-4, atol=1e-4)
    assert len(found.by_step) == sum(mask)


@pytest.mark.parametrize("twin", ["flux.1-dev"], indirect=True)
def test_the_scheduler_has_its_grid_back_after_the_block(twin: tuple[str, Any]) -> None:
    name, pipeline = twin
    plain = generate(pipeline, name)
    with pytest.raises(KeyboardInterrupt), chosen_steps(pipeline, [bool(one) for one in MASK]):
        generate(pipeline, name)
        raise KeyboardInterrupt
    assert torch.equal(generate(pipeline, name), plain)


@pytest.mark.parametrize("twin", ["flux.1-dev"], indirect=True)
def test_a_grid_of_another_length_is_refused(twin: tuple[str, Any]) -> None:
    name, pipeline = twin
    with pytest.raises(UnsupportedError, match="no list of 7 sigmas"), chosen_steps(pipeline, [True] * 7):
        generate(pipeline, name)


@pytest.mark.parametrize("twin", ["flux.1-dev"], indirect=True)
def test_a_grid_is_nothing_to_cache(twin: tuple[str, Any]) -> None:
    with pytest.raises(PlanError, match="noise levels"):
        Caching(twin[1], replace(by_steps(twin[1]), granularity=GRID))

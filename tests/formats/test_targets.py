"""Plans in the forms of other engines: what is projected, what is said to be lost, what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from dit_formats.plan import STEPS, TYPES, Plan, PlanError, Request, Row
from dit_formats.targets import TARGETS, export

MASK = (1, 1, 0, 1, 0, 1)
PIXART = [f"transformer.transformer_blocks.{block}.{part}" for block in range(3) for part in ("attn1", "attn2", "ff")]


def make(rows: dict[str, tuple[list[str], tuple[int, ...]]], granularity: str = STEPS, **changes: Any) -> Plan:
    """A plan from the layers and steps of its rows; PixArt's unless `changes` say otherwise."""
    steps = len(next(iter(rows.values()))[1])
    levels = tuple(np.linspace(1, 0.1, steps))
    request = {
        "pipeline": "PixArtAlphaPipeline",
        "transformer": "PixArtTransformer2DModel",
        "timesteps": tuple(np.linspace(900, 150, steps)),
        "call": {},
    }
    request |= {name: changes.pop(name) for name in list(changes) if name in request}
    made = Request("m", {}, None, scheduler="S", scheduler_sha256="0" * 64, num_steps=steps, sigmas=levels,
                   dtype="float32", **request)  # fmt: skip
    layers = tuple(Row(name, tuple(names), tuple(map(bool, compute))) for name, (names, compute) in rows.items())
    types = {name: name.rpartition(".")[2] for row in layers for name in row.layers}
    return Plan(made, granularity, rows=layers, types=types, **{"predictor": "reuse", "levels": levels} | changes)


def by_steps(mask: tuple[int, ...] = MASK, layers: list[str] = PIXART, **changes: Any) -> Plan:
    return make({"all": (layers, mask)}, **changes)


def by_types(**masks: tuple[int, ...]) -> Plan:
    rows = {kind: ([layer for layer in PIXART if layer.endswith(kind)], mask) for kind, mask in masks.items()}
    return make(rows, TYPES)


@pytest.mark.parametrize("target", TARGETS)
def test_a_plan_that_computes_all_is_nothing_to_export(target: str) -> None:
    for mask in ((1,), (1, 1, 1)):
        with pytest.raises(PlanError, match="nothing to export"):
            export(by_steps(mask), target)


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match="unknown target 'x'; known are cache-dit, diffusers"):
        export(by_steps(), "x")


@pytest.mark.parametrize("target", TARGETS)
def test_the_snippet_loads_the_file_by_the_name_it_gets(target: str) -> None:
    exported = export(by_steps(), target)
    assert exported.file.endswith(TARGETS[target].ending)
    assert exported.file in exported.snippet
    assert "my file" in exported.loading("my file") and exported.file not in exported.loading("my file")
    compile(exported.snippet, exported.file, "exec")


def test_cache_dit_gets_a_mask_as_long_as_the_run_and_no_cache_type() -> None:
    config = json.loads(export(by_steps(), "cache-dit").text)["cache_config"]
    assert config["steps_computation_mask"] == list(MASK)
    assert config["num_inference_steps"] == len(MASK)
    assert "cache_type" not in config and "enable_taylorseer" not in config


def test_cache_dit_computes_the_first_block_in_every_step_and_says_what_that_costs() -> None:
    exported = export(by_steps(), "cache-dit")
    first = np.array(["blocks.0." in layer for layer in exported.layers])
    assert exported.computed[first].all()
    assert (exported.computed[~first] == np.array(MASK, bool)).all()
    assert exported.computed_share == pytest.approx((3 * 6 + 6 * 4) / 54)
    assert "66.7 %" in exported.lost[0] and "77.8 %: of 54, 6 more than planned" in exported.lost[0]


def test_flux_has_one_first_block_though_it_has_two_lists() -> None:
    layers = ["transformer.single_transformer_blocks.0.attn", "transformer.transformer_blocks.0.attn"]
    exported = export(by_steps(layers=layers, transformer="FluxTransformer2DModel"), "cache-dit")
    assert exported.computed.all(1).tolist() == [False, True]


@pytest.mark.parametrize("target", ["cache-dit", "diffusers"])
def test_what_is_in_no_list_of_blocks_is_computed_in_every_step(target: str) -> None:
    plan = by_steps(layers=[*PIXART, "transformer.noise_refiner.0.attn"])
    assert export(plan, target).computed[-1].all()


def test_mag_cache_gets_a_ratio_a_step() -> None:
    content = json.loads(export(by_steps(), "diffusers").text)
    assert content["engine"] == "mag_cache" and content["transformer"] == "PixArtTransformer2DModel"
    assert [ratio != 1 for ratio in content["config"]["mag_ratios"]] == [bool(step) for step in MASK]


def test_linear_prediction_is_kept_by_cache_dit_and_lost_with_mag_cache() -> None:
    plan = by_steps(predictor="linear", levels=(1, 0.9, 0.7, 0.6, 0.5, 0.1))
    kept = export(plan, "cache-dit")
    assert json.loads(kept.text)["cache_config"]["taylorseer_order"] == 1
    assert any("differ up to 4.0-fold" in sentence for sentence in kept.lost)
    assert any("predicts linearly" in sentence for sentence in export(plan, "diffusers").lost)
    even = export(by_steps(predictor="linear"), "cache-dit")
    assert not any("levels" in sentence for sentence in even.lost)


@pytest.mark.parametrize("target", ["cache-dit", "diffusers"])
def test_rows_are_joined_where_only_whole_steps_are_skipped(target: str) -> None:
    plan = by_types(attn1=(1, 0, 0, 0, 0, 1), attn2=(1, 0, 0, 1, 0, 0), ff=(1, 1, 0, 0, 0, 0))
    exported = export(plan, target)
    assert exported.computed[-1].tolist() == [True, True, False, True, False, True]
    assert "more than planned" in exported.lost[0]
    with pytest.raises(PlanError, match="computes some layer in every one; export it to smoothcache"):
        export(by_types(attn1=(1, 0, 1, 0, 1, 0), attn2=(1, 1, 0, 1, 0, 1)), target)


@pytest.mark.parametrize("transformer", ["LatteTransformer3DModel", "STDiT3"])
@pytest.mark.parametrize("target", ["cache-dit", "diffusers"])
def test_what_an_engine_cannot_run_is_refused_with_the_reason(transformer: str, target: str) -> None:
    with pytest.raises(PlanError, match=f"cannot run {transformer}: .*(adapter|reshapes|skip nothing)"):
        export(by_steps(transformer=transformer), target)


def test_mag_cache_refuses_blocks_that_diffusers_does_not_know() -> None:
    for transformer in ("SanaTransformer2DModel", "Lumina2Transformer2DModel", "ZImageTransformer2DModel"):
        with pytest.raises(PlanError, match="not registered"):
            export(by_steps(transformer=transformer), "diffusers")


@pytest.mark.parametrize("target", ["cache-dit", "diffusers"])
def test_two_networks_that_count_their_own_steps_are_refused(target: str) -> None:
    layers = ["transformer.blocks.0.attn1", "transformer_2.blocks.0.attn1"]
    with pytest.raises(PlanError, match="counts the steps of transformer and transformer_2 apart"):
        export(by_steps(layers=layers, transformer="WanTransformer3DModel"), target)


def test_a_network_that_nobody_tried_is_said() -> None:
    exported = export(by_steps(transformer="NewTransformer2DModel"), "cache-dit")
    assert not exported.ran_here
    assert any("was not run here with NewTransformer2DModel" in sentence for sentence in exported.lost)
    assert export(by_steps(), "cache-dit").ran_here

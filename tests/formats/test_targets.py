"""Plans in the forms of other engines: what is projected, what is said to be lost, what is refused."""

from __future__ import annotations

import ast
import itertools
import json
import re
from typing import Any

import numpy as np
import pytest
from dit_formats.plan import LAYERS, STEPS, TYPES, Plan, PlanError, Request, Row
from dit_formats.targets import TARGETS, broadcast, export, taylorseer

MASK = (1, 1, 0, 1, 0, 1)
PIXART = [f"transformer.transformer_blocks.{block}.{part}" for block in range(3) for part in ("attn1", "attn2", "ff")]


def make(rows: dict[str, tuple[list[str], tuple[int, ...]]], granularity: str = STEPS, **changes: Any) -> Plan:
    """A plan from the layers and steps of its rows; PixArt's unless `changes` say otherwise."""
    steps = len(next(iter(rows.values()))[1])
    levels = tuple(np.linspace(1, 0.1, steps))
    request = {
        "dtype": "bfloat16",
        "pipeline": "PixArtAlphaPipeline",
        "transformer": "PixArtTransformer2DModel",
        "timesteps": tuple(np.linspace(900, 150, steps)),
        "call": {"height": 64, "width": 32, "guidance_scale": 4.5},
    }
    request |= {name: changes.pop(name) for name in list(changes) if name in request}
    fixed = {"scheduler": "S", "scheduler_sha256": "0" * 64, "num_steps": steps, "sigmas": levels}
    made = Request("m", {}, None, **fixed, **request)
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
    odd = 'a "quoted"\\ name'
    assert any(
        odd == node.value for node in ast.walk(ast.parse(exported.loading(odd))) if isinstance(node, ast.Constant)
    )


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
    assert "66.7%" in exported.lost[0] and "77.8%: of 54, 6 more than planned" in exported.lost[0]


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


@pytest.mark.parametrize(
    ("transformer", "call", "apart"),
    [
        ("PixArtTransformer2DModel", {"guidance_scale": 4.5}, False),
        ("FluxTransformer2DModel", {"guidance_scale": 3.5}, False),
        ("FluxTransformer2DModel", {"guidance_scale": 3.5, "true_cfg_scale": 1.0}, False),
        ("FluxTransformer2DModel", {"guidance_scale": 3.5, "true_cfg_scale": 2.0}, True),
        ("WanTransformer3DModel", {"guidance_scale": 5.0}, True),
        ("WanTransformer3DModel", {"guidance_scale": 1.0}, False),
        ("QwenImageTransformer2DModel", {}, True),
    ],
)
def test_cache_dit_is_told_whether_branches_come_apart(transformer: str, call: dict[str, Any], apart: bool) -> None:
    text = export(by_steps(transformer=transformer, call=call), "cache-dit").text
    assert json.loads(text)["cache_config"]["enable_separate_cfg"] is apart


def test_linear_prediction_is_kept_by_cache_dit_and_lost_with_mag_cache() -> None:
    plan = by_steps(predictor="linear", levels=(1, 0.9, 0.7, 0.6, 0.5, 0.1))
    kept = export(plan, "cache-dit")
    assert json.loads(kept.text)["cache_config"]["taylorseer_order"] == 1
    assert any("differ up to 4.0-fold" in sentence for sentence in kept.lost)
    assert any("predicts linearly" in sentence for sentence in export(plan, "diffusers").lost)
    even = export(by_steps(predictor="linear"), "cache-dit")
    assert not any("levels" in sentence for sentence in even.lost)


@pytest.mark.parametrize("target", ["cache-dit", "diffusers", "sglang"])
def test_rows_are_joined_where_only_whole_steps_are_skipped(target: str) -> None:
    plan = by_types(attn1=(1, 0, 0, 0, 0, 1), attn2=(1, 0, 0, 1, 0, 0), ff=(1, 1, 0, 0, 0, 0))
    exported = export(plan, target)
    assert exported.computed[-1].tolist() == [True, True, False, True, False, True]
    assert any("more than planned" in sentence for sentence in exported.lost)
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


def test_smoothcache_has_a_key_for_a_part_or_for_a_part_of_a_block() -> None:
    plan = by_types(attn1=(1, 0, 1), attn2=(1, 0, 0), ff=(1, 1, 0))
    exported = export(plan, "smoothcache")
    assert json.loads(exported.text) == {"attn1": [1, 0, 1], "attn2": [1, 0, 0], "ff": [1, 1, 0]}
    assert exported.lost == ()
    rows = {"a": (["transformer.transformer_blocks.0.attn1"], (1, 0, 0)),
            "b": (["transformer.transformer_blocks.1.attn1"], (1, 0, 1))}  # fmt: skip
    assert json.loads(export(make(rows, LAYERS), "smoothcache").text) == {"attn1-0": [1, 0, 0], "attn1-1": [1, 0, 1]}


def test_smoothcache_has_a_schedule_for_each_list_of_blocks() -> None:
    layers = ["transformer.single_transformer_blocks.0.attn", "transformer.transformer_blocks.0.attn"]
    exported = export(by_steps((1, 0), layers, transformer="FluxTransformer2DModel"), "smoothcache")
    assert json.loads(exported.text) == {"single_transformer_blocks": {"attn": [1, 0]},
                                         "transformer_blocks": {"attn": [1, 0]}}  # fmt: skip
    assert any("keys do not tell" in sentence for sentence in exported.lost)


def test_smoothcache_refuses_what_is_no_part_of_a_block() -> None:
    with pytest.raises(PlanError, match="wraps parts of blocks, and transformer.attn is none"):
        export(by_steps(layers=["transformer.attn"]), "smoothcache")


@pytest.mark.parametrize("target", ["smoothcache", "diffusers-pab"])
def test_what_mixes_guidance_branches_is_refused(target: str) -> None:
    plans = (
        by_steps(transformer="WanTransformer3DModel"),
        by_steps(transformer="Kandinsky5Transformer3DModel"),
        by_steps(transformer="FluxTransformer2DModel", call={"true_cfg_scale": 4.0}),
    )
    for plan in plans:
        with pytest.raises(PlanError, match="once for each guidance branch"):
            export(plan, target)
    export(by_steps(transformer="FluxTransformer2DModel", call={"true_cfg_scale": 1.0}), target)


def every(steps: int, module: Any, patterns: Any) -> Any:
    """Least number of steps in which a pattern differs from the asked ones, by trying all."""
    masks = [np.full(steps, True), *(module.computes(pattern, steps) for pattern in patterns)]
    return lambda asked: min(int((mask != asked).sum()) for mask in masks)


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("module", [broadcast, taylorseer])
def test_the_nearest_pattern_is_the_nearest_of_all(module: Any, steps: int) -> None:
    numbers = range(steps + 1)
    patterns = [(k, a, b) for k in range(2, steps + 1) for a in numbers for b in numbers if module is broadcast or a]
    least = every(steps, module, patterns)
    for rest in itertools.product((False, True), repeat=steps - 1):
        asked = np.array((True, *rest))
        found = module.computes(module.nearest(asked), steps)
        assert int((found != asked).sum()) == least(asked)
        assert found[0]


@pytest.mark.parametrize("module", [broadcast, taylorseer])
def test_what_a_pattern_can_say_is_said(module: Any) -> None:
    for pattern in ((2, 1, 9), (3, 2, 8), (4, 3, 10)):
        mask = module.computes(pattern, 10)
        assert (module.computes(module.nearest(mask), 10) == mask).all()


def test_broadcasting_groups_attention_by_range_and_window_and_leaves_feed_forward() -> None:
    plan = by_types(attn1=(1, 1, 0, 1, 0, 1, 1), attn2=(1, 0, 0, 1, 0, 0, 1), ff=(1, 1, 0, 1, 0, 1, 1))
    exported = export(plan, "diffusers-pab")
    groups = json.loads(exported.text)["groups"]
    assert [(group["range"], group["steps"]) for group in groups] == [(3, [2, 4]), (3, [1, 5])]
    assert groups[0]["timesteps"] == [plan.request.timesteps[2], plan.request.timesteps[4]]
    assert all(
        name.startswith("^transformer_blocks") and name.endswith("$") for g in groups for name in g["identifiers"]
    )
    feed_forward = np.array([layer.endswith("ff") for layer in exported.layers])
    assert exported.computed[feed_forward].all()
    assert "computes feed-forward networks in every step: 3 of the plan" in exported.lost[0]
    assert any("than planned" in sentence for sentence in exported.lost)


def test_broadcasting_refuses_a_plan_that_leaves_out_feed_forward_only() -> None:
    with pytest.raises(PlanError, match="leaves out nothing else"):
        export(by_types(ff=(1, 0, 0, 1)), "diffusers-pab")


def test_taylorseer_reuses_or_predicts_and_names_layers_in_full() -> None:
    for predictor, order in (("reuse", 0), ("linear", 1)):
        content = json.loads(export(by_steps((1, 1, 0, 1, 0, 0), predictor=predictor), "diffusers-taylorseer").text)
        (group,) = content["groups"]
        assert group["max_order"] == order and content["dtype"] == "bfloat16"
        names = group["cache_identifiers"]
        assert len(names) == len(PIXART)
        assert all(re.fullmatch(name, layer.partition(".")[2]) for name, layer in zip(names, PIXART))


def test_sglang_gets_the_published_schema_with_two_leading_steps() -> None:
    exported = export(by_steps((1, 0, 0, 1, 0, 0)), "sglang")
    schedule = json.loads(exported.text)
    assert set(schedule) == set(
        "schema schedule_method predictor objective source_commit request mandatory_full_steps force_last_full max_gap "
        "num_full_steps full_steps calibrated_cost calibration".split()
    )
    assert set(schedule["request"]) == set(
        "pipeline checkpoint num_inference_steps height width guidance_scale do_classifier_free_guidance quality "
        "attention_backend dtype scheduler scheduler_config_sha256 timesteps sigmas".split()
    )
    assert schedule["full_steps"] == [0, 1, 3] and schedule["num_full_steps"] == 3
    assert len(schedule["request"]["timesteps"]) == 6 and len(schedule["request"]["sigmas"]) == 7
    assert schedule["request"]["do_classifier_free_guidance"] is True
    assert len(schedule["calibration"]["manifest_sha256"]) == 64
    assert not exported.ran_here and "not run here" in exported.lost[0]
    assert any("step 1 is computed" in sentence for sentence in exported.lost)
    assert exported.computed.all(0).tolist() == [True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"dtype": "float16"}, "bfloat16 only"),
        ({"call": {}}, "needs height and width"),
    ],
)
def test_sglang_refuses_what_its_schema_does_not_admit(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(PlanError, match=why):
        export(by_steps(**changes), "sglang")
    for mask in ((1, 0), (1, 0, 1)):
        with pytest.raises(PlanError, match="two computed steps|nothing is left to skip"):
            export(by_steps(mask), "sglang")

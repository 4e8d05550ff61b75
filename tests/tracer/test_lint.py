"""dit-trace lint: what configurations of other tools really skip on a miniature, and the traps they step into."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dit_formats.plan import GRID, to_json
from dit_formats.targets import export
from dit_tracer import foreign
from dit_tracer.cli import main
from dit_tracer.engines import hooks
from dit_tracer.foreign import ConfigError, read
from dit_tracer.lint import Verdict, lint, miniature
from dit_tracer.models import tiny
from zoo.planned import by_layers, by_steps

CACHE_DIT = """\
cache_config:
  num_inference_steps: 8
  max_warmup_steps: 0
  Fn_compute_blocks: 1
  steps_computation_mask: [1,1,1,0,1,0,0,1]
  steps_computation_policy: static
"""


@pytest.fixture
def verdict(tmp_path: Path) -> Any:
    """The verdict on a content for a twin."""

    def of(content: str | dict[str, Any], model: str, steps: int | None = None) -> Verdict:
        file = tmp_path / "config"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return lint(file, f"tiny:{model}", steps)

    return of


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "no names"),
        ("hello", "no names"),
        ("[1, 2]", "no names"),
        ("{}", "no names"),
        ("a: b: c", "neither JSON nor YAML"),
        ('{"x": 3}', "it holds x"),
        ('{"attn1": [1, 0, 2]}', "it holds attn1"),
        ('{"format": "dit-plan", "request": {}}', "not recognised"),
        ('{"format": "dit-diffusers"}', "not recognised"),
        ("[" * 10**5, "not recognised"),
        ("\x00\x01", "not recognised"),
        ("Fn_compute_blocks: 1\nnum_inference_steps: many", "for 'many' steps"),
        ("cache_config: 3", "not recognised"),
        ('{"format": "dit-diffusers", "engine": null, "config": {}}', "diffusers has no None here"),
        ('{"format": "dit-diffusers", "engine": "taylorseer", "num_steps": true, "groups": []}', "for True steps"),
        ('{"num_inference_steps": 0, "mag_ratios": []}', "for 0 steps"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_line(content: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(content)
    with pytest.raises(ConfigError, match=what) as refused:
        read(file)
    assert "\n" not in str(refused.value) and "give cache-dit YAML" in str(refused.value)


def test_every_cache_that_is_recognised_can_be_put_to_work() -> None:
    assert set(foreign.CACHES) == set(hooks.CACHES)


def test_a_missing_file_and_an_unknown_model_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    assert main(["lint", str(file), "tiny:sd3"], standalone_mode=False) == 2
    file.write_text(CACHE_DIT)
    assert main(["lint", str(file), "nobody/knows"], standalone_mode=False) == 2
    assert "no miniature to try it on" in capsys.readouterr().err


def test_a_published_model_is_tried_on_its_twin() -> None:
    assert miniature("flux.1-dev").name == miniature("tiny:flux.1-dev").name == "tiny:flux.1-dev"
    assert miniature("digits-flux").name == "digits-flux"


def test_the_command_prints_results_alone_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(CACHE_DIT)
    assert main(["lint", str(file), "tiny:flux.1-dev", "--json"], standalone_mode=False) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["calls"], said["skipped"], said["steps"], said["warnings"]) == (40, 12, "111-1--1", [])
    assert main(["lint", str(file), "tiny:flux.1-dev"], standalone_mode=False) == 0
    assert "skips 30% of attention: 12 of 40 calls\nsteps 111-1--1 " in capsys.readouterr().out


def test_a_mask_shorter_than_the_run_caches_its_end(verdict: Any) -> None:
    found = verdict(CACHE_DIT.replace("steps: 8", "steps: 10"), "pixart-alpha")
    assert found.steps == "111-1--1--"
    assert "mask has 8 steps and the run 10: the rest is cached" in found.warnings[0]
    assert "the last step is cached" in found.warnings


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (CACHE_DIT, "counts anew"),
        ({"attn1": [1, 0, 1]}, "computes every step behind"),
        ({"mag_ratios": [1.0] * 8, "num_inference_steps": 8}, "counts anew"),
    ],
    ids=["cache-dit", "smoothcache", "mag-cache"],
)
def test_a_file_for_another_number_of_steps_is_seen(verdict: Any, content: Any, what: str) -> None:
    found = verdict(content, "pixart-alpha", steps=10)
    assert "and the run has 10" in found.warnings[0] and what in found.warnings[0]


def test_cache_type_is_what_makes_it_fail(verdict: Any) -> None:
    found = verdict(CACHE_DIT + "  cache_type: DBCache\n", "pixart-alpha")
    assert "Unsupported cache_type" in found.failed and found.exit_code == 1
    assert found.warnings == ("leave out cache_type: cache-dit 1.5.3 refuses the string",)


def test_an_engine_without_an_adapter_fails(verdict: Any) -> None:
    found = verdict(CACHE_DIT, "latte-1")
    assert "not officially supported" in found.failed and found.exit_code == 1


def test_two_networks_count_their_steps_apart(verdict: Any) -> None:
    found = verdict(CACHE_DIT, "wan2.2")
    assert any("transformer and transformer_2 count their steps apart" in warning for warning in found.warnings)
    assert any("asks for 11101001, and 111111-1 was computed" in warning for warning in found.warnings)


def test_identifiers_that_match_nothing_skip_nothing(verdict: Any) -> None:
    found = verdict({"cache_interval": 3, "max_order": 1}, "pixart-alpha")
    assert found.skipped == 0 and found.exit_code == 1
    assert any("must match in full, which no attn1 does" in warning for warning in found.warnings)
    named = {"cache_interval": 3, "cache_identifiers": [r"blocks\.\d+\.attn1", r"transformer_blocks\.\d+\.attn2"]}
    found = verdict(named, "pixart-alpha")
    assert 0 < found.share < 0.5
    assert any("1 of 2 names match nothing in this miniature: blocks" in warning for warning in found.warnings)


def test_taylorseer_is_tried_cleared_where_it_fails_as_it_is(verdict: Any) -> None:
    found = verdict({"cache_interval": 3, "cache_identifiers": [r"transformer_blocks\.\d+\.attn1"]}, "pixart-alpha")
    assert found.skipped and found.exit_code == 0
    assert "fails as it is (ValueError: No cache context is set" in found.warnings[0]


def test_a_second_image_that_is_not_cached_is_seen(verdict: Any) -> None:
    found = verdict({"attn1": [1, 0, 1, 0, 1, 0, 1, 1]}, "pixart-alpha")
    assert (found.skipped, found.calls, found.steps) == (6, 32, "1-1-1-11")
    assert "the first image makes 26 calls of attention and the second 32" in found.warnings[0]


def test_smoothcache_says_which_parts_there_are_not(verdict: Any) -> None:
    found = verdict({"attn1": [1, 0, 1], "attn1-7": [1, 0, 0], "mlp": [1, 0, 1]}, "pixart-alpha")
    assert any("2 of 3 names match nothing in this miniature: attn1-7, mlp" in warning for warning in found.warnings)
    assert verdict({"mlp": [1, 0, 1]}, "pixart-alpha").exit_code == 1


@pytest.mark.parametrize(
    "content", [{"attn1": [1, 0, 1, 0]}, {"spatial_attention_block_skip_range": 2}], ids=["smoothcache", "pab"]
)
def test_mixing_guidance_branches_is_seen(verdict: Any, content: dict[str, Any]) -> None:
    found = verdict(content, "wan2.1", steps=4)
    assert "calls its network 2 times a step" in found.warnings[0]
    assert "one guidance branch what it kept of the other" in found.warnings[0]


def test_windows_in_timesteps_need_a_pipeline_that_tells_them(verdict: Any) -> None:
    content = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [100, 800]}
    assert "no current_timestep" in verdict(content, "pixart-alpha").failed
    assert 0 < verdict(content, "cogvideox-5b").share < 0.5


def test_mag_cache_fails_on_latte_in_the_network(verdict: Any) -> None:
    content = {"mag_ratios": [1.0] * 8, "threshold": 0.1, "num_inference_steps": 8}
    assert "RuntimeError" in verdict(content, "latte-1").failed
    assert verdict(content, "sd3").share > 0.5


def test_first_block_cache_fails_on_sd3_and_latte_and_a_threshold_is_said_to_decide(verdict: Any) -> None:
    for model, error in (("sd3", "TypeError"), ("latte-1", "RuntimeError")):
        found = verdict({"threshold": 10.0}, model)
        assert error in found.failed and found.exit_code == 1
    found = verdict({"threshold": 10.0}, "flux.1-dev")
    assert found.share > 0.5 and "a threshold decides" in found.warnings[0]
    assert "a threshold decides" in verdict("Fn_compute_blocks: 1\nresidual_diff_threshold: 9.0\n", "sd3").warnings[0]


@pytest.mark.parametrize("target", ["cache-dit", "diffusers", "smoothcache", "diffusers-pab", "diffusers-taylorseer"])
def test_an_export_skips_what_it_says(verdict: Any, target: str) -> None:
    pipeline = tiny.build("pixart-alpha")
    plan = by_steps(pipeline) if target in ("cache-dit", "diffusers") else by_layers(pipeline)
    exported = export(plan, target)
    found = verdict(exported.text, "pixart-alpha")
    attention = [row for layer, row in zip(exported.layers, exported.computed) if plan.types[layer] != "ff"]
    assert found.calls - found.skipped == sum(map(sum, attention))
    assert not any("match nothing" in warning or "asks for" in warning for warning in found.warnings) or (
        target == "cache-dit"
    )


def test_a_plan_is_read_and_not_run(verdict: Any) -> None:
    pipeline = tiny.build("pixart-alpha")
    plan = by_layers(pipeline)
    found = verdict(to_json(plan), "pixart-alpha")
    assert not found.ran and found.calls == 32
    assert found.skipped == sum(not step for row in plan.rows[:2] for step in row.compute) * 2
    whole = verdict(to_json(by_steps(pipeline)), "sd3")
    assert whole.steps == "11010010" and any("the plan is for PixArt" in warning for warning in whole.warnings)
    assert not any("the plan is for" in warning for warning in found.warnings)
    other = verdict(to_json(plan), "sd3")
    assert any("of 6 layers are not in this miniature" in warning for warning in other.warnings)
    assert other.exit_code == 1


def test_a_choice_of_noise_levels_caches_nothing(verdict: Any) -> None:
    plan = replace(by_steps(tiny.build("pixart-alpha")), granularity=GRID)
    with pytest.raises(ConfigError, match="a choice of noise levels, which caches nothing"):
        verdict(to_json(plan), "pixart-alpha")


def test_a_schedule_of_sglang_is_read_and_not_run(verdict: Any) -> None:
    content = {"schema": "sglang-dpcache-schedule-v2", "request": {"num_inference_steps": 6}, "full_steps": [0, 1, 4]}
    found = verdict(content, "flux.1-dev")
    assert not found.ran and found.steps == "110010" and found.share == 0.5

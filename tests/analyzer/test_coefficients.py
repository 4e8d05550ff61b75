"""Files with calibrated numbers for other tools: their forms, what they say of themselves, and refusals."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dit_analyzer.plans import magcache, teacache
from dit_analyzer.plans.coefficients import COEFFICIENT_TARGETS, FILE, PYTHON, Coefficients
from dit_analyzer.plans.teacache import FitError
from dit_formats import IncompleteError, open_trace
from dit_formats.plan import PlanError
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

STEPS = 12
RATIOS = ("magcache", "comfyui-magcache")
POLYNOMIALS = ("teacache", "comfyui-teacache", "vllm-omni")


def moving(index: int, steps: int = STEPS) -> np.ndarray:
    """States (branch, site, element, step) whose outputs change as their modulated input does, but for a little."""
    rng = np.random.default_rng(index)
    pace = np.cumsum(0.05 + 0.1 * np.cos(np.arange(steps)) ** 2)
    x = rng.normal(3, 0.3, (2, 8, 12, 1)) + pace * rng.normal(1, 0.02, (2, 8, 12, 1))
    return x * np.exp(rng.normal(0, 0.001, x.shape))


@pytest.fixture
def make(tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]) -> Callable[..., Path]:
    """A trace of prompts with states, by default of six that move alike."""

    def of(
        prompts: int = 6, steps: int = STEPS, values: Callable[..., np.ndarray] = moving, **settings: object
    ) -> Path:
        path = tmp_path / "made.trace"
        path.mkdir()
        for index in range(prompts):
            write_shard(path, states(shard(index, steps=STEPS, **settings), values(index, STEPS)))
        return path

    return of


def written(path: Path, target: str, **options: object) -> Coefficients:
    with open_trace(path) as trace:
        return COEFFICIENT_TARGETS[target](trace, **options)


def row_of(text: str) -> tuple[str, list[float]]:
    """Name and numbers of the only assignment to a row of a table in a file of Python."""
    (line,) = (node for node in ast.parse(text).body if isinstance(node, ast.Assign))
    assert isinstance(line.targets[0], ast.Subscript)
    value = line.value.args[0] if isinstance(line.value, ast.Call) else line.value
    return ast.literal_eval(line.targets[0].slice), ast.literal_eval(value)


def test_every_target_says_its_worth_its_limits_and_whether_it_ran(make: Callable[..., Path]) -> None:
    path = make()
    for target in COEFFICIENT_TARGETS:
        made = written(path, target)
        assert any("6 prompts, too few to trust intervals" in line for line in made.lines_of_quality)
        assert any("of 12 steps (95 % interval" in line for line in made.lines_of_quality)
        assert made.lost and FILE in made.snippet and made.text.endswith("\n")
        assert made.ran_here == (target == "magcache")
        for line in (*made.lines_of_quality, *made.lost):
            assert line in made.text, "the file says it too"


def test_diffusers_gets_a_ratio_for_each_step(make: Callable[..., Path]) -> None:
    path = make()
    made = written(path, "magcache")
    data = json.loads(made.text)
    with open_trace(path) as trace:
        found = magcache.ratios(trace)
    assert set(data["config"]) == {
        "threshold", "max_skip_steps", "retention_ratio", "num_inference_steps", "mag_ratios"
    }  # fmt: skip
    assert data["config"]["num_inference_steps"] == len(data["config"]["mag_ratios"]) == STEPS
    np.testing.assert_allclose(data["config"]["mag_ratios"], found.joint, atol=1e-6)
    np.testing.assert_allclose(data["ratios_by_branch"]["uncond"], found.ratios[1], atol=1e-6)
    assert data["ditscope"]["model"] == "hand-made" and len(data["ditscope"]["timesteps"]) == STEPS
    assert any("one list for cond and uncond" in line for line in made.lost)
    ast.parse(made.snippet)


def test_comfyui_gets_the_branches_in_turns(make: Callable[..., Path]) -> None:
    path = make()
    name, values = row_of(written(path, "comfyui-magcache").text)
    with open_trace(path) as trace:
        found = magcache.ratios(trace)
    assert name == "hand-made" and values[:2] == [1.0, 1.0]
    np.testing.assert_allclose(np.reshape(values, (STEPS, 2)).T, found.ratios, atol=1e-6)


def test_polynomials_are_highest_power_first_in_every_form(make: Callable[..., Path]) -> None:
    path = make()
    with open_trace(path) as trace:
        residual, last = (teacache.fit(teacache.pairs(trace, name)).coefficients for name in ("residual", "last"))
    scope: dict[str, object] = {}
    exec(written(path, "teacache").text, scope)
    np.testing.assert_allclose(scope["coefficients"], residual, rtol=1e-8)
    assert scope["rel_l1_thresh"] > 0
    np.testing.assert_allclose(row_of(written(path, "comfyui-teacache").text)[1], residual, rtol=1e-8)
    data = json.loads(written(path, "vllm-omni").text)
    assert data["cache_backend"] == "tea_cache" and len(data["cache_config"]["coefficients"]) == 5
    assert set(data["cache_config"]) == {"rel_l1_thresh", "coefficients"}
    np.testing.assert_allclose(data["cache_config"]["coefficients"], last, rtol=1e-8)


@pytest.mark.parametrize("target", COEFFICIENT_TARGETS)
def test_the_threshold_skips_the_share_that_is_asked_for(make: Callable[..., Path], target: str) -> None:
    path = make()
    for share in (0.25, 0.5):
        chosen = written(path, target, share=share).lines_of_quality[-1]
        assert f"the threshold for {share:.0%} of the steps" in chosen
        skipped = float(chosen.split(" skips ")[1].split(" ")[0])
        assert share * STEPS - 0.01 <= skipped <= share * STEPS + 1


@pytest.mark.parametrize("target", COEFFICIENT_TARGETS)
def test_a_share_out_of_reach_leaves_the_usual_threshold_and_says_so(make: Callable[..., Path], target: str) -> None:
    chosen = written(make(), target, share=0.99).lines_of_quality[-1]
    assert "the file has threshold" in chosen and "share 99%: give more than 0, and up to" in chosen


@pytest.mark.parametrize("target", POLYNOMIALS)
def test_a_polynomial_that_tells_little_is_refused_and_written_by_force(make: Callable[..., Path], target: str) -> None:
    path = make(values=lambda index, steps: np.random.default_rng(index).normal(size=(2, 8, 12, steps)))
    with pytest.raises(FitError, match="--force writes it all the same") as caught:
        written(path, target)
    assert isinstance(caught.value, PlanError) and caught.value.exit_code == 1
    forced = written(path, target, force=True)
    assert "below the floor 0.5: written by force" in forced.text


@pytest.mark.parametrize("target", POLYNOMIALS)
def test_a_monotone_polynomial_is_offered_and_written_when_asked_for(make: Callable[..., Path], target: str) -> None:
    path = make(values=lambda index, steps: np.random.default_rng(index).normal(size=(2, 8, 12, steps)))
    forced = written(path, target, force=True)
    offered = next(line for line in forced.lines_of_quality if "one that never does: R^2" in line)
    listed = [float(word) for word in offered.split("[")[1].rstrip("]").split(", ")]
    bound = written(path, target, force=True, monotone=True)
    assert any("never falls and is never negative" in line for line in bound.lines_of_quality)
    if target == "comfyui-teacache":
        np.testing.assert_allclose(row_of(bound.text)[1], listed, rtol=1e-7)


def test_one_prompt_is_enough_for_ratios_alone(make: Callable[..., Path]) -> None:
    path = make(prompts=1)
    for target in RATIOS:
        assert "one prompt, so no interval" in written(path, target).text
    for target in POLYNOMIALS:
        with pytest.raises(FitError, match="one prompt, or all changes are equal"):
            written(path, target)
        assert "nan" in written(path, target, force=True).text


@pytest.mark.parametrize("target", COEFFICIENT_TARGETS)
def test_what_never_changes_is_refused_or_has_ratios_of_one(make: Callable[..., Path], target: str) -> None:
    path = make(values=lambda index, steps: np.ones((2, 8, 12, steps)))
    if target in POLYNOMIALS:
        with pytest.raises(FitError, match="1 different changes"):
            written(path, target, force=True)
    else:
        assert "skips 8 of 12 steps" in written(path, target).text


@pytest.mark.parametrize("target", COEFFICIENT_TARGETS)
def test_a_trace_without_a_stack_is_refused(trace_folder: Path, target: str) -> None:
    with pytest.raises(IncompleteError, match="--no-stack"):
        written(trace_folder, target)


def test_a_network_on_which_diffusers_fails_is_refused(make: Callable[..., Path]) -> None:
    path = make(transformers={"transformer": {"class": "LatteTransformer3DModel"}})
    with pytest.raises(PlanError, match="cannot run Latte.*--force"):
        written(path, "magcache")
    forced = written(path, "magcache", force=True)
    assert json.loads(forced.text)["config"]
    assert not forced.ran_here and forced.lost[0].startswith("written by force: MagCache cannot run Latte")
    assert row_of(written(path, "comfyui-magcache").text)


@pytest.mark.parametrize("target", COEFFICIENT_TARGETS)
def test_a_name_from_a_trace_is_text_in_a_file_and_never_code(make: Callable[..., Path], target: str) -> None:
    hostile = 'x"] = 0\nimport os; os.abort()\n#\r\u2028\\'
    made = written(make(model=hostile), target)
    assert (made.ending == ".py") == (target in PYTHON)
    if made.ending == ".py":
        assert all(isinstance(node, ast.Assign) for node in ast.parse(made.text).body)
    else:
        assert json.loads(made.text)["ditscope"]["model"] == hostile


def test_names_of_targets_are_read_without_numpy() -> None:
    code = "import sys, dit_analyzer.plans.coefficients; sys.exit('numpy' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0

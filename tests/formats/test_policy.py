"""Files of policies, damaged ones first, and the rule that they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dit_formats.plan import STEPS, TYPES, Plan, PlanError, Request, Row, read_plan, write_plan
from dit_formats.policy import MODEL_INPUT, Policy, Rule, read_either, read_policy, rule_of, to_json, write_policy

NAN = float("nan")


def static_of(steps: int = 4) -> Plan:
    levels = tuple(np.linspace(1, 0.1, steps).tolist())
    request = Request("m", {"t": "ab"}, None, "P", "T", "S", "0" * 64, steps, levels, levels, "float32", {"height": 8})
    row = Row("all", ("t.attn", "t.ff"), (True, False) * (steps // 2) + (True,) * (steps % 2))
    return Plan(
        request, STEPS, "reuse", levels, (row,), {"t.attn": "self", "t.ff": "ff"}, {"seen": ["x"]}, {"error": 0.5}
    )


def policy_of(steps: int = 4, **changes: Any) -> Policy:
    static = static_of(steps)
    values = {"threshold": 0.1, "coefficients": (2.0, 0.0), "most": 3, "first": 1, "last": 0} | changes
    known = {"signal": MODEL_INPUT, "predictor": "linear", "levels": static.levels, "static": static}
    return Policy(static.request, **(known | values), made={"trace": "a"}, predicted={"error": 0.25})


def decided(rule: Rule, *changes: float) -> list[int]:
    return [int(rule.computes(step, change)) for step, change in enumerate(changes)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"signal": "residual"}, "signal 'residual'"),
        ({"predictor": "cubic"}, "predictor 'cubic'"),
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": NAN}, "threshold"),
        ({"coefficients": ()}, "coefficients"),
        ({"coefficients": (np.inf,)}, "coefficients"),
        ({"most": -1}, "numbers of steps"),
        ({"most": 1.5}, "numbers of steps"),
        ({"first": True}, "numbers of steps"),
        ({"first": 0}, "cannot be always computed"),
        ({"last": 5}, "cannot be always computed"),
        ({"static": replace(static_of(), granularity=TYPES)}, "whole steps"),
        ({"static": static_of(5)}, "same request"),
        ({"levels": (4.0, 3.0, 2.0, 1.0)}, "levels"),
    ],
)
def test_a_policy_that_says_nothing_sensible_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        policy_of(**changes)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    for steps in (1, 4):
        path = tmp_path / f"new/{steps}.json"
        write_policy(path, policy_of(steps))
        assert read_policy(path) == read_either(path) == policy_of(steps)


def test_a_file_is_read_as_its_format_says(tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.json", static_of())
    assert read_either(tmp_path / "plan.json") == static_of()
    with pytest.raises(PlanError, match="its format is not dit-policy"):
        read_policy(tmp_path / "plan.json")
    write_policy(tmp_path / "policy.json", policy_of())
    with pytest.raises(PlanError, match="its format is not dit-plan"):
        read_plan(tmp_path / "policy.json")


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_policy(path, policy_of())
    with pytest.raises(FileExistsError):
        write_policy(path, policy_of(threshold=0.2))
    write_policy(path, policy_of(threshold=0.2), force=True)
    assert read_policy(path).threshold == 0.2 and list(tmp_path.iterdir()) == [path]


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    for read in (read_policy, read_either):
        with pytest.raises(FileNotFoundError, match="nothing.json"):
            read(tmp_path / "nothing.json")


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"format": "other"}', '{"format": "dit-policy"}', "[" * 100_000])
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    for read in (read_policy, read_either):
        with pytest.raises(PlanError, match="a.json"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize("field", [*json.loads(to_json(policy_of())), "more"])
def test_a_field_too_few_many_or_wrong_is_refused(tmp_path: Path, field: str) -> None:
    data = json.loads(to_json(policy_of()))
    spoiled = [{name: value for name, value in data.items() if name != field}] if field in data else []
    for content in [*spoiled, data | {field: "?"}, data | {field: None}]:
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(PlanError, match="a.json"):
            read_policy(tmp_path / "a.json")


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(json.loads(to_json(policy_of())) | {"version": 2}))
    with pytest.raises(PlanError, match="version 2, this version reads up to 1"):
        read_either(tmp_path / "a.json")


def test_threshold_0_computes_every_step() -> None:
    assert decided(Rule(5, 0.0), NAN, 0.0, 0.0, 1.0, 0.0) == [1] * 5
    assert decided(Rule(5, 0.0, (1.0, -9.0)), NAN, 0.0, 0.0, 1.0, 0.0) == [1] * 5, "a negative value counts as 0"


def test_changes_add_up_until_a_step_is_computed() -> None:
    assert decided(Rule(6, 0.25), NAN, 0.125, 0.125, 0.125, 0.125, 0.0625) == [1, 0, 1, 0, 1, 0]


def test_a_change_that_is_not_known_is_computed_and_starts_anew() -> None:
    assert decided(Rule(5, 0.25), NAN, 0.2, NAN, 0.2, np.inf) == [1, 0, 1, 0, 1]


def test_first_and_last_steps_and_the_longest_run_are_kept() -> None:
    assert decided(Rule(9, 9.0, most=2, first=2, last=1), *[0.0] * 9) == [1, 1, 0, 0, 1, 0, 0, 1, 1]


def test_steps_beyond_the_last_are_computed() -> None:
    assert decided(Rule(2, 9.0), 0.0, 0.0, 0.0) == [1, 0, 1]


def test_a_rule_is_of_its_policy() -> None:
    rule = rule_of(policy_of(8, threshold=0.5, most=2, first=2, last=1))
    assert decided(rule, *[0.125] * 8) == [1, 1, 0, 1, 0, 1, 0, 1]

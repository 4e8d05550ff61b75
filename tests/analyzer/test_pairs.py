from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from dit_analyzer.members import Member
from dit_analyzer.pairs import between, within

ONE = Member(Path("a"), "a", "flux", 28, ("", "{}"), {"joint": 2}, 4, 4, 1, None, True, "exact", np.linspace(1, 0, 29))
LESS = replace(ONE, name="b", num_steps=14, role="steps")
BOTH = replace(ONE, name="c", num_steps=14, role="steps+scheduler")
OTHER = replace(ONE, name="d", model="sd3")


def test_within_a_model_the_first_run_is_set_against_those_that_differ_in_one_thing() -> None:
    assert [(a.name, b.name) for a, b in within([ONE, LESS, BOTH, OTHER], "steps")] == [("a", "b")]
    assert within([ONE, LESS, BOTH, OTHER], "scheduler") == []


def test_between_models_first_runs_alone_are_compared_and_never_a_model_with_itself() -> None:
    assert [(a.name, b.name) for a, b in between([ONE, LESS, BOTH, OTHER, replace(ONE, name="e")])] == [
        ("a", "d"),
        ("d", "e"),
    ]
    assert between([ONE]) == between([]) == []

"""Tables 1 and 2 of the paper, in three formats."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dit_analyzer.measures.variation import variation
from dit_analyzer.members import Member
from dit_analyzer.printed import PAPER
from dit_analyzer.show.papertables import Table, billions, table_1, table_2, to_csv, to_latex, to_markdown

AXES = ("prompt", "kind", "layer", "transition")


def member(name: str = "a", model: str = "mine", **values: object) -> Member:
    known = {"num_steps": 5, "scheduler": ("EulerScheduler", "{}"), "layers": {"self": 2}, "sigmas": np.ones(5)}
    known |= {"prompts": 3, "asked": 3, "seeds": 1, "parameters": 11_901_408_320, "role": "default", "figure": "S1"}
    known |= {"has_samples": True, "transitions": "exact"}
    return Member(Path(name), name, model, **(known | values))


def view(prompts: int = 3, kinds: str = "kva") -> xr.Dataset:
    l1 = np.random.default_rng(1).lognormal(size=(prompts, len(kinds), 2, 4))
    return xr.Dataset({"l1": (AXES, l1)}, {"kind": list(kinds)})


def cells(table: Table, row: int) -> list[str]:
    return [cell.text for cell in table.rows[row]]


def test_table_2_has_the_papers_cv_and_the_corrected_one_and_n() -> None:
    one = view()
    table = table_2([member()], [one])
    expected = variation(one)
    assert [row[0].text for row in table.rows] == [
        *"KVA",
        "K, corrected",
        "V, corrected",
        "A, corrected",
        "Prompts (N)",
    ]
    for row, name in ((0, "cv_published"), (3, "cv")):
        for place, value in enumerate(expected[name].values):
            assert table.rows[row + place][1].value == pytest.approx(value)
    assert cells(table, 6) == ["Prompts (N)", "3"]


def test_the_papers_own_numbers_stand_beside_those_of_its_settings_alone() -> None:
    members = [
        member("a", "sd3", figure="4"),
        member("b", "sd3", figure="S1"),
        member("c", "mochi-1-preview", figure="8"),
    ]
    table = table_2(members, [view()] * 3)
    assert cells(table, 3) == ["K, the paper's", f"{PAPER['sd3'].cv[0]}%", "–", "–"]
    assert [cell.note for cell in table.rows[3][2:]] == ["", "Table 2 of the paper has no entry"]


def test_one_prompt_gives_dashes_and_a_note() -> None:
    table = table_2([member(prompts=1, asked=1)], [view(1)])
    assert cells(table, 0) == ["K", "–"]
    assert "| K | – [a] |" in to_markdown(table)
    assert "[a] a: one prompt has no variation." in to_markdown(table)
    assert "--\\textsuperscript{a}" in to_latex(table)
    first = next(csv.DictReader(to_csv(table).splitlines()))
    assert (first["cv"], first["note"]) == ("", "a: one prompt has no variation")


def test_a_kind_that_was_not_recorded_is_a_dash_with_its_reason() -> None:
    table = table_2([member()], [view(kinds="ka")])
    assert table.rows[1][1].note == "a: V was not recorded"
    assert table.rows[0][1].value is not None


@pytest.mark.parametrize("value, why", [(0.0, "never changes, or not in every prompt"), (np.nan, "has no value")])
def test_a_kind_without_any_variation_is_a_dash_with_its_reason(value: float, why: str) -> None:
    one = view()
    one["l1"][:, 0] = value
    assert table_2([member()], [one]).rows[0][1].note == f"a: K {why}"


def test_cells_left_out_are_counted() -> None:
    one = view()
    one["l1"][0, 0, 0, 0] = 0
    table = table_2([member()], [one])
    assert table.notes[1] == "a: 1 of 24 cells are left out, zero or not finite in some prompt."
    assert [record["cells_left_out"] for record in table.records] == [1, 0, 0]


def test_changes_over_a_part_of_the_elements_are_said_to_be_estimates() -> None:
    one = member(transitions="subset of 262144")
    assert "a subset of 262144 elements of each activation, and are estimates" in table_2([one], [view()]).notes[1]
    assert len(table_2([one], [view()], "sample").notes) == 1


def test_two_traces_of_one_model_are_told_apart() -> None:
    assert table_2([member("a"), member("b"), member("c", "other")], [view()] * 3).header == [
        "Target",
        "a",
        "b",
        "other",
    ]


def test_table_1_says_what_a_trace_does_not() -> None:
    table = table_1([member(parameters=None)], [view()])
    assert cells(table, 0) == ["mine", "–", "2", "5", "Euler", "3"]
    assert "how many parameters" in table.rows[0][1].note


def test_seeds_and_missing_prompts_are_shown() -> None:
    table = table_1([member(prompts=6, asked=8, seeds=2)], [view()])
    assert table.rows[0][-1].text == "6 (2 seeds)"
    assert table.rows[0][-1].note == "a: 6 of 8 prompts"
    assert table_2([member(seeds=2)], [view()]).notes[1] == "a: prompts and seeds vary together."


def test_random_weights_are_named() -> None:
    table = table_2([member(model="tiny:sd3")], [view()])
    assert table.notes[-1] == "a: random weights, its numbers mean nothing."


def test_names_from_a_trace_are_only_text() -> None:
    table = table_1([member("a", "x_|$%&#{}~^\\<b>\n\x1b")], [view()])
    assert "x\\_\\|$%&#{}~^\\\\\\<b\\>" in to_markdown(table)
    assert "x\\_|\\$\\%\\&\\#\\{\\}\\textasciitilde{}\\textasciicircum{}\\textbackslash{}" in to_latex(table)
    assert len(to_markdown(table).splitlines()) == 9 - 2


def test_latex_has_the_rules_of_booktabs_and_a_column_for_each_name() -> None:
    lines = to_latex(table_2([member("a"), member("b")], [view()] * 2)).splitlines()
    assert [line for line in lines if line.endswith("rule")] == ["\\toprule", "\\midrule", "\\bottomrule"]
    assert "\\begin{tabular}{lrr}" in lines
    assert {line.count(" & ") for line in lines if line.endswith("\\\\")} == {2}


@pytest.mark.parametrize(
    "number, text", [(11_901_408_320, "11.9 B"), (1_918_668, "1.92 M"), (830, "830"), (1500, "1.5 k")]
)
def test_parameters_have_three_figures(number: int, text: str) -> None:
    assert billions(number) == text


def test_the_corrected_cv_has_its_interval_in_every_format() -> None:
    one = view()
    table, expected = table_2([member()], [one]), variation(one).sel(kind="k")
    cv, low, high = (float(expected[name]) for name in ("cv", "cv_low", "cv_high"))
    shown = f"{100 * cv:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
    assert f"| K, corrected | {shown} |" in to_markdown(table)
    assert f"K, corrected & {shown.replace('%', chr(92) + '%')} " in to_latex(table)
    first = next(csv.DictReader(to_csv(table).splitlines()))
    assert [float(first[name]) for name in ("cv", "cv_low", "cv_high")] == [cv, low, high]
    assert low < cv < high and first["note"] == ""
    assert any("95 % interval over prompts" in note for note in table.notes)


def test_two_prompts_have_no_interval_and_that_is_said() -> None:
    table = table_2([member(prompts=2, asked=2)], [view(2)])
    cell = table.rows[3][1]
    assert cell.value is not None and "(" not in cell.text
    assert cell.note == "a: no interval, it takes 3 prompts and here are 2"
    first = next(csv.DictReader(to_csv(table).splitlines()))
    assert (first["cv_low"], first["cv_high"], first["note"]) == (
        "",
        "",
        "a: no interval, it takes 3 prompts and here are 2",
    )
    assert float(first["cv"]) == cell.value


def test_a_single_prompt_that_differs_gives_no_interval_and_that_is_said() -> None:
    one = view()
    one["l1"][:] = 0.5
    one["l1"][0, 0] = 1.0
    cell = table_2([member()], [one]).rows[3][1]
    assert cell.value > 0 and cell.note == "a: no interval, without some prompt nothing varies"


def test_equal_prompts_have_no_variation_and_no_interval_of_it() -> None:
    one = view()
    one["l1"][:] = 0.5
    table = table_2([member()], [one])
    assert table.rows[3][1].value == 0
    assert "nan" not in to_markdown(table) + to_latex(table) + to_csv(table)

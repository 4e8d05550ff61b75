"""dit-analyze compare: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import dit_analyzer
import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_analyzer.measures.concordance import concordance, mean_curves
from dit_analyzer.show import comparison
from dit_analyzer.show.beside import matrix, overlaid
from dit_analyzer.show.comparison import Run
from dit_formats.schema import Shard
from dit_formats.writer import write_shard
from zoo.curves import run as simulated
from zoo.curves import shifted

Trace = Callable[..., Path]


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def trace(tmp_path: Path, shard: Callable[..., Shard]) -> Trace:
    """Writes a trace of some prompts."""

    def write(name: str, prompts: int = 4, first: int = 0, **settings: object) -> Path:
        folder = tmp_path / f"{name}.trace"
        folder.mkdir(parents=True)
        for index in range(first, first + prompts):
            write_shard(folder, shard(index, **settings))
        return folder

    return write


def test_two_equal_traces_are_equivalent(trace: Trace) -> None:
    result = compare(trace("one"), trace("other"))
    assert result.exit_code == 0
    head, *rest = result.stdout.splitlines()
    assert head.startswith("one and other · 4 common prompts · same scheduler, max |Δσ| 0.000")
    kinds = [line.split() for line in rest if line.startswith("  ") and line.endswith("equivalent")]
    assert [row[0] for row in kinds] == ["K", "V", "A"] * 2 and all(row[1] == "1.00" for row in kinds)
    assert "relative step, headline" in result.stdout and "fewer than 6 prompts" in result.stdout
    assert result.stderr.startswith("next: dit-analyze compare ")


def test_the_noise_axis_is_the_headline_where_schedulers_differ(trace: Trace) -> None:
    result = compare(trace("one"), trace("other", scheduler={"class": "HeunScheduler"}))
    assert "schedulers differ" in result.stdout and "noise level, headline" in result.stdout
    assert "says little about schedulers" in result.stdout, "the noise levels are the same"


def test_numbers_for_programs_agree_with_what_is_printed(trace: Trace) -> None:
    result = compare(trace("one"), trace("other", prompts=3), "--json")
    (pair,) = json.loads(result.stdout)["pairs"]
    assert (pair["one"], pair["other"], pair["prompts"], pair["headline"]) == ("one", "other", 3, "step")
    assert {axis: [row["kind"] for row in rows] for axis, rows in pair["axes"].items()} == {
        "step": ["k", "v", "a"],
        "noise": ["k", "v", "a"],
    }
    assert pair["axes"]["step"][0]["s"] == 1 and pair["axes"]["step"][0]["verdict"] == "equivalent"
    assert "one: 1 prompt left out, not in both" in pair["notes"]


def test_depth_contrast_and_roughness_are_printed_and_given_to_programs() -> None:
    views = simulated(noise=0.1, kinds="ka"), simulated(sigmas=shifted(24), noise=0.1, kinds="ka")
    runs = [Run(name, view, None) for name, view in zip("ab", views)]
    (pair,) = found = comparison.pairs(runs)
    told = comparison.as_json(found, runs)
    trend, contrast = dit_analyzer.depth_trend(runs[0].view), dit_analyzer.kind_contrast(runs[0].view)
    rows = {(row["what"], row["of"], row["quantity"]): row for row in told["traces"][0]["depth"]}
    assert rows["output / input", "k", "l1"]["log_factor"] == trend["slope"].sel(kind="k", quantity="l1").item()
    assert rows["one kind / another", "a/k", "l1"]["low"] == contrast["low"].sel(pair="a/k", quantity="l1").item()
    assert told["pairs"][0]["roughness"][0]["ratio"] == pytest.approx(pair.rough["ratio"].values[0])


def test_one_axis_can_be_asked_for(trace: Trace) -> None:
    (pair,) = json.loads(compare(trace("one"), trace("other"), "--axis", "noise", "--json").stdout)["pairs"]
    assert list(pair["axes"]) == ["noise"]


def test_three_traces_are_three_pairs(trace: Trace) -> None:
    result = compare(trace("a"), trace("b"), trace("c"), "--json")
    names = [(pair["one"], pair["other"]) for pair in json.loads(result.stdout)["pairs"]]
    assert names == [("a", "b"), ("a", "c"), ("b", "c")]


def test_one_prompt_has_s_and_no_verdict(trace: Trace) -> None:
    result = compare(trace("one", prompts=1), trace("other", prompts=1))
    assert result.exit_code == 0 and "no verdict of fewer than 3 prompts" in result.stdout
    assert "undecided" in result.stdout and "nan" not in result.stdout
    (pair,) = json.loads(compare(trace("p", prompts=1), trace("q", prompts=1), "--json").stdout)["pairs"]
    assert pair["axes"]["step"][0]["s_low"] is None and pair["axes"]["step"][0]["p_value"] is None


def test_figures_are_written_again_with_the_same_bytes_and_not_replaced(trace: Trace, tmp_path: Path) -> None:
    output, traces = tmp_path / "new" / "figures", (trace("one"), trace("other"), "--axis", "step")
    assert compare(*traces, "-o", output).exit_code == 0
    names = {f"one-other-{name}.{ending}" for name in ("concordance", "curves", "depth") for ending in ("pdf", "png")}
    assert set(os.listdir(output)) == names
    before = {name: (output / name).read_bytes() for name in names}
    again = compare(*traces, "-o", output)
    assert again.exit_code == 1 and "--force" in again.stderr and not again.stdout
    assert compare(*traces, "-o", output, "--force").exit_code == 0
    assert {name: (output / name).read_bytes() for name in names} == before


def test_a_single_trace_is_wrong_usage(trace: Trace) -> None:
    result = compare(trace("one"))
    assert result.exit_code == 2 and "two traces or more" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(("changes", "code", "said"), [
    ({"first": 10}, 1, "one and other: no common prompts: none of the 4 texts"),
    ({"steps": 2}, 1, "one and other: a curve needs two transitions or more; trace with --steps 3 or more"),
    ({"steps": 1}, 4, "has one step"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(trace: Trace, changes: dict[str, int], code: int, said: str) -> None:
    result = compare(trace("one"), trace("other", **changes))
    assert result.exit_code == code and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_traces_of_one_name_are_told_apart_by_their_paths(trace: Trace) -> None:
    first, second = trace("a/same"), trace("b/same")
    assert compare(first, second).stdout.startswith(f"{first} and {second} · ")


def test_a_run_without_sigmas_is_compared_by_steps_and_says_so() -> None:
    bare = simulated(noise=0.1).drop_vars(["sigma", "sigma_after"])
    (pair,) = comparison.pairs([Run("a", bare, None), Run("b", simulated(noise=0.1), None)])
    (row,) = comparison.as_json([pair], [])["pairs"]
    assert row["headline"] == "step" and row["max_dsigma"] is None
    assert row["notes"] == ["no noise level: the noise axis needs the sigma of every step, and this trace has none; "
                            "take the step axis"]  # fmt: skip


def test_other_depths_are_said_to_be_aligned() -> None:
    (pair,) = comparison.pairs([Run("a", simulated(layers=4), None), Run("b", simulated(layers=9), None)])
    assert "4 and 9 layers, compared at the same relative depth" in comparison.as_json([pair], [])["pairs"][0]["notes"]


def test_json_beside_figures_stays_json_and_names_are_not_read_as_formulas(trace: Trace, tmp_path: Path) -> None:
    result = compare(trace("$\\frac$\x1b[31m"), trace("a_b^c"), "--axis", "step", "--json", "-o", tmp_path / "out")
    (pair,) = json.loads(result.stdout)["pairs"]
    assert pair["one"] == "$\\frac$ [31m" and "a_b^c-curves.png" in result.stderr


@pytest.mark.parametrize("count", [2, 13])
def test_figures_of_many_runs_show_each(count: int) -> None:
    views = [simulated(sigmas=shifted(12, 1 + 0.2 * i), prompts=2, kinds="ka") for i in range(count)]
    labels = [f"run-{i}" for i in range(count)]
    found = concordance(views)
    figure = matrix(found, labels, "step")
    images = [panel.images[0].get_array() for panel in figure.axes if panel.images]
    np.testing.assert_allclose(images[0], found.sel(kind="k"))
    lines = overlaid([mean_curves(views, axis) for axis in ("step", "noise")], labels)
    assert [len(panel.lines) for panel in lines.axes] == [count] * 4
    assert lines.axes[-1].xaxis_inverted() and not lines.axes[0].xaxis_inverted()
    drawn = {(line.get_color(), line.get_linestyle()) for line in lines.axes[0].lines}
    assert len(drawn) == count

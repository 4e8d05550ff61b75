"""Where curves break, as pages and figures of a study."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import changes, points, words
from dit_analyzer.members import Member
from dit_analyzer.pages import PAGES
from dit_analyzer.pages.changes import changes_pages
from dit_analyzer.show import breaks, figures
from dit_analyzer.show.changes import changes as draw
from dit_analyzer.study import heading, open_study, write_study
from dit_formats.schema import Shard
from dit_formats.writer import write_shard
from matplotlib.colors import to_rgba

AXES = ("prompt", "kind", "layer", "transition")


def member(name: str = "mine", **values: object) -> Member:
    known = {"num_steps": 28, "scheduler": ("EulerScheduler", "{}"), "layers": {"self": 2}, "sigmas": np.ones(28)}
    known |= {"prompts": 3, "asked": 3, "seeds": 1, "parameters": None, "has_samples": True, "transitions": "exact"}
    return Member(Path(name), name, **({"model": "m"} | known | values))


def view(prompts: int = 3, layers: int = 2, transitions: int = 27) -> xr.Dataset:
    """K jumps x2.2 at transition 10; V falls; A falls, and has a spike in layer 0."""
    t = np.arange(transitions)
    log = np.stack([np.tile(line, (layers, 1)) for line in (-0.1 * t + 0.8 * (t >= 10), -0.05 * t, -0.05 * t)])
    if transitions > 20:
        log[2, 0, 17] += 0.6
    noise = 0.02 * np.random.default_rng(1).standard_normal((prompts, *log.shape))
    coordinates = {
        "kind": list("kva"),
        "layer": range(layers),
        "layer_type": ("layer", (["joint", "single"] * layers)[:layers]),
        "transition": t,
        "sigma": ("transition", np.linspace(1, 0.1, transitions)),
    }
    return xr.Dataset({"l1": (AXES, np.exp(log + noise))}, coordinates, {"num_steps": transitions + 1})


def found(one: xr.Dataset, **values: object) -> breaks.Breaks:
    return breaks.Breaks(member(**values), changes(one), words(one))


def test_common_changes_stand_in_steps_as_sampled_and_as_the_paper_counts() -> None:
    text = breaks.page([found(view())])
    (row,) = [line for line in text.splitlines() if line.startswith("| mine | K | 1")]
    assert row.startswith("| mine | K | 10 → 11 | 16 | 0.654 | ×2.") and row.endswith("| 10 | 1.00 | 2 of 2 |")
    (row,) = [line for line in text.splitlines() if line.startswith("| mine | A | 17")]
    assert row.startswith("| mine | A | 17 → 18 | 9 | ") and row.endswith(" | 1 of 2 |")


def test_no_change_and_no_dip_are_said() -> None:
    text = breaks.page([found(view().sel(kind=["v"]))])
    assert "| mine | V | no change declared, probability of any 0.0" in text
    assert "None: no curve leaves its course" in text
    assert "| mine | V | 2 | decreasing: 2 (100%) |" in text


def test_a_change_that_is_nowhere_in_particular_is_told_apart() -> None:
    one = found(view().sel(kind=["v"]))
    one.changes["joint_any"][:] = 0.9
    assert "no change declared: there is one with probability 0.90, but no place is likely enough" in breaks.page([one])


@pytest.mark.parametrize("transitions", [1, 5])
def test_too_few_steps_are_said_everywhere(transitions: int) -> None:
    one = found(view(transitions=transitions))
    text = breaks.page([one])
    assert text.count("| too few usable steps | – |") == 3
    assert "mine, K: none of the 2 layers has 6 transitions" in text
    records = breaks.records([one])
    assert [(r["what"], r["kind"], r["any"]) for r in records] == [("none", kind, None) for kind in "kva"]
    assert all("none of the 2 layers" in record["note"] for record in records)


def test_a_layer_without_a_value_is_named_beside_what_the_others_say() -> None:
    one = view()
    one["l1"][:, 1, 1] = np.nan
    each = found(one)
    assert "mine, V: 1 of 2 layers took no part: 0 usable transitions; a change needs 6" in breaks.page([each])
    (record,) = [record for record in breaks.records([each]) if record["kind"] == "v"]
    assert record["note"].startswith("no change declared; 1 of 2 layers took no part")
    assert "| mine | V | 2 | decreasing: 1 (100%); none, too few usable steps: 1 |" in breaks.page([each])


def test_one_prompt_has_no_agreement() -> None:
    assert "| mine | V | 2 | decreasing: 2 |" in breaks.page([found(view(1))])


def test_random_weights_and_samples_are_named_and_names_are_only_text() -> None:
    text = breaks.page([found(view(), model="tiny:sd3", name="a|b\x1b")], "sample")
    assert "a|b : random weights, its numbers mean nothing." in text
    assert "from the sampled values alone" in text and "\x1b" not in text and "| a\\|b  | K |" in text


def test_records_are_all_declared_changes_all_dips_and_kinds_without() -> None:
    one = found(view())
    records = breaks.records([one])
    declared = [(r["kind"], r["layer"], r["transition"]) for r in records if r["what"] == "change"]
    assert declared == [(r["kind"], r["layer"], r["transition"]) for r in points(one.changes)] != []
    assert [(r["kind"], r["note"]) for r in records if r["what"] == "none"] == [
        ("v", "no change declared"),
        ("a", "no change declared"),
    ]
    assert [(r["kind"], r["layer"], r["transition"]) for r in records if r["what"] == "dip"] == [("a", 0, 17)]
    assert {tuple(record) for record in records} == {tuple(breaks.COLUMNS)}
    shapes = breaks.shape_records([one])
    assert [(row["kind"], row["layer"]) for row in shapes] == [(kind, layer) for kind in "kva" for layer in (0, 1)]
    assert shapes[2]["shape"] == "decreasing" and shapes[2]["phrase"].startswith("falls")


def test_the_figure_marks_what_is_declared_at_the_papers_steps() -> None:
    figure = draw(changes(view()), "a $title$")
    top, panel = figure.axes[0], figure.axes[3]
    assert [bar.get_x() + 0.5 for bar in top.patches if bar.get_height() > 0.5] == [16]
    marks = [line for line in panel.lines if line.get_marker() == "o"]
    assert marks[0].get_xdata().tolist() == [16, 16] and marks[0].get_ydata().tolist() == [0, 1]
    crosses = [line for line in figure.axes[5].lines if line.get_marker() == "x"]
    assert crosses[0].get_xdata().tolist() == [9]
    assert panel.get_xlim()[0] > panel.get_xlim()[1]
    assert [text.get_text() for text in figure.axes[1].texts] == ["none declared"]


@pytest.mark.parametrize("one", [view(1, 1, 1), view(1, 1, 27), view().where(False), view().isel(kind=[])])
def test_little_or_nothing_is_drawn_too_and_twice_the_same(one: xr.Dataset) -> None:
    once, again = (list(figures.rendered(draw(changes(one), "title"))) for _ in range(2))
    assert once == again and all(once)


def test_what_took_no_part_is_grey() -> None:
    one = view()
    one["l1"][:, 1, 1] = np.nan
    figure = draw(changes(one), "title")
    panel = figure.axes[4]
    assert panel.get_facecolor() == to_rgba("lightgrey")
    assert np.ma.getmaskarray(panel.images[0].get_array())[1].all()
    assert "took no part" in [text.get_text() for text in figure.legends[0].texts]


def test_the_title_counts_the_layers_that_the_paper_looks_at() -> None:
    one = member(layers={"self": 2, "cross": 2}, model="tiny:sd3")
    assert heading(one, one.name) == "mine · tiny:sd3 · RANDOM WEIGHTS · 2 layers · 28 steps · Euler · 3 prompts"


@pytest.fixture
def folder(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    """Two traces: of ten steps and two prompts, and of two steps and one prompt."""
    for name, steps, prompts in (("ten", 10, 2), ("two", 2, 1)):
        (tmp_path / "study" / f"{name}.trace").mkdir(parents=True)
        for index in range(prompts):
            one = shard(index, steps=steps, model=name)
            run = replace(one.run, provenance={"num_prompts": prompts})
            write_shard(tmp_path / "study" / f"{name}.trace", replace(one, run=run))
    return tmp_path / "study"


def test_a_study_has_the_pages_and_twice_the_same(folder: Path, tmp_path: Path) -> None:
    assert changes_pages in PAGES
    written = [list(write_study(open_study(folder), tmp_path / to, pages=(changes_pages,))) for to in ("a", "b")]
    drawn = {f"changes-{name}.{ending}" for name in ("ten", "two") for ending in ("pdf", "png")}
    assert {path.name for path in written[0]} == {"changes.md", "changes.csv", "shapes.csv"} | drawn
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]
    text = (tmp_path / "a" / "changes.md").read_text()
    assert "| two | K | too few usable steps |" in text
    records = list(csv.DictReader((tmp_path / "a" / "changes.csv").read_text().splitlines()))
    assert {(record["trace"], record["kind"]) for record in records} >= {("two", kind) for kind in "kva"}

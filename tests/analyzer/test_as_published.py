"""--as-published: what the paper's scripts compute, beside the correct values, as files."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import dit_analyzer
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from dit_analyzer import as_published
from dit_analyzer.cli import main
from dit_analyzer.show import published
from dit_formats.reader import open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    """Two traces, of 12 prompts and of one."""
    for name, prompts in (("many", 12), ("one", 1)):
        (tmp_path / "traces" / f"{name}.trace").mkdir(parents=True)
        for index in range(prompts):
            write_shard(tmp_path / "traces" / f"{name}.trace", shard(index))
    return tmp_path / "traces"


def run(*words: object) -> None:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output


def test_numbers_in_the_files_are_those_of_as_published(folder: Path, tmp_path: Path) -> None:
    run("study", folder, "-o", tmp_path / "out", "--as-published")
    rows = list(csv.DictReader((tmp_path / "out" / "as-published.csv").read_text().splitlines()))
    with open_trace(folder / "many.trace") as trace:
        found = as_published(dit_analyzer.paper_view(dit_analyzer.distances(trace)))
    assert [(row["trace"], row["kind"]) for row in rows] == [("many", kind) for kind in "kva"]
    for row in rows:
        of = found.sel(kind=row["kind"])
        assert [float(row[name]) for name in ("cv_script", "cv_first", "cv")] == pytest.approx(
            [of[name].item() for name in ("cv_script", "cv_first", "cv")]
        )
        assert float(row["curve_largest"]) == pytest.approx(float(np.nanmax(abs(of["l1_ratio"] - 1))))
        assert (row["script_prompts"], row["prompts"]) == ("10", "12")
    page = (tmp_path / "out" / "as-published.md").read_text()
    assert "one: a coefficient of variation needs two prompts" in page and "10 of 12" in page
    drawn = {path.name for path in (tmp_path / "out").glob("as-published-*")}
    assert drawn == {"as-published-many.pdf", "as-published-many.png"}


def test_it_is_written_on_request_alone_and_twice_the_same(folder: Path, tmp_path: Path) -> None:
    run("tables", folder / "many.trace", "-o", tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("as-published*"))
    for name in ("a", "b"):
        run("tables", folder / "many.trace", "-o", tmp_path / name, "--as-published")
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).glob("as-pub*")} for name in ("a", "b")]
    assert len(made[0]) == 4 and made[0] == made[1]


def view(prompts: int, value: float = 1.0) -> xr.Dataset:
    l1 = value * np.random.default_rng(0).lognormal(sigma=0.3, size=(prompts, 1, 2, 5))
    coordinates = {"kind": ["k"], "layer": range(2), "transition": range(5)}
    return xr.Dataset({"l1": (("prompt", "kind", "layer", "transition"), l1)}, coordinates, {"num_steps": 6})


@pytest.mark.parametrize("prompts", [2, 3, 9])
def test_with_fewer_prompts_than_the_scripts_read_the_page_says_so(prompts: int) -> None:
    page = published.page(["x"], [as_published(view(prompts))])
    assert f"x: has {prompts} prompts, and what the scripts do to 10 was done to these" in page
    assert (
        published.curves(as_published(view(prompts)), "t")
        .legends[0]
        .get_texts()[1]
        .get_text()
        .startswith("script: prompt")
    )


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_where_nothing_changes_or_has_a_value_there_is_nan_and_an_empty_panel(value: float) -> None:
    found = as_published(view(4, value))
    assert "| NaN | NaN |" in published.page(["x"], [found])
    (row,) = published.records("x", found)
    assert row["cv_script"] is None and row["curve_median"] is None
    assert published.curves(found, "t").axes[0].texts[0].get_text() == "nothing to compare"

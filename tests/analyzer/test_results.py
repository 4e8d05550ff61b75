"""All results of one trace, and each of them as files."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import dit_analyzer
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_analyzer.exports import rows, tables
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import paper_view
from dit_analyzer.results import DISTANCES, PAPER, RESULTS, measured
from dit_formats.errors import IncompleteError
from dit_formats.reader import open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

FUNCTIONS = {
    "variation": dit_analyzer.variation,
    "components": dit_analyzer.components,
    "changes": dit_analyzer.changes,
    "shapes": dit_analyzer.words,
    "depth": dit_analyzer.depth_trend,
    "contrast": dit_analyzer.kind_contrast,
    "as-published": dit_analyzer.as_published,
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def trace(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    """Three prompts of ten steps."""
    folder = tmp_path / "ten.trace"
    folder.mkdir()
    for index in range(3):
        write_shard(folder, shard(index, steps=10))
    return folder


def read(trace: Path) -> xr.Dataset:
    with open_trace(trace) as opened:
        return distances(opened)


def equal(text: str, value: object) -> bool:
    """Whether CSV says this."""
    if isinstance(value, float):
        return text == "" if math.isnan(value) else float(text) == value
    return text == str(value)


def test_each_result_is_what_the_function_gives(trace: Path) -> None:
    ds = read(trace)
    found = measured(ds, list(RESULTS))
    assert list(found) == list(RESULTS) == [DISTANCES, PAPER, *FUNCTIONS]
    xr.testing.assert_identical(found[DISTANCES], ds)
    xr.testing.assert_identical(found[PAPER], paper_view(ds))
    for name, function in FUNCTIONS.items():
        xr.testing.assert_identical(found[name], function(paper_view(ds)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_netcdf_is_the_dataset_and_csv_and_json_have_its_rows(name: str, trace: Path, tmp_path: Path) -> None:
    expected = measured(read(trace), [name])[name]
    for ending in ("nc", "csv", "json"):
        assert run("export", trace, "-o", tmp_path / f"out.{ending}", "--what", name).exit_code == 0
    with xr.open_dataset(tmp_path / "out.nc", engine="scipy") as found:
        xr.testing.assert_equal(found.load(), expected)
    told = set()
    for end, table in tables(expected).items():
        stem = f"out-{end}" if end else "out"
        wanted = list(rows(table))
        written = list(csv.DictReader((tmp_path / f"{stem}.csv").read_text().splitlines()))
        assert len(written) == len(wanted)
        for row, line in zip(wanted, written):
            assert list(line) == list(row)
            assert all(equal(line[key], value) for key, value in row.items())
            place = {axis: row[axis] for axis in next(iter(table.data_vars.values())).dims}
            for variable, array in table.data_vars.items():
                np.testing.assert_equal(row[variable], array.sel(place).item())
        plain = json.loads((tmp_path / f"{stem}.json").read_text(), parse_constant=lambda word: pytest.fail(word))
        assert len(plain["rows"]) == len(wanted)
        told |= set(table.data_vars)
    assert told == set(expected.data_vars)
    assert len(list(tmp_path.glob("out*.csv"))) == len(tables(expected))


def test_several_results_stand_beside_each_other_in_the_order_asked_for(trace: Path, tmp_path: Path) -> None:
    result = run("export", trace, "-o", tmp_path / "out.csv", "--what", "depth", "--what", "changes", "--what", "depth")
    names = ["out", "out-changes", *(f"out-changes-{end}" for end in ("kind-layer", "kind-transition", "kind"))]
    assert result.stdout.split() == [str(tmp_path / f"{name}.csv") for name in names]
    assert (tmp_path / "out.csv").read_text().startswith("kind,quantity,slope")


def test_words_and_truth_survive_all_formats(trace: Path, tmp_path: Path) -> None:
    shapes, found = (measured(read(trace), [name])[name] for name in ("shapes", "changes"))
    assert shapes["shape"].dtype.kind == "U" and found["declared"].dtype == bool
    for ending in ("nc", "json"):
        run("export", trace, "-o", tmp_path / f"out.{ending}", "--what", "shapes", "--what", "changes")
    with xr.open_dataset(tmp_path / "out.nc", engine="scipy") as back:
        assert back["phrase"].values.tolist() == shapes["phrase"].values.tolist()
    with xr.open_dataset(tmp_path / "out-changes.nc", engine="scipy") as back:
        assert back["declared"].dtype == bool
    row = json.loads((tmp_path / "out-changes.json").read_text())["rows"][0]
    assert row["declared"] in (True, False) and row["jump"] is None


@pytest.mark.parametrize("name", [name for name, one in RESULTS.items() if one.prompts > 1])
def test_one_prompt_has_no_variation_and_nothing_is_written(
    name: str, tmp_path: Path, shard: Callable[..., Shard]
) -> None:
    folder = tmp_path / "one.trace"
    folder.mkdir()
    write_shard(folder, shard(0))
    result = run("export", folder, "-o", tmp_path / "out.csv", "--what", "changes", "--what", name)
    assert result.exit_code == 4
    expected = f"dit-analyze: {folder}: 1 prompt, and {name} needs 2 or more; trace more with -n\n"
    assert result.stderr == expected and list(tmp_path.glob("out*")) == []


def test_one_prompt_has_all_the_rest(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    folder = tmp_path / "one.trace"
    folder.mkdir()
    write_shard(folder, shard(0, steps=2))
    for name in [name for name, one in RESULTS.items() if one.prompts < 2]:
        for ending in ("csv", "json", "nc"):
            result = run("export", folder, "-o", tmp_path / f"{name}.{ending}", "--what", name)
            assert result.exit_code == 0, result.stderr


def test_what_lacks_kinds_or_layers_is_refused(trace: Path) -> None:
    ds = read(trace)
    with pytest.raises(IncompleteError, match="mine: 1 kind, and contrast needs 2 or more; trace again"):
        measured(ds.sel(kind=["k"]), ["contrast"], "mine")
    with pytest.raises(IncompleteError, match="0 kinds, and depth needs 1 or more"):
        measured(ds.isel(kind=[]), ["depth"])
    with pytest.raises(IncompleteError, match="0 self-attention layers, and changes needs 1 or more; export distances"):
        measured(ds.isel(layer=[1]), ["changes"])
    assert set(measured(ds.isel(layer=[1]), [DISTANCES, PAPER])) == {DISTANCES, PAPER}


def test_an_unknown_result_is_wrong_usage(trace: Path, tmp_path: Path) -> None:
    result = run("export", trace, "-o", tmp_path / "out.csv", "--what", "fame")
    assert result.exit_code == 2 and "as-published" in result.stderr


def test_files_that_only_the_dimensions_name_are_not_replaced_either(trace: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out-kind.csv"
    mine.write_text("mine")
    result = run("export", trace, "-o", tmp_path / "out.csv", "--what", "changes")
    assert result.exit_code == 1 and f"{mine}: is there already; --force replaces it" in result.stderr
    assert [path.name for path in tmp_path.glob("out*")] == ["out-kind.csv"] and mine.read_text() == "mine"
    assert run("export", trace, "-o", tmp_path / "out.csv", "--what", "changes", "--force").exit_code == 0


def test_a_dataset_of_single_values_and_of_mixed_dimensions_is_cut_into_tables() -> None:
    cells = {"a": ("x", [1.0, np.nan]), "b": (("x", "y"), [[np.nan, 2.0], [3.0, np.nan]]), "c": 4, "d": "word"}
    found = tables(xr.Dataset(cells | {"e": (("y", "x"), [[5.0, 6.0], [np.nan, 8.0]])}, {"y": ["p", "q"]}))
    assert {end: list(table) for end, table in found.items()} == {"": ["b", "e"], "x": ["a"], "whole": ["c", "d"]}
    assert list(rows(found["whole"])) == [{"c": 4, "d": "word"}]
    assert list(rows(found["x"])) == [{"a": 1.0}]
    assert [row["y"] for row in rows(found[""])] == ["p", "q", "p", "q"]
    assert [row["e"] for row in rows(found[""])][2:] == [6.0, 8.0]


def test_every_result_says_what_it_is_in_the_help() -> None:
    told = " ".join(run("export", "--help").stdout.split())
    assert all(f"{name}: {one.about}" in told.replace("- ", "-") for name, one in RESULTS.items())

"""Distances for other programs."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_analyzer.exports import MOST_NETCDF, export, rows
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import paper_view
from dit_formats.errors import ConflictError
from dit_formats.reader import open_trace


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def ds(trace_folder: Path) -> xr.Dataset:
    with open_trace(trace_folder) as trace:
        return distances(trace)


def at(ds: xr.Dataset, row: dict[str, str]) -> xr.Dataset:
    """The cell of a row of CSV."""
    return ds.sel({axis: row[axis] if ds[axis].dtype.kind in "UO" else int(row[axis]) for axis in ds["l1"].dims})


@pytest.mark.parametrize("ending", ["csv", "json", "nc"])
def test_both_files_are_written_the_same_bytes_and_not_replaced(
    ending: str, trace_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "new" / f"out.{ending}"
    result = run("export", trace_folder, "-o", target)
    paths = target, target.with_name(f"out-paper.{ending}")
    assert (result.exit_code, result.stdout.split()) == (0, [str(path) for path in paths])
    first = [path.read_bytes() for path in paths]
    paths[0].unlink()
    again = run("export", trace_folder, "-o", target)
    assert (again.exit_code, len(again.stderr.splitlines())) == (1, 1)
    assert f"{paths[1]}: is there already; --force replaces it" in again.stderr
    assert not target.exists()
    assert run("export", trace_folder, "-o", target, "--force").exit_code == 0
    assert [path.read_bytes() for path in paths] == first


def test_csv_has_a_row_for_each_cell_with_a_value_in_full_precision(ds: xr.Dataset, tmp_path: Path) -> None:
    export({"distances": ds, "paper": paper_view(ds)}, tmp_path / "out.csv")
    for name, whole in (("out", ds), ("out-paper", paper_view(ds))):
        found = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        filled = sum(array.notnull() for array in whole.data_vars.values()) > 0
        assert len(found) == int(filled.sum()) > 0
        for row in found[:: len(found) // 7]:
            cell = at(whole, row)
            assert row["layer_name"] == cell.layer_name.item()
            for variable in whole.data_vars:
                value = float(row[variable]) if row[variable] else math.nan
                np.testing.assert_equal(value, cell[variable].item())


def test_json_is_strict_and_has_null_for_what_is_missing(ds: xr.Dataset, tmp_path: Path) -> None:
    ds["speed"][0] = np.nan
    ds["rms"][0] = np.inf
    export({"distances": ds}, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert found["attributes"]["model"] == "hand-made"
    assert found["rows"][0]["speed"] is None and found["rows"][0]["rms"] is None
    assert found["rows"][0]["l1"] == next(rows(ds))["l1"]


def test_netcdf_reads_back_as_it_was(ds: xr.Dataset, tmp_path: Path) -> None:
    export({"distances": ds}, tmp_path / "out.nc")
    with xr.open_dataset(tmp_path / "out.nc", engine="scipy") as found:
        xr.testing.assert_equal(found.load(), ds)
        assert found.attrs == ds.attrs


def test_a_dataset_without_any_value_gives_files_without_rows(ds: xr.Dataset, tmp_path: Path) -> None:
    empty = ds.where(False)
    for ending in ("csv", "json", "nc"):
        export({"distances": empty}, tmp_path / f"out.{ending}")
    assert (tmp_path / "out.csv").read_text().splitlines()[0].startswith("prompt,branch,stream")
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == []


def test_another_ending_is_refused_before_the_trace_is_read(tmp_path: Path) -> None:
    result = run("export", tmp_path / "nothing.trace", "-o", tmp_path / "out.xlsx")
    assert result.exit_code == 2
    assert "no such format; name a file ending in .csv, .json, .nc" in result.stderr


def test_what_netcdf_3_cannot_hold_is_refused_and_nothing_is_written(ds: xr.Dataset, tmp_path: Path) -> None:
    prompts = MOST_NETCDF // ds["l1"].isel(prompt=0).nbytes + 1
    endless = np.broadcast_to(np.float64(1), (prompts, *ds["l1"].shape[1:]))
    large = xr.Dataset({"l1": (ds["l1"].dims, endless)})
    with pytest.raises(ConflictError, match="netCDF 3 holds 4.3 GB; write .csv instead"):
        export({"distances": large}, tmp_path / "out.nc")
    assert list(tmp_path.glob("out*")) == []


def test_export_from_samples_carries_standard_errors(trace_folder: Path, tmp_path: Path) -> None:
    assert run("export", trace_folder, "-o", tmp_path / "out.json", "--source", "sample").exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text())["attributes"]["source"] == "sample"

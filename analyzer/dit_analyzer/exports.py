"""Distances as files for other programs: CSV, JSON or netCDF.

Two files are written: FILE with `distances`, and FILE-paper with what the paper looks at (`paper_view`). Cells in which
nothing was recorded are left out of CSV and JSON; in netCDF they are NaN.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import xarray as xr
from dit_formats.errors import ConflictError
from dit_formats.publish import published

MOST_NETCDF = 2**32 - 4
"""Bytes that one variable of a netCDF 3 file with 64-bit offsets may have."""


class FormatError(ValueError):
    """A file whose name ends in nothing that can be written."""

    exit_code = 2


def export(parts: dict[str, xr.Dataset], target: Path, *, force: bool = False) -> list[Path]:
    """Write datasets beside each other, the first to `target`, each further one to `target` with its name at the end.

    Args:
        parts: By name, all with a `prompt` axis.
        target: Its ending says the format: .csv, .json or .nc.

    Raises:
        FormatError: Another ending; a ValueError.
        ConflictError: One of the files is there already, or would be too large for its format.
    """
    paths = refuse(target, tuple(parts), force=force)
    if target.suffix == ".nc":
        _refuse_large(parts, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, ds in zip(paths, parts.values()):
        with published(path, replace=True) as file:
            WRITERS[target.suffix](ds, file)
    return paths


def refuse(target: Path, names: tuple[str, ...], *, force: bool) -> list[Path]:
    """The files that `export` writes for parts of these names; it raises what `export` would before it writes."""
    if target.suffix not in WRITERS:
        raise FormatError(f"{target}: no such format; name a file ending in {', '.join(WRITERS)}")
    paths = [target, *(target.with_name(f"{target.stem}-{name}{target.suffix}") for name in names[1:])]
    for path in paths:
        if path.exists() and not force:
            raise ConflictError(f"{path}: is there already; --force replaces it")
    return paths


def rows(ds: xr.Dataset) -> Iterator[dict[str, Any]]:
    """A record for each cell that has a value: coordinates, then variables; NaN where one variable is missing."""
    axes = tuple(next(iter(ds.data_vars.values())).dims)
    along = {name: str(ds[name].dims[0]) for name in ds.coords if ds[name].ndim == 1}
    labels = {name: ds[name].values.tolist() for name in along}
    for at in range(ds.sizes["prompt"]):
        values = {name: array.isel(prompt=at).values for name, array in ds.data_vars.items()}
        filled = np.any([~np.isnan(array) for array in values.values()], axis=0)
        for cell in np.argwhere(filled).tolist():
            place = dict(zip(axes, [at, *cell]))
            coordinates = {name: labels[name][place[axis]] for name, axis in along.items()}
            yield coordinates | {name: float(array[tuple(cell)]) for name, array in values.items()}


def _csv(ds: xr.Dataset, file: IO[bytes]) -> None:
    """Numbers in full precision; what is missing is empty."""
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    names = [*(name for name in ds.coords if ds[name].ndim == 1), *ds.data_vars]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for row in rows(ds):
        writer.writerow({name: "" if value != value else value for name, value in row.items()})
    text.flush()
    text.detach()


def _json(ds: xr.Dataset, file: IO[bytes]) -> None:
    """An object with the attributes of the dataset and its rows; what is not finite is null."""
    file.write(b'{"attributes": ' + json.dumps(ds.attrs, default=_plain).encode() + b',\n"rows": [')
    for place, row in enumerate(rows(ds)):
        finite = {
            name: None if isinstance(value, float) and not np.isfinite(value) else value for name, value in row.items()
        }
        file.write((b",\n" if place else b"\n") + json.dumps(finite).encode())
    file.write(b"\n]}\n")


def _netcdf(ds: xr.Dataset, file: IO[bytes]) -> None:
    """netCDF 3 with 64-bit offsets, the newest that scipy writes: nothing is compressed, whole numbers have 32 bits."""
    file.write(ds.to_netcdf(engine="scipy", format="NETCDF3_64BIT"))


def _refuse_large(parts: dict[str, xr.Dataset], target: Path) -> None:
    largest = max(array.nbytes for ds in parts.values() for array in ds.data_vars.values())
    if largest > MOST_NETCDF:
        raise ConflictError(
            f"{target}: a variable of {largest / 1e9:.1f} GB, and netCDF 3 holds {MOST_NETCDF / 1e9:.1f} GB; "
            "write .csv instead"
        )


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)


WRITERS: dict[str, Callable[[xr.Dataset, IO[bytes]], None]] = {".csv": _csv, ".json": _json, ".nc": _netcdf}

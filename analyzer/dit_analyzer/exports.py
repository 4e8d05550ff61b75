"""Results as files for other programs: CSV, JSON or netCDF.

netCDF has a file for each dataset. CSV and JSON have one for each set of dimensions that variables of a dataset have,
so that a row is a cell of all variables in its file: FILE for those of most dimensions, FILE-kind-layer for those of
kind and layer, and so on. A row is left out of CSV and JSON where all its variables are numbers and missing, as where
nothing was recorded; in netCDF it is NaN.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
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
        parts: By name.
        target: Its ending says the format: .csv, .json or .nc.

    Raises:
        FormatError: Another ending; a ValueError.
        ConflictError: One of the files is there already, or would be too large for its format.
    """
    refuse(target, tuple(parts), force=force)
    files = _files(parts, target)
    _refuse_existing(files, force)
    if target.suffix == ".nc":
        _refuse_large(parts, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for path, ds in files.items():
        with published(path, replace=True) as file:
            WRITERS[target.suffix](ds, file)
    return list(files)


def refuse(target: Path, names: Sequence[str], *, force: bool) -> None:
    """Raises what `export` of parts of these names would before it writes, as far as names alone tell."""
    if target.suffix not in WRITERS:
        raise FormatError(f"{target}: no such format; name a file ending in {', '.join(WRITERS)}")
    _refuse_existing([_beside(target, name if place else "") for place, name in enumerate(names)], force)


def _refuse_existing(paths: Iterable[Path], force: bool) -> None:
    for path in paths:
        if path.exists() and not force:
            raise ConflictError(f"{path}: is there already; --force replaces it")


def _files(parts: dict[str, xr.Dataset], target: Path) -> dict[Path, xr.Dataset]:
    """What goes into which file."""
    files = {}
    for place, (name, ds) in enumerate(parts.items()):
        for end, table in (tables(ds) if target.suffix != ".nc" else {"": ds}).items():
            files[_beside(target, "-".join(filter(None, (name if place else "", end))))] = table
    return files


def _beside(target: Path, name: str) -> Path:
    return target.with_name(f"{target.stem}-{name}{target.suffix}") if name else target


def tables(ds: xr.Dataset) -> dict[str, xr.Dataset]:
    """The variables by the dimensions that they have: those of most under `""`, others under `kind-layer` or the like,
    and single values under `whole`."""
    groups: dict[frozenset[Hashable], list[Hashable]] = {}
    for name, array in sorted(ds.data_vars.items(), key=lambda item: -item[1].ndim):
        groups.setdefault(frozenset(array.dims), []).append(name)
    named = {"-".join(map(str, ds[names[0]].dims)) or "whole": ds[names] for names in groups.values()}
    return {(name if place else ""): table for place, (name, table) in enumerate(named.items())}


def rows(ds: xr.Dataset) -> Iterator[dict[str, Any]]:
    """A record for each cell that has a value: coordinates, then variables; NaN where one variable is missing.

    All variables have the same dimensions; see `tables`.
    """
    axes = next(iter(ds.data_vars.values())).dims or ("",)
    ds = ds if axes[0] in ds.sizes else ds.expand_dims(axes[0])
    along = {name: ds[name].dims[0] for name in ds.coords if ds[name].ndim == 1}
    labels = {name: ds[name].values.tolist() for name in along}
    for at in range(ds.sizes[axes[0]]):
        values = {name: array.transpose(*axes)[at].values for name, array in ds.data_vars.items()}
        filled = np.any([_has_value(array) for array in values.values()], axis=0)
        for cell in np.argwhere(filled).tolist():
            place = dict(zip(axes, [at, *cell]))
            coordinates = {name: labels[name][place[axis]] for name, axis in along.items()}
            yield coordinates | {name: _plain(array[tuple(cell)]) for name, array in values.items()}


def _has_value(array: np.ndarray) -> np.ndarray:
    return ~np.isnan(array) if array.dtype.kind == "f" else np.ones(array.shape, bool)


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
    """Numbers, truth and text as Python has them."""
    return value.item() if hasattr(value, "item") else str(value)


WRITERS: dict[str, Callable[[xr.Dataset, IO[bytes]], None]] = {".csv": _csv, ".json": _json, ".nc": _netcdf}

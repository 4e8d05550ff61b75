"""The only way into an HDF5 file: reads exactly what the specification allows, and refuses the rest.

A shard may come from a stranger, and HDF5's own library follows links to other files, runs any installed filter and
allocates whatever a file declares. So every object is reached one hard link at a time, its type, shape, layout and
filters are compared with the schema first, and chunks are inflated here, never beyond their size.

What was checked is remembered while the file is open, so that a chunk costs little more than inflating it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5t, h5z
from numpy.typing import NDArray

from dit_formats import schema
from dit_formats.deflate import inflated, unshuffled
from dit_formats.errors import TraceError
from dit_formats.schema import Array

MAX_RATIO = 1032
"""Deflate cannot shrink anything further than this, so an array declared larger is a lie."""

_FILTERS = [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]
_NUMBERS = {name: h5t.py_create(np.dtype(name).newbyteorder("<")) for name in ("f4", "f8", "i8", "u1")}


@dataclass(frozen=True)
class Checked:
    """An array that may be read: all its chunks are there, and none inflates to more than `raw` bytes."""

    id: h5d.DatasetID
    where: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def raw(self) -> int:
        return self.dtype.itemsize * _product(self.chunk)


class Arrays:
    """The arrays of one HDF5 file, inside a `with` block.

    Every method raises `TraceError`, naming file and array, for what the specification forbids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Arrays:
        with self._guarded(""):
            try:
                self._file = h5py.File(self.path, "r", locking=False)
            except OSError:
                self._refuse_strangers()
                raise
            self._size = self.path.stat().st_size
        self._groups: dict[str, h5g.GroupID] = {}
        self._datasets: dict[tuple[str, str], h5d.DatasetID] = {}
        self._checked: dict[tuple[str, str], Checked] = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._groups, self._datasets, self._checked = {}, {}, {}
        self._file.close()

    def read(self, group: str, name: str, spec: Array, rows: range | None = None) -> NDArray[Any]:
        """A whole array, or of an array that begins with an axis along prompts these rows."""
        with self._guarded(f"{group}/{name}"):
            checked = self.check(group, name, spec)
            rows = range(checked.shape[0])[rows.start : rows.stop] if rows is not None else None
            shape = (len(rows), *checked.shape[1:]) if rows is not None else checked.shape
            if 0 in shape:
                return np.zeros(shape, checked.dtype)
            if checked.chunk == shape:
                return self.chunk(checked, (0,) * len(shape))
            result = np.empty(shape, checked.dtype)
            for offset in offsets(checked, rows):
                self._place(result, checked, offset, rows.start if rows is not None else 0)
            return result

    def check(self, group: str, name: str, spec: Array) -> Checked:
        """The array, after comparing all that it declares with what the specification says."""
        if (group, name) not in self._checked:
            where = f"{group}/{name}"
            with self._guarded(where):
                dataset = self._dataset(group, name)
                dtype = self._check_type(dataset, where, spec)
                shape = self._check_shape(dataset, group, where, spec)
                chunk = self._check_storage(dataset, where, spec, shape, dtype.itemsize) if 0 not in shape else shape
                self._checked[group, name] = Checked(dataset, where, dtype, shape, chunk)
        return self._checked[group, name]

    def chunk(self, checked: Checked, offset: tuple[int, ...]) -> NDArray[Any]:
        """The values of one chunk, in the shape that the chunk has."""
        return unshuffled(self.stored(checked, offset)[1], checked.dtype).reshape(checked.chunk)

    def stored(self, checked: Checked, offset: tuple[int, ...]) -> tuple[bytes, bytes]:
        """One chunk as it is stored, and inflated."""
        stored = checked.id.read_direct_chunk(offset)[1]
        content = inflated(stored, checked.raw)
        if content is None:
            self._refuse(checked.where, f"the chunk at {offset} is damaged")
        return stored, content

    def stream(self, stream: str, name: str, rows: range | None = None) -> NDArray[Any]:
        """One array of a stream, with the axes that `schema.STREAM` or `schema.OPTIONAL` tells; of its prompts all, or
        these rows."""
        return self.read(stream, name, spec_of(name), rows)

    def samples(self, stream: str, row: int) -> NDArray[np.float32]:
        """Samples of the prompt at `row` of this shard, (branch, kind, layer, position, step)."""
        return self.stream(stream, "samples", range(row, row + 1))[0]

    def cell(self, stream: str, row: int, branch: int, kind: int, layer: int) -> NDArray[np.float32]:
        """Samples of one activation, (position, step); nothing else is read."""
        with self._guarded(f"{stream}/samples"):
            checked = self.check(stream, "samples", spec_of("samples"))
            return self.chunk(checked, (row, branch, kind, layer, 0, 0))[0, 0, 0, 0]

    def names(self, group: str, axis: str) -> tuple[str, ...]:
        """The names along `branch`, `kind` or a statistic's axis."""
        return self.texts(group, axis, Array("S", (axis,)))

    def texts(self, group: str, name: str, spec: Array) -> tuple[str, ...]:
        """An array of strings."""
        try:
            return tuple(value.decode() for value in self.read(group, name, spec).tolist())
        except UnicodeDecodeError as error:
            raise TraceError(f"{self.path}: {group}/{name}: not UTF-8") from error

    def _place(self, result: NDArray[Any], checked: Checked, offset: tuple[int, ...], first: int) -> None:
        """Put a chunk where it belongs; of a chunk that holds more rows than the result, those that it has."""
        at = tuple(slice(o, o + n) for o, n in zip(offset, checked.chunk))
        values = self.chunk(checked, offset)
        if checked.chunk[0] == checked.shape[0]:
            result[:, *at[1:]] = values[first : first + len(result)]
        else:
            result[offset[0] - first, *at[1:]] = values[0]

    # Objects -----------------------------------------------------------------

    def _group(self, name: str) -> h5g.GroupID:
        if name not in self._groups:
            self._check_link(self._file.id, name)
            try:
                self._groups[name] = h5g.open(self._file.id, name.encode())
            except KeyError:
                self._refuse(name, "not a group")
        return self._groups[name]

    def _is_group(self, name: str) -> bool:
        self._check_link(self._file.id, name)
        return h5g.get_objinfo(self._file.id, name.encode()).type == h5g.GROUP

    def _dataset(self, group: str, name: str) -> h5d.DatasetID:
        if (group, name) not in self._datasets:
            parent = self._group(group) if group else self._file.id
            self._check_link(parent, name)
            try:
                self._datasets[group, name] = h5d.open(parent, name.encode())
            except KeyError:
                self._refuse(f"{group}/{name}", "not an array")
        return self._datasets[group, name]

    def _check_link(self, parent: Any, name: str) -> None:
        try:
            link = parent.links.get_info(name.encode())
        except KeyError:
            self._refuse(name, "missing")
        if link.type != h5l.TYPE_HARD:
            self._refuse(name, "a link to somewhere else")

    def _check_type(self, dataset: h5d.DatasetID, where: str, spec: Array) -> np.dtype[Any]:
        kind = dataset.get_type()
        if spec.dtype == "S":
            text = isinstance(kind, h5t.TypeStringID) and not kind.is_variable_str()
            ok = text and kind.get_size() <= schema.MAX_STRING
        else:
            ok = kind == _NUMBERS[spec.dtype]
        if not ok:
            self._refuse(where, f"not of type {spec.dtype}")
        return kind.dtype if spec.dtype == "S" else np.dtype(spec.dtype)

    def _check_shape(self, dataset: h5d.DatasetID, group: str, where: str, spec: Array) -> tuple[int, ...]:
        """The shape, after comparing each axis with its dimension scale."""
        shape = dataset.shape
        if len(shape) != len(spec.axes):
            self._refuse(where, f"{len(shape)} axes, not {len(spec.axes)}")
        for axis, length in zip(spec.axes, shape):
            scale = self._dataset(group, axis).shape
            if scale != (length,):
                self._refuse(where, f"length {length} along {axis}, whose scale has {scale}")
        return shape

    def _check_storage(
        self, dataset: h5d.DatasetID, where: str, spec: Array, shape: tuple[int, ...], itemsize: int
    ) -> tuple[int, ...]:
        """The shape of chunks, after checking that they are all there and may be inflated."""
        plist = dataset.get_create_plist()
        if plist.get_layout() != h5d.CHUNKED:
            self._refuse(where, "not chunked")
        if [plist.get_filter(i)[0] for i in range(plist.get_nfilters())] != _FILTERS:
            self._refuse(where, "filters other than shuffle and deflate")
        chunk = plist.get_chunk()
        allowed = tuple(1 if axis in spec.chunk_axes else n for axis, n in zip(spec.axes, shape))
        before_1_2 = spec.chunk_axes == ("prompt",) and chunk == shape
        if chunk != allowed and not before_1_2:
            self._refuse(where, f"chunks {chunk}, not {allowed}")
        if itemsize * _product(chunk) > schema.MAX_CHUNK:
            self._refuse(where, f"chunks {chunk} of more than {schema.MAX_CHUNK} bytes")
        if itemsize * _product(shape) > MAX_RATIO * self._size:
            self._refuse(where, f"a shape {shape} that this file cannot hold")
        if not self._complete(dataset, shape, chunk, itemsize * _product(chunk)):
            self._refuse(where, "chunks missing or out of place")
        return chunk

    def _complete(self, dataset: h5d.DatasetID, shape: tuple[int, ...], chunk: tuple[int, ...], raw: int) -> bool:
        """Whether every chunk is there once, within the file, and no larger than deflate can make it."""
        found, doubtful = array("Q"), []

        def collect(info: Any) -> None:
            found.extend(info.chunk_offset)
            fits = info.size <= raw + raw // 100 + 1024 and info.byte_offset + info.size <= self._size
            if not fits or info.filter_mask:
                doubtful.append(info.byte_offset)

        dataset.chunk_iter(collect)
        counts = [-(-n // c) for n, c in zip(shape, chunk)]
        if doubtful or len(found) != _product(counts) * len(shape):
            return False
        if len(found) == len(shape):
            return not any(found)
        places, left = np.divmod(np.frombuffer(found, "u8").reshape(-1, len(shape)), np.array(chunk, "u8"))
        if left.any() or (places >= np.array(counts, "u8")).any():
            return False
        index = np.ravel_multi_index(tuple(places.astype("i8").T), counts)
        return bool((np.bincount(index, minlength=len(index)) == 1).all())

    # Attributes --------------------------------------------------------------

    def text_attribute(self, owner: Any, name: str) -> str:
        """A short string; the owner is the id of a file or an array."""
        attribute = h5a.open(owner, name.encode())
        kind = attribute.get_type()
        if not isinstance(kind, h5t.TypeStringID) or kind.is_variable_str() or kind.get_size() > 256:
            self._refuse(f"@{name}", "not a short string")
        return bytes(_value(attribute)).decode()

    def int_attribute(self, owner: Any, name: str) -> int:
        """A whole number."""
        attribute = h5a.open(owner, name.encode())
        if not isinstance(attribute.get_type(), h5t.TypeIntegerID) or attribute.shape != ():
            self._refuse(f"@{name}", "not a number")
        return int(_value(attribute))

    # Errors ------------------------------------------------------------------

    def _refuse_strangers(self) -> None:
        """Tell what is no HDF5 file from one that is damaged."""
        if not h5py.is_hdf5(self.path):
            what = "it is no HDF5 file" if self.path.exists() else "there is no such file on this machine"
            raise TraceError(f"{self.path}: not a trace, for {what}; dit-trace run writes traces")

    def _refuse(self, where: str, why: str) -> Any:
        what = f"{self.path}: {where}: {why}"
        raise TraceError(f"{what}; copy the file from its source again, or delete it and trace its prompt anew")

    @contextmanager
    def _guarded(self, where: str) -> Iterator[None]:
        """HDF5 tells of damage in many ways; here they become one."""
        try:
            yield
        except TraceError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            what = f"{self.path}: {where or 'the file'} cannot be read ({_one_line(error)})"
            raise TraceError(
                f"{what}; copy it from its source again, or delete it and trace its prompt anew"
            ) from error


def spec_of(name: str) -> Array:
    """What the specification says of an array of a stream."""
    return schema.STREAM.get(name) or schema.OPTIONAL[name]


def offsets(checked: Checked, rows: range | None = None) -> Iterator[tuple[int, ...]]:
    """Offsets of all chunks, or of those that hold some of the rows."""
    axes = [range(0, n, c) for n, c in zip(checked.shape, checked.chunk)]
    if rows is not None and checked.chunk[0] == 1:
        axes[0] = rows
    places = np.ndindex(*map(len, axes))
    return (tuple(axis[i] for axis, i in zip(axes, place)) for place in places)


def _value(attribute: h5a.AttrID) -> Any:
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value[()]


def _one_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _product(numbers: Any) -> int:
    """Exact, where NumPy's product would overflow."""
    result = 1
    for number in numbers:
        result *= int(number)
    return result

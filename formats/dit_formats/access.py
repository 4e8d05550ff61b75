"""The only way into an HDF5 file: reads exactly what the specification allows, and refuses the rest.

A shard may come from a stranger, and HDF5's own library follows links to other files, runs any installed filter and
allocates whatever a file declares. So every object is reached one hard link at a time, its type, shape, layout and
filters are compared with the schema first, and chunks are inflated here, never beyond their size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5d, h5l, h5t, h5z
from numpy.typing import NDArray

from dit_formats import schema
from dit_formats.deflate import inflated
from dit_formats.errors import TraceError
from dit_formats.schema import Array, Layer, Prompt, Run, Timing

MAX_RATIO = 1032
"""Deflate cannot shrink anything further than this, so an array declared larger is a lie."""

_FILTERS = [h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE]


class ShardFile:
    """A shard: its records, and, inside a `with` block, its arrays. Closed in between, so that a trace may have many.

    Every method raises `TraceError`, naming file and array, for what the specification forbids.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self:
            self._check_format()
            self.run = self._read_run()
            self.prompts = self._read_prompts()
            self.layers = self._read_layers()
            self.timesteps = self.table("steps", "timestep")
            self.sigmas = self.table("steps", "sigma")
            self.streams = self._find_streams()
            self.branches = [self.names(stream, "branch") for stream in self.streams]
            self.kinds = [self.names(stream, "kind") for stream in self.streams]
            self.num_tokens = [self.stream(stream, "num_tokens").tolist() for stream in self.streams]
            self.num_channels = [self.stream(stream, "num_channels").tolist() for stream in self.streams]
            self.sites = [self._site_names(stream) for stream in self.streams]
            self.step_pairs = [self._pair_names(stream, "step_pair") for stream in self.streams]
            self.branch_pairs = [self._pair_names(stream, "branch_pair") for stream in self.streams]

    def __enter__(self) -> ShardFile:
        with self._guarded(""):
            if not h5py.is_hdf5(self.path):
                raise TraceError(f"{self.path}: not a trace, for it is no HDF5 file; dit-trace run writes traces")
            self._size = self.path.stat().st_size
            self._file = h5py.File(self.path, "r", locking=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def table(self, group: str, name: str) -> NDArray[Any]:
        """One column of `prompts`, `layers` or `steps`."""
        return self._array(group, name, (schema.TABLES[group] | schema.OPTIONAL_TABLES.get(group, {}))[name])

    def stream(self, stream: str, name: str) -> NDArray[Any]:
        """One array of a stream, with the axes that `schema.STREAM` or `schema.OPTIONAL` tells."""
        return self._array(stream, name, schema.STREAM.get(name) or schema.OPTIONAL[name])

    def holds(self, stream: str, name: str) -> bool:
        """Whether a stream has an array that it need not have."""
        with self._guarded(stream):
            return name in self._hard_link(self._file, stream)

    def samples(self, stream: str, row: int) -> NDArray[np.float32]:
        """Samples of the prompt at `row` of this shard, (branch, kind, layer, position, step)."""
        return self._array(stream, "samples", schema.STREAM["samples"], row)

    def shape(self, stream: str, name: str) -> tuple[int, ...]:
        """Lengths along the axes of an array."""
        spec = schema.STREAM.get(name) or schema.OPTIONAL[name]
        with self._guarded(f"{stream}/{name}"):
            return self._check_shape(self._dataset(stream, name), stream, f"{stream}/{name}", spec)

    def chunks(self, stream: str, name: str) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Offset and stored bytes of every chunk of an array whose chunks hold one prompt.

        All is checked as if it were read, deflate's checksum too.
        """
        spec, where = schema.STREAM.get(name) or schema.OPTIONAL[name], f"{stream}/{name}"
        with self._guarded(where):
            dataset = self._dataset(stream, name)
            self._check_type(dataset, where, spec)
            shape = self._check_shape(dataset, stream, where, spec)
            if 0 in shape:
                return
            chunk = tuple(1 if axis in spec.chunk_axes else n for axis, n in zip(spec.axes, shape))
            raw = dataset.dtype.itemsize * _product(chunk)
            for offset in self._check_storage(dataset, where, shape, chunk):
                stored = dataset.id.read_direct_chunk(offset)[1]
                self._inflated(where, offset, stored, raw)
                yield offset, stored

    def names(self, stream: str, axis: str) -> tuple[str, ...]:
        """The names along `branch`, `kind` or a statistic's axis."""
        return _texts(self._array(stream, axis, Array("S", (axis,))), f"{self.path}: {stream}/{axis}")

    def source_dtype(self, stream: str) -> str:
        """The data type of the tensors that were sampled."""
        dataset = self._dataset(stream, "samples")
        return self._text_attribute(dataset, "source_dtype")

    def timing(self) -> Timing | None:
        """How long a generation takes, if the shard tells."""
        if not self.holds("steps", "seconds"):
            return None
        kinds = [kind for kind in schema.TIMED if self.holds("layers", f"seconds_{kind}")]
        return Timing({kind: self.table("layers", f"seconds_{kind}") for kind in kinds}, self.table("steps", "seconds"))

    # Records -----------------------------------------------------------------

    def _check_format(self) -> None:
        with self._guarded(""):
            name = self._text_attribute(self._file, "format") if "format" in self._file.attrs else None
            if name != schema.FORMAT:
                raise TraceError(f'{self.path}: not a trace (an HDF5 file without format "{schema.FORMAT}")')
            major = self._int_attribute(self._file, "format_major")
            if major != schema.MAJOR:
                raise TraceError(
                    f"{self.path}: trace format {major}, this version reads {schema.MAJOR}; upgrade ditscope"
                )

    def _read_run(self) -> Run:
        with self._guarded("run"):
            dataset = self._hard_link(self._file, "run")
            if not isinstance(dataset, h5py.Dataset) or dataset.shape != ():
                self._refuse("run", "not a single string")
            self._check_type(dataset, "run", Array("S", ()))
            plist = dataset.id.get_create_plist()
            if plist.get_layout() != h5d.CONTIGUOUS or plist.get_external_count():
                self._refuse("run", "stored outside this file")
            text = bytes(dataset[()])
            if hashlib.sha256(text).hexdigest() != self._text_attribute(dataset, "sha256"):
                self._refuse("run", "its checksum does not fit")
            run = json.loads(text)
            if not isinstance(run, dict) or not all(isinstance(run.get(k), dict) for k in ("settings", "provenance")):
                self._refuse("run", "settings or provenance missing")
            return Run(run["settings"], run["provenance"])

    def _read_prompts(self) -> tuple[Prompt, ...]:
        texts = _texts(self.table("prompts", "text"), f"{self.path}: prompts/text")
        numbers = (self.table("prompts", name).tolist() for name in ("index", "seed", "image"))
        own = [""] * len(texts)
        if self.holds("prompts", "arguments"):
            own = list(_texts(self.table("prompts", "arguments"), f"{self.path}: prompts/arguments"))
        rows = zip(texts, *numbers, own)
        return tuple(Prompt(index, text, seed, image, arguments) for text, index, seed, image, arguments in rows)

    def _read_layers(self) -> tuple[Layer, ...]:
        names, types = (_texts(self.table("layers", n), f"{self.path}: layers/{n}") for n in ("name", "type"))
        return tuple(map(Layer, names, types, self.table("layers", "heads").tolist()))

    def _site_names(self, stream: str) -> tuple[str, ...]:
        if not self.holds(stream, "site"):
            return ()
        return _texts(self.stream(stream, "site"), f"{self.path}: {stream}/site")

    def _pair_names(self, stream: str, axis: str) -> tuple[str, ...]:
        return self.names(stream, axis) if self.holds(stream, axis) else ()

    def _find_streams(self) -> tuple[str, ...]:
        with self._guarded(""):
            found = {name: self._hard_link(self._file, name) for name in self._file if name not in schema.TABLES}
            streams = tuple(name for name, item in found.items() if isinstance(item, h5py.Group) and "samples" in item)
            if not streams:
                self._refuse("the file", "holds no stream")
            return streams

    # Arrays ------------------------------------------------------------------

    def _array(self, group: str, name: str, spec: Array, row: int | None = None) -> NDArray[Any]:
        """A whole array, or of an array that is divided along prompts the part of one."""
        where = f"{group}/{name}"
        with self._guarded(where):
            dataset = self._dataset(group, name)
            self._check_type(dataset, where, spec)
            shape = self._check_shape(dataset, group, where, spec)
            if 0 in shape:
                return np.zeros(shape[1:] if row is not None else shape, dataset.dtype)
            chunk = tuple(1 if axis in spec.chunk_axes else n for axis, n in zip(spec.axes, shape))
            stored = self._check_storage(dataset, where, shape, chunk)
            if row is not None:
                stored = {offset: size for offset, size in stored.items() if offset[0] == row}
                shape = (1, *shape[1:])
            result = np.empty(shape, dataset.dtype)
            for offset, size in stored.items():
                at = tuple(slice(o, o + n) for o, n in zip((0, *offset[1:]) if row is not None else offset, chunk))
                result[at] = self._chunk(dataset, where, offset, size, chunk)
            return result[0] if row is not None else result

    def _dataset(self, group: str, name: str) -> h5py.Dataset:
        parent = self._hard_link(self._file, group)
        if not isinstance(parent, h5py.Group):
            self._refuse(group, "not a group")
        dataset = self._hard_link(parent, name)
        if not isinstance(dataset, h5py.Dataset):
            self._refuse(f"{group}/{name}", "not an array")
        return dataset

    def _hard_link(self, parent: h5py.Group, name: str) -> Any:
        if name not in parent:
            self._refuse(name, "missing")
        if parent.id.links.get_info(name.encode()).type != h5l.TYPE_HARD:
            self._refuse(name, "a link to somewhere else")
        return parent[name]

    def _check_type(self, dataset: h5py.Dataset, where: str, spec: Array) -> None:
        kind = dataset.id.get_type()
        if spec.dtype == "S":
            ok = (
                isinstance(kind, h5t.TypeStringID)
                and not kind.is_variable_str()
                and kind.get_size() <= schema.MAX_STRING
            )
        else:
            ok = kind == h5t.py_create(np.dtype(spec.dtype).newbyteorder("<"))
        if not ok:
            self._refuse(where, f"not of type {spec.dtype}")

    def _check_shape(self, dataset: h5py.Dataset, group: str, where: str, spec: Array) -> tuple[int, ...]:
        """The shape, after comparing each axis with its dimension scale."""
        shape = dataset.id.get_space().get_simple_extent_dims()
        if len(shape) != len(spec.axes):
            self._refuse(where, f"{len(shape)} axes, not {len(spec.axes)}")
        for axis, length in zip(spec.axes, shape):
            scale = self._dataset(group, axis).id.get_space().get_simple_extent_dims()
            if scale != (length,):
                self._refuse(where, f"length {length} along {axis}, whose scale has {scale}")
        return shape

    def _check_storage(
        self, dataset: h5py.Dataset, where: str, shape: tuple[int, ...], chunk: tuple[int, ...]
    ) -> dict[tuple[int, ...], int]:
        """Offset and stored size of every chunk, after checking that they are all there and may be inflated."""
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5d.CHUNKED:
            self._refuse(where, "not chunked")
        if [plist.get_filter(i)[0] for i in range(plist.get_nfilters())] != _FILTERS:
            self._refuse(where, "filters other than shuffle and deflate")
        itemsize = dataset.id.get_type().get_size()
        raw = itemsize * _product(chunk)
        if dataset.chunks != chunk:
            self._refuse(where, f"chunks {dataset.chunks}, not {chunk}")
        if raw > schema.MAX_CHUNK:
            self._refuse(where, f"chunks {chunk} of more than {schema.MAX_CHUNK} bytes")
        if itemsize * _product(shape) > MAX_RATIO * self._size:
            self._refuse(where, f"a shape {shape} that this file cannot hold")
        stored: dict[tuple[int, ...], int] = {}

        def collect(info: Any) -> None:
            fits = info.size <= raw + raw // 100 + 1024 and info.byte_offset + info.size <= self._size
            stored[tuple(info.chunk_offset)] = info.size if fits and info.filter_mask == 0 else -1

        dataset.id.chunk_iter(collect)
        grid = [range(0, n, c) for n, c in zip(shape, chunk)]
        complete = len(stored) == _product(map(len, grid)) and set(stored) == set(product(*grid))
        if not complete or min(stored.values()) < 0:
            self._refuse(where, "chunks missing or out of place")
        return stored

    def _chunk(
        self, dataset: h5py.Dataset, where: str, offset: tuple[int, ...], size: int, chunk: tuple[int, ...]
    ) -> NDArray[Any]:
        itemsize = dataset.dtype.itemsize
        raw = itemsize * _product(chunk)
        data = self._inflated(where, offset, dataset.id.read_direct_chunk(offset)[1], raw)
        planes = np.frombuffer(data, "u1").reshape(itemsize, -1)
        return np.ascontiguousarray(planes.T).view(dataset.dtype).reshape(chunk)

    def _inflated(self, where: str, offset: tuple[int, ...], stored: bytes, raw: int) -> bytes:
        content = inflated(stored, raw)
        if content is None:
            self._refuse(where, f"the chunk at {offset} is damaged")
        return content

    # Attributes --------------------------------------------------------------

    def _text_attribute(self, owner: Any, name: str) -> str:
        attribute = h5a.open(owner.id, name.encode())
        kind = attribute.get_type()
        if not isinstance(kind, h5t.TypeStringID) or kind.is_variable_str() or kind.get_size() > 256:
            self._refuse(f"@{name}", "not a short string")
        return bytes(owner.attrs[name]).decode()

    def _int_attribute(self, owner: Any, name: str) -> int:
        attribute = h5a.open(owner.id, name.encode())
        if not isinstance(attribute.get_type(), h5t.TypeIntegerID) or attribute.shape != ():
            self._refuse(f"@{name}", "not a number")
        return int(owner.attrs[name])

    # Errors ------------------------------------------------------------------

    def _refuse(self, where: str, why: str) -> None:
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


def _texts(values: NDArray[Any], where: str) -> tuple[str, ...]:
    try:
        return tuple(value.decode() for value in values.tolist())
    except UnicodeDecodeError as error:
        raise TraceError(f"{where}: not UTF-8") from error


def _one_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _product(numbers: Any) -> int:
    """Exact, where NumPy's product would overflow."""
    result = 1
    for number in numbers:
        result *= int(number)
    return result

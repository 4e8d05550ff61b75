"""Writes shards: built in memory and published at once, so that a crash leaves nothing half."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5ds, h5p, h5s, h5t
from h5py.h5d import DatasetID
from h5py.h5p import PropDCID
from numpy.typing import NDArray

from dit_formats import schema
from dit_formats.deflate import deflated
from dit_formats.errors import PresentError
from dit_formats.publish import published
from dit_formats.schema import Array, Prompt, Reserved, Shard, StreamData

LIBRARY_BOUNDS = ("v108", "v110")


def write_shard(folder: Path, shard: Shard) -> Path:
    """Add a shard to a trace and return its path.

    Raises:
        PresentError: A shard of this name is there already; it is left as it is.
        OSError: The disk is full or read-only; nothing is left behind.
    """
    path, content = folder / f"{shard.prompts[0].stem}.h5", image(shard)
    try:
        with published(path) as file:
            file.write(content)
    except FileExistsError:
        raise PresentError(f"{path}: this prompt is traced already; it was left as it is") from None
    return path


def write_failure(folder: Path, prompt: Prompt, reason: str) -> Path:
    """Leave a note that a prompt failed, replacing an older one."""
    path = folder / f"{prompt.stem}.failed"
    path.write_text(f"{prompt.text}\nseed {prompt.seed}, image {prompt.image}\n\n{reason}\n", encoding="utf-8")
    return path


def clear_failure(folder: Path, prompt: Prompt) -> None:
    """Remove the note of an earlier failure of this prompt, if there is one."""
    (folder / f"{prompt.stem}.failed").unlink(missing_ok=True)


def image(shard: Shard) -> memoryview:
    """A shard as the bytes of its HDF5 file, which take this memory once."""
    memory = _Memory()
    with h5py.File(memory, "w", libver=LIBRARY_BOUNDS) as file:
        lay_out(file, shard)
    return memory.getbuffer()


class _Memory(io.BytesIO):
    """A file in memory that HDF5 may also make longer without writing."""

    def truncate(self, size: int | None = None) -> int:
        missing = (size or 0) - self.seek(0, io.SEEK_END)
        if missing > 0:
            self.write(bytes(missing))
        return super().truncate(size)


def lay_out(file: h5py.File, shard: Shard) -> None:
    """Write all that a shard holds into an empty file; chunks of an array that is `Reserved` are left to the caller."""
    file.attrs["format"] = np.bytes_(schema.FORMAT)
    file.attrs["format_major"] = schema.MAJOR
    file.attrs["format_minor"] = schema.MINOR
    _write_run(file, shard.run.to_json().encode())
    for name, table in _tables(shard).items():
        specs = schema.TABLES[name] | schema.OPTIONAL_TABLES.get(name, {})
        specs = {key: spec for key, spec in specs.items() if key in table}
        _write_group(file.create_group(name), specs, table, shard, {})
    for name, stream in shard.streams.items():
        group = file.create_group(name)
        further = {key: spec for key, spec in schema.OPTIONAL.items() if key in _arrays(stream)}
        _write_group(group, schema.STREAM | further, _arrays(stream), shard, _axis_names(stream))
        group["samples"].attrs["source_dtype"] = np.bytes_(stream.source_dtype)


def _tables(shard: Shard) -> dict[str, dict[str, NDArray[Any]]]:
    """The three tables of a shard as columns."""
    prompts, layers, timing = shard.prompts, shard.layers, shard.timing
    return {
        "prompts": {
            "index": np.array([p.index for p in prompts]),
            "text": _strings([p.text for p in prompts]),
            "seed": np.array([p.seed for p in prompts]),
            "image": np.array([p.image for p in prompts]),
        }
        | ({"arguments": _strings([p.arguments for p in prompts])} if any(p.arguments for p in prompts) else {}),
        "layers": {
            "name": _strings([layer.name for layer in layers]),
            "type": _strings([layer.type for layer in layers]),
            "heads": np.array([layer.heads for layer in layers]),
        }
        | ({f"seconds_{kind}": seconds for kind, seconds in timing.layers.items()} if timing else {}),
        "steps": {"timestep": shard.timesteps, "sigma": shard.sigmas} | ({"seconds": timing.steps} if timing else {}),
    }


def _arrays(stream: StreamData) -> dict[str, Any]:
    return {**stream.arrays, **({"site": _strings(list(stream.sites))} if stream.sites else {})}


def _axis_names(stream: StreamData) -> dict[str, tuple[str, ...]]:
    """The names along the axes that have some."""
    return {
        "branch": stream.branches,
        "kind": stream.kinds,
        "step_statistic": schema.STEP_STATISTICS,
        "transition_statistic": stream.transition_statistics,
        "branch_pair": stream.branch_pairs,
        "step_pair": stream.step_pairs,
    }


def _write_run(file: h5py.File, text: bytes) -> None:
    dataset = file.create_dataset("run", data=np.array(text, dtype=_string_type(len(text))))
    dataset.attrs["sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())


def _write_group(
    group: h5py.Group,
    specs: dict[str, Array],
    arrays: dict[str, Any],
    shard: Shard,
    names: dict[str, tuple[str, ...]],
) -> None:
    """Write the arrays of one group, and a dimension scale for every axis they have."""
    scales: dict[str, DatasetID] = {}
    for name, spec in specs.items():
        dataset = _write_array(group, name, arrays[name], spec)
        for axis, (label, length) in enumerate(zip(spec.axes, arrays[name].shape)):
            if label not in scales:
                scales[label] = _write_scale(group, label, length, names.get(label), shard)
            h5ds.attach_scale(dataset, scales[label], axis)


def _write_scale(group: h5py.Group, label: str, length: int, names: tuple[str, ...] | None, shard: Shard) -> DatasetID:
    if names is not None:
        values = _strings(list(names))
    elif label == "prompt":
        values = np.array([prompt.index for prompt in shard.prompts], dtype="i8")
    else:
        values = np.arange(length, dtype="i8")
    scale = _write_array(group, label, values, Array("S" if names is not None else "i8", (label,)))
    h5ds.set_scale(scale, label.encode())
    return scale


def _write_array(group: h5py.Group, name: str, values: Any, spec: Array) -> DatasetID:
    """An array, chunk by chunk, through HDF5's lower interface: thousands of small steps are quicker there."""
    dtype = values.dtype if spec.dtype == "S" else np.dtype(spec.dtype)
    chunk = tuple(1 if axis in spec.chunk_axes else n for axis, n in zip(spec.axes, values.shape))
    if dtype.itemsize * math.prod(chunk) > schema.MAX_CHUNK:
        raise ValueError(f"{name}: {chunk} is more than a chunk of a trace may hold; keep a smaller sample")
    plan = _FILTERED.copy() if math.prod(chunk) else _PLAIN
    if math.prod(chunk):
        plan.set_chunk(chunk)
    space = h5s.create_simple(values.shape)
    dataset = h5d.create(group.id, name.encode(), h5t.py_create(dtype, logical=True), space, plan)
    if math.prod(values.shape) and not isinstance(values, Reserved):
        _fill(dataset, values, dtype, spec)
    return dataset


def _fill(dataset: DatasetID, values: Any, dtype: np.dtype[Any], spec: Array) -> None:
    """Write all chunks; one that equals the one before, as where nothing was recorded, is deflated once."""
    singles = len(spec.chunk_axes)
    whole = (0,) * (len(spec.axes) - singles)
    last, packed = b"", b""
    for at in np.ndindex(*values.shape[:singles]):
        chunk = np.asarray(values[at], dtype=dtype)
        if chunk.shape != values.shape[singles:]:
            raise ValueError(f"a chunk of shape {chunk.shape} in an array of {values.shape}")
        content = chunk.tobytes()
        if content != last:
            last, packed = content, deflated(content, dtype.itemsize)
        dataset.write_direct_chunk((*at, *whole), packed)


def _storage(*, filtered: bool) -> PropDCID:
    """How an array is stored; the time of writing is left out, so that equal content gives equal bytes."""
    plan = h5p.create(h5p.DATASET_CREATE)
    plan.set_obj_track_times(False)
    if filtered:
        plan.set_shuffle()
        plan.set_deflate(1)
    return plan


_FILTERED, _PLAIN = _storage(filtered=True), _storage(filtered=False)


def _strings(texts: list[str]) -> NDArray[np.bytes_]:
    """Texts as fixed-length UTF-8, zero-padded."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=_string_type(max((len(text) for text in encoded), default=1)))


def _string_type(length: int) -> np.dtype[Any]:
    return h5py.string_dtype("utf-8", max(length, 1))

"""Writes shards: built in memory, synced under a hidden name, then linked to their own. A crash leaves nothing half."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dit_formats import schema
from dit_formats.errors import PresentError
from dit_formats.schema import Array, Prompt, Shard, StreamData


def write_shard(folder: Path, shard: Shard) -> Path:
    """Add a shard to a trace and return its path.

    Raises:
        PresentError: A shard of this name is there already; it is left as it is.
        OSError: The disk is full or read-only; nothing is left behind.
    """
    return _publish(folder / f"{shard.prompts[0].stem}.h5", image(shard))


def write_failure(folder: Path, prompt: Prompt, reason: str) -> Path:
    """Leave a note that a prompt failed, replacing an older one."""
    path = folder / f"{prompt.stem}.failed"
    path.write_text(f"{prompt.text}\nseed {prompt.seed}, image {prompt.image}\n\n{reason}\n", encoding="utf-8")
    return path


def clear_failure(folder: Path, prompt: Prompt) -> None:
    """Remove the note of an earlier failure of this prompt, if there is one."""
    (folder / f"{prompt.stem}.failed").unlink(missing_ok=True)


def image(shard: Shard) -> bytes:
    """A shard as the bytes of its HDF5 file."""
    with h5py.File("shard", "w", driver="core", backing_store=False, libver=("v108", "v110")) as file:
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
        file.flush()
        return file.id.get_file_image()


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


def _arrays(stream: StreamData) -> dict[str, NDArray[Any]]:
    return stream.arrays | ({"site": _strings(list(stream.sites))} if stream.sites else {})


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
    arrays: dict[str, NDArray[Any]],
    shard: Shard,
    names: dict[str, tuple[str, ...]],
) -> None:
    """Write the arrays of one group, and a dimension scale for every axis they have."""
    scales: dict[str, h5py.Dataset] = {}
    for name, spec in specs.items():
        values = arrays[name] if spec.dtype == "S" else np.asarray(arrays[name], dtype=spec.dtype)
        dataset = _write_array(group, name, values, spec)
        for axis, (label, length) in enumerate(zip(spec.axes, values.shape)):
            if label not in scales:
                scales[label] = _write_scale(group, label, length, names.get(label), shard)
            dataset.dims[axis].attach_scale(scales[label])


def _write_scale(
    group: h5py.Group, label: str, length: int, names: tuple[str, ...] | None, shard: Shard
) -> h5py.Dataset:
    if names is not None:
        values = _strings(list(names))
    elif label == "prompt":
        values = np.array([prompt.index for prompt in shard.prompts], dtype="i8")
    else:
        values = np.arange(length, dtype="i8")
    scale = _write_array(group, label, values, Array(values.dtype.str, (label,)))
    scale.make_scale(label)
    return scale


def _write_array(group: h5py.Group, name: str, values: NDArray[Any], spec: Array) -> h5py.Dataset:
    if values.size == 0:
        return group.create_dataset(name, data=values)
    chunks = tuple(1 if axis in spec.chunk_axes else n for axis, n in zip(spec.axes, values.shape))
    if values.itemsize * math.prod(chunks) > schema.MAX_CHUNK:
        raise ValueError(f"{name}: {chunks} is more than a chunk of a trace may hold; keep a smaller sample")
    return group.create_dataset(name, data=values, chunks=chunks, shuffle=True, compression="gzip", compression_opts=1)


def _strings(texts: list[str]) -> NDArray[np.bytes_]:
    """Texts as fixed-length UTF-8, zero-padded."""
    encoded = [text.encode() for text in texts]
    return np.array(encoded, dtype=_string_type(max((len(text) for text in encoded), default=1)))


def _string_type(length: int) -> np.dtype[Any]:
    return h5py.string_dtype("utf-8", max(length, 1))


def _publish(path: Path, content: bytes) -> Path:
    """Make a file appear whole, and only if there is none of that name."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError:
        raise PresentError(f"{path}: this prompt is traced already; it was left as it is") from None
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return path


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

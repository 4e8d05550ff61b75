"""Joins the shards of a trace into one file, chunk by chunk as they are stored; nothing is deflated again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from dit_formats import schema
from dit_formats.access import ShardFile
from dit_formats.disk import Disk
from dit_formats.errors import ConflictError, TraceError
from dit_formats.publish import clear_leftovers, published
from dit_formats.reader import Trace
from dit_formats.schema import Reserved, Run, Shard, StreamData
from dit_formats.writer import LIBRARY_BOUNDS, lay_out

MOST_PROVENANCES = 100
"""How many different accounts of how its prompts were made a packed trace keeps."""


@dataclass(frozen=True)
class Packed:
    """A file that was written, how many prompts it holds, and how many were asked for."""

    path: Path
    prompts: int
    asked: int
    bytes: int


def pack(
    trace: Trace,
    target: Path,
    *,
    stats_only: bool = False,
    force: bool = False,
    done: Callable[[], object] = lambda: None,
) -> Packed:
    """Write a trace into one file, prompts by index. Reading it gives the same numbers.

    Args:
        stats_only: Leave the samples out.
        force: Replace what is there.
        done: Called after each prompt.

    Raises:
        ConflictError: The file is there already, or would be part of the trace that it is made from.
        TraceError: A shard is damaged; nothing is written then.
        OSError: The disk is full or read-only; nothing is left behind.
    """
    _refuse(trace.path, target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        clear_leftovers(target)
        with published(target, replace=force) as file:
            _write(trace, Disk(file.raw), stats_only, done)
    except FileExistsError:
        raise ConflictError(f"{target}: is there already; --force replaces it") from None
    return Packed(target, len(trace.prompts), trace.num_asked, target.stat().st_size)


def _refuse(source: Path, target: Path, force: bool) -> None:
    if source.is_dir() and target.resolve().parent == source.resolve():
        raise ConflictError(f"{target}: would become part of {source}; write it somewhere else")
    if target.is_dir():
        raise ConflictError(f"{target}: is a folder; name a file")
    if target.exists() and not force:
        raise ConflictError(f"{target}: is there already; --force replaces it")


def _write(trace: Trace, disk: Disk, stats_only: bool, done: Callable[[], object]) -> None:
    """Sums of all prompts first, side by side, and then the samples: who asks for sums finds them in one place."""
    rows: dict[ShardFile, dict[int, int]] = {}
    for row, (shard, at) in enumerate(trace.rows):
        rows.setdefault(shard, {})[at] = row
    with h5py.File(disk, "w", libver=LIBRARY_BOUNDS) as file:
        lay_out(file, _frame(trace, stats_only))
        for samples in (False,) if stats_only else (False, True):
            for shard in rows:
                _copy(file, shard, rows[shard], samples)
                disk.raise_error()
                for _ in rows[shard] if samples or stats_only else ():
                    done()
    disk.raise_error()


def _copy(file: h5py.File, shard: ShardFile, rows: dict[int, int], samples: bool) -> None:
    """Copy the stored samples of the prompts in a shard, or everything else of them, to their rows."""
    with shard:
        for stream in shard.streams:
            for name in file[stream]:
                if name in _BY_PROMPT and samples == (name == "samples"):
                    target = file[stream][name].id
                    for (at, *place), stored in shard.chunks(stream, name):
                        target.write_direct_chunk((rows[at], *place), stored)


_BY_PROMPT = {name for name, spec in (schema.STREAM | schema.OPTIONAL).items() if "prompt" in spec.axes}


def _frame(trace: Trace, stats_only: bool) -> Shard:
    """All that is not by prompt, and room for what is."""
    first = trace.rows[0][0]
    with first:
        streams = {name: _stream(trace, first, name, stats_only) for name in first.streams}
    run = _run(trace, stats_only)
    return Shard(run, trace.prompts, trace.layers, trace.timesteps, trace.sigmas, streams, trace.timing)


def _stream(trace: Trace, first: ShardFile, stream: str, stats_only: bool) -> StreamData:
    arrays: dict[str, Any] = {}
    for name, spec in (schema.STREAM | schema.OPTIONAL).items():
        if name == "site" or not first.holds(stream, name):
            continue
        if name in _BY_PROMPT:
            shape = len(trace.prompts), *first.shape(stream, name)[1:]
            arrays[name] = Reserved((*shape[:-2], 0, shape[-1]) if stats_only and name == "samples" else shape)
        else:
            values = first.stream(stream, name)
            arrays[name] = values[..., :0] if stats_only and "position" in spec.axes else values
    data = StreamData(
        trace.branches(stream),
        trace.kinds(stream),
        first.source_dtype(stream),
        arrays,
        trace.sites(stream),
        trace.branch_pairs(stream),
        trace.step_pairs(stream),
    )
    if first.names(stream, "transition_statistic") != data.transition_statistics:
        raise TraceError(f"{first.path}: {stream}: statistics that this version cannot pack; upgrade ditscope")
    return data


def _run(trace: Trace, stats_only: bool) -> Run:
    """The settings, and provenance as of the first shard with what differed in others."""
    runs: list[dict[str, Any]] = []
    for shard, _ in trace.rows:
        if shard.run.provenance not in runs:
            runs.append(shard.run.provenance)
    packed = {
        "stats_only": stats_only,
        "failures": [path.stem for path in trace.failures],
        "provenances": runs[:MOST_PROVENANCES],
        "further_provenances": len(runs[MOST_PROVENANCES:]),
    }
    told = trace.run.provenance
    if len(runs) == 1 and isinstance(told.get("packed"), dict):
        packed = {**told["packed"], "stats_only": stats_only or bool(told["packed"].get("stats_only"))}
    return Run(trace.run.settings, {**told, "num_prompts": trace.num_asked, "packed": packed})

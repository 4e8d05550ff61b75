"""How fast shards are built and packed, how large they get, and what memory it takes.

A shard is as FLUX.1-dev's with the default sample: 57 layers, K, V and A, latent and text tokens, the stack, 28 steps;
values as of bfloat16 tensors that change by a few percent a step. MB are of 2 bytes a sampled value, seconds of one
core's time, so that neither the type that holds them nor what else runs on the machine matters.

    python benchmarks/writing.py --json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from dit_formats import deflate, open_trace, schema
from dit_formats.pack import pack
from dit_formats.schema import Layer, Prompt, Run, Shard, StreamData
from dit_formats.writer import image, write_shard
from numpy.typing import NDArray

LAYERS, STEPS = 57, 28
SITES = ("model_input", "input", "modulated", "first", "middle", "last", "residual", "prediction")
POSITIONS = {"latent": 4096, "text": 1024, "stack": 4096}
DIFFERENT = 16
"""Chunks that are made; the others repeat them, in turn."""


@dataclass(frozen=True)
class Turns:
    """Samples of one stream: a few chunks in turn."""

    shape: tuple[int, ...]
    chunks: list[NDArray[np.float32]]

    def __getitem__(self, at: tuple[int, ...]) -> NDArray[np.float32]:
        return self.chunks[int(np.ravel_multi_index(at, self.shape[:4])) % len(self.chunks)]


def bfloat16(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Rounded to the nearest bfloat16, held in float32."""
    bits = values.astype("f4").view("u4").astype("u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("u4").view("f4")


def chunk(rng: np.random.Generator, positions: int, change: float) -> NDArray[np.float32]:
    """(position, step): channels of very different size, and a walk that moves by `change` a step."""
    scale = rng.lognormal(0, 1, (positions, 1))
    steps = rng.normal(size=(positions, STEPS)) * change
    return bfloat16(scale * (rng.normal(size=(positions, 1)) + np.cumsum(steps, 1)))


def stream(rng: np.random.Generator, name: str, change: float, sampled: bool) -> StreamData:
    sites = SITES if name == "stack" else ()
    kinds = ("x",) if sites else schema.KINDS
    positions = POSITIONS[name] if sampled else 0
    cell = 1, len(kinds), len(sites) or LAYERS
    one = np.ones((*cell[1:], positions), "i8")
    changes = schema.STACK_STATISTICS if sites else schema.TRANSITION_STATISTICS
    chunks = [chunk(rng, positions, change) for _ in range(DIFFERENT)]
    arrays = {
        "samples": Turns((1, *cell, positions, STEPS), chunks),
        "step_sums": sums(rng, cell, schema.STEP_STATISTICS, STEPS),
        "transition_sums": sums(rng, cell, changes, STEPS - 1),
        "recorded": np.ones((*cell, STEPS), "u1"),
        "token": one * rng.integers(0, 4096, positions),
        "channel": one * rng.integers(0, 3072, positions),
        "weight": one / max(positions, 1),
        "num_tokens": np.full(cell[1:], 4096),
        "num_channels": np.full(cell[1:], 3072),
    }
    return StreamData(("cond",), kinds, "bfloat16", arrays, sites)


def sums(rng: np.random.Generator, cell: tuple[int, ...], names: tuple[str, ...], length: int) -> NDArray[np.float64]:
    """Statistics whose every digit is random, but for counts, which are all alike, and maxima, of few digits."""
    found = rng.lognormal(10, 1, (1, *cell, len(names), length))
    for row, name in enumerate(names):
        if name in ("count", "nonfinite"):
            found[..., row, :] = 4096 * 3072 * (name == "count")
        if name == "max_abs":
            found[..., row, :] = bfloat16(found[..., row, :])
    return found


def flux_shard(index: int, change: float, sampled: bool = True) -> Shard:
    rng = np.random.default_rng(index)
    layers = tuple(Layer(f"transformer.transformer_blocks.{i}.attn", "joint", 24) for i in range(LAYERS))
    streams = {name: stream(rng, name, change, sampled) for name in POSITIONS}
    run = Run({"model": "flux.1-dev in shape only"}, {"num_prompts": 1})
    return Shard(run, (Prompt(index, f"prompt {index}", 42),), layers, np.arange(STEPS), np.arange(STEPS), streams)


def by_hdf5(shard: Shard) -> bytes:
    """The samples alone, shuffled and deflated by HDF5's library: what the others are compared with."""
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        for name, data in shard.streams.items():
            turns = data.arrays["samples"]
            whole = np.stack([turns[at] for at in np.ndindex(*turns.shape[:4])]).reshape(turns.shape)
            chunks = (1, 1, 1, 1, *turns.shape[4:])
            file.create_dataset(name, data=whole, chunks=chunks, shuffle=True, compression="gzip", compression_opts=1)
        file.flush()
        return file.id.get_file_image()


def by_zlib(shard: Shard) -> memoryview:
    deflate.isal_zlib = None
    return image(shard)


BUILDERS = {"isal": image, "zlib": by_zlib, "HDF5 itself": by_hdf5}


def measured(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """What comes out of it, seconds of one core, and how many MB the process grew meanwhile at most."""
    before = most_memory()
    start = time.process_time()
    result = action()
    seconds = time.process_time() - start
    return result, seconds, most_memory() - before


def most_memory() -> float:
    """The most MB that this process ever had; as Linux tells, for `getrusage` tells of its parent too."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


def build(name: str, change: float) -> dict[str, Any]:
    shard = flux_shard(0, change)
    size = sum(2 * int(np.prod(data.arrays["samples"].shape)) for data in shard.streams.values()) / 1e6
    content, first, peak = measured(lambda: BUILDERS[name](shard))
    seconds = min(first, *(measured(lambda: BUILDERS[name](shard))[1] for _ in range(2)))
    return row(f"build a shard, {name}", size / seconds, size, len(content) / 1e6, peak)


def join(folder: Path, stats_only: bool) -> dict[str, Any]:
    paths = list(folder.glob("*.h5"))
    size = sum(path.stat().st_size for path in paths) / 1e6

    def action() -> int:
        with open_trace(folder) as trace:
            return pack(trace, folder.parent / "one.h5", stats_only=stats_only, force=True).bytes

    written, seconds, peak = measured(action)
    what = f"pack {len(paths)} shards" + (", statistics only" if stats_only else "")
    return row(what, (written if stats_only else size * 1e6) / 1e6 / seconds, size, written / 1e6, peak)


def row(what: str, speed: float, size: float, written: float, peak: float) -> dict[str, Any]:
    return {"what": what, "mb_per_cpu_second": speed, "mb": size, "file_mb": written, "peak_mb": peak}


def apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The work in a process of its own, whose memory tells of it alone."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def rows(change: float, prompts: int, many: int) -> list[dict[str, Any]]:
    found = [apart(build, name, change) for name in BUILDERS]
    with tempfile.TemporaryDirectory() as place:
        for name, count, sampled in (("full", prompts, True), ("statistics", many, False)):
            folder = Path(place) / name
            folder.mkdir()
            for index in range(count):
                write_shard(folder, flux_shard(index, change, sampled))
        found += [apart(join, Path(place) / "full", stats_only) for stats_only in (False, True)]
        found.append(apart(join, Path(place) / "statistics", False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--change", type=float, default=0.04, help="change a step, of values of size 1 (0.04)")
    parser.add_argument("--prompts", type=int, default=10, help="shards with samples that are packed (10)")
    parser.add_argument("--many", type=int, default=1000, help="shards of statistics only that are packed (1000)")
    parser.add_argument("--json", action="store_true", help="print rows for programs")
    options = parser.parse_args()
    found = rows(options.change, options.prompts, options.many)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':40}{'MB/s a core':>12}{'MB':>9}{'file MB':>9}{'peak MB':>9}")
    for one in found:
        numbers = f"{one['mb_per_cpu_second']:12.0f}{one['mb']:9.1f}{one['file_mb']:9.1f}{one['peak_mb']:9.0f}"
        print(f"{one['what']:40}{numbers}")


if __name__ == "__main__":
    main()

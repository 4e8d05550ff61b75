"""How fast distances are read from a trace, beside what h5py alone takes for the same files, and in how much memory.

A trace is given, or made: as FLUX.1-dev with the default sample, in bfloat16 that changes by 4 % a step. MB are of
2 bytes a sampled value. "cpu" counts the time of all processes; what else runs on the machine moves it least.

    python benchmarks/reading.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import plain
from dit_analyzer.measures.distance import distances
from dit_analyzer.workers import MOST, cores
from dit_formats import open_trace
from dit_formats.writer import write_shard
from writing import flux_shard, most_memory


def h5py_alone(folder: Path, count: int) -> dict[str, Any]:
    """The same work in so many processes, each with its share of the files; they load h5py and nothing else."""
    paths = sorted(folder.glob("*.h5"))
    if count == 1:
        return measured(lambda: plain.by_h5py(paths)) | {"megabytes": megabytes(folder)}

    def share() -> None:
        commands = [[sys.executable, plain.__file__, *map(str, paths[i::count])] for i in range(count)]
        started = [subprocess.Popen(command) for command in commands]
        assert not any([process.wait() for process in started])

    return measured(share) | {"megabytes": megabytes(folder)}


def ours(folder: Path, count: int, source: str) -> dict[str, Any]:
    """`distances`, opening included; peak is what it had beside the result, over all processes."""
    held: list[int] = []

    def read() -> None:
        with open_trace(folder) as trace:
            held.append(distances(trace, source=source).nbytes)

    before = most_memory()
    row = measured(read)
    workers = min(cores(), MOST) * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3 if count > 1 else 0
    row["peak_mb"] = most_memory() - before - held[0] / 1e6 + workers
    return row | {"megabytes": megabytes(folder), "result_mb": held[0] / 1e6}


def measured(action: Callable[[], Any]) -> dict[str, Any]:
    start, cpu = time.perf_counter(), cpu_seconds()
    action()
    return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu}


def cpu_seconds() -> float:
    """Of this process and of those it started and that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def megabytes(folder: Path) -> float:
    with open_trace(next(iter(sorted(folder.glob("*.h5"))))) as trace:
        values = sum(int(np.prod(trace.shape(stream, "samples"))) for stream in trace.streams)
    return 2e-6 * values * len(list(folder.glob("*.h5")))


def apart(count: int, work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The work in a process of its own, on so many cores."""
    available = sorted(os.sched_getaffinity(0))
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=os.sched_setaffinity, initargs=(0, available[:count])
    ) as pool:
        return pool.submit(work, *arguments).result()


def make(folder: Path, prompts: int, sampled: bool) -> Path:
    folder.mkdir()
    for index in range(prompts):
        write_shard(folder, flux_shard(index, 0.04, sampled))
    return folder


def double(folder: Path) -> Path:
    """A trace of twice as many prompts: the same samples under other indices."""
    target = folder.with_name(f"{folder.name}-double")
    shutil.copytree(folder, target)
    for path in sorted(folder.glob("*.h5")):
        copy = target / f"1{path.name[1:]}"
        shutil.copy(path, copy)
        with h5py.File(copy, "r+") as file:
            for name in ("index", "prompt", "seed"):
                file["prompts"][name][...] += 100_000
    return target


def rows(trace: Path | None, prompts: int, many: int, repeats: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as place:
        given = trace or make(Path(place) / "full", prompts, True)
        small = Path(place) / "small"
        shutil.copytree(given, small)
        found = []
        for _ in range(repeats):  # alternating, so that a noisy moment strikes both
            for count in (1, 2):
                found.append({"what": f"h5py alone, {count} core(s)"} | apart(count, h5py_alone, given, count))
                found.append({"what": f"sample, {count} core(s)"} | apart(count, ours, given, count, "sample"))
        larger = double(small)
        found.append({"what": "sample, twice the prompts, 2 core(s)"} | apart(2, ours, larger, 2, "sample"))
        statistics = make(Path(place) / "statistics", many, False)
        for _ in range(repeats):
            found.append({"what": f"exact, {many} prompts, 2 core(s)"} | apart(2, ours, statistics, 2, "exact"))
    return medians(found)


def medians(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each thing that was measured: medians over its repeats, and the least and most seconds."""
    names = dict.fromkeys(row["what"] for row in found)
    result = []
    for name in names:
        same = [row for row in found if row["what"] == name]
        row = {key: float(np.median([one[key] for one in same])) for key in same[0] if key != "what"}
        spread = [min(one["seconds"] for one in same), max(one["seconds"] for one in same)]
        result.append({"what": name} | row | {"seconds_from_to": spread})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?", type=Path, help="a trace folder of one-prompt shards; else one is made")
    parser.add_argument("--prompts", type=int, default=40, help="shards with samples that are made (40)")
    parser.add_argument("--many", type=int, default=1000, help="shards of statistics only that are made (1000)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each is measured (3)")
    parser.add_argument("--json", action="store_true", help="print rows for programs")
    options = parser.parse_args()
    found = rows(options.trace, options.prompts, options.many, options.repeats)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':38}{'seconds':>9}{'cpu s':>8}{'MB/s':>7}{'MB/cpu s':>10}{'peak MB':>9}{'result MB':>11}")
    for row in found:
        speeds = f"{row['megabytes'] / row['seconds']:7.0f}{row['megabytes'] / row['cpu_seconds']:10.0f}"
        memory = f"{row['peak_mb']:9.0f}{row['result_mb']:11.0f}" if "peak_mb" in row else ""
        print(f"{row['what']:38}{row['seconds']:9.2f}{row['cpu_seconds']:8.2f}{speeds}{memory}")


if __name__ == "__main__":
    main()

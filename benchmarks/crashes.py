"""Kills real runs of dit-trace at random moments, and looks at what is left of the trace.

After every kill: each prompt that was there before is there, byte for byte; new ones can be read whole; nothing
half-written is seen; and of the prompts that the run had begun, at most two are lost: the one that ran, and the one
before, whose shard was being written. Killed runs are resumed, killed again, and so on until the trace is whole, which
must then equal an uninterrupted one in all numbers, bit for bit.

    python benchmarks/crashes.py --kills 100
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import torch
from dit_formats import open_trace
from dit_formats.check import check
from dit_formats.schema import Prompt
from dit_tracer.cli import main
from dit_tracer.models.catalog import find
from dit_tracer.models.loading import load

LOADING, WRITING = 0.1, 0.3
"""Shares of the kills that come before the first prompt, and at a moment when a shard is being written."""


LOST = 2
"""Prompts that may be lost of those begun: one that runs, and one that is being written meanwhile."""


@dataclass
class Counts:
    """What was done and seen; `most_lost` ought to be at most `LOST`, and what follows it 0."""

    kills: int = 0
    while_loading: int = 0
    while_writing: int = 0
    half_written: int = 0
    prompts_kept: int = 0
    traces_compared: int = 0
    most_lost: int = 0
    changed: int = 0
    damaged: int = 0
    unequal: int = 0

    @property
    def good(self) -> bool:
        return self.most_lost <= LOST and not self.changed + self.damaged + self.unequal


class Process:
    """The command dit-trace in a process of its own, forked after the libraries are loaded, which takes seconds."""

    def __init__(self, arguments: list[str]) -> None:
        reading, writing = os.pipe()
        self.id = os.fork()
        if not self.id:
            os.dup2(writing, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            try:
                main(arguments)
            except SystemExit as ended:
                os._exit(ended.code)
            os._exit(99)
        os.close(writing)
        self._said = open(reading)

    def wait_for_first(self) -> None:
        """Until the first prompt is about to begin."""
        while (line := self._said.readline()) and not line.startswith("tracing"):
            pass

    def signal(self, number: int) -> None:
        os.kill(self.id, number)

    @property
    def over(self) -> bool:
        return bool(os.waitid(os.P_PID, self.id, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self._said.read()
        self._said.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.id, 0)[1])


class Run:
    """One command that is started again and again."""

    def __init__(self, model: str, prompts: int, steps: int) -> None:
        self.prompts = prompts
        self.arguments = ["run", model, "-n", str(prompts), "--steps", str(steps), "-o"]

    def start(self, trace: Path) -> Process:
        return Process([*self.arguments, str(trace)])

    def finish(self, trace: Path) -> tuple[float, float]:
        """Run to the end; seconds before the first prompt, and seconds after."""
        began = time.monotonic()
        process = self.start(trace)
        process.wait_for_first()
        first = time.monotonic()
        code = process.wait()
        if code:
            raise SystemExit(f"{trace}: the run ended with code {code}")
        return first - began, time.monotonic() - first


def kill(run: Run, trace: Path, after: float, when: str) -> int | None:
    """Kill a run `after` seconds and return how many prompts it had begun; None if it was done by then."""
    process = run.start(trace)
    if when != "loading":
        process.wait_for_first()
    time.sleep(after)
    while when == "writing" and not process.over and not half_written(trace):
        pass
    process.signal(signal.SIGSTOP)
    begun = claimed(trace)
    process.signal(signal.SIGKILL)
    return begun if process.wait() == -signal.SIGKILL else None


def half_written(trace: Path) -> list[Path]:
    return list(trace.glob(".*.partial"))


def claimed(trace: Path) -> int:
    """How many prompts another process has a claim on: it keeps those of prompts that are done."""
    try:
        file = os.open(trace / ".claims", os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        return sum(not free(file, byte) for byte in BYTES)
    finally:
        os.close(file)


def free(file: int, byte: int) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)
    return True


BYTES: list[int] = []
"""Where in the file of claims those of the prompts of the run are."""


def digests(trace: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in trace.glob("[!.]*.h5")}


def inspect(trace: Path, before: dict[str, str], begun: int, counts: Counts) -> dict[str, str]:
    """Look at what a killed run has left, and return the digests of its shards."""
    after = digests(trace)
    counts.changed += sum(after.get(name) != digest for name, digest in before.items())
    if after:
        health = check(trace)
        counts.damaged += len(health.problems) + (health.prompts != len(after))
    counts.most_lost = max(counts.most_lost, begun - (len(after) - len(before)))
    counts.half_written += len(half_written(trace))
    for path in half_written(trace):
        path.unlink()  # count each once; a run leaves them alone for an hour
    counts.prompts_kept += len(after)
    return after


def equal(one: Path, other: Path) -> bool:
    """Whether two traces hold the same prompts, settings and arrays."""
    names = sorted(path.name for path in one.glob("*.h5"))
    if names != sorted(path.name for path in other.glob("*.h5")):
        return False
    with open_trace(one) as first, open_trace(other) as second:
        if first.run.settings != second.run.settings:
            return False
    return all(contents(one / name) == contents(other / name) for name in names)


def contents(path: Path) -> dict[str, bytes]:
    """All arrays of a shard but what it says of the run."""
    found: dict[str, bytes] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and name != "run":
            found[name] = f"{item.dtype} {item.shape}".encode() + item[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def crash(run: Run, folder: Path, kills: int, seed: int) -> Counts:
    counts, dice = Counts(), random.Random(seed)
    torch.set_num_threads(1)  # those of OpenMP do not live on in a forked process, which would wait for them
    load(find(run.arguments[1]))  # for what it imports
    before_first, tracing = run.finish(folder / "whole")
    with open_trace(folder / "whole") as trace:
        BYTES[:] = [int(Prompt(p.index, p.text, p.seed).stem.rpartition("-")[2], 16) for p in trace.prompts]
    trace, seen = folder / "killed-0", {}
    while counts.kills < kills or trace.exists():
        left = run.prompts - len(seen)
        when = dice.choices(("loading", "writing", "any"), (LOADING, WRITING, 1 - LOADING - WRITING))[0]
        after = dice.uniform(0, before_first if when == "loading" else tracing * left / run.prompts)
        begun = kill(run, trace, after, when) if counts.kills < kills and left > run.prompts // 4 else None
        if begun is not None:
            counts.kills += 1
            counts.while_loading += when == "loading"
            counts.while_writing += when == "writing"
            seen = inspect(trace, seen, begun, counts)
            print(f"kill {counts.kills}: {len(seen)} of {run.prompts} prompts kept", file=sys.stderr, flush=True)
            continue
        run.finish(trace)
        counts.traces_compared += 1
        counts.changed += sum(digests(trace).get(name) != digest for name, digest in seen.items())
        counts.unequal += not equal(folder / "whole", trace)
        trace, seen = folder / f"killed-{counts.traces_compared}", {}
    return counts


def measure() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="digits-flux")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(given.model, given.prompts, given.steps)
        counts = crash(run, Path(folder), given.kills, given.seed)
    if given.json:
        print(json.dumps(asdict(counts) | {"good": counts.good}))
    else:
        for name, count in asdict(counts).items():
            print(f"{name.replace('_', ' '):16} {count}")
    return 0 if counts.good else 1


if __name__ == "__main__":
    sys.exit(measure())

"""Looks at every shard of a trace, whole, and says what is wrong with which."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dit_formats import schema
from dit_formats.access import ShardFile
from dit_formats.console import plural
from dit_formats.errors import TraceError
from dit_formats.reader import Trace, shard_paths


@dataclass
class Health:
    """What was found in a trace."""

    shards: int = 0
    prompts: int = 0
    asked: int = 0
    nonfinite: int = 0
    failures: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def missing(self) -> int:
        return max(self.asked - self.prompts, 0)

    @property
    def exit_code(self) -> int:
        """0 whole, 3 damaged, 4 incomplete."""
        return 3 if self.problems else 4 if self.missing or self.failures else 0

    def lines(self, path: Path) -> list[str]:
        """What to tell people."""
        lines = [f"damaged: {problem}" for problem in self.problems]
        if self.nonfinite:
            lines.append(f"{path}: {self.nonfinite} non-finite elements were left out of the statistics")
        lines += [f"{failure}: this prompt failed; the file says why" for failure in self.failures]
        if self.missing:
            lines.append(f"{path}: {self.prompts} of {self.asked} prompts traced; run the same dit-trace command again")
        return lines or [f"{path}: whole, {plural(self.shards, 'shard')}, {plural(self.prompts, 'prompt')}"]

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "failures": [str(f) for f in self.failures], "exit_code": self.exit_code}


def check(path: str | Path) -> Health:
    """Read everything in a trace, inflating every chunk; problems are collected, not raised."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such trace; dit-trace run writes one")
    health = Health()
    paths = shard_paths(path) if path.is_dir() else [path]
    if not paths:
        raise TraceError(f"{path}: not a trace, for the folder holds no shard; dit-trace run writes traces")
    for shard in paths:
        try:
            _read_whole(shard, health, path.is_dir())
        except TraceError as error:
            health.problems.append(str(error))
    if not health.problems:
        try:
            trace = Trace(path)
        except TraceError as error:
            health.problems.append(str(error))
        else:
            health.asked = max(health.asked, trace.num_asked)
    if path.is_dir():
        health.asked = max(health.asked, health.prompts)
        health.failures = sorted(path.glob("*.failed"))
    return health


def _read_whole(path: Path, health: Health, of_many: bool) -> None:
    """Read all arrays of a shard, and count it.

    Args:
        of_many: Whether it is one of a folder, and not a file for itself, which may be a copy of one shard.
    """
    nonfinite = 0
    with ShardFile(path) as shard:
        shard.timing()
        for stream in shard.streams:
            arrays = {name: shard.stream(stream, name) for name in schema.STREAM if name != "samples"}
            for name in schema.OPTIONAL:
                if shard.holds(stream, name):
                    shard.stream(stream, name)
            counts = arrays["step_sums"][..., schema.STEP_STATISTICS.index("nonfinite"), :]
            nonfinite += int(np.nansum(counts))
            for row in range(len(shard.prompts)):
                shard.samples(stream, row)
    health.nonfinite += nonfinite
    health.shards += 1
    health.prompts += len(shard.prompts)
    asked = shard.run.provenance.get("num_prompts")
    if isinstance(asked, int) and of_many:
        health.asked = max(health.asked, asked)

"""Reads a trace: a folder of shards, or a single file, as if it were one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dit_formats import schema
from dit_formats.access import ShardFile
from dit_formats.errors import TraceError
from dit_formats.schema import Layer, Prompt, Run, Timing


def open_trace(path: str | Path) -> Trace:
    """The trace at `path`, a folder or one `.h5` file; use it in a `with` block.

    Raises:
        FileNotFoundError: There is nothing at `path`.
        TraceError: It is no trace, is damaged, or its shards do not belong together.
    """
    return Trace(Path(path))


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a trace folder, by prompt."""
    return sorted(path for path in folder.glob("*.h5") if not path.name.startswith("."))


class Trace:
    """One model under one setting over many prompts, in order of their index. Arrays are read when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        paths = shard_paths(path) if path.is_dir() else [path]
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such trace; dit-trace run writes one")
        if not paths:
            raise TraceError(f"{path}: not a trace, for the folder holds no shard; dit-trace run writes traces")
        self._shards: list[ShardFile] = []
        for shard in map(ShardFile, paths):
            if self._shards:
                _same_trace(self._shards[0], shard)
            self._shards.append(shard)
        self._rows = _ordered_rows(self._shards)

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing stays open between reads; the block is there to say how long the trace is used."""

    @property
    def run(self) -> Run:
        return self._shards[0].run

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self._shards[0].layers

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        return tuple(shard.prompts[row] for shard, row in self._rows)

    @property
    def rows(self) -> list[tuple[ShardFile, int]]:
        """Shard and place in it of every prompt, in order of `prompts`."""
        return self._rows

    @property
    def num_asked(self) -> int:
        """The most prompts that a run into this folder was asked for; more than there are means incomplete."""
        if not self.path.is_dir() and "packed" not in self.run.provenance:
            return len(self.prompts)
        asked = [shard.run.provenance.get("num_prompts") for shard in self._shards]
        return max([len(self.prompts), *(n for n in asked if isinstance(n, int))])

    @property
    def failures(self) -> list[Path]:
        """Notes of prompts that failed."""
        return sorted(self.path.glob("*.failed")) if self.path.is_dir() else []

    @property
    def timesteps(self) -> NDArray[np.float64]:
        return self._shards[0].timesteps

    @property
    def sigmas(self) -> NDArray[np.float64]:
        """Noise level before each step, (step)."""
        return self._shards[0].sigmas

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @cached_property
    def timing(self) -> Timing | None:
        """How long a generation takes, if one was timed; as the first shard tells that knows."""
        for shard in self._shards:
            with shard:
                found = shard.timing()
            if found:
                return found
        return None

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams of tokens; the stack is not among them."""
        return tuple(stream for stream in self._shards[0].streams if not self.sites(stream))

    @property
    def has_stack(self) -> bool:
        return schema.STACK in self._shards[0].streams

    def sites(self, stream: str = schema.STACK) -> tuple[str, ...]:
        """Names of a group's layers where they are its own, as the stack's are; empty elsewhere."""
        return self._of("sites", stream) if stream in self._shards[0].streams else ()

    def branches(self, stream: str) -> tuple[str, ...]:
        return self._of("branches", stream)

    def kinds(self, stream: str) -> tuple[str, ...]:
        return self._of("kinds", stream)

    def branch_pairs(self, stream: str) -> tuple[str, ...]:
        """Pairs of branches of which `branch_products` tells, as `cond|uncond`."""
        return self._of("branch_pairs", stream)

    def step_pairs(self, stream: str) -> tuple[str, ...]:
        """Pairs of steps of which `pair_products` tells, as `3:10`."""
        return self._of("step_pairs", stream)

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(shard.path.stat().st_size for shard in self._shards)

    @property
    def transitions(self) -> str:
        """What the changes from step to step were taken over: `exact`, or `subset of 262144`, some of the elements."""
        recorded = self.run.settings.get("recorded")
        told = recorded.get("transitions") if isinstance(recorded, dict) else None
        return told if isinstance(told, str) and told.startswith("subset") else "exact"

    def shape(self, stream: str, name: str) -> tuple[int, ...]:
        """Lengths along the axes of an array of a stream, with the prompts of the first shard."""
        with self._shards[0] as shard:
            return shard.shape(stream, name)

    def transition_statistics(self, stream: str) -> tuple[str, ...]:
        return self._of("transition_statistics", stream)

    def source_dtype(self, stream: str) -> str:
        with self._shards[0] as shard:
            return shard.source_dtype(stream)

    def geometry(self, stream: str, name: str) -> NDArray[Any]:
        """An array that is the same for all prompts: recorded, token, channel, weight, num_tokens or num_channels."""
        if "prompt" in schema.STREAM[name].axes:
            raise ValueError(f"{name} differs by prompt")
        with self._shards[0] as shard:
            return shard.stream(stream, name)

    def step_sums(self, stream: str) -> NDArray[np.float64]:
        """(prompt, branch, kind, layer, step_statistic, step); the statistics are `schema.STEP_STATISTICS`."""
        return self._gathered(stream, "step_sums")

    def transition_sums(self, stream: str) -> NDArray[np.float64]:
        """(prompt, branch, kind, layer, transition_statistic, transition), as `schema.TRANSITION_STATISTICS`."""
        return self._gathered(stream, "transition_sums")

    def branch_products(self, stream: str) -> NDArray[np.float64]:
        """Sum over elements of the product of two branches, (prompt, branch_pair, kind, layer, step)."""
        return self._gathered(stream, "branch_products")

    def pair_products(self, stream: str) -> NDArray[np.float64]:
        """Sum over elements of the product of two steps, (prompt, branch, kind, layer, step_pair)."""
        return self._gathered(stream, "pair_products")

    def samples(self, stream: str, prompt: int) -> NDArray[np.float32]:
        """Sampled values of the prompt at this place in `prompts`: (branch, kind, layer, position, step)."""
        shard, row = self._rows[prompt]
        with shard:
            return shard.samples(stream, row)

    def _of(self, name: str, stream: str) -> Any:
        return getattr(self._shards[0], name)[self._shards[0].streams.index(stream)]

    def _gathered(self, stream: str, name: str) -> NDArray[np.float64]:
        places: dict[int, list[int]] = {}
        for place, (shard, _) in enumerate(self._rows):
            places.setdefault(id(shard), []).append(place)
        result = None
        for shard in self._shards:
            with shard:
                values = shard.stream(stream, name)
            result = np.empty((len(self._rows), *values.shape[1:])) if result is None else result
            if values.shape[1:] != result.shape[1:]:
                what = f"{shard.path}: {stream}/{name}: not of the shape that {self._shards[0].path.name} has"
                raise TraceError(f"{what}; keep them in two folders")
            for place in places.get(id(shard), ()):
                result[place] = values[self._rows[place][1]]
        return result


def _ordered_rows(shards: list[ShardFile]) -> list[tuple[ShardFile, int]]:
    """Shard and row of every prompt, by index."""
    rows = [(shard, row) for shard in shards for row in range(len(shard.prompts))]
    seen: dict[tuple[str, int, int], ShardFile] = {}
    for shard, row in rows:
        key = shard.prompts[row].key
        if key in seen:
            raise TraceError(f"{shard.path}: holds the same prompt as {seen[key].path.name}; move one of them away")
        seen[key] = shard
    return sorted(rows, key=lambda at: (at[0].prompts[at[1]].index, at[0].path.name))


_ALIKE = (
    "layers",
    "timesteps",
    "sigmas",
    "streams",
    "branches",
    "kinds",
    "num_tokens",
    "num_channels",
    "sites",
    "step_pairs",
    "transition_statistics",
)


def _same_trace(first: ShardFile, other: ShardFile) -> None:
    """Refuse shards that were made in different ways; what they share is then kept once."""
    told = schema.told_differences(first.run.settings, other.run.settings) or ", ".join(
        name for name in _ALIKE if _differ(getattr(first, name), getattr(other, name))
    )
    if told:
        what = f"{other.path}: made with other settings than {first.path.name}"
        raise TraceError(f"{what} ({told}); keep them in two folders")
    other.run = Run(first.run.settings, other.run.provenance)
    for name in _ALIKE:
        setattr(other, name, getattr(first, name))


def _differ(one: Any, other: Any) -> bool:
    return not np.array_equal(one, other, equal_nan=True) if isinstance(one, np.ndarray) else one != other

"""Names, types and versions of a trace file, and the small records of which it is made.

`docs/trace-format.md` is the specification; this file is its only copy in code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dit_formats.errors import PromptError

FORMAT = "dit-trace"
MAJOR, MINOR = 1, 2

MAX_STRING = 1 << 20
MAX_CHUNK = 64 << 20
"""Limits in bytes that let a reader refuse absurd files; writers keep to them."""

KINDS = ("k", "v", "a")
"""What is recorded by default; `q`, `o` and `f` are further ones. The states of a stack are of kind `x`."""

STACK = "stack"
"""The group of states that belong to a network as a whole; its layers are its sites."""

STEP_STATISTICS = ("sum_abs", "sum_square", "max_abs", "count", "nonfinite")
TRANSITION_STATISTICS = ("sum_abs", "sum_square", "sum_product", "count")
STACK_STATISTICS = (*TRANSITION_STATISTICS, "ratio_mean", "ratio_std")


@dataclass(frozen=True)
class Array:
    """Type and axes of one array; `dtype` "S" is a fixed-length UTF-8 string."""

    dtype: str
    axes: tuple[str, ...]
    chunk_axes: tuple[str, ...] = ()
    """Axes along which chunks have length 1; the others are not divided."""


TABLES = {
    "prompts": {
        "index": Array("i8", ("prompt",)),
        "text": Array("S", ("prompt",)),
        "seed": Array("i8", ("prompt",)),
        "image": Array("i8", ("prompt",)),
    },
    "layers": {
        "name": Array("S", ("layer",)),
        "type": Array("S", ("layer",)),
        "heads": Array("i8", ("layer",)),
    },
    "steps": {
        "timestep": Array("f8", ("step",)),
        "sigma": Array("f8", ("step",)),
    },
}

_CELL = ("branch", "kind", "layer")
STREAM = {
    "samples": Array("f4", ("prompt", *_CELL, "position", "step"), chunk_axes=("prompt", *_CELL)),
    "step_sums": Array("f8", ("prompt", *_CELL, "step_statistic", "step"), chunk_axes=("prompt",)),
    "transition_sums": Array("f8", ("prompt", *_CELL, "transition_statistic", "transition"), chunk_axes=("prompt",)),
    "recorded": Array("u1", (*_CELL, "step")),
    "token": Array("i8", ("kind", "layer", "position"), chunk_axes=("kind", "layer")),
    "channel": Array("i8", ("kind", "layer", "position"), chunk_axes=("kind", "layer")),
    "weight": Array("f8", ("kind", "layer", "position"), chunk_axes=("kind", "layer")),
    "num_tokens": Array("i8", ("kind", "layer")),
    "num_channels": Array("i8", ("kind", "layer")),
}
TIMED = ("q", "k", "v", "a", "f")
"""Kinds of which a trace may tell the seconds that they take."""

OPTIONAL_TABLES = {
    "prompts": {"arguments": Array("S", ("prompt",))},
    "layers": {f"seconds_{kind}": Array("f8", ("layer",)) for kind in TIMED},
    "steps": {"seconds": Array("f8", ("step",))},
}
OPTIONAL = {
    "site": Array("S", ("layer",)),
    "branch_products": Array("f8", ("prompt", "branch_pair", "kind", "layer", "step"), chunk_axes=("prompt",)),
    "pair_products": Array("f8", ("prompt", *_CELL, "step_pair"), chunk_axes=("prompt",)),
}
"""Arrays that a stream need not have: names of its layers where they are not those of the file, and sums of products
of two branches at one step, and of two steps in one branch."""


@dataclass(frozen=True)
class Prompt:
    """One text with a seed, and which of several images made at once.

    Raises:
        PromptError: The text is longer than a trace can hold, or is no text that can be written down.
    """

    index: int
    text: str
    seed: int = 0
    image: int = 0
    arguments: str = ""
    """JSON of what was given with this prompt alone, as a negative prompt; pictures and tensors as a hash."""

    def __post_init__(self) -> None:
        for name in ("index", "seed", "image"):
            object.__setattr__(self, name, index(getattr(self, name)))
        try:
            length = len(self.text.encode())
        except UnicodeEncodeError:
            raise PromptError("a prompt is not valid Unicode; write it in UTF-8") from None
        if "\0" in self.text:
            raise PromptError("a prompt has a zero character, which a trace cannot hold; remove it")
        if length > MAX_STRING:
            raise PromptError(f"a prompt has {length} bytes; a trace holds up to {MAX_STRING}, so shorten it")

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes a prompt the same prompt, wherever it stands in the list."""
        return self.text, self.seed, self.image

    @property
    def stem(self) -> str:
        """File name of its shard, without ending: `000007-1f3a9c2e`."""
        text = json.dumps(self.key, ensure_ascii=False, separators=(",", ":"))
        return f"{self.index:06d}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Layer:
    """One attention layer: its module path, type (self, cross, joint, single, ...) and number of heads."""

    name: str
    type: str
    heads: int


@dataclass(frozen=True)
class Run:
    """How a trace was made: settings that all its prompts share, and the provenance of this one."""

    settings: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def signature(self) -> str:
        """SHA-256 of the settings: equal for prompts that may be compared."""
        return hashlib.sha256(_compact(self.settings).encode()).hexdigest()

    def to_json(self) -> str:
        return _compact({"settings": self.settings, "provenance": self.provenance})


class Cells(Protocol):
    """An array that is asked for one chunk at a time, so that it need never be in memory as a whole.

    `cells[at]`, with `at` one integer for every axis along which chunks have length 1, is what lies along the others:
    of `samples`, (position, step) at (prompt, branch, kind, layer). A NumPy array is one.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, at: tuple[int, ...], /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Reserved:
    """In place of an array whose chunks are written later."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class StreamData:
    """All arrays of one stream for one or more prompts; shapes as in the specification, names as in `STREAM` and
    `OPTIONAL`. Chunks are taken in order, each once, and may be made just then, as `Cells` says."""

    branches: tuple[str, ...]
    kinds: tuple[str, ...]
    source_dtype: str
    arrays: Mapping[str, NDArray[Any] | Cells | Reserved]
    sites: tuple[str, ...] = ()
    branch_pairs: tuple[str, ...] = ()
    step_pairs: tuple[str, ...] = ()

    @property
    def transition_statistics(self) -> tuple[str, ...]:
        return STACK_STATISTICS if self.sites else TRANSITION_STATISTICS


@dataclass(frozen=True)
class Timing:
    """How long one generation took that was not recorded, in seconds.

    Args:
        layers: By kind, for every layer, the median over the steps in which it ran, (layer); NaN where it has no such
            part.
        steps: Of every step, (step).
    """

    layers: dict[str, NDArray[np.float64]]
    steps: NDArray[np.float64]


@dataclass(frozen=True)
class Shard:
    """The content of one shard."""

    run: Run
    prompts: tuple[Prompt, ...]
    layers: tuple[Layer, ...]
    timesteps: NDArray[np.float64]
    sigmas: NDArray[np.float64]
    streams: dict[str, StreamData]
    timing: Timing | None = None


def told_differences(found: dict[str, Any], asked: dict[str, Any], most: int = 5) -> str:
    """The first fields in which two settings differ, in one line; empty if there are none.

    Of two models the names say enough.
    """
    names = {"model": found.get("model")}, {"model": asked.get("model")}
    fields = differences(*names) or differences(found, asked)
    more = f"; and {len(fields) - most} more" if len(fields) > most else ""
    return "; ".join(fields[:most]) + more


def differences(found: dict[str, Any], asked: dict[str, Any], path: str = "") -> list[str]:
    """Fields in which two settings differ, as `call.steps: 28 in the trace, 50 now`."""
    lines = []
    for key in sorted({*found, *asked}):
        old, new, where = found.get(key), asked.get(key), f"{path}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{where}.")
        elif old != new:
            lines.append(f"{where}: {_brief(old)} in the trace, {_brief(new)} now")
    return lines


def _brief(value: Any) -> str:
    text = _compact(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))

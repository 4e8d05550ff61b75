"""How many bytes a prompt takes in a trace: of all arrays together, and of the file that holds them compressed.

What does not depend on the sample is really written, with made-up sums, and measured. Of samples and positions it is
known how well they compress.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dit_formats.schema import (
    OPTIONAL,
    STACK,
    STACK_STATISTICS,
    STEP_STATISTICS,
    STREAM,
    TRANSITION_STATISTICS,
    Prompt,
    Run,
    Shard,
    StreamData,
)
from dit_formats.writer import image

from dit_tracer.models.sketch import Activation, Sketch
from dit_tracer.recording.generation import Key
from dit_tracer.recording.settings import Sample, What, provenance
from dit_tracer.recording.stack import SITES

VALUE_BITS = {"float32": 25.3, "float16": 11.5, "bfloat16": 9.5}
"""What a sampled value takes on disk, by the type of the tensor it is from: the mean over layers of the three bundled
models, within a tenth; what float32 containers add to the narrow types is in it."""

SAME_BITS = 2.3
"""What a value takes that is the one of the step before: K and V of a text in cross-attention, which sees no step."""

CHUNK = 150
"""Bytes that a chunk takes beside its values: code tables, head and tail of deflate, its place in the file's index."""

NAMES = 1500
"""Bytes of what a trace says about its run, beside the configurations of the networks, if nothing else is known."""


@dataclass(frozen=True)
class Size:
    """Bytes of one prompt: of all its arrays, of its file, and of what waits to be written, in the types it came in."""

    arrays: int
    file: int
    waiting: int


def size_of(sketch: Sketch, what: What, sample: Sample, settings: dict[str, Any] | None = None) -> Size:
    """What a prompt takes.

    Args:
        settings: What the trace will say about the run; about as long a text if it is not known.
    """
    bare = _shard(sketch, what, settings)
    arrays, file = _nbytes(bare), len(image(bare))
    waiting = arrays
    for stream in sketch.streams:
        kinds, layers = _cells(sketch, stream)
        found = {key: list(one.values()) for key, one in sketch.activations.items() if key[0] == stream}
        cells, wanted = len(kinds) * len(layers), sample.size(stream)
        longest = min(wanted, max(one[0].size for one in found.values()))
        if longest:
            arrays += longest * (cells * (len(sketch.branches) * sketch.steps * 4 + 24) + 8)
            file += cells * (len(sketch.branches) + 3) * CHUNK
            for key, by_branch in found.items():
                values = sum(_values(sketch, key, one, min(wanted, one.size)) for one in by_branch)
                file += int(values + _positions(by_branch[0], wanted))
                waiting += sum(min(wanted, one.size) * sketch.steps * one.dtype.itemsize for one in by_branch)
    return Size(arrays, file, waiting)


def _values(sketch: Sketch, key: Key, one: Activation, kept: int) -> float:
    """Bytes on disk of the samples of an activation."""
    exist = kept * one.present / one.tokens
    steps = sketch.steps * len(one.seen) / sketch.seen
    bits = VALUE_BITS.get(str(one.dtype).removeprefix("torch."), VALUE_BITS["float32"])
    if _is_constant(sketch, key):
        return exist * (bits + SAME_BITS * (steps - 1)) / 8
    return exist * bits * steps / 8


def _positions(one: Activation, wanted: int) -> float:
    """Bytes on disk of the positions of an activation: channels in random order, tokens in rising order, weights."""
    if one.size <= wanted:
        return one.size * 2.5 / 8
    far = one.tokens / wanted
    return wanted * (np.log2(one.channels) + 2.4 + (1.4 if far <= 1 else min(4 + far, 9.5))) / 8


def _is_constant(sketch: Sketch, key: Key) -> bool:
    stream, kind, name = key
    return (
        stream == "text"
        and kind in ("k", "v")
        and any(one.name == name for one in sketch.layers if one.type == "cross")
    )


def _cells(sketch: Sketch, stream: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Kinds and layers of a stream's arrays, which have room for those of them that others have."""
    if stream != STACK:
        return sketch.kinds, tuple(layer.name for layer in sketch.layers)
    seen = {layer for one, _, layer in sketch.activations if one == STACK}
    return ("x",), tuple(sorted(seen, key=lambda site: SITES.index(site) if site in SITES else len(SITES)))


def _shard(sketch: Sketch, what: What, settings: dict[str, Any] | None) -> Shard:
    """A shard of statistics only, with sums such as a model might have."""
    rng = np.random.default_rng(0)
    if settings is None:
        settings = {"transformers": sketch.configs, "call": "".join(map(chr, rng.integers(97, 123, NAMES)))}
    steps = np.linspace(1, 0, sketch.steps)
    streams = {stream: _stream(sketch, stream, what, rng) for stream in sketch.streams}
    run = Run(json.loads(json.dumps(settings, default=str)), provenance(len(sketch.layers), "cpu", 12_000_000_000))
    return Shard(run, (Prompt(0, "a" * 60),), sketch.layers, steps * 1000, steps, streams)


def _stream(sketch: Sketch, stream: str, what: What, rng: np.random.Generator) -> StreamData:
    kinds, layers = _cells(sketch, stream)
    cell = len(sketch.branches), len(kinds), len(layers)
    changes = STACK_STATISTICS if stream == STACK else TRANSITION_STATISTICS
    arrays = {
        "samples": np.zeros((1, *cell, 0, sketch.steps), "f4"),
        "step_sums": np.full((1, *cell, len(STEP_STATISTICS), sketch.steps), np.nan),
        "transition_sums": np.full((1, *cell, len(changes), sketch.steps - 1), np.nan),
        "recorded": np.zeros((*cell, sketch.steps), "u1"),
        **{
            name: np.zeros((*cell[1:], 0), kind)
            for name, kind in (("token", "i8"), ("channel", "i8"), ("weight", "f8"))
        },
        **{name: np.ones(cell[1:], "i8") for name in ("num_tokens", "num_channels")},
    }
    pairs = ("cond|uncond",) if what.halves and {"cond", "uncond"} <= set(sketch.branches) else ()
    if pairs:
        arrays["branch_products"] = rng.lognormal(8, 1, (1, 1, *cell[1:], sketch.steps))
    if what.step_pairs:
        arrays["pair_products"] = rng.lognormal(8, 1, (1, *cell, len(what.step_pairs)))
    for (owner, kind, layer), by_branch in sketch.activations.items():
        if owner == stream:
            for branch, one in by_branch.items():
                at = sketch.branches.index(branch), kinds.index(kind), layers.index(layer)
                steps = -(-sketch.steps * len(one.seen) // sketch.seen)
                arrays["recorded"][at][:steps] = 1
                constant = _is_constant(sketch, (owner, kind, layer))
                arrays["step_sums"][(0, *at)][:, :steps] = _sums(one.size, STEP_STATISTICS, steps, constant, rng)
                arrays["transition_sums"][(0, *at)][:, : steps - 1] = _sums(one.size, changes, steps - 1, constant, rng)
    told = tuple(f"{one}:{other}" for one, other in what.step_pairs)
    return StreamData(sketch.branches, kinds, "bfloat16", arrays, layers if stream == STACK else (), pairs, told)


def _sums(count: int, names: tuple[str, ...], steps: int, constant: bool, rng: np.random.Generator) -> np.ndarray:
    """Sums over an activation at so many steps, (statistic, step); they change little from step to step."""
    drift = np.zeros((len(names), steps)) if constant else np.cumsum(rng.normal(0, 0.05, (len(names), steps)), 1)
    level = rng.lognormal(0, 1, (len(names), 1)) * np.exp(drift)
    fixed = {"count": float(count), "nonfinite": 0.0}
    rows = [np.full(steps, fixed[name]) if name in fixed else level[i] * count for i, name in enumerate(names)]
    return np.stack([row.astype("f4") if name == "max_abs" else row for name, row in zip(names, rows)])


def _nbytes(shard: Shard) -> int:
    """Bytes of all arrays of a shard, and of the scales along their axes."""
    texts = [[prompt.text for prompt in shard.prompts], [one.name for one in shard.layers]]
    total = len(shard.run.to_json().encode()) + sum(map(_text_nbytes, [*texts, [one.type for one in shard.layers]]))
    total += 8 * (4 * len(shard.prompts) + 2 * len(shard.layers) + 3 * len(shard.timesteps))
    for stream in shard.streams.values():
        named = {
            "branch": stream.branches,
            "kind": stream.kinds,
            "step_statistic": STEP_STATISTICS,
            "transition_statistic": stream.transition_statistics,
            "branch_pair": stream.branch_pairs,
            "step_pair": stream.step_pairs,
        }
        lengths = {
            axis: length
            for name, array in stream.arrays.items()
            for axis, length in zip((STREAM | OPTIONAL)[name].axes, array.shape)
        }
        total += sum(array.nbytes for array in stream.arrays.values()) + _text_nbytes(stream.sites)
        total += sum(_text_nbytes(named[axis]) if axis in named else 8 * n for axis, n in lengths.items())
    return total


def _text_nbytes(texts: Sequence[str]) -> int:
    """Bytes of texts of one length."""
    return len(texts) * max(map(len, texts), default=0)

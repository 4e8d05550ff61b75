"""What one generation left behind, gathered step by step and laid out as the arrays of a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from dit_formats.errors import ConflictError
from dit_formats.reader import Trace
from dit_formats.schema import KINDS, STEP_STATISTICS, TRANSITION_STATISTICS, StreamData
from torch import Tensor

from dit_tracer.recording.sampling import Positions, positions
from dit_tracer.recording.settings import Sample

Key = tuple[str, str, str]
"""Stream, kind and layer."""


@dataclass(frozen=True)
class Place:
    """Which positions are kept of an activation, and how to pick them."""

    positions: Positions
    index: tuple[Tensor, ...]


class Places:
    """The places of a model; each is chosen when it is first seen, and stays.

    Args:
        shapes: Tokens and channels that activations had in earlier runs.
    """

    def __init__(self, sample: Sample, shapes: dict[Key, tuple[int, int]] | None = None) -> None:
        self._sample = sample
        self._places: dict[Key, Place] = {}
        self._shapes = dict(shapes or {})

    def __call__(self, key: Key, grouped: Tensor) -> Place:
        """The place of an activation (group, fold, head, token, channel)."""
        _, folds, heads, tokens, width = grouped.shape
        shape = folds * tokens, heads * width
        known = self._shapes.setdefault(key, shape)
        if known != shape:
            stream, kind, layer = key
            raise ConflictError(
                f"{layer}: {kind} of {stream} has {shape[0]} tokens and {shape[1]} channels now, "
                f"{known[0]} and {known[1]} before; trace other sizes into another folder"
            )
        if key not in self._places:
            chosen = positions(*shape, self._sample.size(key[0]), self._sample.seed, *key)
            fold, token = np.divmod(chosen.token, tokens)
            head, channel = np.divmod(chosen.channel, width)
            index = tuple(torch.from_numpy(axis).to(grouped.device) for axis in (fold, head, token, channel))
            self._places[key] = Place(chosen, index)
        return self._places[key]

    def arrays(self, stream: str, layers: list[str]) -> dict[str, Any]:
        """The arrays of a stream that are the same for all prompts."""
        ours = {key: place for key, place in self._places.items() if key[0] == stream}
        cell = len(KINDS), len(layers)
        n = max(len(place.positions.token) for place in ours.values())
        arrays = {
            "token": np.full((*cell, n), -1),
            "channel": np.full((*cell, n), -1),
            "weight": np.zeros((*cell, n)),
            "num_tokens": np.zeros(cell, "i8"),
            "num_channels": np.zeros(cell, "i8"),
        }
        for key, place in ours.items():
            at, kept = (KINDS.index(key[1]), layers.index(key[2])), len(place.positions.token)
            arrays["num_tokens"][at], arrays["num_channels"][at] = self._shapes[key]
            arrays["token"][at][:kept], arrays["channel"][at][:kept] = place.positions.token, place.positions.channel
            arrays["weight"][at][:kept] = 1 / max(kept, 1)
        return arrays


@dataclass
class Series:
    """Rows of one activation in one branch, by step: samples and sums, each (image, ...)."""

    dtype: torch.dtype
    samples: dict[int, Tensor] = field(default_factory=dict)
    step_sums: dict[int, Tensor] = field(default_factory=dict)
    transition_sums: dict[int, Tensor] = field(default_factory=dict)


class Generation:
    """All series of the generation at work."""

    def __init__(self) -> None:
        self._series: dict[tuple[Key, str], Series] = {}

    def series(self, key: Key, branch: str, dtype: torch.dtype) -> Series:
        return self._series.setdefault((key, branch), Series(dtype))

    @property
    def num_images(self) -> int:
        """How many images were made at once; 0 if nothing was recorded."""
        series = next(iter(self._series.values()), None)
        return len(next(iter(series.step_sums.values()))) if series else 0

    def streams(self, image: int, layers: list[str], steps: int, places: Places) -> dict[str, StreamData]:
        """Everything recorded of one image."""
        names = sorted({stream for (stream, _, _), _ in self._series})
        branches = tuple(sorted({branch for _, branch in self._series}))
        return {name: self._stream(name, branches, image, layers, steps, places) for name in names}

    def _stream(
        self, stream: str, branches: tuple[str, ...], image: int, layers: list[str], steps: int, places: Places
    ) -> StreamData:
        geometry = places.arrays(stream, layers)
        cell = len(branches), len(KINDS), len(layers)
        samples = np.full((*cell, geometry["token"].shape[-1], steps), np.nan, "f4")
        step_sums = np.full((*cell, len(STEP_STATISTICS), steps), np.nan)
        transition_sums = np.full((*cell, len(TRANSITION_STATISTICS), steps - 1), np.nan)
        recorded = np.zeros((*cell, steps), "u1")
        dtypes = set()
        for ((owner, kind, layer), branch), series in self._series.items():
            if owner != stream:
                continue
            at = branches.index(branch), KINDS.index(kind), layers.index(layer)
            kept = _numpy(series.samples, image)
            samples[at][: len(kept), list(series.samples)] = kept
            step_sums[at][:, list(series.step_sums)] = _numpy(series.step_sums, image)
            if series.transition_sums:
                transition_sums[at][:, list(series.transition_sums)] = _numpy(series.transition_sums, image)
            recorded[at][list(series.samples)] = 1
            dtypes.add(str(series.dtype).removeprefix("torch."))
        arrays = {
            "samples": samples[None],
            "step_sums": step_sums[None],
            "transition_sums": transition_sums[None],
            "recorded": recorded,
        }
        return StreamData(branches, KINDS, "+".join(sorted(dtypes)), arrays | geometry)


def shapes_of(trace: Trace) -> dict[Key, tuple[int, int]]:
    """Tokens and channels of every activation in a trace."""
    shapes = {}
    for stream in trace.streams:
        tokens, channels = (trace.geometry(stream, name) for name in ("num_tokens", "num_channels"))
        for row, kind in enumerate(trace.kinds(stream)):
            for column, layer in enumerate(trace.layers):
                if tokens[row, column]:
                    shapes[stream, kind, layer.name] = int(tokens[row, column]), int(channels[row, column])
    return shapes


def _numpy(rows: dict[int, Tensor], image: int) -> Any:
    """The rows of one image, steps last; bfloat16 and float16 become float32 without loss."""
    stacked = torch.stack([row[image] for row in rows.values()], dim=-1)
    return (stacked if stacked.dtype == torch.float64 else stacked.float()).cpu().numpy()

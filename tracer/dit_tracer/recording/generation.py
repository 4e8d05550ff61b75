"""What one generation left behind, gathered step by step and laid out as the arrays of a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from dit_formats.errors import ConflictError
from dit_formats.reader import Trace
from dit_formats.schema import STACK, STACK_STATISTICS, STEP_STATISTICS, TRANSITION_STATISTICS, StreamData
from torch import Tensor

from dit_tracer.recording.sampling import Positions, positions
from dit_tracer.recording.settings import Sample
from dit_tracer.recording.stack import SITES

Key = tuple[str, str, str]
"""Stream, kind and layer."""


@dataclass(frozen=True)
class Place:
    """Which positions are kept of an activation, and how to pick them.

    Args:
        index: Fold, head, token within the fold, channel within the head, on the activation's device.
        last_token: The largest of those tokens.
    """

    positions: Positions
    index: tuple[Tensor, ...]
    last_token: int

    def pick(self, grouped: Tensor) -> Tensor:
        """Values at the positions, (group, position); NaN for tokens that this activation does not have."""
        fold, head, token, channel = self.index
        tokens = grouped.shape[3]
        values = grouped[:, fold, head, token.clamp(max=tokens - 1), channel]
        return values if self.last_token < tokens else values.where(token < tokens, torch.nan)


class Places:
    """The places of a model; each is chosen when it is first seen, and stays.

    Positions refer to the longest text that may come: a shorter one lacks some of them.

    Args:
        shapes: Tokens and channels that activations had in earlier runs.
        text_tokens: Tokens that the text of a prompt may have.
    """

    def __init__(self, sample: Sample, shapes: dict[Key, tuple[int, int]] | None = None, text_tokens: int = 0) -> None:
        self._sample = sample
        self._places: dict[Key, Place] = {}
        self._shapes = dict(shapes or {})
        self.text_tokens = text_tokens

    def __call__(self, key: Key, grouped: Tensor) -> Place:
        """The place of an activation (group, fold, head, token, channel)."""
        _, folds, heads, tokens, width = grouped.shape
        stream, kind, layer = key
        longest = max(tokens, self.text_tokens) if stream == "text" else tokens
        known = self._shapes.setdefault(key, (folds * longest, heads * width))
        room = known[0] // folds
        fits = tokens <= room if stream == "text" else tokens == room
        if not fits or known != (folds * room, heads * width):
            if stream == "text" and tokens > room:
                raise ConflictError(
                    f"{layer}: a text of {tokens} tokens, and the first prompts left room for {room}; trace into "
                    "another folder, with the longest text first"
                )
            raise ConflictError(
                f"{layer}: {kind} of {stream} has {folds * tokens} tokens and {heads * width} channels now, "
                f"{known[0]} and {known[1]} before; trace other sizes into another folder"
            )
        if key not in self._places:
            chosen = positions(*known, self._sample.size(stream), self._sample.seed, *key)
            fold, token = np.divmod(chosen.token, room)
            head, channel = np.divmod(chosen.channel, width)
            index = tuple(torch.from_numpy(axis).to(grouped.device) for axis in (fold, head, token, channel))
            self._places[key] = Place(chosen, index, int(token.max(initial=0)))
        return self._places[key]

    def arrays(self, stream: str, kinds: tuple[str, ...], layers: list[str]) -> dict[str, Any]:
        """The arrays of a stream that are the same for all prompts."""
        ours = {key: place for key, place in self._places.items() if key[0] == stream}
        cell = len(kinds), len(layers)
        n = max(len(place.positions.token) for place in ours.values())
        arrays = {
            "token": np.full((*cell, n), -1),
            "channel": np.full((*cell, n), -1),
            "weight": np.zeros((*cell, n)),
            "num_tokens": np.zeros(cell, "i8"),
            "num_channels": np.zeros(cell, "i8"),
        }
        for key, place in ours.items():
            at, kept = (kinds.index(key[1]), layers.index(key[2])), len(place.positions.token)
            arrays["num_tokens"][at], arrays["num_channels"][at] = self._shapes[key]
            arrays["token"][at][:kept], arrays["channel"][at][:kept] = place.positions.token, place.positions.channel
            arrays["weight"][at][:kept] = 1 / max(kept, 1)
        return arrays


@dataclass
class Series:
    """Rows of one activation in one branch: samples and sums by step, (image, ...); products by pair of steps."""

    dtype: torch.dtype
    samples: dict[int, Tensor] = field(default_factory=dict)
    step_sums: dict[int, Tensor] = field(default_factory=dict)
    transition_sums: dict[int, Tensor] = field(default_factory=dict)
    pair_products: dict[int, Tensor] = field(default_factory=dict)


class Generation:
    """All series of the generation at work."""

    def __init__(self, kinds: tuple[str, ...], step_pairs: tuple[tuple[int, int], ...] = ()) -> None:
        self._kinds = kinds
        self._step_pairs = step_pairs
        self._series: dict[tuple[Key, str], Series] = {}
        self._products: dict[tuple[Key, str], dict[int, Tensor]] = {}

    def series(self, key: Key, branch: str, dtype: torch.dtype) -> Series:
        return self._series.setdefault((key, branch), Series(dtype))

    def branch_products(self, key: Key, pair: str) -> dict[int, Tensor]:
        """Products of two branches by step, (image)."""
        return self._products.setdefault((key, pair), {})

    @property
    def num_images(self) -> int:
        """How many images were made at once; 0 if nothing was recorded."""
        series = next(iter(self._series.values()), None)
        return len(next(iter(series.step_sums.values()))) if series else 0

    def streams(self, image: int, layers: list[str], steps: int, places: Places) -> dict[str, StreamData]:
        """Everything recorded of one image."""
        names = sorted({stream for (stream, _, _), _ in self._series})
        branches = tuple(sorted({branch for _, branch in self._series}))
        found = {}
        for name in names:
            sites = self._sites() if name == STACK else ()
            kinds = ("x",) if sites else self._kinds
            found[name] = self._stream(name, branches, kinds, image, list(sites) or layers, steps, places, sites)
        return found

    def _sites(self) -> tuple[str, ...]:
        """Sites of the stack from input to prediction; blocks that were asked for stand before the last."""
        seen = dict.fromkeys(layer for (stream, _, layer), _ in self._series if stream == STACK)
        blocks = [site for site in seen if site not in SITES]
        order = [*SITES[: SITES.index("last")], *blocks, *SITES[SITES.index("last") :]]
        return tuple(site for site in order if site in seen)

    def _stream(
        self,
        stream: str,
        branches: tuple[str, ...],
        kinds: tuple[str, ...],
        image: int,
        layers: list[str],
        steps: int,
        places: Places,
        sites: tuple[str, ...],
    ) -> StreamData:
        geometry = places.arrays(stream, kinds, layers)
        cell = len(branches), len(kinds), len(layers)
        pairs = sorted({pair for _, pair in self._products})
        changes = STACK_STATISTICS if sites else TRANSITION_STATISTICS
        samples = np.full((*cell, geometry["token"].shape[-1], steps), np.nan, "f4")
        step_sums = np.full((*cell, len(STEP_STATISTICS), steps), np.nan)
        transition_sums = np.full((*cell, len(changes), steps - 1), np.nan)
        pair_products = np.full((*cell, len(self._step_pairs)), np.nan)
        branch_products = np.full((len(pairs), *cell[1:], steps), np.nan)
        recorded = np.zeros((*cell, steps), "u1")
        dtypes = set()
        for ((owner, kind, layer), branch), series in self._series.items():
            if owner != stream:
                continue
            at = branches.index(branch), kinds.index(kind), layers.index(layer)
            kept = _numpy(series.samples, image)
            samples[at][: len(kept), list(series.samples)] = kept
            step_sums[at][:, list(series.step_sums)] = _numpy(series.step_sums, image)
            if series.transition_sums:
                transition_sums[at][:, list(series.transition_sums)] = _numpy(series.transition_sums, image)
            if series.pair_products:
                pair_products[at][list(series.pair_products)] = _numpy(series.pair_products, image)
            recorded[at][list(series.samples)] = 1
            dtypes.add(str(series.dtype).removeprefix("torch."))
        for ((owner, kind, layer), pair), rows in self._products.items():
            if owner == stream and rows:
                at = pairs.index(pair), kinds.index(kind), layers.index(layer)
                branch_products[at][list(rows)] = _numpy(rows, image)
        arrays = {
            "samples": samples[None],
            "step_sums": step_sums[None],
            "transition_sums": transition_sums[None],
            "recorded": recorded,
        }
        if pairs:
            arrays["branch_products"] = branch_products[None]
        if self._step_pairs:
            arrays["pair_products"] = pair_products[None]
        told = tuple(f"{one}:{other}" for one, other in self._step_pairs)
        dtype = "+".join(sorted(dtypes))
        return StreamData(branches, kinds, dtype, arrays | geometry, sites, tuple(pairs), told)


def shapes_of(trace: Trace) -> dict[Key, tuple[int, int]]:
    """Tokens and channels of every activation in a trace."""
    shapes = {}
    for stream in (*trace.streams, *((STACK,) if trace.has_stack else ())):
        tokens, channels = (trace.geometry(stream, name) for name in ("num_tokens", "num_channels"))
        for row, kind in enumerate(trace.kinds(stream)):
            for column, layer in enumerate(trace.sites(stream) or [layer.name for layer in trace.layers]):
                if tokens[row, column]:
                    shapes[stream, kind, layer] = int(tokens[row, column]), int(channels[row, column])
    return shapes


def _numpy(rows: dict[int, Tensor], image: int) -> Any:
    """The rows of one image, steps last; bfloat16 and float16 become float32 without loss."""
    stacked = torch.stack([row[image] for row in rows.values()], dim=-1)
    return (stacked if stacked.dtype == torch.float64 else stacked.float()).cpu().numpy()

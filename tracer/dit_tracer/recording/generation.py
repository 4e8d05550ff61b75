"""What one generation left behind, gathered step by step and laid out as the arrays of a trace."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from dit_formats.errors import ConflictError
from dit_formats.reader import Trace
from dit_formats.schema import STACK, STACK_STATISTICS, STEP_STATISTICS, TRANSITION_STATISTICS, StreamData
from numpy.typing import NDArray
from torch import Tensor

from dit_tracer.recording.picking import offsets, picked
from dit_tracer.recording.sampling import Positions, positions
from dit_tracer.recording.settings import Sample
from dit_tracer.recording.stack import SITES
from dit_tracer.recording.transfer import Arrival, Transfer

Key = tuple[str, str, str]
"""Stream, kind and layer."""


@dataclass
class Place:
    """Which positions are kept of an activation, and how to pick them.

    Args:
        index: Fold, head, token within the fold, channel within the head.
        last_token: The largest of those tokens.
    """

    positions: Positions
    index: tuple[Tensor, ...]
    last_token: int
    _offsets: dict[Any, Tensor] = field(default_factory=dict)

    def pick(self, grouped: Tensor) -> Tensor:
        """Values at the positions, (group, position); NaN for tokens that this activation does not have."""
        token, tokens = self.index[2], grouped.shape[3]
        if not tokens:
            return grouped.new_full((len(grouped), len(token)), torch.nan)
        values = picked(grouped, self._at(grouped))
        return values if self.last_token < tokens else values.where((token < tokens).to(values.device), torch.nan)

    def _at(self, grouped: Tensor) -> Tensor:
        """Where the values lie, counted from the first element; worked out once for each layout."""
        layout = grouped.device, grouped.shape, grouped.stride()
        if layout not in self._offsets:
            fold, head, token, channel = self.index
            axes = fold, head, token.clamp(max=grouped.shape[3] - 1), channel
            self._offsets[layout] = offsets(grouped, axes)
        return self._offsets[layout]


class Places:
    """The places of a model; each is chosen when it is first seen, and stays.

    Positions refer to the longest text that may come: a shorter one lacks some of them.

    Args:
        shapes: Tokens and channels that activations had in earlier runs.
        text_tokens: Tokens that the text of a prompt may have.
        chosen: Positions that were chosen before, by a pilot.
    """

    def __init__(
        self,
        sample: Sample,
        shapes: dict[Key, tuple[int, int]] | None = None,
        text_tokens: int = 0,
        chosen: dict[Key, Positions] | None = None,
    ) -> None:
        self._chosen = chosen or {}
        self._sample = sample
        self._places: dict[Key, Place] = {}
        self._shapes = dict(shapes or {})
        self._arrays: dict[Any, dict[str, Any]] = {}
        self.text_tokens = text_tokens

    def room(self, key: Key, grouped: Tensor) -> int:
        """How many tokens there may be in each fold of an activation (group, fold, head, token, channel)."""
        _, folds, heads, tokens, width = grouped.shape
        longest = max(tokens, self.text_tokens) if key[0] == "text" else tokens
        return self._shapes.setdefault(key, (folds * longest, heads * width))[0] // folds

    def __call__(self, key: Key, grouped: Tensor) -> Place:
        """The place of an activation (group, fold, head, token, channel)."""
        _, folds, heads, tokens, width = grouped.shape
        stream, kind, layer = key
        room = self.room(key, grouped)
        known = self._shapes[key]
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
            names = key[:2] if stream == STACK else key  # sites of one shape alike, so that they can be subtracted
            chosen = self._chosen.get(key) or positions(*known, self._sample.size(stream), self._sample.seed, *names)
            fold, token = np.divmod(chosen.token, room)
            head, channel = np.divmod(chosen.channel, width)
            index = tuple(torch.from_numpy(axis) for axis in (fold, head, token, channel))
            self._places[key] = Place(chosen, index, int(token.max(initial=0)))
        return self._places[key]

    def arrays(self, stream: str, kinds: tuple[str, ...], layers: list[str]) -> dict[str, Any]:
        """The arrays of a stream that are the same for all prompts."""
        known = stream, kinds, tuple(layers), len(self._places)
        if known not in self._arrays:
            self._arrays[known] = self._made(stream, kinds, layers)
        return self._arrays[known]

    def _made(self, stream: str, kinds: tuple[str, ...], layers: list[str]) -> dict[str, Any]:
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
            arrays["weight"][at][:kept] = place.positions.weights
        return arrays


class Row(NamedTuple):
    """The part of a result that belongs to one branch: rows from `start` on, one for each image."""

    result: Arrival
    start: int

    def tensor(self, image: int) -> Tensor:
        return self.result.tensor()[self.start + image]


@dataclass
class Series:
    """Rows of one activation in one branch: samples and sums by step, products by pair of steps."""

    dtype: torch.dtype
    samples: dict[int, Row] = field(default_factory=dict)
    step_sums: dict[int, Row] = field(default_factory=dict)
    transition_sums: dict[int, Row] = field(default_factory=dict)
    pair_products: dict[int, Row] = field(default_factory=dict)


class Samples:
    """Samples of one image, (prompt, branch, kind, layer, position, step), put together a layer at a time."""

    dtype = np.dtype("f4")

    def __init__(self, shape: tuple[int, ...], rows: dict[tuple[int, ...], dict[int, Row]], image: int) -> None:
        self.shape = shape
        self._rows = rows
        self._image = image

    def __getitem__(self, at: tuple[int, ...]) -> NDArray[np.float32]:
        """(position, step) of one prompt, branch, kind and layer."""
        rows = self._rows.get(at[1:], {})
        kept = _numpy(rows, self._image) if rows else np.empty((0, 0), "f4")
        if kept.shape == self.shape[-2:]:
            return kept  # steps come in order
        found = np.full(self.shape[-2:], np.nan, "f4")
        found[: len(kept), list(rows)] = kept
        return found


class Generation:
    """All series of the generation at work."""

    def __init__(self, kinds: tuple[str, ...], step_pairs: tuple[tuple[int, int], ...] = ()) -> None:
        self._kinds = kinds
        self._step_pairs = step_pairs
        self._series: dict[tuple[Key, str], Series] = {}
        self._products: dict[tuple[Key, str], dict[int, Row]] = {}
        self._transfer = Transfer()
        self.num_images = 0
        """How many images are made at once; 0 if nothing was recorded."""

    def send(self, result: Tensor) -> Arrival:
        """Have a result brought to the host."""
        return self._transfer.send(result)

    def flush(self) -> None:
        """Send what waits; a step has ended."""
        self._transfer.flush()

    def series(self, key: Key, branch: str, dtype: torch.dtype) -> Series:
        series = self._series.get((key, branch))
        if series is None:
            series = self._series[key, branch] = Series(dtype)
        return series

    def branch_products(self, key: Key, pair: str) -> dict[int, Row]:
        """Products of two branches by step."""
        return self._products.setdefault((key, pair), {})

    def nonfinite(self, stream: str, layer: str = "") -> tuple[int, str] | None:
        """Step and layer of the first elements that are not finite; None if all are, or nothing was recorded."""
        column = STEP_STATISTICS.index("nonfinite")
        found = [
            (step, owner)
            for ((one, _, owner), _), series in self._series.items()
            if one == stream and layer in ("", owner)
            for step, row in series.step_sums.items()
            if row.result.tensor()[:, column].any()
        ]
        return min(found, key=lambda at: at[0], default=None)

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
        shape = 1, *cell, geometry["token"].shape[-1], steps
        samples: dict[tuple[int, ...], dict[int, Row]] = {}
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
            samples[at] = series.samples
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
            "samples": Samples(shape, samples, image),
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


def positions_of(trace: Trace) -> dict[Key, Positions]:
    """The positions of every activation in a trace."""
    found = {}
    for stream, kind, layer in shapes_of(trace):
        row = trace.kinds(stream).index(kind)
        column = (list(trace.sites(stream)) or [one.name for one in trace.layers]).index(layer)
        token, channel, weight = (trace.geometry(stream, name)[row, column] for name in ("token", "channel", "weight"))
        kept = token >= 0
        found[stream, kind, layer] = Positions(token[kept], channel[kept], weight[kept])
    return found


def _numpy(rows: dict[int, Row], image: int) -> Any:
    """The rows of one image, steps last; bfloat16 and float16 become float32 without loss.

    Put together by numpy, in one thread: the model needs torch's threads meanwhile.
    """
    tensors = [row.tensor(image) for row in rows.values()]
    return np.stack([(t if t.dtype == torch.float64 else t.float()).numpy() for t in tensors], axis=-1)

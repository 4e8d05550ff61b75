"""Reduces the activations of a generation to sums, products and samples, as they come."""

from __future__ import annotations

from typing import Any

import torch
from dit_formats.schema import STACK
from torch import Tensor

from dit_tracer.recording import chunked, compiled, fused, statistics
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.generation import Generation, Key, Places, Row, Series
from dit_tracer.recording.history import History, Pair
from dit_tracer.recording.settings import What
from dit_tracer.recording.sites import UnsupportedError
from dit_tracer.recording.statistics import products


class Meter:
    """Measures what capture and stack hand over, between `start` and `stop`, and nothing else.

    Keeps the activations of the step before, and of steps whose products with later ones were asked for.
    """

    def __init__(self, clock: Clock, what: What) -> None:
        self._clock = clock
        self._what = what
        self._history = History(what.previous)
        self._norms: dict[Any, tuple[int, Tensor]] = {}
        self._anchors: dict[Any, Tensor] = {}
        self._generation: Generation | None = None

    def start(self, generation: Generation, places: Places) -> None:
        self._generation, self._places = generation, places

    def stop(self) -> None:
        self._generation = None
        self._history.end()
        self._norms.clear()
        self._anchors.clear()

    def close(self) -> None:
        """Give back the memory that is kept from one generation to the next."""
        self._history.clear()

    def on_state(self, site: str, tensor: Tensor) -> None:
        """Measure a state of the stack, (batch, token, channel)."""
        self.on_activation(site, STACK, "x", tensor, None)

    def on_activation(self, layer: str, stream: str, kind: str, tensor: Tensor, lengths: list[int] | None) -> None:
        """Measure an activation, as `capture.Sink` has it."""
        if self._generation is None:
            return
        key, step, branches = (stream, kind, layer), self._clock.step, self._clock.branches
        if not tensor.numel() and not self._places.room(key, _grouped(tensor, self._clock.batch)):
            return  # a stream that has no tokens in any prompt, as of texts left empty, is none
        series = [self._generation.series(key, branch, tensor.dtype) for branch in branches]
        if step in series[0].step_sums:
            return  # a further call within the step under the same name: the first one counts
        x = _grouped(tensor.detach(), self._clock.batch)
        missing = None if lengths is None else _missing(x, lengths)
        positions = self._places(key, x)
        place = (key, branches, self._clock.network if stream == STACK else "")  # two networks have nothing to compare
        pair = self._history.swap(place, step, x)
        sums, changes = _measured(x, pair, missing)
        if stream == STACK:
            changes = self._with_ratios(place, step, x, changes)
        send, images = self._generation.send, len(x) // len(branches)
        self._generation.num_images = images
        results = send(sums), send(positions.pick(x)), None if changes is None else send(changes)
        for order, one in enumerate(series):
            of_step, sample, of_transition = (None if r is None else Row(r, order * images) for r in results)
            one.step_sums[step], one.samples[step] = of_step, sample
            if of_transition is not None:
                one.transition_sums[step - 1] = of_transition
            if self._what.step_pairs:
                part = x[order * images :][:images]
                self._multiply_steps(one, (key, branches[order]), step, part)
        if self._what.halves:
            self._multiply_halves(key, step, branches, x)

    def _with_ratios(self, place: Any, step: int, x: Tensor, changes: Tensor | None) -> Tensor | None:
        """The stack's transition sums, which have two columns more."""
        before, norms = self._norms.get(place), compiled.token_norms(x)
        self._norms[place] = step, norms
        if changes is None or before is None or before[0] != step - 1:
            return changes
        return torch.cat([changes, compiled.norm_ratios(before[1], norms)], dim=1)

    def _multiply_halves(self, key: Key, step: int, branches: tuple[str, ...], x: Tensor) -> None:
        """Products of cond and uncond, which come in one batch or one after the other."""
        if {"cond", "uncond"} <= set(branches):
            images = len(x) // len(branches)
            cond, uncond = (x[branches.index(b) * images :][:images] for b in ("cond", "uncond"))
        elif branches in (("cond",), ("uncond",)):
            other = ("uncond",) if branches == ("cond",) else ("cond",)
            cond, uncond = x, self._history.at((key, other, self._clock.network if key[0] == STACK else ""), step)
        else:
            return
        if uncond is not None and uncond.shape == cond.shape:
            found = self._generation.send(products(cond, uncond.to(cond.device)))
            self._generation.branch_products(key, "cond|uncond")[step] = Row(found, 0)

    def _multiply_steps(self, series: Series, place: Any, step: int, x: Tensor) -> None:
        """Products with the steps that were asked for; those are kept until they are no longer needed."""
        for row, (first, second) in enumerate(self._what.step_pairs):
            if step == second and (place, first) in self._anchors:
                series.pair_products[row] = Row(self._generation.send(products(self._anchors[place, first], x)), 0)
                if all(other <= step for one, other in self._what.step_pairs if one == first):
                    del self._anchors[place, first]
        if any(step == first for first, _ in self._what.step_pairs):
            self._anchors[place, step] = x.clone()


def _measured(x: Tensor, pair: Pair, missing: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Step sums of an activation, and transition sums of what it is to be compared with. Keeps x if asked."""
    if missing is None and pair.now is x:
        return _fast(x, pair.before, pair.keep)
    if missing is None:
        return _fast(x)[0], None if pair.before is None else _fast(pair.now, pair.before)[1]
    changes = None if pair.before is None else statistics.transition_sums(pair.before, pair.now)
    if pair.keep is not None:
        pair.keep.copy_(x, non_blocking=True)
    return statistics.step_sums(x, missing), changes


def _fast(x: Tensor, previous: Tensor | None = None, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Both sums, in the fastest way that there is on the device; x is copied to `keep`, which `previous` may be."""
    on_host = x.device.type == "cpu"
    found = compiled.measure(x, previous, keep) if on_host else None
    if found is None:
        on_gpu = fused if x.numel() and fused.usable(x.device) else statistics
        found = (chunked if on_host else on_gpu).measure(x, previous)
        if keep is not None:
            keep.copy_(x, non_blocking=True)
    return found


def _missing(x: Tensor, lengths: list[int]) -> Tensor:
    """Elements of each group that do not exist, float64 (group).

    Args:
        x: Activations (group, fold, head, token, channel), shorter groups padded.
    """
    _, folds, heads, tokens, width = x.shape
    absent = torch.tensor(lengths, dtype=torch.float64, device=x.device)
    return (tokens - absent) * folds * heads * width


def _grouped(tensor: Tensor, batch: int) -> Tensor:
    """A view (group, fold, head, token, channel); models fold frames or places into the batch, group is the rest."""
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    if len(tensor) % batch:
        raise UnsupportedError(f"a layer computes {len(tensor)} elements of a batch of {batch}; it cannot be traced")
    return tensor.unflatten(0, (batch, -1))

"""Distances between activations of neighbouring steps, from exact statistics or from the sampled tensors alone.

Notation: x[t] is an activation (token, channel) of one layer, kind, stream and branch at step t; d = x[t + lag] - x[t].
Means run over the elements of the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.access import ShardFile
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace

from dit_analyzer.mapping import mapped
from dit_analyzer.measures.parts import VARIABLES, Floats, Part, Question, Stream, answer

AXES = ("prompt", "branch", "stream", "kind", "layer", "transition")

EXACT_SECONDS, SAMPLE_SPEED = 0.004, 1.5e8
"""Seconds of one core for the exact statistics of a prompt, and bytes of samples, as stored, that it reads in one."""

MOST_TOGETHER = 32
"""Prompts that are asked for at once: so many that asking costs little, so few that their answers are small."""


def distances(
    trace: Trace,
    *,
    source: str | None = None,
    lag: int = 1,
    prompts: Sequence[int] | None = None,
    dask: Any = None,
) -> xr.Dataset:
    """How much K, V and A change from step t to step t + lag.

    Large traces are read by several processes, prompt after prompt; beside the result little is in memory.

    Args:
        source: "exact" takes the statistics of the whole tensors, which know lag 1 alone; "sample" the stored values,
            with a standard error. By default exact where that can be.
        lag: Steps between the two activations.
        prompts: Places among the trace's prompts of those to take, all by default.
        dask: Reads on a Dask cluster instead: the address of its scheduler, as `tcp://host:8786`, the scheduler's file,
            or a `distributed.Client`. The workers must see the trace at the same path. The result is the same.

    Returns:
        Variables of dimensions (prompt, branch, stream, kind, layer, transition), NaN where nothing was recorded:
        l1 = mean |d|; rel_l1 = l1 / mean |x[t]|; rms = sqrt(mean d^2); cosine of x[t] and x[t + lag];
        speed = l1 / |sigma[t + lag] - sigma[t]|; size = mean |x[t]|; count = number of elements; and l1_se, the
        standard error of l1 over positions, which is 0 for exact ones. Where exact changes were taken over n of N
        elements, it is sqrt((1 - n / N) s^2 / n) with s^2 the variance of |d|. It is NaN where some sampled positions
        have no finite value, as of a text shorter than the longest, unless a pilot gave them weights of their own.
        Coordinates name the layers, give the text, seed and image of a prompt, the timestep and sigma of step t, and
        sigma_after, that of step t + lag.

    Raises:
        ValueError: An unknown source, or a lag that it cannot give.
        IncompleteError: The trace has a single step, or no samples where they are needed.
        ClusterError: The Dask cluster cannot be used.
    """
    source = source or ("exact" if lag == 1 else "sample")
    asked = Asked(trace, source, lag, prompts)
    values = {name: np.empty((len(asked.rows), *asked.question.shape)) for name in VARIABLES}
    for places, found in asked.mapped(answer, dask):
        for name, array in zip(VARIABLES, found):
            values[name][places] = array
    return asked.dataset(values, AXES)


class Asked:
    """A question about the changes of some prompts of a trace: its parts, and the answers as a labelled dataset."""

    def __init__(self, trace: Trace, source: str, lag: int, prompts: Sequence[int] | None) -> None:
        _check(trace, source, lag)
        self._trace, self._source, self._lag = trace, source, lag
        places = range(len(trace.prompts)) if prompts is None else prompts
        self.rows = [trace.rows[place] for place in places]
        self._prompts = [trace.prompts[place] for place in places]
        self._branches = tuple(dict.fromkeys(b for stream in trace.streams for b in trace.branches(stream)))
        self._kinds = tuple(dict.fromkeys(k for stream in trace.streams for k in trace.kinds(stream)))
        self.question = _question(trace, source, lag, self._branches, self._kinds)

    def mapped(self, function: Callable[[Any, Part], Any], dask: Any) -> Iterator[tuple[slice, Any]]:
        """What the function answers to the question for some prompts, and which, until all are done."""
        together = _together(self._trace, self._source)
        for place, found in mapped(function, self.question, self._parts(together), seconds=self._seconds, dask=dask):
            yield slice(place * together, place * together + together), found

    def by_layer(self, function: Callable[[list[Part], Any, int], Any], dask: Any) -> Iterator[tuple[int, Any]]:
        """What the function answers for all prompts and one layer, for each layer."""
        of_prompts = partial(function, self._parts(MOST_TOGETHER))
        layers = range(len(self._trace.layers))
        return mapped(of_prompts, self.question, layers, seconds=self._seconds, dask=dask)

    def _parts(self, together: int) -> list[Part]:
        return [_part(self.rows[first : first + together]) for first in range(0, len(self.rows), together)]

    @property
    def _seconds(self) -> float:
        return _seconds(self._trace, self._source) * len(self.rows) / max(len(self._trace.prompts), 1)

    def dataset(self, variables: dict[str, Floats], axes: tuple[str, ...]) -> xr.Dataset:
        """Arrays with the names of their axes."""
        trace, lag = self._trace, self._lag
        coordinates = {
            "prompt": [prompt.index for prompt in self._prompts],
            "branch": list(self._branches),
            "stream": list(trace.streams),
            "kind": list(self._kinds),
            "layer": range(len(trace.layers)),
            "transition": range(trace.num_steps - lag),
            "text": ("prompt", [prompt.text for prompt in self._prompts]),
            "seed": ("prompt", [prompt.seed for prompt in self._prompts]),
            "image": ("prompt", [prompt.image for prompt in self._prompts]),
            "layer_name": ("layer", [layer.name for layer in trace.layers]),
            "layer_type": ("layer", [layer.type for layer in trace.layers]),
            "timestep": ("transition", trace.timesteps[:-lag]),
            "sigma": ("transition", trace.sigmas[:-lag]),
            "sigma_after": ("transition", trace.sigmas[lag:]),
        }
        attributes = {
            "model": str(trace.run.settings.get("model", "")),
            "transformer": _classes(trace),
            "num_steps": trace.num_steps,
            "source": self._source,
            "lag": lag,
        }
        return xr.Dataset({name: (axes, values) for name, values in variables.items()}, coordinates, attributes)


def _question(trace: Trace, source: str, lag: int, branches: tuple[str, ...], kinds: tuple[str, ...]) -> Question:
    with np.errstate(invalid="ignore"):  # without any signal left, sigma is infinite
        sigma_steps = np.abs(trace.sigmas[lag:] - trace.sigmas[:-lag])
    streams = {name: _stream(trace, name, source, branches, kinds) for name in trace.streams}
    shape = len(branches), len(streams), len(kinds), len(trace.layers), trace.num_steps - lag
    return Question(source, lag, streams, shape, sigma_steps, trace.transitions != "exact")


def _stream(trace: Trace, name: str, source: str, branches: tuple[str, ...], kinds: tuple[str, ...]) -> Stream:
    used = ("weight", "channel", "num_tokens", "num_channels", "recorded") if source == "sample" else ()
    return Stream(
        tuple(branches.index(branch) for branch in trace.branches(name)),
        tuple(kinds.index(kind) for kind in trace.kinds(name)),
        trace.shape(name, "step_sums")[1:],
        trace.transition_statistics(name),
        {array: trace.geometry(name, array) for array in used},
    )


def _part(rows: list[tuple[ShardFile, int]]) -> Part:
    """The files of some prompts, and which of theirs; rows that follow one another are read at once."""
    runs: list[tuple[Path, range]] = []
    for shard, row in rows:
        path = shard.path.absolute()
        if runs and runs[-1] == (path, range(runs[-1][1].start, row)):
            runs[-1] = path, range(runs[-1][1].start, row + 1)
        else:
            runs.append((path, range(row, row + 1)))
    return tuple(runs)


def _together(trace: Trace, source: str) -> int:
    """How many prompts one part has: more where a file has many, which is looked through whenever it is opened."""
    if trace.num_shards < len(trace.prompts):
        return MOST_TOGETHER
    return 1 if source == "sample" else MOST_TOGETHER // 4


def _seconds(trace: Trace, source: str) -> float:
    """How long one core will take, about."""
    return trace.num_bytes / SAMPLE_SPEED if source == "sample" else EXACT_SECONDS * len(trace.prompts)


def _classes(trace: Trace) -> str:
    """Classes of the networks, joined by `+`."""
    networks = trace.run.settings.get("transformers")
    rows = networks.values() if isinstance(networks, dict) else ()
    return "+".join(dict.fromkeys(str(row.get("class", "")) for row in rows if isinstance(row, dict)))


def _check(trace: Trace, source: str, lag: int) -> None:
    if source not in ("exact", "sample"):
        raise ValueError(f"source {source!r}: give 'exact' or 'sample'")
    if trace.num_steps < 2:
        raise IncompleteError(f"{trace.path}: has one step, so nothing to compare; trace with --steps 2 or more")
    if not 1 <= lag < trace.num_steps:
        raise ValueError(f"lag {lag}: this trace has {trace.num_steps} steps, so give 1 to {trace.num_steps - 1}")
    if source == "exact" and lag != 1:
        raise ValueError(f"lag {lag}: the exact statistics are of neighbouring steps; give source='sample'")
    if source == "sample" and not all(trace.shape(stream, "token")[-1] for stream in trace.streams):
        raise IncompleteError(f"{trace.path}: holds statistics only, no samples; use the exact source")

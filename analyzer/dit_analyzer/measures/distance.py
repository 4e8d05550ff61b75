"""Distances between activations of neighbouring steps, from exact statistics or from the sampled tensors alone.

Notation: x[t] is an activation (token, channel) of one layer, kind, stream and branch at step t; d = x[t + lag] - x[t].
Means run over the elements of the tensor.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace
from dit_formats.schema import STEP_STATISTICS
from numpy.typing import NDArray

from dit_analyzer.measures.errors import strata_of, weighted_error

AXES = ("prompt", "branch", "stream", "kind", "layer", "transition")

Means = dict[str, NDArray[np.float64]]
"""Means over elements, each (prompt, branch, kind, layer, transition): abs_diff, square_diff and product; of step t abs
and square, of step t + lag next_square; count of elements; from samples also se, the standard error of abs_diff."""


def distances(trace: Trace, *, source: str | None = None, lag: int = 1) -> xr.Dataset:
    """How much K, V and A change from step t to step t + lag.

    Args:
        source: "exact" takes the statistics of the whole tensors, which know lag 1 alone; "sample" the stored values,
            with a standard error. By default exact where that can be.
        lag: Steps between the two activations.

    Returns:
        Variables of dimensions (prompt, branch, stream, kind, layer, transition), NaN where nothing was recorded:
        l1 = mean |d|; rel_l1 = l1 / mean |x[t]|; rms = sqrt(mean d^2); cosine of x[t] and x[t + lag];
        speed = l1 / |sigma[t + lag] - sigma[t]|; size = mean |x[t]|; count = number of elements; and l1_se, the
        standard error of l1 over positions, which is 0 for exact ones.
        Coordinates name the layers and give the timestep and sigma of step t.

    Raises:
        ValueError: An unknown source, or a lag that it cannot give.
        IncompleteError: The trace has a single step, or no samples where they are needed.
    """
    source = source or ("exact" if lag == 1 else "sample")
    _check(trace, source, lag)
    read = _exact_means if source == "exact" else _sampled_means
    by_stream = {stream: read(trace, stream, lag) for stream in trace.streams}
    branches = tuple(dict.fromkeys(b for stream in trace.streams for b in trace.branches(stream)))
    kinds = tuple(dict.fromkeys(k for stream in trace.streams for k in trace.kinds(stream)))
    lengths = map(len, (trace.prompts, branches, trace.streams, kinds, trace.layers))
    shape = (*lengths, trace.num_steps - lag)
    means: Means = {name: np.full(shape, np.nan) for name in next(iter(by_stream.values()))}
    for place, (stream, values) in enumerate(by_stream.items()):
        rows = [branches.index(branch) for branch in trace.branches(stream)]
        columns = [kinds.index(kind) for kind in trace.kinds(stream)]
        for name, array in values.items():
            means[name][:, np.array(rows)[:, None], place, np.array(columns)] = array
    with np.errstate(invalid="ignore"):  # without any signal left, sigma is infinite
        step = np.abs(trace.sigmas[lag:] - trace.sigmas[:-lag])
    return _dataset(trace, _measures(means, step), branches, kinds, lag, source)


def _measures(means: Means, step: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """The distances that these means give."""
    l1 = means["abs_diff"]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "l1": l1,
            "l1_se": means.get("se", np.where(np.isnan(l1), np.nan, 0.0)),
            "rel_l1": l1 / means["abs"],
            "rms": np.sqrt(means["square_diff"]),
            "cosine": means["product"] / np.sqrt(means["square"] * means["next_square"]),
            "speed": l1 / np.where((step > 0) & np.isfinite(step), step, np.nan),
            "size": means["abs"],
            "count": means["count"],
        }


def _exact_means(trace: Trace, stream: str, lag: int) -> Means:
    steps = dict(zip(STEP_STATISTICS, np.moveaxis(trace.step_sums(stream), -2, 0)))
    pairs = dict(zip(trace.transition_statistics(stream), np.moveaxis(trace.transition_sums(stream), -2, 0)))
    with np.errstate(invalid="ignore", divide="ignore"):
        of_step = {name: steps[f"sum_{name}"] / steps["count"] for name in ("abs", "square")}
        return {
            "abs_diff": pairs["sum_abs"] / pairs["count"],
            "square_diff": pairs["sum_square"] / pairs["count"],
            "product": pairs["sum_product"] / pairs["count"],
            "abs": of_step["abs"][..., :-1],
            "square": of_step["square"][..., :-1],
            "next_square": of_step["square"][..., 1:],
            "count": pairs["count"],
        }


def _sampled_means(trace: Trace, stream: str, lag: int) -> Means:
    weight = trace.geometry(stream, "weight")[..., None]
    numbers = trace.geometry(stream, "num_tokens"), trace.geometry(stream, "num_channels")
    channel = trace.geometry(stream, "channel")
    rows: list[Means] = []
    for prompt in range(len(trace.prompts)):
        x = trace.samples(stream, prompt).astype(np.float64)
        change = np.abs(x[..., lag:] - x[..., :-lag])
        means_of_prompt = _means_of_samples(x, change, weight, lag)
        rows.append(means_of_prompt | {"se": _error(change, channel, weight[..., 0], *numbers)})
    means = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    steps = dict(zip(STEP_STATISTICS, np.moveaxis(trace.step_sums(stream), -2, 0)))
    whole = np.where(trace.geometry(stream, "recorded"), (numbers[0] * numbers[1])[..., None], np.nan)
    existing = steps["count"] + steps["nonfinite"]  # of a text shorter than the longest, that text's elements
    existing = np.where(existing > 0, existing, whole)
    means["count"] = np.minimum(existing[..., lag:], existing[..., :-lag])
    return means


def _means_of_samples(
    x: NDArray[np.float64], change: NDArray[np.float64], weight: NDArray[np.float64], lag: int
) -> Means:
    """Means over positions of samples (branch, kind, layer, position, step) and of their absolute changes."""
    before, after = x[..., :-lag], x[..., lag:]

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        finite = np.isfinite(values)
        share = (weight * finite).sum(-2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return (weight * np.where(finite, values, 0)).sum(-2) / np.where(share > 0, share, np.nan)

    return {
        "abs_diff": mean(change),
        "square_diff": mean(change**2),
        "product": mean(after * before),
        "abs": mean(np.abs(before)),
        "square": mean(before**2),
        "next_square": mean(after**2),
    }


def _error(
    change: NDArray[np.float64],
    channel: NDArray[np.int64],
    weight: NDArray[np.float64],
    num_tokens: NDArray[np.int64],
    num_channels: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Standard error of the mean of |d|, (branch, kind, layer, transition), by the formula that the weights ask for."""
    result = standard_error(change, channel, num_tokens, num_channels)
    for kind, layer in np.argwhere((channel >= 0).any(-1)):
        kept = channel[kind, layer] >= 0
        own, mine = weight[kind, layer][kept], channel[kind, layer][kept]
        if np.ptp(own) > 1e-9 * own.max() and len(own) > 1:
            size = int(num_tokens[kind, layer] * num_channels[kind, layer])
            result[:, kind, layer] = weighted_error(change[:, kind, layer][:, kept], own, strata_of(mine, own), size)
    return result


def standard_error(
    change: NDArray[np.float64],
    channel: NDArray[np.int64],
    num_tokens: NDArray[np.int64],
    num_channels: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Standard error of the mean of |d| over positions, (branch, kind, layer, transition).

    Positions are put in order of their channel and cut into strata of ceil(4 C / n) channels; the sample spreads evenly
    over channels, so only the spread within strata counts:
    SE^2 = (1 - n / N) sum_g (n_g / n)^2 s_g^2 / n_g.

    Args:
        change: |d| at the kept positions, (branch, kind, layer, position, transition).
        channel: Channel of each position, (kind, layer, position), -1 where there is none.
        num_tokens, num_channels: Shape of the whole tensor, (kind, layer).
    """
    result = np.full((*change.shape[:3], change.shape[-1]), np.nan)
    for kind, layer in np.argwhere((channel >= 0).any(-1)):
        kept = channel[kind, layer] >= 0
        n, channels = int(kept.sum()), int(num_channels[kind, layer])
        if n < 2:
            continue  # one value tells nothing about the spread
        width = -(-4 * channels // n)
        strata = channel[kind, layer][kept] // width
        order = np.argsort(strata, kind="stable")
        starts = np.flatnonzero(np.diff(strata[order], prepend=-1))
        sizes = np.diff([*starts, n])[:, None]
        values = change[:, kind, layer, kept][:, order]
        sums = np.add.reduceat(values, starts, axis=1)
        squares = np.add.reduceat(values**2, starts, axis=1)
        variance = np.maximum(squares - sums**2 / sizes, 0) / np.maximum(sizes - 1, 1)
        missing = 1 - n / (int(num_tokens[kind, layer]) * channels)
        result[:, kind, layer] = np.sqrt(missing * (sizes * variance).sum(1)) / n
    return result


def _dataset(
    trace: Trace,
    variables: dict[str, NDArray[np.float64]],
    branches: tuple[str, ...],
    kinds: tuple[str, ...],
    lag: int,
    source: str,
) -> xr.Dataset:
    coordinates = {
        "prompt": [prompt.index for prompt in trace.prompts],
        "branch": list(branches),
        "stream": list(trace.streams),
        "kind": list(kinds),
        "layer": range(len(trace.layers)),
        "transition": range(trace.num_steps - lag),
        "layer_name": ("layer", [layer.name for layer in trace.layers]),
        "layer_type": ("layer", [layer.type for layer in trace.layers]),
        "timestep": ("transition", trace.timesteps[:-lag]),
        "sigma": ("transition", trace.sigmas[:-lag]),
    }
    attributes = {
        "model": str(trace.run.settings.get("model", "")),
        "transformer": _classes(trace),
        "num_steps": trace.num_steps,
        "source": source,
        "lag": lag,
    }
    return xr.Dataset({name: (AXES, values) for name, values in variables.items()}, coordinates, attributes)


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
    if source == "sample" and not all(trace.geometry(stream, "token").shape[-1] for stream in trace.streams):
        raise IncompleteError(f"{trace.path}: holds statistics only, no samples; use the exact source")

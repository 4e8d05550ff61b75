"""Where the spread of the curves comes from: variance components of log L1.

y = ln L1 for each prompt, layer and transition of a kind, and for each seed where the same texts were run with several.
With all factors crossed and balanced, y is a mean over prompts and seeds (the pattern of the model) plus random effects
of every set of factors that holds the prompt P or the seed S: P, PL, PT, PLT, S, SL, ..., with L the layer and T the
transition. Their variances follow from mean squares in closed form (Searle, Casella and McCulloch, Variance Components,
1992, chapter 4): with n_f levels of factor f,

    s2_X = 1 / prod_{f not in X} n_f * sum_{Y that contain X} (-1)^{|Y| - |X|} MS_Y.

A lognormal variable of variance s2 of its log has the CV sqrt(exp(s2) - 1).
"""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from dit_analyzer.measures.design import crossed
from dit_analyzer.measures.jackknife import from_replicates

Floats = NDArray[np.float64]
Effect = tuple[int, ...]
"""Places of its factors among `FACTORS`, ascending."""

FACTORS = ("p", "s", "l", "t")
PROMPT, SEED, LAYER, TRANSITION = range(4)

SCALES = {"cv_level": "log", "cv_shape": "log", "cv_seed": "log", "icc_pattern": "atanh"}
"""The numbers that get an interval, and the scale on which that is made."""


def components(view: xr.Dataset) -> xr.Dataset:
    """What prompts, and seeds if they were varied, do to the curves of each kind.

    With the same texts under several seeds, complete for two texts and two seeds at least, both are told apart;
    prompts whose text lacks one of the seeds are left out. Else all prompts are taken as they are, and what the seed
    does is within what they do. Layers and transitions that are not all positive and finite are left out, as few as
    leave a full table.

    Args:
        view: `paper_view`; or any `l1` (prompt, kind, layer, transition), with coordinates text and seed if there are.

    Returns:
        Per kind:
        cv_level: by how much prompts differ in scale, of all layers or some: sqrt(exp(s2_p + s2_pl) - 1);
        cv_shape: by how much they differ in how the change is spread over steps: sqrt(exp(s2_pt + s2_plt) - 1), which
        with one seed holds what is left over;
        cv_seed: by how much the seeds of one text differ, from all terms with the seed; NaN if it was not varied;
        icc_pattern: share of the variance of log L1 over (layer, transition) and all else that is the model's pattern;
        each with _low and _high, a 95 % interval (leave-one-text-out jackknife on the log, on the square where a CV
        comes out 0 without some text, of ICC on atanh); that of cv_seed knows nothing of other seeds that might have
        been chosen;
        s2 (kind, effect), the components, which may come out negative and then count as 0; s2_pattern;
        layers, transitions: how many were used. Attributes: design, and how many texts and seeds.

    Raises:
        ValueError: Fewer than two prompts.
    """
    apart, design = crossed(view[["l1"]])
    l1 = apart["l1"].transpose("kind", "prompt", "seed", "layer", "transition")
    texts, seeds = l1.sizes["prompt"], l1.sizes["seed"]
    if texts < 2:
        raise ValueError("components of variance need two prompts or more; trace more with -n")
    effects = effects_of((2, seeds, 2, 2))
    found = [_of_kind(values, effects) for values in l1.values]
    names = [name for name in (found[0] if found else ()) if name != "s2"]
    s2 = np.array([row["s2"] for row in found]).reshape(len(found), len(effects))
    return xr.Dataset(
        {name: ("kind", np.array([row[name] for row in found])) for name in names} | {"s2": (("kind", "effect"), s2)},
        {"kind": l1["kind"], "effect": ["".join(FACTORS[factor] for factor in effect) for effect in effects]},
        view.attrs | {"design": design, "texts": texts, "seeds": seeds},
    )


def effects_of(shape: tuple[int, ...]) -> list[Effect]:
    """All sets with the prompt or the seed in them, of the factors that have two levels or more."""
    factors = [factor for factor, levels in enumerate(shape) if levels > 1]
    sets = (one for size in range(1, len(factors) + 1) for one in combinations(factors, size))
    return [one for one in sets if PROMPT in one or SEED in one]


def _of_kind(l1: Floats, effects: list[Effect]) -> dict[str, object]:
    """What `components` gives for one kind, of l1 (prompt, seed, layer, transition)."""
    with np.errstate(invalid="ignore"):
        layers, transitions = full_table((np.isfinite(l1) & (l1 > 0)).all((0, 1)))
    y = np.log(l1[:, :, layers][..., transitions])
    result: dict[str, object] = {"layers": len(layers), "transitions": len(transitions)}
    if not y.size:
        nothing = {f"{name}{end}": np.nan for name in SCALES for end in ("", "_low", "_high")}
        return result | nothing | {"s2_pattern": np.nan, "s2": [np.nan] * len(effects)}
    squares = Squares(y)
    whole, s2 = squares.numbers()
    without = [squares.numbers(left)[0] for left in range(len(y))] if len(y) > 2 else []
    for name, scale in SCALES.items():
        rest = [one[name] for one in without]
        if scale == "log" and 0 in (whole[name], *rest):
            scale = "square"
        found = from_replicates(whole[name], rest, scale)
        low = max(found.low, 0.0) if name == "icc_pattern" else found.low  # a share
        result |= {name: whole[name], f"{name}_low": float(low), f"{name}_high": float(found.high)}
    return result | {"s2_pattern": whole["s2_pattern"], "s2": [s2.get(effect, np.nan) for effect in effects]}


def full_table(usable: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns that are usable throughout; what spoils the largest share of the rest goes first."""
    rows, columns = np.ones(usable.shape[0], bool), np.ones(usable.shape[1], bool)
    while (bad := ~usable & rows[:, None] & columns).any():
        of_row, of_column = bad.sum(1) / columns.sum(), bad.sum(0) / rows.sum()
        if of_row.max() >= of_column.max():
            rows[of_row.argmax()] = False
        else:
            columns[of_column.argmax()] = False
    return np.flatnonzero(rows), np.flatnonzero(columns)


class Squares:
    """Sums of squares of y (prompt, seed, layer, transition), with all prompts or with one left out.

    They are of the prompts' deviations from their mean where the effect holds P, of the mean itself where it does not.
    Leaving prompt i out, of n, takes n / (n - 1) times its own from the first, and moves the mean by its deviation over
    n - 1.
    """

    def __init__(self, y: Floats) -> None:
        self._shape = y.shape
        self._mean = y.mean(0)
        self._away = y - self._mean
        self._of_prompts = {
            effect: (_within(self._away, effect) ** 2).sum((SEED, LAYER, TRANSITION))
            for effect in effects_of(y.shape)
            if PROMPT in effect
        }

    def numbers(self, left: int | None = None) -> tuple[dict[str, float], dict[Effect, float]]:
        """What they give, and the components, without the prompt at place `left`."""
        n = self._shape[PROMPT]
        kept, mean = n, self._mean
        squares = {effect: each.sum() for effect, each in self._of_prompts.items()}
        if left is not None:
            kept, mean = n - 1, mean - self._away[left] / (n - 1)
            squares = {e: max(s - n / kept * self._of_prompts[e][left], 0) for e, s in squares.items()}
        shape = kept, *self._shape[1:]
        of_mean = (effect for effect in effects_of(self._shape) if PROMPT not in effect)
        squares |= {effect: float((_within(mean[None], effect) ** 2).sum()) for effect in of_mean}
        s2 = _components(squares, shape)
        return _numbers(s2, mean.mean(0), shape), s2


def _within(y: Floats, effect: Effect) -> Floats:
    """Means over seeds, layers and transitions that are not in the effect, centred over those that are."""
    for axis in (SEED, LAYER, TRANSITION):
        mean = y.mean(axis, keepdims=True)
        y = y - mean if axis in effect else mean
    return y


def _components(squares: dict[Effect, float], shape: tuple[int, ...]) -> dict[Effect, float]:
    """Variance of each effect, from its sum of squares over its own levels."""
    levels = dict(enumerate(shape))

    def others(effect: Effect) -> int:
        return math.prod(number for factor, number in levels.items() if factor not in effect)

    mean_squares = {
        effect: others(effect) * s / max(math.prod(shape[factor] - 1 for factor in effect), 1)
        for effect, s in squares.items()
    }
    return {
        one: sum((-1) ** (len(more) - len(one)) * m for more, m in mean_squares.items() if set(one) <= set(more))
        / others(one)
        for one in mean_squares
    }


def _numbers(s2: dict[Effect, float], pattern: Floats, shape: tuple[int, ...]) -> dict[str, float]:
    """The CVs, and the share of the pattern (layer, transition), the mean over prompts and seeds.

    The mean's own noise is taken from its variance: an effect that holds the layer alone varies over layers only.
    """
    n, seeds, layers, transitions = shape
    cells = layers * transitions
    weight = {
        (False, False): 0.0,
        (True, False): transitions * (layers - 1) / max(cells - 1, 1),
        (False, True): layers * (transitions - 1) / max(cells - 1, 1),
        (True, True): 1.0,
    }
    noise = sum(
        s * weight[LAYER in e, TRANSITION in e] / ((n if PROMPT in e else 1) * (seeds if SEED in e else 1))
        for e, s in s2.items()
    )
    own = float(pattern.var(ddof=1) - noise) if cells > 1 else float("nan")
    positive = {effect: max(s, 0.0) for effect, s in s2.items()}
    whole = max(own, 0.0) + sum(positive.values())
    of_prompt = {effect: s for effect, s in positive.items() if SEED not in effect}
    return {
        "cv_level": _cv([s for effect, s in of_prompt.items() if TRANSITION not in effect]),
        "cv_shape": _cv([s for effect, s in of_prompt.items() if TRANSITION in effect]),
        "cv_seed": _cv([s for effect, s in positive.items() if SEED in effect]),
        "icc_pattern": max(own, 0.0) / whole if whole > 0 else float("nan"),
        "s2_pattern": own,
    }


def _cv(parts: list[float]) -> float:
    """Of a lognormal variable whose log has these variances together; NaN where there is none."""
    return math.sqrt(math.expm1(sum(parts))) if parts else float("nan")

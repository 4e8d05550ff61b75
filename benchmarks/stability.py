"""How often the intervals of S and D hold the truth, and which verdict falls, where the truth is known.

Two runs of 10 prompts, 6 layers and 27 transitions, one prompt's curve being the model's, plus the prompt's own, which
both runs share, plus a smooth change of shape and noise of its own in each run. The second run's curves differ by D
in a fixed direction. "flat" models have no shape of their own, "curved" ones have 0.35 (root mean square of the log).
"atanh" is the interval of S on atanh S, with which the one that is used is compared; there 1 counts as held from
1 - 0.00001 on, for it has no end at 1. "+-" is two binomial errors.

    python benchmarks/stability.py --json
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import xarray as xr
from dit_analyzer import stability
from dit_analyzer.measures.axes import common_points, places
from dit_analyzer.measures.stability import Shapes, _scales_without_each, interval, scale_of, shapes
from dit_analyzer.measures.unbiased import mean_square, mean_square_without_each, products

LAYERS, STEPS = 6, 28
SHAPES = {"flat": 0.0, "curved": 0.35}
DIFFERENCES = (0.0, 0.05, 0.10, 0.30)
BENDS = 4
"""Cosines of which smooth curves are made."""


def smooth(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random smooth curves over transitions, of root mean square about 1."""
    u = (np.arange(STEPS - 1) + 0.5) / (STEPS - 1)
    waves = np.array([np.cos(np.pi * (bend + 1) * u) for bend in range(BENDS)])
    return rng.normal(size=(*shape, BENDS)) @ waves * np.sqrt(2 / BENDS)


def unit(curves: np.ndarray) -> np.ndarray:
    """Less each layer's mean, with root mean square 1."""
    centred = curves - curves.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean())


def view(logs: np.ndarray) -> xr.Dataset:
    """What `paper_view` gives of logs (prompt, layer, transition)."""
    prompts = len(logs)
    coordinates = {
        "prompt": range(prompts), "kind": ["k"], "layer": range(LAYERS), "transition": range(STEPS - 1),
        "text": ("prompt", [str(place) for place in range(prompts)]),
        "seed": ("prompt", [0] * prompts), "image": ("prompt", [0] * prompts),
    }  # fmt: skip
    values = {"l1": (("prompt", "kind", "layer", "transition"), np.exp(logs)[:, None])}
    return xr.Dataset(values, coordinates, {"num_steps": STEPS})


def both(one: np.ndarray, other: np.ndarray) -> Shapes:
    """Shapes as `stability` takes them."""
    pair = view(one), view(other)
    return shapes(*pair, "k", "step", common_points(*(places(run, "step") for run in pair)))


def true_values(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """S and D of two models without prompts and noise, on the common axis."""
    pair = both(one[None], other[None])
    square = float(((pair.other - pair.one) ** 2).mean())
    return 1 - square / scale_of([products(pair.one), products(pair.other)]), float(np.sqrt(square))


def by_atanh(pair: Shapes) -> tuple[float, float]:
    """The interval of S on atanh S, cut just below 1."""
    apart, *own = (products(values) for values in (pair.other - pair.one, pair.one, pair.other))
    s = 1 - mean_square(apart) / scale_of(own)
    without = 1 - mean_square_without_each(apart) / _scales_without_each(own)
    edge = 1 - 1e-6
    low, high = np.tanh(interval(np.arctanh(np.clip(s, -edge, edge)), np.arctanh(np.clip(without, -edge, edge))))
    return float(low), float(high)


def trial(rng: np.random.Generator, models: list[np.ndarray], truth: tuple[float, float], prompts: int) -> list[bool]:
    """S held, D held, S held by atanh; equivalent, different, undecided."""
    shared = 0.12 * smooth(rng, prompts, 1)
    runs = [model + shared + 0.08 * smooth(rng, prompts, 1) for model in models]
    runs = [run + rng.normal(0, 0.05, (prompts, LAYERS, STEPS - 1)) for run in runs]
    found = stability(view(runs[0]), view(runs[1])).isel(kind=0)
    low, high = by_atanh(both(*runs))
    s, d = truth
    held = [bool(found[f"{name}_low"] <= true <= found[f"{name}_high"]) for name, true in (("s", s), ("d", d))]
    return [
        *held,
        low <= s <= high + 1e-5,
        *(found["verdict"] == word for word in ("equivalent", "different", "undecided")),
    ]


def row(shape: str, difference: float, prompts: int, trials: int) -> dict[str, Any]:
    """Rates over many trials, all from one seed."""
    rng = np.random.default_rng(2411)
    model = SHAPES[shape] * unit(smooth(rng, LAYERS))
    models = [model, model + difference * unit(smooth(rng, LAYERS))]
    truth = true_values(*models)
    rates = np.mean([trial(rng, models, truth, prompts) for _ in range(trials)], 0)
    names = ("s_coverage", "d_coverage", "s_coverage_atanh", "equivalent", "different", "undecided")
    return {"shape": shape, "d": difference, "s": truth[0], "prompts": prompts} | dict(zip(names, map(float, rates)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [row(shape, d, options.prompts, options.trials) for shape in SHAPES for d in DIFFERENCES]
    if options.json:
        print(json.dumps({"trials": options.trials, "rows": rows}))
        return
    print(f"{options.prompts} prompts, {options.trials} trials a row, +- {1 / np.sqrt(options.trials):.3f} at most")
    print("shape    D     true S   S held  D held  (atanh)  equivalent  different  undecided")
    for one in rows:
        told = f"{one['shape']:<7}{one['d']:5.0%}{one['s']:9.3f}{one['s_coverage']:9.3f}{one['d_coverage']:8.3f}"
        verdicts = f"{one['equivalent']:12.3f}{one['different']:11.3f}{one['undecided']:11.3f}"
        print(f"{told}{one['s_coverage_atanh']:9.3f}{verdicts}")


if __name__ == "__main__":
    main()

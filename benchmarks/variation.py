"""Do the intervals cover the truth? Simulations in which it is known.

Prompts: log L1 of 24 layers by 27 transitions is a pattern plus effects of prompt, prompt by layer, prompt by
transition and what is left (variances 0.0072, 0.0009, 0.0028, 0.0025: a CV of 11.6 % in every cell), normal; or, with
heavy tails, L1 is a pattern times 1 plus effects that are Student's t with 5 degrees of freedom, of the same CV. How
often does the interval of `variation` hold the true CV, and those of `components` theirs? For comparison, the
percentile bootstrap.

Positions: tensors of 1024 tokens by 384 channels at 8 steps of 5 prompts, with channels of unequal size, three of them
massive, a smooth field over tokens, and noise that is partly common to the prompts; drawn anew, a sample of 4096
positions, spread evenly over tokens and channels, again and again. How often is the whole tensor's number within the
sample's interval: of one activation, the mean over prompts and the ratio of two steps of it by their formula; of these
and of the CV by leaving groups of positions out?

Every coverage has its own Monte-Carlo error, one standard deviation.

    python benchmarks/variation.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from dit_analyzer import components, variation
from dit_analyzer.measures.curve_errors import errors_of
from dit_analyzer.measures.groups import GROUPS, member_weights, without_each
from dit_analyzer.measures.jackknife import from_replicates
from dit_analyzer.measures.positions import Positions
from numpy.typing import NDArray

LAYERS, TRANSITIONS = 24, 27
S2 = {"p": 0.0072, "pl": 0.0009, "pt": 0.0028, "plt": 0.0025}
TOTAL = sum(S2.values())
CV = float(np.sqrt(np.expm1(TOTAL)))
TARGET = 0.90
"""Least coverage at 10 prompts, of lognormal curves."""

TOKENS, CHANNELS, STEPS, PROMPTS, POSITIONS = 1024, 384, 8, 5, 4096
FREE = 5
"""Degrees of freedom of the heavy tail."""

Floats = NDArray[np.float64]


def curves(rng: np.random.Generator, prompts: int, tail: str) -> xr.Dataset:
    """l1 (prompt, kind, layer, transition) of one kind."""
    pattern = rng.normal(0, 0.7, (LAYERS, TRANSITIONS))
    away = np.zeros((prompts, LAYERS, TRANSITIONS))
    for effect, variance in S2.items():
        shape = prompts, LAYERS if "l" in effect else 1, TRANSITIONS if effect.endswith("t") else 1
        drawn = rng.normal(size=shape) if tail == "normal" else rng.standard_t(FREE, shape) / np.sqrt(FREE / (FREE - 2))
        away = away + np.sqrt(variance if tail == "normal" else variance / TOTAL * CV**2) * drawn
    factor = np.exp(away) if tail == "normal" else np.maximum(1 + away, 0.01)
    l1 = (np.exp(pattern) * factor)[:, None]
    return xr.Dataset({"l1": (("prompt", "kind", "layer", "transition"), l1)}, {"kind": ["k"]})


def bootstrap(rng: np.random.Generator, l1: Floats, draws: int = 200) -> tuple[float, float]:
    """Percentiles of the published CV over prompts drawn with replacement."""
    n, flat = len(l1), l1.reshape(len(l1), -1)
    counts = rng.multinomial(n, np.full(n, 1 / n), draws) / n
    mean = counts @ flat
    cvs = (np.sqrt(np.maximum(counts @ flat**2 - mean**2, 0)) / mean).mean(1)
    return tuple(np.percentile(cvs, [2.5, 97.5]).tolist())


def of_prompts(prompts: int, tail: str, repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one setting: coverage and bias of each number."""
    rng = np.random.default_rng([seed, prompts, len(tail)])
    truth = {"cv": CV}
    if tail == "normal":
        truth |= {
            "cv_level": np.sqrt(np.expm1(S2["p"] + S2["pl"])),
            "cv_shape": np.sqrt(np.expm1(S2["pt"] + S2["plt"])),
        }
    inside: dict[str, list[bool]] = {name: [] for name in (*truth, "bootstrap")}
    values: dict[str, list[float]] = {name: [] for name in (*truth, "cv_published")}
    for _ in range(repeats):
        ds = curves(rng, prompts, tail)
        found = xr.merge([variation(ds), components(ds)], combine_attrs="drop").isel(kind=0)
        for name, true in truth.items():
            inside[name].append(found[f"{name}_low"].item() <= true <= found[f"{name}_high"].item())
        for name in values:
            values[name].append(found[name].item())
        low, high = bootstrap(rng, ds["l1"].values[:, 0])
        inside["bootstrap"].append(low <= CV <= high)
    for name in ("cv", "cv_published", "cv_level", "cv_shape"):
        if name in values:
            true, held = truth.get(name, CV), inside["bootstrap" if name == "cv_published" else name]
            bias = np.array(values[name]) / true - 1
            yield {"what": name, "prompts": prompts, "tail": tail} | covered(held) | {
                "bias": float(bias.mean()), "bias_error": float(bias.std(ddof=1) / np.sqrt(repeats))
            }  # fmt: skip


def covered(inside: list[bool] | Floats) -> dict[str, float]:
    share, number = float(np.mean(inside)), np.size(inside)
    return {"coverage": share, "coverage_error": float(np.sqrt(max(share * (1 - share), 1 / number) / number))}


def tensors(rng: np.random.Generator) -> NDArray[np.float32]:
    """(prompt, token, channel, step)"""
    scale = rng.lognormal(sigma=0.8, size=CHANNELS)
    scale[rng.choice(CHANNELS, 3, replace=False)] = 30 * np.median(scale)
    waves = np.sin(np.arange(TOKENS)[:, None] / TOKENS * 2 * np.pi * np.arange(1, 6) + rng.uniform(0, 6, 5)).sum(1)
    size = np.exp(0.3 * waves)[:, None, None] * scale[:, None] * np.exp(rng.normal(0, 0.3, STEPS))
    common = rng.normal(size=(TOKENS, CHANNELS, STEPS)).astype("f4")
    prompts = [
        (size * rng.lognormal(sigma=0.1)).astype("f4")
        * (0.8 * common + 0.6 * rng.normal(size=common.shape).astype("f4"))
        for _ in range(PROMPTS)
    ]
    return np.stack(prompts)


def scatter(rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens from equal strata, channels from permutations of all."""
    token = np.floor((np.arange(POSITIONS) + rng.uniform(size=POSITIONS)) * TOKENS / POSITIONS).astype(int)
    rounds = -(-POSITIONS // CHANNELS)
    return token, np.concatenate([rng.permutation(CHANNELS) for _ in range(rounds)])[:POSITIONS]


def cv_of(l1: Floats) -> Floats:
    """Over prompts, (..., prompt, transition), mean over transitions."""
    n = l1.shape[-2]
    return ((1 + 1 / (4 * n)) * l1.std(-2, ddof=1) / l1.mean(-2)).mean(-1)


def of_positions(repeats: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng([seed, 99])
    whole = tensors(rng)
    true = np.stack([abs(np.diff(x.astype("f8"))).mean((0, 1)) for x in whole])  # (prompt, transition)
    mean, ratio = true.mean(0), _ratio(true.mean(0))
    wanted = {"mean, formula": mean, "ratio, formula": ratio, "mean, groups": mean, "ratio, groups": ratio}
    wanted |= {"cv, groups": cv_of(true)}
    inside: dict[str, list[Any]] = {"one activation": [], **{name: [] for name in wanted}}
    off, told = ({name: [] for name in inside} for _ in range(2))
    for _ in range(repeats):
        token, channel = scatter(rng)
        weight = np.full(POSITIONS, 1 / POSITIONS)
        positions = Positions(weight, channel, TOKENS, CHANNELS)
        samples = whole[:, token, channel]
        means = np.stack([positions.means(x, 1) for x in samples])
        inside["one activation"].append(abs(means[:, 0] - true) <= 1.96 * means[:, -1])
        off["one activation"].append(means[:, 0] - true)
        told["one activation"].append(means[:, -1])
        change = abs(np.diff(samples.astype("f8"))).mean(0)
        mean, ratio = means[:, 0].mean(0), _ratio(means[:, 0].mean(0))
        se, ratio_se = errors_of(change, positions)
        for name, value, error in (("mean", mean, se), ("ratio", ratio, ratio_se[1:] * ratio)):
            true_value = wanted[f"{name}, formula"]
            inside[f"{name}, formula"].append(abs(value - true_value) <= 1.96 * error)
            off[f"{name}, formula"].append(value / true_value - 1)
            told[f"{name}, formula"].append(error / value)
        members, missing = member_weights(weight, channel, GROUPS), 1 - POSITIONS / TOKENS / CHANNELS
        rest = np.stack([without_each(x, members, missing, 1)[0] for x in samples], 1)  # (group, prompt, transition)
        got = {
            "mean, groups": from_replicates(means[:, 0].mean(0), rest.mean(1)),
            "ratio, groups": from_replicates(_ratio(means[:, 0].mean(0)), _ratio(rest.mean(1)), "log"),
            "cv, groups": from_replicates(cv_of(means[:, 0]), cv_of(rest), "log", bias=True),
        }
        for name, one in got.items():
            inside[name].append((one.low <= wanted[name]) & (wanted[name] <= one.high))
            off[name].append(one.value / wanted[name] - 1 if name != "mean, groups" else one.value - wanted[name])
            told[name].append(one.error)
    for name, held in inside.items():
        per_draw = np.array(held).reshape(repeats, -1).mean(1)  # what one draw covers stands or falls together
        error = max(per_draw.std(ddof=1) / np.sqrt(repeats), 1 / repeats)
        wide = np.sqrt((np.array(told[name]) ** 2).mean() / (np.array(off[name]) ** 2).mean())
        row = {"coverage": float(per_draw.mean()), "coverage_error": float(error), "told_by_true": float(wide)}
        yield {"what": name, "positions": POSITIONS} | row


def _ratio(mean: Floats) -> Floats:
    return mean[..., 1:] / mean[..., :-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1000, help="simulations of each setting (1000)")
    parser.add_argument("--draws", type=int, default=400, help="samples of positions (400)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--json", action="store_true", help="print rows for programs")
    options = parser.parse_args()
    settings = [(n, tail) for tail in ("normal", "t5") for n in (5, 10, 30)]
    rows = [row for n, tail in settings for row in of_prompts(n, tail, options.repeats, options.seed)]
    sampled = list(of_positions(options.draws, options.seed))
    if options.json:
        print(json.dumps({"prompts": rows, "positions": sampled}, indent=1))
        return
    print(f"{'':16}{'tail':>8}{'prompts':>9}{'coverage of 95 %':>20}{'bias':>18}")
    for row in rows:
        bias = f"{row['bias']:+.1%} ± {row['bias_error']:.1%}"
        name = row["what"] + (" *" if row["what"] == "cv_published" else "")
        print(f"{name:16}{row['tail']:>8}{row['prompts']:9}{_covered(row):>20}{bias:>18}")
    print("* covered by the percentile bootstrap\n")
    for row in sampled:
        wide = f"error told / true {row['told_by_true']:.2f}"
        print(f"{row['what']:24}{row['positions']:9}{_covered(row):>20}{wide:>26}")
    (headline,) = (row for row in rows if (row["what"], row["prompts"], row["tail"]) == ("cv", 10, "normal"))
    print(f"\n{'reached' if headline['coverage'] >= TARGET else 'NOT REACHED'}: {TARGET} at 10 prompts")


def _covered(row: dict[str, Any]) -> str:
    return f"{row['coverage']:.3f} ± {row['coverage_error']:.3f}"


if __name__ == "__main__":
    main()

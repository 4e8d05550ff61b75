"""How well change points and shape words are found, on made-up curves with known answers and on annotated real series.

A change counts as found within one transition. F1 is pooled within a shape, then averaged over the ten; a false alarm
is a curve without a change for which one is declared. Curves: curves.py, the same author as the method.

With the folder of a checkout of github.com/alan-turing-institute/TCPD also F1 (margin 5) and cover on its eight series
of 15 to 59 points, standardized, by the metrics of van den Burg and Williams (arXiv 2003.06222, section 4).

    python benchmarks/changepoints.py --tcpd TCPD
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from curves import Shape, hard_nulls, noisy, nulls, positives, worded
from dit_analyzer import ChangePoints, change_points, joint_change_points, shape_of

NOISES = 0.04, 0.12
SERIES = "centralia debt_ireland gdp_croatia rail_lines ozone gdp_iran gdp_japan gdp_argentina".split()
Counts = tuple[int, int, int]


def detection(curves: int, rng: np.random.Generator, memory: float = 0.0) -> list[dict[str, Any]]:
    """Per noise: F1 by shape and on average, and how far off the changes are that were found."""
    return [_detection(curves, rng, noise, memory) for noise in NOISES]


def _detection(curves: int, rng: np.random.Generator, noise: float, memory: float) -> dict[str, Any]:
    counts: dict[str, list[Counts]] = {}
    wide: dict[str, list[Counts]] = {}
    off: list[int] = []
    held: list[bool] = []
    for _ in range(curves):
        for name, shape in positives(rng).items():
            points = [p for p in _found(shape, noise, rng, memory).points if p.transition not in shape.free]
            found = [point.transition for point in points]
            held += [any(p.low <= t <= p.high for t in shape.changes) for p in points]
            counts.setdefault(name, []).append(hits(found, shape.changes, shape.free, 1))
            wide.setdefault(name, []).append(hits(found, shape.changes, shape.free, 2))
            off += [min(abs(t - at) for at in found) for t in shape.changes if found]
    by_shape = {name: f1(rows) for name, rows in counts.items()}
    return {
        "noise": noise,
        "f1": float(np.mean(list(by_shape.values()))),
        "f1_within_2": float(np.mean([f1(rows) for rows in wide.values()])),
        "mean_offset": float(np.mean([distance for distance in off if distance <= 2])),
        "interval_coverage": float(np.mean(held)),
        "by_shape": by_shape,
    }


def false_alarms(
    curves: int, rng: np.random.Generator, shapes: dict[str, Shape], noises: Iterable[float], memory: float = 0.0
) -> dict[str, list[float]]:
    """Share of curves with a declared change, by shape and noise."""

    def share(shape: Shape, noise: float) -> float:
        return float(np.mean([bool(_found(shape, noise, rng, memory).points) for _ in range(curves)]))

    return {name: [share(shape, noise) for noise in noises] for name, shape in shapes.items()}


def calibration(curves: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Stated probability of a change within one transition of each place, beside how often there is one."""
    stated, true = [], []
    for _ in range(curves):
        for noise in NOISES:
            for shape in [*positives(rng).values(), *nulls().values()]:
                chance = np.convolve(_found(shape, noise, rng).probability, np.ones(3), "same")
                peak = (chance > 0.05) & (chance >= np.roll(chance, 1)) & (chance >= np.roll(chance, -1))
                for place in np.flatnonzero(peak):
                    if place not in shape.free:
                        stated.append(chance[place])
                        true.append(any(abs(place - t) <= 1 for t in shape.changes))
    bins = np.clip((np.array(stated) * 5).astype(int), 0, 4)
    inside = [np.array(true)[bins == k] for k in range(5)]
    return [
        {"from": k / 5, "to": (k + 1) / 5, "cases": len(cases), "true": float(cases.mean())}
        for k, cases in enumerate(inside)
    ]


def joint(models: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """24 layers of 12 % noise that jump together by 0.2 to 1.2, a tenth of them not; noise apart, or 70 % shared."""
    rows = []
    for shared in (0.0, 0.7):
        counts: dict[str, list[Counts]] = {}
        alarms: dict[str, list[bool]] = {}
        for _ in range(models):
            at = int(rng.integers(6, 21))
            for changes in ((at,), ()):
                curves = _layers(rng, shared, changes)
                for name, found in _ways(curves).items():
                    counts.setdefault(name, []).append(hits(found, changes, (), 1))
                    alarms.setdefault(name, []).append(bool(found and not changes))
        rows += [
            {"shared": shared, "method": name, "f1": f1(counts[name]), "false_alarms": 2 * float(np.mean(alarms[name]))}
            for name in counts
        ]
    return rows


def _layers(rng: np.random.Generator, shared: float, changes: Collection[int]) -> np.ndarray:
    t = np.arange(27)
    size = rng.uniform(0.2, 1.2, (24, 1)) * (rng.random((24, 1)) > 0.1)
    noise = np.sqrt(shared) * rng.standard_normal(27) + np.sqrt(1 - shared) * rng.standard_normal((24, 27))
    line = -rng.uniform(0.5, 1.5, (24, 1)) * t / 26
    return np.exp(line + size * sum((t >= at).astype(float) for at in changes) + 0.12 * noise)


def _ways(curves: np.ndarray) -> dict[str, list[int]]:
    return {
        "joint, tempered": [p.transition for p in joint_change_points(curves).points],
        "joint": [p.transition for p in joint_change_points(curves, temper=False).points],
        "mean curve": [p.transition for p in change_points(curves.mean(0)).points],
    }


def words(curves: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Accuracy of the shape word, the noise known or estimated from the curve."""
    rows = []
    for noise in (0.02, 0.04, 0.12):
        right: dict[str, list[bool]] = {"known": [], "estimated": []}
        for _ in range(curves):
            for word, curve in worded(rng):
                l1 = np.exp(noisy(curve, noise, rng))
                right["known"].append(shape_of(l1, noise).word == word)
                right["estimated"].append(shape_of(l1).word == word)
        rows.append({"noise": noise} | {name: float(np.mean(values)) for name, values in right.items()})
    return rows


def turing(folder: Path) -> list[dict[str, Any]]:
    """F1 and cover of each short series, and of saying that it has no change."""
    annotations = json.loads((folder / "annotations.json").read_text())
    rows = []
    for name in SERIES:
        raw = json.loads((folder / "datasets" / name / f"{name}.json").read_text())["series"][0]["raw"]
        y = np.array(raw, np.float64)
        found = [p.transition for p in change_points(np.exp((y - y.mean()) / y.std())).points]
        marks = list(annotations[name].values())
        row = {"series": name, "points": len(y), "found": found}
        row |= {"f1": turing_f1(marks, found), "cover": cover(marks, found, len(y))}
        rows.append(row | {"f1_none": turing_f1(marks, []), "cover_none": cover(marks, [], len(y))})
    return rows


def turing_f1(annotations: list[list[int]], found: list[int], margin: int = 5) -> float:
    """Precision against all annotators together, mean recall over them; the start counts as a change of everybody."""
    marks, claims = [{0, *one} for one in annotations], {0, *found}
    precision = matched(set().union(*marks), claims, margin) / len(claims)
    recall = float(np.mean([matched(one, claims, margin) / len(one) for one in marks]))
    return 2 * precision * recall / (precision + recall)


def matched(marks: set[int], claims: set[int], margin: int) -> int:
    """Marks with a claim within the margin, no claim used twice."""
    free, count = set(claims), 0
    for mark in sorted(marks):
        near = [claim for claim in free if abs(mark - claim) <= margin]
        if near:
            free.remove(min(near, key=lambda claim: (abs(mark - claim), claim)))
            count += 1
    return count


def cover(annotations: list[list[int]], found: list[int], n: int) -> float:
    """How much of each annotated segment its best found one has in common with it, by length, over annotators."""
    claims = segments(found, n)

    def best(segment: set[int]) -> float:
        return max(len(segment & claim) / len(segment | claim) for claim in claims)

    return float(np.mean([sum(len(s) * best(s) for s in segments(one, n)) for one in annotations])) / n


def segments(changes: Iterable[int], n: int) -> list[set[int]]:
    corners = sorted({0, *changes, n})
    return [set(range(start, stop)) for start, stop in zip(corners, corners[1:])]


def hits(found: Iterable[int], changes: Iterable[int], free: Collection[int], margin: int) -> Counts:
    """Found, falsely found and missed changes; what is found where anything may be is neither."""
    open_, true, false = list(changes), 0, 0
    for place in found:
        near = [t for t in open_ if abs(t - place) <= margin]
        if near:
            open_.remove(min(near, key=lambda t: abs(t - place)))
            true += 1
        elif place not in free:
            false += 1
    return true, false, len(open_)


def f1(rows: list[Counts]) -> float:
    true, false, missed = np.sum(rows, 0)
    return float(2 * true / max(2 * true + false + missed, 1))


def _found(shape: Shape, noise: float, rng: np.random.Generator, memory: float = 0.0) -> ChangePoints:
    return change_points(np.exp(noisy(shape.curve, noise, rng, memory)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=int, default=40, help="curves of each shape (default: 40)")
    parser.add_argument("--seed", type=int, default=2411, help="default: 2411")
    parser.add_argument("--tcpd", type=Path, help="folder of a checkout of alan-turing-institute/TCPD")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = measure(options.curves, np.random.default_rng(options.seed), options.tcpd)
    print(json.dumps(result, indent=2) if options.json else text(result))


def measure(curves: int, rng: np.random.Generator, tcpd: Path | None) -> dict[str, Any]:
    start = time.process_time()
    result: dict[str, Any] = {"detection": detection(curves, rng)}
    result["cpu_ms_per_curve"] = 1e3 * (time.process_time() - start) / (len(NOISES) * 10 * curves)
    result["false_alarms"] = false_alarms(curves, rng, nulls(), NOISES)
    result["false_alarms_of_13"] = false_alarms(curves, rng, nulls(13), NOISES)
    result["hard_nulls"] = false_alarms(curves, rng, hard_nulls(), (0.02, *NOISES))
    result["remembering_noise"] = {
        "detection": detection(curves, rng, 0.5),
        "false_alarms": false_alarms(curves, rng, nulls(), NOISES, 0.5),
    }
    result |= {"calibration": calibration(curves, rng), "joint": joint(4 * curves, rng), "words": words(curves, rng)}
    return result | ({"tcpd": turing(tcpd)} if tcpd else {})


def text(result: dict[str, Any]) -> str:
    lines = [f"change points, {result['cpu_ms_per_curve']:.1f} ms of CPU a curve"]
    for title, rows in (("", result["detection"]), (", AR(0.5) noise", result["remembering_noise"]["detection"])):
        for row in rows:
            lines.append(
                f"  noise {row['noise']:.0%}{title}: F1 {row['f1']:.3f} within 1, {row['f1_within_2']:.3f} within 2,"
                f" mean offset {row['mean_offset']:.2f}, interval holds a change {row['interval_coverage']:.3f}"
            )
            lines.append("    " + ", ".join(f"{name} {value:.2f}" for name, value in row["by_shape"].items()))
    lines += ["false alarms, noise 4 %, 12 %", *_alarms(result["false_alarms"])]
    lines += ["  of 13 transitions", *_alarms(result["false_alarms_of_13"])]
    lines += ["  AR(0.5) noise", *_alarms(result["remembering_noise"]["false_alarms"])]
    lines += ["declared on smooth shapes that bend much, noise 2 %, 4 %, 12 %", *_alarms(result["hard_nulls"])]
    lines += ["stated probability of a change within 1, and how often there is one"]
    for row in result["calibration"]:
        lines.append(f"  {row['from']:.1f} to {row['to']:.1f}: {row['true']:.2f} of {row['cases']}")
    lines += ["24 layers, share of common noise: F1, false alarms"]
    lines += [
        f"  {row['shared']:.0%}, {row['method']}: {row['f1']:.2f}, {row['false_alarms']:.3f}" for row in result["joint"]
    ]
    lines += ["shape words, accuracy with known and with estimated noise"]
    lines += [f"  noise {row['noise']:.0%}: {row['known']:.3f}, {row['estimated']:.3f}" for row in result["words"]]
    return "\n".join(lines + _turing_lines(result.get("tcpd", [])))


def _alarms(shares: dict[str, list[float]]) -> list[str]:
    return [f"    {name}: {', '.join(f'{share:.3f}' for share in values)}" for name, values in shares.items()]


def _turing_lines(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = ["TCPD: F1 (margin 5), cover; found"]
    for row in rows:
        lines.append(f"  {row['series']} ({row['points']}): {row['f1']:.3f}, {row['cover']:.3f}; {row['found']}")
    means = {name: np.mean([row[name] for row in rows]) for name in ("f1", "cover", "f1_none", "cover_none")}
    return [
        *lines,
        f"  mean: {means['f1']:.3f}, {means['cover']:.3f}",
        f"  saying nothing: {means['f1_none']:.3f}, {means['cover_none']:.3f} (published: 0.710, 0.603)",
    ]


if __name__ == "__main__":
    main()

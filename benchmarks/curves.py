"""Made-up curves of log L1 over transitions: shapes with known changes, shapes without any, shapes with a known word.

The first are drawn after what the paper (arXiv 2411.13588, section 4, Figures 2 to 8) says of its seven models; none is
measured. Times are ours: the paper's step 16 of 28 is transition 10. They have the same author as what they test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """A log curve without noise, the first transitions of its new segments, and where a change may be found or not."""

    curve: Curve
    changes: tuple[int, ...] = ()
    free: range = range(0)


def pieces(*corners: tuple[int, float, float]) -> Curve:
    """Straight pieces, each of a length, from one value to another, both ends included."""
    return np.concatenate([np.linspace(start, stop, length) for length, start, stop in corners])


def positives(rng: np.random.Generator) -> dict[str, Shape]:
    """The ten shapes with changes."""
    early = np.where(np.arange(15) % 5 == 2, -1.2, -4.0) + 0.3 * rng.standard_normal(15)
    return {
        "flux": Shape(pieces((10, 0.0, -1.0), (17, -0.2, -1.2)), (10,)),
        "flux14": Shape(pieces((5, 0.0, -1.0), (8, -0.2, -1.2)), (5,)),
        "flux56": Shape(pieces((20, 0.0, -1.0), (35, -0.2, -1.2)), (20,)),
        "sd3": Shape(pieces((7, 0.0, -1.4), (13, -1.5, -1.5), (7, -1.3, 0.0)), (7, 20)),
        "latte": Shape(pieces((44, -1.5, -1.8), (5, -1.0, 0.2)), (44,)),
        "mochi": Shape(np.concatenate([early, pieces((24, -2.6, -1.2), (24, -1.3, -3.0))]), (15, 39), range(1, 14)),
        "cogvideox": Shape(pieces((5, 0.0, -1.0), (5, -0.8, 0.0), (39, -0.1, -1.6)), (5, 10)),
        "pixart": Shape(pieces((4, -1.5, -1.6), (6, -0.9, -0.7), (9, -1.5, -1.7)), (4, 10)),
        "open-sora-kv": Shape(pieces((9, 0.0, -0.3), (20, -1.0, -1.4)), (9,)),
        "open-sora-a": Shape(pieces((7, 0.0, -1.0), (15, -1.1, -1.2), (7, -0.9, 0.2)), (7, 22)),
    }


def nulls(n: int = 27) -> dict[str, Shape]:
    """The four shapes without a change that the false alarms are counted on."""
    u = np.linspace(0, 1, n)
    shapes = {
        "flat": 0 * u,
        "linear": -1.5 * u,
        "exponential": np.log(0.15 + np.exp(-4 * u)),
        "power": -0.7 * np.log(np.arange(1, n + 1)),
    }
    return {name: Shape(curve) for name, curve in shapes.items()}


def hard_nulls(n: int = 27) -> dict[str, Shape]:
    """Smooth shapes that bend so much that lines fit them badly, and one sigmoid that is a jump to the eye."""
    u = np.linspace(0, 1, n)
    shapes = {
        "fast exponential": np.log(0.05 + np.exp(-10 * u)),
        "1 / (1 + 30 u)": -np.log(1 + 30 * u),
        "blow-up at the end": -0.6 * np.log(1.02 - u),
        "one sine": 0.6 * np.sin(2 * np.pi * u),
        "smooth U": 4 * (u - 0.5) ** 2,
        "wide sigmoid": 1 / (1 + np.exp(-(u - 0.5) / 0.12)),
        "1.5 sines": 0.6 * np.sin(3 * np.pi * u),
        "narrow sigmoid (a jump)": 1 / (1 + np.exp(-(u - 0.5) / 0.015)),
    }
    return {name: Shape(curve) for name, curve in shapes.items()}


def noisy(curve: Curve, noise: float, rng: np.random.Generator, memory: float = 0.0) -> Curve:
    """The curve with relative noise, which remembers that share of its last value (AR(1))."""
    drawn = rng.standard_normal(len(curve))
    for i in range(1, len(drawn) if memory else 0):
        drawn[i] = memory * drawn[i - 1] + np.sqrt(1 - memory**2) * drawn[i]
    return curve + noise * drawn


def worded(rng: np.random.Generator) -> list[tuple[str, Curve]]:
    """Sixteen log curves, each with the word that it was made for; sizes and places are drawn."""
    n = int(rng.integers(24, 56))
    u = np.linspace(0, 1, n)
    a, b, c = rng.uniform(0.7, 1.6), rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.4)
    k, m = int(n * rng.uniform(0.25, 0.4)), int(n * rng.uniform(0.6, 0.75))
    early = int(n * 0.35)
    switching = np.where(np.arange(early) % 4 < 2, -a, -a - 1.5 - b)
    quiet = np.concatenate([np.linspace(0, -0.2 * a, n - n // 10), np.linspace(0.8 + 0.5 * b, 1.0 + b, n // 10)])
    return [
        ("flat", 0 * u),
        ("flat", 0.1 * (u - 0.5)),
        ("decreasing", -a * u),
        ("decreasing", np.log(0.15 + np.exp(-4 * a * u))),
        ("decreasing", -0.5 * a * np.log(np.arange(1, n + 1))),
        ("increasing", a * u),
        ("increasing", -0.5 * a * np.log(1.05 - u)),
        ("U-shaped", 4 * a * (u - 0.5) ** 2),
        ("U-shaped", pieces((k, a, 0.0), (m - k, 0.0, 0.0), (n - m, 0.0, b))),
        ("mid bump", a * np.exp(-(((u - 0.5) / 0.15) ** 2))),
        ("mid bump", pieces((k, 0.0, 0.0), (m - k, a, a), (n - m, 0.0, -0.1))),
        ("decrease-increase-decrease", pieces((k, 0.0, -a), (m - k, -a, -a + b), (n - m, -a + b, -a + b - c))),
        ("decrease-increase-decrease", -0.5 * a * u + 0.5 * b * np.cos(3 * np.pi * u)),
        ("decreasing with a sharp rise", pieces((k, 0.0, -a), (n - k, -a + 0.5 + 0.5 * b, -a + 0.5 - 0.5 * c))),
        ("early fluctuation", np.concatenate([switching, np.linspace(-a - 0.5, -a - 0.5 - b, n - early)])),
        ("late spike", quiet),
    ]

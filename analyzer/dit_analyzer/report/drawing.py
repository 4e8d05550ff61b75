"""Where the lines of the report's still pictures go: paths and ticks for SVG, and small images of cells.

Everything is drawn from means and percentiles that are given; names are put in by the template, which escapes them.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PANEL = (240, 130)
"""Width and height of one layer's panel."""

LEFT, RIGHT, TOP, BOTTOM = 40, 4, 18, 14

MAP, COLOURS = "viridis", 64
NOTHING = (0.6, 0.6, 0.6)
"""Colour of cells that have no value, or 0."""


def limits(values: Floats) -> tuple[float, float]:
    """Smallest and largest value above 0, and something to draw where there is none."""
    shown = values[np.isfinite(values) & (values > 0)]
    return (float(shown.min()), float(shown.max())) if shown.size else (0.1, 1.0)


def log_ticks(low: float, high: float, most: int = 4) -> list[float]:
    """Round numbers from `low` to `high`, evenly apart on a log scale."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for subs in ((1, 1.5, *range(2, 10)), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [sub * 10.0**decade for decade in decades for sub in subs if low <= sub * 10.0**decade <= high]
        if len(ticks) <= most:
            return ticks or [low]
    return ticks[:: -(-len(ticks) // most)]


class Scale:
    """Places of one panel: transitions from left to right, l1 on a log scale upward."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self.count = count
        self.low, self.high = np.log(low * 0.9), np.log(high / 0.9)

    def x(self, place: int) -> int:
        room = PANEL[0] - LEFT - RIGHT
        return round(LEFT + room * ((place + 0.5) / self.count))

    def y(self, value: float) -> int:
        share = (np.log(value) - self.low) / (self.high - self.low)
        return round(PANEL[1] - BOTTOM - (PANEL[1] - TOP - BOTTOM) * share)

    def points(self, places: Sequence[int], values: Floats) -> list[tuple[int, int]]:
        return [(self.x(place), self.y(values[place])) for place in places]


def line(values: Floats, scale: Scale) -> str:
    """A path through the values, broken where there is none; a point alone is a dot."""
    return "".join(_through(scale.points(run, values)) for run in runs(values))


def band(low: Floats, high: Floats, scale: Scale) -> str:
    """A path around what lies between two curves."""
    return "".join(
        _through([*scale.points(run, high), *reversed(scale.points(run, low))]) + "z" for run in runs(low + high)
    )


def runs(values: Floats) -> Iterator[list[int]]:
    """Places that follow one another and have a value."""
    there = np.flatnonzero(np.isfinite(values))
    for run in np.split(there, np.flatnonzero(np.diff(there) > 1) + 1):
        if run.size:
            yield run.tolist()


def _through(points: list[tuple[int, int]]) -> str:
    """`M40 60l8-3 8 2`, in few bytes."""
    (x, y), text = points[0], ""
    for right, down in np.diff(points, axis=0).tolist():
        text += (" " if text and right >= 0 else "") + str(right) + (" " if down >= 0 else "") + str(down)
    return f"M{x} {y}" + (f"l{text}" if text else "h0")


def picture(values: Floats, low: float, high: float) -> str:
    """Values (row, column) as a data: URL of a PNG, a pixel each, on a log scale of colours."""
    shown = np.isfinite(values) & (values > 0)
    span = max(np.log(high / low), 1e-9)
    shares = np.log(np.where(shown, values, low) / low) / span
    places = np.where(shown, np.clip(np.rint(shares * (COLOURS - 1)), 0, COLOURS - 1), COLOURS).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(_png(places, _palette())).decode()


def _palette() -> NDArray[np.uint8]:
    """The colours of the scale from low to high, and that of nothing."""
    colours = [*colormaps[MAP](np.linspace(0, 1, COLOURS))[:, :3], NOTHING]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def _png(places: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """A PNG of places in a palette, a byte each, which is a third of what colours themselves take."""
    rows, columns = places.shape
    head = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    lines = b"".join(b"\0" + line.tobytes() for line in places)
    parts = {b"IHDR": head, b"PLTE": palette.tobytes(), b"IDAT": zlib.compress(lines, 9), b"IEND": b""}
    sums = {name: struct.pack(">I", zlib.crc32(name + data)) for name, data in parts.items()}
    chunks = (struct.pack(">I", len(data)) + name + data + sums[name] for name, data in parts.items())
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def colour_bar(low: float, high: float) -> dict[str, Any]:
    """The scale of colours from left to right, and its ticks as shares of the width."""
    high = max(high, low * (1 + 1e-9))
    ticks = [{"at": np.log(tick / low) / np.log(high / low), "label": f"{tick:g}"} for tick in log_ticks(low, high, 6)]
    return {"image": picture(np.geomspace(low, high, 64)[None], low, high), "ticks": ticks}


def packed(values: Floats, size: int = 2) -> dict[str, Any]:
    """Values above 0 in so many bytes each, on a log scale, as base64; 0 stands for none.

    Over three decades two bytes are exact to 1 in 19 000, one byte to 1 in 73, enough for a line that is drawn.
    """
    low, high = limits(values)
    span = max(np.log(high / low), 1e-9)
    steps = 256**size - 2
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = 1 + np.round(np.log(values / low) / span * steps)
    codes = np.where(np.isfinite(codes), codes, 0).astype(f"<u{size}")
    told = base64.b64encode(codes.tobytes()).decode()
    return {"low": low, "span": float(span), "bytes": size, "steps": steps, "values": told}

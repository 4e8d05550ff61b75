"""Captioned scenes of coloured digits: the world that the bundled models learn to draw.

A scene is a 16x16 RGB image with one or two handwritten digits on a plain background; its caption names size, colour,
digit and place of each. A motion is a clip of eight such images in which one small digit moves straight across; its
caption names colour, digit and direction. The captions need nothing but this file; the pixels need scikit-learn (extra
"train"), whose `load_digits` is the test part of *Optical Recognition of Handwritten Digits* (E. Alpaydin and C.
Kaynak, UCI, 1998, CC BY 4.0, doi 10.24432/C50P49).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from numpy.typing import NDArray

Hands = tuple[NDArray[np.float32], ...]
"""Written digits: for each of zero to nine the ink of its writers, (writer, side, side) in [0, 1]."""

SIDE = 16
"""Pixels along each edge of a scene."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (0.90, 0.10, 0.10),
    "orange": (1.00, 0.55, 0.00),
    "yellow": (1.00, 0.90, 0.10),
    "green": (0.10, 0.70, 0.20),
    "cyan": (0.10, 0.85, 0.90),
    "blue": (0.15, 0.25, 0.95),
    "purple": (0.55, 0.15, 0.80),
    "pink": (1.00, 0.45, 0.75),
}
BACKGROUNDS = {"dark": 0.08, "grey": 0.50, "light": 0.94}
SIZES = {"small": 8, "large": 12}
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
PLACES = {
    "center" if row == column == "middle" else " ".join(w for w in (row, column) if w != "middle"): (i, j)
    for (i, row), (j, column) in product(enumerate(ROWS), enumerate(COLUMNS))
}
"""Place name to its row and column in a 3x3 grid, `top left` first."""

LARGE_PLACES = ("top left", "top right", "center", "bottom left", "bottom right")
"""Where a large digit may stand: a 12-pixel digit has room for no more places that an eye could tell apart."""

FRAMES = 8
"""Images of a clip."""

DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
"""Rows and columns that a digit moves by from one frame to the next."""

LANES = (0, 2, 4, 6, 8)
"""Where a digit may move along: its distance in pixels from the top, or from the left if it moves up or down."""


@dataclass(frozen=True)
class Figure:
    """One digit of a scene."""

    size: str
    colour: str
    digit: int
    place: str

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of the digit's top left pixel."""
        room = SIDE - SIZES[self.size]
        return tuple(room * cell // 2 for cell in PLACES[self.place])

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {DIGITS[self.digit]} at the {self.place}"


@dataclass(frozen=True)
class Scene:
    """One or two figures on a background; `str(scene)` is its caption."""

    figures: tuple[Figure, ...]
    background: str

    def __str__(self) -> str:
        return f"{' and '.join(map(str, self.figures))} on a {self.background} background"


@dataclass(frozen=True)
class Motion:
    """One small digit moving straight across a background; `str(motion)` is its caption."""

    colour: str
    digit: int
    direction: str
    background: str

    def corner(self, lane: int, frame: int) -> tuple[int, int]:
        """Row and column of the digit's top left pixel: from the edge it moves away from, a pixel each frame."""
        down, right = DIRECTIONS[self.direction]
        room = SIDE - SIZES["small"]
        along = frame if down + right > 0 else room - frame
        return (along, lane) if down else (lane, along)

    def __str__(self) -> str:
        return f"a small {self.colour} {DIGITS[self.digit]} moving {self.direction} on a {self.background} background"


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, in a fixed order."""
    places = [word for place in PLACES for word in place.split()]
    words = ["a", "and", "at", "background", "on", "the", *SIZES, *COLOURS, *DIGITS, *places, *BACKGROUNDS]
    return tuple(dict.fromkeys(words))


def motion_vocabulary() -> tuple[str, ...]:
    """Every word that the caption of a motion can hold, in a fixed order."""
    return ("a", "small", "moving", "on", "background", *COLOURS, *DIGITS, *DIRECTIONS, *BACKGROUNDS)


def all_motions() -> list[Motion]:
    """All 960 motions."""
    return [Motion(*words) for words in product(COLOURS, range(10), DIRECTIONS, BACKGROUNDS)]


def single_scenes() -> list[Scene]:
    """All 3360 scenes of one digit."""
    spots = [("small", place) for place in PLACES] + [("large", place) for place in LARGE_PLACES]
    return [
        Scene((Figure(size, colour, digit, place),), background)
        for (size, place), colour, digit, background in product(spots, COLOURS, range(10), BACKGROUNDS)
    ]


def random_scene(rng: np.random.Generator, pairs: float = 0.25) -> Scene:
    """A scene drawn at random; a share `pairs` of them holds two small digits in opposite rows or columns."""
    background = str(rng.choice(list(BACKGROUNDS)))
    if rng.random() >= pairs:
        size = "large" if rng.random() < 0.4 else "small"
        place = rng.choice(LARGE_PLACES if size == "large" else list(PLACES))
        return Scene((_figure(rng, size, str(place)),), background)
    first, second = _opposite_places()[rng.integers(len(_opposite_places()))]
    return Scene((_figure(rng, "small", first), _figure(rng, "small", second)), background)


def draw(scene: Scene, rng: np.random.Generator, hands: Callable[[int], Hands] | None = None) -> NDArray[np.float32]:
    """Pixels of a scene, (3, 16, 16) in [0, 1], each digit by a random one of the hands (by default all of them)."""
    image = np.full((3, SIDE, SIDE), BACKGROUNDS[scene.background], dtype=np.float32)
    for figure in scene.figures:
        written = (hands or handwriting)(SIZES[figure.size])[figure.digit]
        ink = written[rng.integers(len(written))]
        (top, left), side = figure.corner, SIZES[figure.size]
        patch = image[:, top : top + side, left : left + side]
        patch += ink * (np.asarray(COLOURS[figure.colour], dtype=np.float32)[:, None, None] - patch)
    return image


def draw_motion(
    motion: Motion, rng: np.random.Generator, hands: Callable[[int], Hands] | None = None
) -> NDArray[np.float32]:
    """Pixels of a clip, (3, 8, 16, 16) in [0, 1]: one random hand and one random lane for all of its frames."""
    clip = np.full((3, FRAMES, SIDE, SIDE), BACKGROUNDS[motion.background], dtype=np.float32)
    side = SIZES["small"]
    written = (hands or handwriting)(side)[motion.digit]
    ink = written[rng.integers(len(written))]
    lane = int(rng.choice(LANES))
    colour = np.asarray(COLOURS[motion.colour], dtype=np.float32)[:, None, None]
    for frame in range(FRAMES):
        top, left = motion.corner(lane, frame)
        patch = clip[:, frame, top : top + side, left : left + side]
        patch += ink * (colour - patch)
    return clip


@lru_cache
def handwriting(side: int) -> Hands:
    """Ink of all written digits, enlarged bilinearly from 8x8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    ink = data.images.astype(np.float32) / 16
    across = _bilinear(8, side)
    ink = np.einsum("ai,nij,bj->nab", across, ink, across)
    return tuple(np.ascontiguousarray(ink[data.target == digit]) for digit in range(10))


def _figure(rng: np.random.Generator, size: str, place: str) -> Figure:
    return Figure(size, str(rng.choice(list(COLOURS))), int(rng.integers(10)), place)


@lru_cache
def _opposite_places() -> tuple[tuple[str, str], ...]:
    """Pairs of places whose small digits do not overlap, in reading order."""
    return tuple(
        (a, b)
        for a, b in combinations(PLACES, 2)
        if max(abs(PLACES[a][0] - PLACES[b][0]), abs(PLACES[a][1] - PLACES[b][1])) == 2
    )


def _bilinear(old: int, new: int) -> NDArray[np.float32]:
    """Matrix (new, old) that resamples a line of pixels linearly between pixel centres, edges held."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(old))).astype(np.float32)

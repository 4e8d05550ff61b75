"""The captions that the bundled models are traced with by default."""

from __future__ import annotations

import numpy as np

from dit_tracer.digits.scenes import all_motions, random_scene

FIRST = (
    "a small red seven at the top left on a dark background",
    "a large blue three at the center on a light background",
    "a small green zero at the bottom right on a grey background",
    "a large yellow five at the bottom left on a dark background",
    "a small pink nine at the right on a light background",
    "a large cyan two at the top right on a grey background",
    "a small orange four at the center on a dark background",
    "a large purple eight at the top left on a light background",
    "a small blue one at the bottom on a grey background",
    "a large red six at the bottom right on a dark background",
    "a small yellow three at the left on a light background",
    "a large green seven at the center on a grey background",
    "a small red two at the top left and a small blue five at the bottom right on a dark background",
    "a small cyan eight at the left and a small orange zero at the right on a grey background",
    "a small purple four at the top and a small green nine at the bottom on a light background",
    "a small pink six at the bottom left and a small yellow one at the top right on a dark background",
)

FIRST_MOTIONS = (
    "a small red seven moving right on a dark background",
    "a small blue three moving left on a light background",
    "a small green zero moving down on a grey background",
    "a small yellow five moving up on a dark background",
    "a small pink nine moving left on a dark background",
    "a small cyan two moving up on a grey background",
    "a small orange four moving right on a light background",
    "a small purple eight moving down on a light background",
    "a small blue one moving right on a grey background",
    "a small red six moving up on a light background",
    "a small yellow three moving down on a dark background",
    "a small green seven moving left on a light background",
    "a small pink two moving down on a grey background",
    "a small cyan eight moving right on a dark background",
    "a small purple four moving left on a grey background",
    "a small orange zero moving up on a dark background",
)


def captions(count: int) -> list[str]:
    """`count` distinct captions, always the same: sixteen chosen ones, then random scenes."""
    rng = np.random.default_rng(0)
    chosen = dict.fromkeys(FIRST)
    while len(chosen) < count:
        chosen[str(random_scene(rng))] = None
    return list(chosen)[:count]


def motions(count: int) -> list[str]:
    """`count` distinct captions of moving digits, always the same: sixteen chosen ones, then the others at random.

    Raises:
        ValueError: More are asked for than there are.
    """
    every = [str(motion) for motion in all_motions()]
    if count > len(every):
        raise ValueError(f"{count} captions of moving digits asked for; there are {len(every)}")
    shuffled = np.random.default_rng(0).permutation(len(every))
    return list(dict.fromkeys((*FIRST_MOTIONS, *(every[i] for i in shuffled))))[:count]

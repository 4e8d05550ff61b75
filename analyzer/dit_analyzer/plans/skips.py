"""How many steps a rule with a threshold would skip: the number that is said before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from dit_formats.console import plural


@dataclass(frozen=True)
class Skips:
    """Skipped steps of one generation.

    Args:
        threshold: At which.
        number: Of steps skipped, a mean where prompts differ.
        low, high: Ends of the 95 % interval that comes from the prompts; NaN of one prompt.
        least, most: Of single prompts.
        num_steps: Of which.
    """

    threshold: float
    number: float
    low: float
    high: float
    least: float
    most: float
    num_steps: int

    @property
    def share(self) -> float:
        return self.number / self.num_steps

    def __str__(self) -> str:
        told = f"threshold {self.threshold:.4g} skips {self.number:.3g} of {plural(self.num_steps, 'step')}"
        if np.isnan(self.low):
            return f"{told} (one prompt, so no interval)"
        single = f"{self.least:.3g} to {self.most:.3g} by single prompts"
        return f"{told} (95 % interval {self.low:.3g} to {self.high:.3g}; {single})"

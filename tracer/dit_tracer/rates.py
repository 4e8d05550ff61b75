"""How long a step of a traced prompt takes, where that was measured; nothing is guessed from sizes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from dit_formats.reader import shard_paths
from dit_formats.study import StudyRun

MEASURED = {"digits-flux": 0.018, "digits-pixart": 0.024, "digits-latte": 0.113}
"""Seconds a step by model, with the settings of the embedded study `digits`."""

WHERE = "as measured with one thread on an Intel Xeon"
HERE = "as the traces in this folder went"


@dataclass(frozen=True)
class Rate:
    """Seconds a step of one prompt takes, and what that rests on."""

    a_step: float
    where: str


class Rates:
    """Rates by model: as the traces in a folder went, else as measured elsewhere.

    A folder tells by the times at which its shards appeared, over all processes that wrote them; the median gap knows
    nothing of nights between two commands.
    """

    def __init__(self, folder: Path, runs: list[StudyRun]) -> None:
        gaps: dict[str, list[float]] = {}
        for run in runs:
            gaps.setdefault(run.model, []).extend(gap / run.steps for gap in _gaps(folder / run.folder))
        self._here = {model: Rate(statistics.median(found), HERE) for model, found in gaps.items() if found}

    def of(self, model: str, bundled: bool) -> Rate | None:
        """None where nobody knows.

        Args:
            bundled: Whether it runs on a CPU, with the settings that were measured.
        """
        measured = MEASURED.get(model) if bundled else None
        return self._here.get(model) or (Rate(measured, WHERE) if measured else None)


def _gaps(trace: Path) -> list[float]:
    """Seconds between one shard and the next."""
    if not trace.is_dir():
        return []
    times = sorted(path.stat().st_mtime for path in shard_paths(trace))
    return [late - early for early, late in zip(times, times[1:])]

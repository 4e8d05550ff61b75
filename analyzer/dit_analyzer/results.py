"""What can be computed of one trace: a row for each result, which `dit-analyze export` writes.

Loads nothing heavy: a command that prints its help reads the names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from dit_formats.console import plural
from dit_formats.errors import IncompleteError

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Result:
    """One result.

    Args:
        about: What it is.
        home: Module of `dit_analyzer.measures` that has the function.
        name: Of the function there: of the paper's view, except `paper_view` itself, which is of the distances.
        prompts, kinds: How many it takes.
    """

    about: str
    home: str = ""
    name: str = ""
    prompts: int = 1
    kinds: int = 1

    @property
    def measure(self) -> Callable[..., xr.Dataset]:
        return getattr(import_module(f"dit_analyzer.measures.{self.home}"), self.name)


DISTANCES, PAPER, VARIATION = "distances", "paper", "variation"
RESULTS = {
    DISTANCES: Result("all distances, of each prompt, branch, stream, kind, layer and transition"),
    PAPER: Result("what the paper looks at of them: branches and streams joined", "paper", "paper_view"),
    VARIATION: Result("CV over prompts, with intervals", "variation", "variation", prompts=2),
    "components": Result("variance components of log L1", "components", "components", prompts=2),
    "changes": Result("change points and dips", "changes", "changes"),
    "shapes": Result("the word for each curve", "words", "words"),
    "depth": Result("trend over depth", "depth", "depth_trend"),
    "contrast": Result("how far K, V and A are apart", "depth", "kind_contrast", kinds=2),
    "as-published": Result("what the paper's scripts compute", "published", "as_published", prompts=2),
}
"""All results by name. `distances` and `paper` are there for any trace."""
ABOUT = "; ".join(f"{name}: {one.about}" for name, one in RESULTS.items()) + "."


def measured(
    distances: xr.Dataset, names: Sequence[str], trace: str = "the trace", without: xr.Dataset | None = None
) -> dict[str, xr.Dataset]:
    """The named results of one trace, in that order, each once.

    Args:
        distances: Of the trace, as `distances` gives them.
        trace: What to call it in an error.
        without: `left_out_positions` of distances from samples; with it the interval of a CV holds what positions do.

    Raises:
        KeyError: No such result.
        IncompleteError: The trace has too few prompts, kinds or layers for one of them; nothing was computed then.
    """
    wanted = {name: RESULTS[name] for name in names}
    if not set(wanted) - {DISTANCES}:
        return dict.fromkeys(wanted, distances)
    view = RESULTS[PAPER].measure(distances)
    for name, result in wanted.items():
        if name not in (DISTANCES, PAPER):
            _refuse(name, result, view, trace)
    given = {DISTANCES: distances, PAPER: view}
    if without is not None and VARIATION in wanted:
        given[VARIATION] = RESULTS[VARIATION].measure(view, without=RESULTS[PAPER].measure(without))
    return {name: given[name] if name in given else result.measure(view) for name, result in wanted.items()}


def _refuse(name: str, result: Result, view: xr.Dataset, trace: str) -> None:
    """What cannot be computed of this view, and what to do about it."""
    for axis, noun, needed, remedy in (
        ("prompt", "prompt", result.prompts, "trace more with -n"),
        ("kind", "kind", result.kinds, "trace again with --kinds k,v,a"),
        ("layer", "self-attention layer", 1, "export distances instead"),
    ):
        if view.sizes[axis] < needed:
            found = f"{plural(view.sizes[axis], noun)}, and {name} needs {needed} or more"
            raise IncompleteError(f"{trace}: {found}; {remedy}")

"""A folder of traces as one study, and writing pages about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import xarray as xr
from dit_formats.console import harmless, plural
from dit_formats.errors import IncompleteError
from dit_formats.publish import published
from dit_formats.reader import open_trace

from dit_analyzer.measures.agreement import agreement
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import paper_view
from dit_analyzer.measures.sampled import left_out_positions
from dit_analyzer.measures.variation import variation
from dit_analyzer.members import Member, members_of, read_plan, traces_in
from dit_analyzer.show import figures
from dit_analyzer.show.tables import headline
from dit_analyzer.views import VIEWS

Measure = Callable[..., xr.Dataset]

KEPT = ["l1", "rel_l1"]
"""What of the paper's view is kept for all traces at once."""


@dataclass
class Study:
    """Traces that are looked at together. What is read from them is kept.

    Args:
        source: `exact` or `sample`, as in `distances`.
        note: What is wrong with the plan beside them, if anything.
        planned: Names of traces that the plan has and the folder lacks.
    """

    members: list[Member]
    source: str = "exact"
    dask: Any = None
    note: str = ""
    planned: tuple[str, ...] = ()
    _views: dict[tuple[Path, str], xr.Dataset] = field(default_factory=dict, repr=False)
    _measured: dict[tuple[Any, ...], xr.Dataset] = field(default_factory=dict, repr=False)
    _agreements: dict[Path, list[dict[str, Any]]] = field(default_factory=dict, repr=False)

    @property
    def defaults(self) -> list[Member]:
        """The first run of each model, as in the paper's tables."""
        return [one for one in self.members if one.role == "default"]

    def view(self, one: Member, source: str | None = None) -> xr.Dataset:
        """`paper_view` of a trace, l1 and rel_l1 alone, (prompt, kind, layer, transition).

        Raises:
            IncompleteError: There is no layer in it, one step only, or no sample where it is wanted.
        """
        key = one.path, source or self.source
        if key not in self._views:
            with open_trace(one.path) as trace:
                view = paper_view(distances(trace, source=key[1], dask=self.dask))[KEPT]
            if not view.sizes["layer"]:
                raise IncompleteError(f"{one.path}: holds no self-attention layer, and the paper looks at no other")
            self._views[key] = view
        return self._views[key]

    def views(self, members: Sequence[Member]) -> list[xr.Dataset]:
        return [self.view(one) for one in members]

    def variation(self, one: Member) -> xr.Dataset:
        """`variation` of a trace; from samples, with what the choice of positions adds. It raises what that does."""
        key = "variation", one.path
        if key not in self._measured:
            without = None
            if self.source == "sample" and one.prompts > 1:
                with open_trace(one.path) as trace:
                    without = paper_view(left_out_positions(trace, dask=self.dask))
            self._measured[key] = variation(self.view(one), without=without)
        return self._measured[key]

    def agreement(self, one: Member) -> list[dict[str, Any]]:
        """`agreement` of a trace, from samples and from exact statistics."""
        if one.path not in self._agreements:
            self._agreements[one.path] = agreement(self.view(one, "sample"), self.view(one, "exact"))
        return self._agreements[one.path]

    def earlier(self, one: Member, name: str, source: str | None = None) -> xr.Dataset:
        """What one of `VIEWS` measures; it raises what that does."""
        key = name, one.path, source or self.source
        if key not in self._measured:
            with open_trace(one.path) as trace:
                self._measured[key] = VIEWS[name].measure(trace, key[2])
        return self._measured[key]

    def of(self, members: list[Member]) -> Study:
        """The study of these traces alone; what is read and measured is kept for both."""
        return replace(self, members=members)

    def measured(self, measure: Measure, *members: Member, **settings: Any) -> xr.Dataset:
        """What a measure says of the views of these traces; it raises what that does."""
        key = measure, *(one.path for one in members), *settings.items()
        if key not in self._measured:
            self._measured[key] = measure(*self.views(members), **settings)
        return self._measured[key]


def open_study(folder: Path, *, source: str = "exact", dask: Any = None) -> Study:
    """The traces of a folder as a study.

    Raises:
        FileNotFoundError: There is no such folder.
        TraceError: It holds no trace, is one itself, or one of its traces is damaged.
    """
    plan, note = read_plan(folder)
    found = traces_in(folder)
    planned = tuple(name for name in plan if name not in {path.name for path in found})
    return Study(members_of(found, plan), source, dask, note, planned)


@dataclass(frozen=True)
class Output:
    """Files that are made together: their names, and what gives their contents in that order."""

    names: tuple[str, ...]
    make: Callable[[], Sequence[bytes]]


SAMPLED = (
    "From the sampled values alone. Intervals of CVs hold what the choice of positions adds; all others are over "
    "prompts alone, and `sampling.csv` says how far L1, CV and probabilities of a change are from the exact ones."
)


def text_of(study: Study, page: str) -> bytes:
    """A page of Markdown as it is written: below its title, that it is from samples, if it is."""
    if study.source == "sample":
        page = page.replace("\n\n", f"\n\n{SAMPLED}\n\n", 1)
    return page.encode()


Page = Callable[[Study], Iterator[Output]]


def drawing(name: str, draw: figures.Draw) -> Output:
    """A figure in all its formats."""
    return Output(tuple(f"{name}.{ending}" for ending in figures.UNDATED), lambda: list(figures.rendered(draw())))


def heading(one: Member, *first: str) -> str:
    """`NAME · digits-flux · 9 layers · 28 steps · FlowMatchEulerDiscrete · 32 prompts`, with NAME as `first`."""
    parts = [
        *first,
        one.model or one.name,
        "RANDOM WEIGHTS" if one.has_random_weights else "",
        plural(one.attention_layers, "layer"),
        plural(one.num_steps, "step"),
        one.scheduler_name,
        plural(one.prompts, "prompt"),
    ]
    return harmless(" · ".join(part for part in dict.fromkeys(parts) if part))


def title_of(one: Member) -> str:
    """Model, size and settings of a trace in a line."""
    with open_trace(one.path) as trace:
        return headline(trace)


def write_study(study: Study, folder: Path, pages: Sequence[Page], *, force: bool = False) -> Iterator[Path]:
    """Write pages into a folder, and give the path of each file once it is there; same traces, same bytes.

    Raises:
        FileExistsError: One of the files is there already; then none is written.
        IncompleteError: A trace has a single step, or no samples where they are the source; likewise.
    """
    for one in study.members:
        refuse_incomplete(one, study.source)
    outputs = [output for page in pages for output in page(study)]
    for path in (folder / name for output in outputs for name in output.names):
        if path.exists() and not force:
            raise FileExistsError(f"{path}: exists already; add --force to replace it")
    folder.mkdir(parents=True, exist_ok=True)
    for output in outputs:
        for name, content in zip(output.names, output.make(), strict=True):
            with published(folder / name, replace=True) as file:
                file.write(content)
            yield folder / name


def refuse_incomplete(one: Member, source: str) -> None:
    """Before anything is written."""
    if one.num_steps < 2:
        raise IncompleteError(f"{one.path}: has one step, so nothing to compare; trace with --steps 2 or more")
    if source == "sample" and not one.has_samples:
        told = "holds statistics only, no archive, so nothing can be had from samples"
        raise IncompleteError(f"{one.path}: {told}; use the exact source, or trace without --stats-only")

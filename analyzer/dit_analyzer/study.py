"""A folder of traces as one study, and everything that is written from it: `PAGES` has an entry for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from dit_analyzer.measures.stability import stability
from dit_analyzer.measures.views.sampling import deviations_of, has_sampled, sentence
from dit_analyzer.members import Member, members_of, read_plan, traces_in
from dit_analyzer.printed import FURTHER, PAPER
from dit_analyzer.show import facts, figures, papertables
from dit_analyzer.show.tables import headline
from dit_analyzer.views import VIEWS, View

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
    _earlier: dict[tuple[Path, str, str], xr.Dataset] = field(default_factory=dict, repr=False)
    _stabilities: dict[tuple[Path, Path, str], xr.Dataset] = field(default_factory=dict, repr=False)

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

    def earlier(self, one: Member, name: str, source: str | None = None) -> xr.Dataset:
        """What one of `VIEWS` measures; it raises what that does."""
        key = one.path, name, source or self.source
        if key not in self._earlier:
            with open_trace(one.path) as trace:
                self._earlier[key] = VIEWS[name].measure(trace, key[2])
        return self._earlier[key]

    def stability(self, one: Member, other: Member, axis: str) -> xr.Dataset:
        """`stability` of two traces; it raises what that does."""
        key = one.path, other.path, axis
        if key not in self._stabilities:
            self._stabilities[key] = stability(self.view(one), self.view(other), axis)
        return self._stabilities[key]


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


def table_pages(study: Study) -> Iterator[Output]:
    """Tables 1 and 2, of the first run of each model."""
    return _tables(study, study.defaults or study.members)


def whole_table_pages(study: Study) -> Iterator[Output]:
    """Tables 1 and 2, of all traces."""
    return _tables(study, study.members)


def _tables(study: Study, shown: Sequence[Member]) -> Iterator[Output]:
    endings = papertables.FORMATS

    def make(table: Callable[[], papertables.Table]) -> Callable[[], list[bytes]]:
        return lambda: [write(table()).encode() for write in endings.values()]

    for number, table in (
        ("1", lambda: papertables.table_1(shown, study.views(shown))),
        ("2", lambda: papertables.table_2(shown, study.views(shown), study.source)),
    ):
        yield Output(tuple(f"table-{number}.{ending}" for ending in endings), make(table))


def figure_pages(study: Study) -> Iterator[Output]:
    """A figure for each trace: a panel for each layer, as in the paper."""
    for one in study.members:
        names = tuple(f"{figure_name(one)}.{ending}" for ending in figures.UNDATED)
        yield Output(names, lambda one=one: list(figures.rendered(_figure(study, one))))


def drawing_pages(study: Study) -> Iterator[Output]:
    """Curves and heat map of each trace, named by the trace."""
    for one in study.members:
        for name, draw in (("redundancy", figures.redundancy), ("heatmap", figures.heatmap)):
            names = tuple(f"{one.name}-{name}.{ending}" for ending in figures.UNDATED)
            yield Output(names, lambda one=one, draw=draw: list(figures.rendered(draw(study.view(one), _title(one)))))


def view_pages(study: Study, views: Sequence[str]) -> Iterator[Output]:
    """What earlier papers plotted, of each trace, named by trace and view. All are measured before one is drawn.

    Beside a picture with anything from samples, a table says how far these are from exact statistics.

    Raises:
        IncompleteError: A trace does not hold what a view needs.
    """
    for one in study.members:
        for name in views:
            found, apart = study.earlier(one, name), view_deviations(study, one, name)
            names = tuple(f"{one.name}-{name}.{ending}" for ending in figures.UNDATED)
            found = found.assign_attrs(deviation="; ".join(sentence(row) for row in apart))
            yield Output(names, partial(_view, VIEWS[name], found, _title(one)))
            if has_sampled(found):
                table = partial(papertables.records_to_csv, apart)
                yield Output((f"{one.name}-{name}-sampling.csv",), lambda table=table: [table().encode()])


def _view(view: View, found: xr.Dataset, title: str) -> list[bytes]:
    return list(figures.rendered(view.draw(found, title)))


def view_deviations(study: Study, one: Member, name: str) -> list[dict[str, Any]]:
    """For each quantity, how far a view from samples is from exact statistics; nothing if nothing is sampled."""
    if not has_sampled(study.earlier(one, name)):
        return []
    sampled, exact = (study.earlier(one, name, source) for source in ("sample", "exact"))
    return [{"trace": one.name, "model": one.model, "view": name} | record for record in deviations_of(sampled, exact)]


def figure_name(one: Member) -> str:
    """`figure-02-flux.1-dev` for a figure of the paper, `figure-S1-NAME` for another."""
    number = one.figure if one.figure.startswith("S") else f"{int(one.figure):02d}"
    return f"figure-{number}-{one.name}"


def _figure(study: Study, one: Member) -> figures.Figure:
    columns = PAPER[one.model].columns if not one.figure.startswith("S") else None
    parts = [
        f"Figure {one.figure}",
        one.model or one.name,
        "RANDOM WEIGHTS" if one.has_random_weights else "",
        plural(one.attention_layers, "layer"),
        plural(one.num_steps, "step"),
        one.scheduler_name,
        plural(one.prompts, "prompt"),
    ]
    title = harmless(" · ".join(part for part in parts if part))
    return figures.redundancy(study.view(one), title, columns=columns)


def _title(one: Member) -> str:
    with open_trace(one.path) as trace:
        return headline(trace)


def facts_pages(study: Study) -> Iterator[Output]:
    """What can be settled without weights."""
    yield Output(("facts.md",), lambda: [facts.page(study.members).encode()])


def sampling_pages(study: Study, name: str = "sampling.csv") -> Iterator[Output]:
    """With samples as the source: how far they are from the exact statistics."""
    if study.source == "sample":
        yield Output((name,), lambda: [papertables.records_to_csv(deviations(study)).encode()])


def deviations(study: Study) -> list[dict[str, Any]]:
    """Records of `agreement` for each trace, from the sampled values and from the exact statistics.

    `exact_over` says which elements these were taken over: `exact` for all.
    """
    return [
        {"trace": one.name, "model": one.model, "exact_over": one.transitions} | record
        for one in study.members
        for record in agreement(study.view(one, "sample"), study.view(one, "exact"))
    ]


def index_pages(study: Study) -> Iterator[Output]:
    """Which trace gave which figure, and which figures of the paper no trace here gives."""
    yield Output(("index.md",), lambda: [index(study).encode()])


def index(study: Study) -> str:
    rows = [["figure", "trace", "model", "run for", "steps", "scheduler", "prompts", "file"]]
    for one in study.members:
        prompts = one.incomplete or str(one.prompts)
        cells = one.figure, one.name, one.model, one.role, str(one.num_steps), one.scheduler_name, prompts
        rows.append([harmless(cell) for cell in (*cells, f"{figure_name(one)}.pdf")])
    sampled = "the sampled values alone; `sampling.csv` says how far they are from the exact statistics"
    source = "the exact statistics" if study.source == "exact" else sampled
    parts = [
        "# The traces of this study",
        f"Figures 2 to 11 are numbered as in arXiv 2411.13588, others S1, S2, ... Everything is from {source}.",
        facts.table(rows),
    ]
    if study.planned:
        parts += ["Planned, and not traced yet:", "\n".join(f"- {harmless(name)}" for name in study.planned)]
    if missing := missing_figures(study.members):
        parts += ["Figures of the paper that no trace here gives:", "\n".join(f"- {line}" for line in missing)]
    return "\n\n".join(parts) + "\n"


def missing_figures(members: Sequence[Member]) -> list[str]:
    """`Figure 2: flux.1-dev at 28 steps`, for each of the paper's that no trace gives."""
    wanted = {one.figure: f"{name} at {one.steps} steps" for name, one in PAPER.items()} | FURTHER
    there = {one.figure for one in members}
    return [f"Figure {number}: {wanted[number]}" for number in sorted(wanted) if str(number) not in there]


PAGES = (table_pages, figure_pages, sampling_pages, facts_pages, index_pages)
"""What `write_study` writes, in this order. A further page is a function here: it takes a study and gives `Output`s,
which name their files at once and make them when asked."""


def write_study(study: Study, folder: Path, *, force: bool = False, pages: Sequence[Any] = PAGES) -> Iterator[Path]:
    """Write all pages into a folder, and give the path of each file once it is there; same traces, same bytes.

    Raises:
        FileExistsError: One of the files is there already; then none is written.
        IncompleteError: A trace has a single step, or no samples where they are the source; likewise.
    """
    for one in study.members:
        _refuse_incomplete(one, study.source)
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


def _refuse_incomplete(one: Member, source: str) -> None:
    """Before anything is written."""
    if one.num_steps < 2:
        raise IncompleteError(f"{one.path}: has one step, so nothing to compare; trace with --steps 2 or more")
    if source == "sample" and not one.has_samples:
        told = "holds statistics only, no archive, so nothing can be had from samples"
        raise IncompleteError(f"{one.path}: {told}; use the exact source, or trace without --stats-only")

"""Pages with what the paper shows of its models: tables, figures, and what earlier papers plotted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from dit_analyzer.measures.views.sampling import deviations_of, has_sampled, sentence
from dit_analyzer.members import Member
from dit_analyzer.printed import PAPER
from dit_analyzer.show import facts, figures, papertables
from dit_analyzer.study import Output, Study, drawing, heading, title_of
from dit_analyzer.views import VIEWS


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
        ("2", lambda: papertables.table_2(shown, study.views(shown), study.source, study.variation)),
    ):
        yield Output(tuple(f"table-{number}.{ending}" for ending in endings), make(table))


def figure_pages(study: Study) -> Iterator[Output]:
    """A figure for each trace: a panel for each layer, as in the paper."""
    for one in study.members:
        yield drawing(figure_name(one), partial(_figure, study, one))


def drawing_pages(study: Study) -> Iterator[Output]:
    """Curves and heat map of each trace, named by the trace."""
    for one in study.members:
        for name, draw in (("redundancy", figures.redundancy), ("heatmap", figures.heatmap)):
            yield drawing(f"{one.name}-{name}", lambda one=one, draw=draw: draw(study.view(one), title_of(one)))


def view_pages(study: Study, views: Sequence[str]) -> Iterator[Output]:
    """What earlier papers plotted, of each trace, named by trace and view. All are measured before one is drawn.

    Beside a picture with anything from samples, a table says how far these are from exact statistics.

    Raises:
        IncompleteError: A trace does not hold what a view needs.
    """
    for one in study.members:
        for name in views:
            found, apart = study.earlier(one, name), view_deviations(study, one, name)
            found = found.assign_attrs(deviation="; ".join(sentence(row) for row in apart))
            yield drawing(f"{one.name}-{name}", partial(VIEWS[name].draw, found, title_of(one)))
            if has_sampled(found):
                table = partial(papertables.records_to_csv, apart)
                yield Output((f"{one.name}-{name}-sampling.csv",), lambda table=table: [table().encode()])


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
    return figures.redundancy(study.view(one), heading(one, f"Figure {one.figure}"), columns=columns)


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
        for record in study.agreement(one)
    ]

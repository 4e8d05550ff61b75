"""Pages of a study that tell where its curves break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

from dit_analyzer.measures.changes import changes
from dit_analyzer.measures.words import words
from dit_analyzer.show import breaks, figures
from dit_analyzer.show.changes import changes as draw
from dit_analyzer.show.papertables import records_to_csv
from dit_analyzer.study import Output, Study, drawing, heading


def changes_pages(study: Study) -> Iterator[Output]:
    """`changes.md`, `changes.csv`, `shapes.csv`, and a figure for each trace."""

    @cache
    def found() -> list[breaks.Breaks]:
        return [breaks.Breaks(one, study.measured(changes, one), study.measured(words, one)) for one in study.members]

    def tell() -> list[bytes]:
        whole = breaks.page(found(), study.source)
        csv = (records_to_csv(of(found())) for of in (breaks.records, breaks.shape_records))
        return [text.encode() for text in (whole, *csv)]

    yield Output(("changes.md", "changes.csv", "shapes.csv"), tell)
    for place, one in enumerate(study.members):
        yield drawing(f"changes-{one.name}", partial(_figure, found, place))


def _figure(found: Callable[[], list[breaks.Breaks]], place: int) -> figures.Figure:
    each = found()[place]
    return draw(each.changes, heading(each.one, each.one.name))

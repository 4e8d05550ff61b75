"""The page with what the paper's scripts compute, written on request."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import xarray as xr

from dit_analyzer.measures.published import as_published
from dit_analyzer.members import Member
from dit_analyzer.show import figures, papertables, published
from dit_analyzer.study import Output, Study, drawing, text_of, title_of


def published_pages(study: Study) -> Iterator[Output]:
    """`as-published.md` and `.csv`, and a figure for each trace of two prompts or more."""
    names = [one.name for one in study.members]

    def page() -> list[bytes]:
        found = [_found(study, one) for one in study.members]
        rows = [
            row for name, one in zip(names, found) if not isinstance(one, str) for row in published.records(name, one)
        ]
        return [text_of(study, published.page(names, found)), papertables.records_to_csv(rows).encode()]

    yield Output(("as-published.md", "as-published.csv"), page)
    for one in study.members:
        if one.prompts > 1:
            yield drawing(f"as-published-{one.name}", partial(_drawn, study, one))


def _drawn(study: Study, one: Member) -> figures.Figure:
    return published.curves(study.measured(as_published, one), title_of(one))


def _found(study: Study, one: Member) -> xr.Dataset | str:
    try:
        return study.measured(as_published, one)
    except ValueError as error:
        return str(error)

"""Pages of a study that tell where its curves break."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

from dit_formats.console import harmless, plural

from dit_analyzer.measures.changes import changes
from dit_analyzer.measures.words import words
from dit_analyzer.members import Member
from dit_analyzer.show import breaks, figures
from dit_analyzer.show.changes import changes as draw
from dit_analyzer.show.papertables import records_to_csv
from dit_analyzer.study import Output, Study


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
        names = tuple(f"changes-{one.name}.{ending}" for ending in figures.UNDATED)
        yield Output(names, partial(_figure, found, place))


def _figure(found: Callable[[], list[breaks.Breaks]], place: int) -> list[bytes]:
    each = found()[place]
    return list(figures.rendered(draw(each.changes, title(each.one))))


def title(one: Member) -> str:
    """`digits-flux-28 · digits-flux · 9 layers · 28 steps · FlowMatchEulerDiscrete · 32 prompts`."""
    parts = [
        one.name,
        one.model,
        "RANDOM WEIGHTS" if one.has_random_weights else "",
        plural(one.attention_layers, "layer"),
        plural(one.num_steps, "step"),
        one.scheduler_name,
        plural(one.prompts, "prompt"),
    ]
    return harmless(" · ".join(part for part in dict.fromkeys(parts) if part))

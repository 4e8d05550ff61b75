"""The page that says what the others hold, and which trace gave which figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dit_formats.console import harmless

from dit_analyzer.members import Member
from dit_analyzer.pages.paper import figure_name
from dit_analyzer.printed import FURTHER, PAPER
from dit_analyzer.show import facts
from dit_analyzer.study import Output, Study

CONTENTS = (
    "`claims.md`: what the paper claims, each with effect, interval and verdict",
    "`table-1`, `table-2`: the paper's tables, as .md, .tex and .csv",
    "`variation.md`: how far prompts differ, in level and in shape",
    "`changes.md`: where curves break, dips, and their shapes in words; `changes-NAME` draws each trace",
    "`stability.md`: between models, step counts and schedulers; `stability-models...` and `stability-NAME` draw it",
    "`depth.md`: change over depth, between kinds, and roughness; `depth` draws it",
    "`facts.md`: what can be settled without weights",
)


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
        "\n".join(f"- {line}" for line in CONTENTS),
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

"""The claims of the paper with their verdicts, as a page of Markdown and as records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from dit_formats.console import harmless, plural

from dit_analyzer.measures.verdicts import NOT_TESTED, REFUTED, SUPPORTED, UNDERPOWERED, Row
from dit_analyzer.members import Member
from dit_analyzer.show.facts import table
from dit_analyzer.show.papertables import known

if TYPE_CHECKING:
    from dit_analyzer.claims import Judged

HEAD = (
    "# The paper's claims, tested",
    "Each claim of *Unveiling Redundancy in Diffusion Transformers* (arXiv 2411.13588), restated, and tested on the "
    "traces of this study.",
)
WORDS = (
    f"- **{SUPPORTED}**: the 95 % interval lies where the claim holds, in every case that was tested, or in one where "
    "the claim speaks of some. It holds for the traces tested, and says nothing of other models.\n"
    f"- **{REFUTED}**: an interval lies wholly where the claim does not hold; of a claim about all models one such "
    "case is enough, whatever the model; of a claim about some, all cases must be so.\n"
    f"- **{UNDERPOWERED}**: an interval crosses the margin, or prompts, layers or the contrast are too few to tell.\n"
    f"- **{NOT_TESTED}**: no trace here can test it. A claim that names a model needs that model's trained weights; "
    "miniatures with random weights test nothing.",
    "Each case is shown with its own 95 % interval and verdict. Where one case can decide a claim, refuting one about "
    "all or supporting one about some, it must stand with an interval widened for the number of cases (Bonferroni); "
    "else the claim is underpowered. A probability, or the share of prompts that agree, is its own measure of "
    "certainty and has no interval. All intervals are over prompts: layers and kinds are those that there are.",
    "Whether weights were trained is in no trace: one counts as trained unless it is of a miniature, and as one of the "
    "paper's models if name, layers and parameters are that model's.",
    "What can be settled without weights stands in [facts.md](facts.md): layers and parameters, how different the "
    "schedulers are, where steps 16 of 28 and 34 of 56 lie, Mochi's first noise levels, and what the published scripts "
    "do. All cases stand in `claims.csv`.",
)
MOST = 12
"""Cases of a claim that are shown."""


def page(found: Sequence[Judged], members: Sequence[Member]) -> str:
    parts = [*HEAD, _traces(members), *WORDS, "## In short", _summary(found)]
    for number, one in enumerate(found, 1):
        if one.verdict != NOT_TESTED:
            parts += [f"## {number}. {one.claim.text}", *_section(one)]
    return "\n\n".join([*parts, *_not_tested(found)]) + "\n"


def records(found: Sequence[Judged]) -> Iterator[dict[str, Any]]:
    """A record for each case, and for each claim without any."""
    for number, one in enumerate(found, 1):
        claim = one.claim
        head = {"number": number, "claim": claim.text, "place": claim.place, "verdict_of_claim": one.verdict}
        nothing = Row("", "", float("nan"), float("nan"), float("nan"), NOT_TESTED)
        for row in one.rows or [nothing]:
            numbers = {name: known(getattr(row, name)) for name in ("effect", "low", "high")}
            scale = {"scale": "log" if claim.factor else "as it is"}
            yield head | {"of": row.of, "kind": row.kind} | numbers | scale | {"verdict": row.verdict, "note": row.note}


def _traces(members: Sequence[Member]) -> str:
    """Which traces were used, and whether any is of the paper's models."""
    used = [one for one in members if not one.has_random_weights]
    left = [one.name for one in members if one.has_random_weights]
    own = sorted({one.model for one in used if one.is_of_the_paper})
    models = ", ".join(f"`{harmless(name)}`" for name in dict.fromkeys(one.model or one.name for one in used))
    lines = [f"Tested on {plural(len(used), 'trace')} of trained models: {models or 'none'}."]
    if left:
        lines.append(f"Left out for their random weights: {', '.join(f'`{harmless(name)}`' for name in left)}.")
    if own:
        lines.append(f"Of the paper's seven models: {', '.join(own)}.")
    else:
        lines.append("**None of them is one of the paper's seven models.**")
    return " ".join(lines)


def _summary(found: Sequence[Judged]) -> str:
    rows = [["", "claim", "verdict"]]
    rows += [[str(number), one.claim.text, f"**{one.verdict}**"] for number, one in enumerate(found, 1)]
    return table(rows)


def _section(one: Judged) -> Iterator[str]:
    claim = one.claim
    yield f"**{one.verdict}**{_counted(one)} Where: {claim.place}. Measured: {claim.measure}."
    shown = _worst_first(one)
    if shown:
        yield table([["of", "kind", "effect", "verdict", ""], *(_cells(row, claim.factor) for row in shown[:MOST])])
    if len(shown) > MOST:
        yield f"And {plural(len(shown) - MOST, 'further case')} in `claims.csv`."


def _not_tested(found: Sequence[Judged]) -> Iterator[str]:
    """Claims that no trace here can test, and the command of a run that could."""
    claims = [(number, one.claim) for number, one in enumerate(found, 1) if one.verdict == NOT_TESTED]
    if claims:
        yield "## Not tested"
        yield table(
            [["", "claim", "where", "measured", "it would take"]]
            + [[str(number), one.text, one.place, one.measure, f"`{one.needs}`"] for number, one in claims]
        )
        reasons = [f"{row.of}: {row.note}" for one in found if one.verdict == NOT_TESTED for row in one.rows]
        yield from (f"- {harmless(reason)}" for reason in dict.fromkeys(reasons))


def _counted(one: Judged) -> str:
    """` (9 cases: 2 supported, 7 refuted).`"""
    verdicts = [row.verdict for row in one.rows]
    counts = {word: verdicts.count(word) for word in (SUPPORTED, REFUTED, UNDERPOWERED, NOT_TESTED)}
    said = ", ".join(f"{number} {word}" for word, number in counts.items() if number)
    return f" ({plural(len(one.rows), 'case')}: {said})." if one.rows else "."


def _worst_first(one: Judged) -> list[Row]:
    """Those that decide the verdict first."""
    return sorted(one.rows, key=lambda row: row.verdict != one.verdict)


def _cells(row: Row, factor: bool) -> list[str]:
    return [harmless(row.of), row.kind.upper(), _effect(row, factor), row.verdict, harmless(row.note)]


def _effect(row: Row, factor: bool) -> str:
    """`x1.31 (1.20 to 1.43)` of logarithms, `0.12 (0.10 to 0.15)` else."""
    value, low, high = (float(np.exp(each)) if factor else each for each in (row.effect, row.low, row.high))
    if np.isnan(value):
        return "–"
    ends = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
    return f"{'×' if factor else ''}{value:.2f}{ends}"

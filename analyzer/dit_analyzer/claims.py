"""What the paper claims (arXiv 2411.13588), each as a test on the traces of a study: `CLAIMS` has a row for each.

A claim is tested on traces of trained weights alone; one that names a model on that model's own. A trace that breaks a
claim about all models refutes it; one that keeps it supports it for its own model and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr

from dit_analyzer.findings import rough_pair, stability_of
from dit_analyzer.measures.changes import changes
from dit_analyzer.measures.components import components
from dit_analyzer.measures.depth import depth_trend, kind_contrast
from dit_analyzer.measures.stability import ALIKE
from dit_analyzer.measures.variation import variation
from dit_analyzer.measures.verdicts import (
    NOT_TESTED,
    REFUTED,
    SUPPORTED,
    UNDERPOWERED,
    above,
    below,
    for_all,
    for_some,
    near,
    prompts_needed,
)
from dit_analyzer.measures.words import words
from dit_analyzer.members import Member
from dit_analyzer.pairs import between, within
from dit_analyzer.printed import FLUX, PAPER, WORDS
from dit_analyzer.show.stability import LITTLE_CONTRAST
from dit_analyzer.study import Study

RISE = 1.05
"""Factor from input to output from which on deeper layers change more."""
FAR = 2.0
"""Factor by which A is far above K and V."""
LIKE_PRINTED = 1.25
"""Factor within which a CV is the printed one."""
SURE = 0.9
"""Share of resampled sets of prompts that must agree on a word."""


class Row(NamedTuple):
    """One test of a claim: of which trace or traces and kind, the effect with its interval, and the verdict."""

    of: str
    kind: str
    effect: float
    low: float
    high: float
    verdict: str
    note: str = ""
    prompts: int = 0


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        text: Restated in a sentence.
        place: Where the paper has it.
        measure: What the effect is, and where the claim holds.
        margin: The value on one side of which it holds, None where that is no single value.
        test: Rows from a study of trained models.
        join: How the rows' verdicts make one.
        model: That the claim names, if any.
        needs: The command of dit-trace that makes what it is tested on.
        factor: Whether effects are logarithms, to be shown as factors.
    """

    text: str
    place: str
    measure: str
    margin: float | None
    test: Callable[[Study], Iterator[Row]]
    join: Callable[[Iterable[str]], str] = for_all
    model: str = ""
    needs: str = ""
    factor: bool = False


@dataclass(frozen=True)
class Judged:
    """A claim with its rows and its verdict."""

    claim: Claim
    rows: list[Row]

    @property
    def verdict(self) -> str:
        return self.claim.join(row.verdict for row in self.rows)


def judged(study: Study) -> list[Judged]:
    """Every claim, tested on the traces of trained models."""
    return [Judged(claim, [_with_need(claim, row) for row in claim.test(trained(study))]) for claim in CLAIMS]


def _with_need(claim: Claim, row: Row) -> Row:
    """An underpowered row with the number of prompts that would do, where more prompts would."""
    if row.verdict != UNDERPOWERED or claim.margin is None or not row.prompts:
        return row
    needed = prompts_needed(row.effect, row.low, row.high, claim.margin, row.prompts)
    said = f"about {needed} prompts would tell" if needed else "more prompts hardly help"
    return row._replace(note="; ".join(filter(None, (row.note, said))))


def trained(study: Study) -> Study:
    """The study without miniatures of random weights; what is measured is kept for both."""
    return study.of([one for one in study.members if not one.has_random_weights])


def _between(study: Study) -> Iterator[Row]:
    """Of each pair the kind that differs most: two models differ if one kind does."""
    for one, other in between(study.members):
        rows = list(_shapes(study, one, other, "step", above))
        yield max(rows, key=lambda row: row.low if row.low == row.low else row.effect)


def _within(study: Study, role: str, axis: str) -> Iterator[Row]:
    for one, other in within(study.members, role):
        for row in _shapes(study, one, other, axis, below):
            yield _with_contrast(study, one, other, axis, row) if role == "scheduler" else row


def _with_contrast(study: Study, one: Member, other: Member, axis: str, row: Row) -> Row:
    """A row about schedulers with max |d sigma|; without contrast it cannot say anything."""
    found = stability_of(study, one, other, axis)
    apart = float("nan") if isinstance(found, str) else found["max_dsigma"].item()
    row = row._replace(note="; ".join(filter(None, (row.note, f"max abs. d sigma {apart:.3f}"))))
    if apart < LITTLE_CONTRAST and row.verdict != NOT_TESTED:
        return row._replace(verdict=UNDERPOWERED, prompts=0)  # more prompts would not help
    return row


def _shapes(
    study: Study, one: Member, other: Member, axis: str, bound: Callable[[float, float, float], str]
) -> Iterator[Row]:
    """D of each kind, against the margin within which shapes are equivalent."""
    found, of = stability_of(study, one, other, axis), f"{one.name} and {other.name}"
    if isinstance(found, str):
        yield _untested(of, found)
        return
    for kind in found.kind.values.tolist():
        d, low, high = (found[name].sel(kind=kind).item() for name in ("d", "d_low", "d_high"))
        s, prompts = found["s"].sel(kind=kind).item(), found["prompts"].item()
        yield Row(of, kind, d, low, high, bound(low, high, ALIKE), f"S {s:.2f}", prompts)


def _prompts(study: Study) -> Iterator[Row]:
    for one in study.defaults:
        try:
            found = study.measured(components, one)
        except ValueError as error:
            yield _untested(one.name, str(error))
            continue
        for kind in found.kind.values.tolist():
            of = found.sel(kind=kind)
            low, high = of["cv_shape_low"].item(), of["cv_shape_high"].item()
            note = f"ICC of the pattern {of['icc_pattern'].item():.2f}"
            yield Row(one.name, kind, of["cv_shape"].item(), low, high, below(low, high, ALIKE), note, one.prompts)


def _depth(study: Study, quantity: str) -> Iterator[Row]:
    for one in study.defaults:
        found = study.measured(depth_trend, one).sel(quantity=quantity)
        for kind in found.kind.values.tolist():
            slope, low, high = (found[name].sel(kind=kind).item() for name in ("slope", "low", "high"))
            note = f"a line explains {found['explained'].sel(kind=kind).item():.0%}"
            yield Row(one.name, kind, slope, low, high, above(low, high, np.log(RISE)), note, one.prompts)


def _contrast(study: Study) -> Iterator[Row]:
    """The smaller of A/K and A/V."""
    for one in study.defaults:
        found = study.measured(kind_contrast, one).sel(quantity="l1")
        pairs = [pair for pair in ("a/k", "a/v") if pair in found.pair]
        if len(pairs) < 2:
            yield _untested(one.name, "K, V or A was not recorded")
            continue
        least = found.sel(pair=min(pairs, key=lambda pair: found["log_ratio"].sel(pair=pair).item()))
        log, low, high = (least[name].item() for name in ("log_ratio", "low", "high"))
        yield Row(one.name, least.pair.item(), log, low, high, above(low, high, np.log(FAR)), prompts=one.prompts)


def _smoothness(study: Study, matched: bool) -> Iterator[Row]:
    """Roughness of the run with fewer steps over that of the other: of their own curves, or at the same noise."""
    for one, other in within(study.members, "steps"):
        pair = rough_pair(study, one, other)
        fewer = 0 if one.num_steps < other.num_steps else 1
        names = (other.name, one.name) if fewer else (one.name, other.name)
        of = f"{names[0]} over {names[1]}"
        if isinstance(pair.found, str):
            yield _untested(of, pair.found)
            continue
        for kind in pair.found.kind.values.tolist():
            log, low, high = _log_ratio(pair.found.sel(kind=kind), fewer, matched)
            yield Row(of, kind, log, low, high, below(low, high, 0.0), prompts=pair.found.attrs["prompts"])


def _log_ratio(found: xr.Dataset, fewer: int, matched: bool) -> tuple[float, float, float]:
    """ln of a ratio of roughnesses, fewer steps over more, with its interval."""
    name = "ratio" if matched else "own_ratio"
    with np.errstate(divide="ignore", invalid="ignore"):
        log, low, high = (float(np.log(found[f"{name}{end}"].item())) for end in ("", "_low", "_high"))
    return (log, low, high) if fewer else (-log, -high, -low)


def _jump(study: Study, num_steps: int, paper_step: int) -> Iterator[Row]:
    """Whether all layers of each kind break together there, upwards; the effect is the posterior."""
    for one in study.members:
        if one.model != FLUX or one.num_steps != num_steps or "scheduler" in one.role:
            continue
        found = study.measured(changes, one)
        for kind in found.kind.values.tolist():
            near_by = found.sel(kind=kind).isel(transition=abs(found.paper_step.values - paper_step) <= 1)
            mass = near_by["joint_probability"].sum().item()
            jumps = near_by["joint_jump"].dropna("transition")
            up = bool((jumps > 1).any())
            note = f"jump x{jumps.values[0]:.2f}" if len(jumps) else "none declared within one step"
            verdict = SUPPORTED if up else REFUTED if mass < 1 - SURE else UNDERPOWERED
            yield Row(one.name, kind, mass, float("nan"), float("nan"), verdict, note)


def _word(study: Study, model: str) -> Iterator[Row]:
    """Whether the mean over layers does what the paper's figure shows; the effect is how far prompts agree."""
    for one in study.defaults:
        if one.model != model:
            continue
        found = study.measured(words, one)
        for kind in (kind for kind in found.kind.values.tolist() if kind in WORDS[model]):
            word, agreement = (found[f"mean_{name}"].sel(kind=kind).item() for name in ("shape", "agreement"))
            sure = agreement >= SURE
            verdict = (SUPPORTED if word == WORDS[model][kind] else REFUTED) if sure else UNDERPOWERED
            yield Row(one.name, kind, agreement, float("nan"), float("nan"), verdict, f"{word or 'no word'}")


def _printed_cv(study: Study, model: str) -> Iterator[Row]:
    for one in study.members:
        if one.model != model or not one.cv_printed:
            continue
        try:
            found = study.measured(variation, one)
        except ValueError as error:
            yield _untested(one.name, str(error))
            continue
        for kind, printed in zip("kva", one.cv_printed):
            cv, low, high = (found[name].sel(kind=kind).item() for name in ("cv", "cv_low", "cv_high"))
            yield Row(
                one.name, kind, cv, low, high, near(low, high, printed / 100, LIKE_PRINTED), f"printed {printed:g} %"
            )


def _untested(of: str, why: str) -> Row:
    return Row(of, "", float("nan"), float("nan"), float("nan"), NOT_TESTED, why)


_SHAPES = "D between the two curves' shapes, as a factor; {} ×1.16 (0.15 in logarithms)"
_STEPS = "dit-trace study mine.toml -o FOLDER, with several steps"
_SCHEDULERS = "dit-trace study mine.toml -o FOLDER, with a scheduler whose noise levels differ"
_RUNS = "dit-trace run MODEL -n 32 -o FOLDER/MODEL.trace, for two models or more"


def _named() -> Iterator[Claim]:
    """What the paper says of a model by name."""
    for num_steps, step in ((28, 16), (56, 34)):
        yield Claim(
            f"FLUX.1-dev at {num_steps} steps jumps at step {step}, counted down.",
            "section 4, Figures 2 and 9",
            "posterior that all layers break within one step of it; declared, and upwards",
            None,
            partial(_jump, num_steps=num_steps, paper_step=step),
            model=FLUX,
            needs=f"dit-trace run {FLUX} --steps {num_steps} -n 32 -o FOLDER/{FLUX}-{num_steps}.trace",
        )
    for model, shapes in WORDS.items():
        said = " and ".join(f"{', '.join(k.upper() for k in kinds)} {word}" for word, kinds in _by_word(shapes).items())
        yield Claim(
            f"The curves of {model} over steps: {said}.",
            f"section 4, Figure {PAPER[model].figure}, in this project's words",
            f"share of resampled sets of prompts whose mean over layers gets the same word; {SURE:.0%} or more decides",
            None,
            partial(_word, model=model),
            model=model,
            needs=f"dit-trace run {model} -n 32 -o FOLDER/{model}.trace",
        )
    for model, one in PAPER.items():
        if one.cv:
            yield Claim(
                f"The CV of {model} over prompts is {', '.join(f'{cv:g}' for cv in one.cv)} % (K, V, A).",
                "Table 2",
                f"corrected CV; within a factor {LIKE_PRINTED} of the printed one",
                None,
                partial(_printed_cv, model=model),
                model=model,
                needs=f"dit-trace run {model} -n 32 -o FOLDER/{model}.trace",
            )


def _by_word(shapes: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, word in shapes.items():
        found.setdefault(word, []).append(kind)
    return found


CLAIMS = (
    Claim(
        "Models differ in how change is spread over the steps.",
        "abstract, section 4",
        _SHAPES.format("holds above"),
        ALIKE,
        _between,
        for_some,
        needs=_RUNS,
        factor=True,
    ),
    Claim(
        "There is no pattern common to models: any two of them differ.",
        "abstract",
        _SHAPES.format("holds above"),
        ALIKE,
        _between,
        needs=_RUNS,
        factor=True,
    ),
    Claim(
        "Within a model the curves over steps are stable over prompts.",
        "abstract, section 4, Table 2",
        "CV_shape, how far one prompt's curve is from the mean's shape; holds below 0.15",
        ALIKE,
        _prompts,
        needs="dit-trace run MODEL -n 32 -o FOLDER/MODEL.trace",
    ),
    Claim(
        "Within a model the curves are stable over step counts.",
        "abstract, section 4.4, Figures 9 and 10",
        _SHAPES.format("at the same relative step; holds below"),
        ALIKE,
        partial(_within, role="steps", axis="step"),
        needs=_STEPS,
        factor=True,
    ),
    Claim(
        "Within a model the curves are stable over schedulers, drawn over steps as the paper does.",
        "abstract, section 4.5, Figure 11",
        _SHAPES.format("at the same relative step; holds below"),
        ALIKE,
        partial(_within, role="scheduler", axis="step"),
        needs=_SCHEDULERS,
        factor=True,
    ),
    Claim(
        "The same, as speed over the noise level: what a scheduler cannot move by placing its steps elsewhere.",
        "not in the paper; what its claim may mean",
        _SHAPES.format("at the same noise level; holds below"),
        ALIKE,
        partial(_within, role="scheduler", axis="noise"),
        needs=_SCHEDULERS,
        factor=True,
    ),
    Claim(
        "Deeper layers change more.",
        "section 4",
        f"factor of L1 from input to output; holds above ×{RISE}",
        np.log(RISE),
        partial(_depth, quantity="l1"),
        needs="dit-trace run MODEL -n 32 -o FOLDER/MODEL.trace",
        factor=True,
    ),
    Claim(
        "Deeper layers change more, as a share of what they hold.",
        "not in the paper, which looks at absolute change alone",
        f"factor of relative L1 from input to output; holds above ×{RISE}",
        np.log(RISE),
        partial(_depth, quantity="rel_l1"),
        needs="dit-trace run MODEL -n 32 -o FOLDER/MODEL.trace",
        factor=True,
    ),
    Claim(
        "In some models A changes far more than K and V.",
        "section 4",
        f"the smaller of A/K and A/V; holds above ×{FAR:g}",
        np.log(FAR),
        _contrast,
        for_some,
        needs="dit-trace run MODEL -n 32 -o FOLDER/MODEL.trace",
        factor=True,
    ),
    Claim(
        "With fewer steps curves look smoother.",
        "section 4.4, Figure 10",
        "roughness of the run with fewer steps over the other's, each over its own steps; holds below ×1",
        0.0,
        partial(_smoothness, matched=False),
        needs=_STEPS,
        factor=True,
    ),
    Claim(
        "They are smoother, and not for want of points alone.",
        "not in the paper; what its claim may mean",
        "the same, both at the noise levels of the run with fewer steps; holds below ×1",
        0.0,
        partial(_smoothness, matched=True),
        needs=_STEPS,
        factor=True,
    ),
    *_named(),
)

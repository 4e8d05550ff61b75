"""Tests of the paper's claims on a study of trained models: each gives rows, one for each trace or pair and kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import xarray as xr
from dit_formats.console import plural

from dit_analyzer.measures.changes import changes
from dit_analyzer.measures.components import components
from dit_analyzer.measures.depth import depth_trend, kind_contrast
from dit_analyzer.measures.stability import ALIKE, LITTLE_CONTRAST
from dit_analyzer.measures.verdicts import (
    FEWEST,
    NOT_TESTED,
    REFUTED,
    SUPPORTED,
    UNDERPOWERED,
    Row,
    above,
    below,
    near,
)
from dit_analyzer.measures.words import words
from dit_analyzer.members import Member
from dit_analyzer.pairs import between, roughness_of, stability_of, within
from dit_analyzer.printed import CONFIGURED, FLUX, PAPER, WORDS
from dit_analyzer.show.papertables import billions
from dit_analyzer.study import Study

RISE = 1.05
"""Factor from input to output from which on deeper layers change more."""
TREND = 0.25
"""Share of the layers' variance that the line must explain to be a trend."""
FAR = 2.0
"""Factor by which A is far above K and V."""
LIKE_PRINTED = 1.25
"""Factor within which a CV is the printed one."""
SURE = 0.9
"""Share of resampled sets of prompts that must agree on a word."""


def models_apart(study: Study) -> Iterator[Row]:
    for one, other in between(study.members):
        yield from _shapes(study, one, other, "step", above)


def runs_alike(study: Study, role: str, axis: str) -> Iterator[Row]:
    for one, other in within(study.members, role):
        for row in _shapes(study, one, other, axis, below):
            yield _with_contrast(study, one, other, axis, row) if role == "scheduler" else row


def _with_contrast(study: Study, one: Member, other: Member, axis: str, row: Row) -> Row:
    """A row about schedulers with max |d sigma|; without contrast, or not knowing it, it cannot say anything."""
    found = stability_of(study, one, other, axis)
    apart = float("nan") if isinstance(found, str) else found["max_dsigma"].item()
    known = "noise levels unknown" if np.isnan(apart) else f"max abs. d sigma {apart:.3f}"
    row = row._replace(note="; ".join(filter(None, (row.note, known))))
    if not apart >= LITTLE_CONTRAST and row.verdict != NOT_TESTED:
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


def prompts_alike(study: Study) -> Iterator[Row]:
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


def deeper(study: Study, quantity: str) -> Iterator[Row]:
    for one in study.defaults:
        found = study.measured(depth_trend, one).sel(quantity=quantity)
        for kind in found.kind.values.tolist():
            slope, low, high = (found[name].sel(kind=kind).item() for name in ("slope", "low", "high"))
            explained = found["explained"].sel(kind=kind).item()
            verdict = above(low, high, np.log(RISE))
            note = (
                "no line without two layers that differ" if np.isnan(explained) else f"a line explains {explained:.0%}"
            )
            if verdict == SUPPORTED and explained < TREND:
                yield Row(one.name, kind, slope, low, high, UNDERPOWERED, f"{note}: no trend over so few layers")
                continue
            yield Row(one.name, kind, slope, low, high, verdict, note, one.prompts)


def attention_far_above(study: Study) -> Iterator[Row]:
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


def smoother(study: Study, matched: bool) -> Iterator[Row]:
    """Roughness of the run with fewer steps over that of the other: of their own curves, or at the same noise."""
    for one, other in within(study.members, "steps"):
        found = roughness_of(study, one, other)
        fewer = 0 if one.num_steps < other.num_steps else 1
        names = (other.name, one.name) if fewer else (one.name, other.name)
        of = f"{names[0]} over {names[1]}"
        if isinstance(found, str):
            yield _untested(of, found)
            continue
        for kind in found.kind.values.tolist():
            log, low, high = _log_ratio(found.sel(kind=kind), fewer, matched)
            yield Row(of, kind, log, low, high, below(low, high, 0.0), prompts=found.attrs["prompts"])


def _log_ratio(found: xr.Dataset, fewer: int, matched: bool) -> tuple[float, float, float]:
    """ln of a ratio of roughnesses, fewer steps over more, with its interval."""
    name = "ratio" if matched else "own_ratio"
    with np.errstate(divide="ignore", invalid="ignore"):
        log, low, high = (float(np.log(found[f"{name}{end}"].item())) for end in ("", "_low", "_high"))
    return (log, low, high) if fewer else (-log, -high, -low)


def jump(study: Study, num_steps: int, paper_step: int) -> Iterator[Row]:
    """Whether all layers of each kind break together there, upwards; the effect is the posterior."""
    for one in study.members:
        if one.model != FLUX or one.num_steps != num_steps or "scheduler" in one.role:
            continue
        if not one.is_of_the_paper:
            yield _another(one)
            continue
        found = study.measured(changes, one)
        for kind in found.kind.values.tolist():
            of_kind = found.sel(kind=kind)
            if np.isnan(of_kind["joint_any"].item()):
                yield _untested(one.name, of_kind["joint_note"].item(), kind)
                continue
            near_by = of_kind.isel(transition=abs(found.paper_step.values - paper_step) <= 1)
            mass = near_by["joint_probability"].sum().item()
            jumps = near_by["joint_jump"].dropna("transition")
            up = bool((jumps > 1).any())
            note = f"jump x{jumps.values[0]:.2f}" if len(jumps) else "none declared within one step"
            verdict = SUPPORTED if up else REFUTED if mass < 1 - SURE else UNDERPOWERED
            yield _of_several(Row(one.name, kind, mass, float("nan"), float("nan"), verdict, note, one.prompts))


def shape(study: Study, model: str) -> Iterator[Row]:
    """Whether the mean over layers does what the paper's figure shows, at its steps and with its scheduler; the effect
    is how far prompts agree."""
    for one in study.members:
        if one.model != model:
            continue
        if one.figure != str(PAPER[model].figure):
            yield _untested(one.name, f"not the setting of Figure {PAPER[model].figure}")
            continue
        if not one.is_of_the_paper:
            yield _another(one)
            continue
        found = study.measured(words, one)
        for kind in (kind for kind in found.kind.values.tolist() if kind in WORDS[model]):
            word, agreement = (found[f"mean_{name}"].sel(kind=kind).item() for name in ("shape", "agreement"))
            sure = agreement >= SURE
            verdict = (SUPPORTED if word == WORDS[model][kind] else REFUTED) if sure else UNDERPOWERED
            row = Row(one.name, kind, agreement, float("nan"), float("nan"), verdict, word or "no word", one.prompts)
            yield _of_several(row)


def printed_cv(study: Study, model: str) -> Iterator[Row]:
    for one in study.members:
        if one.model != model or not one.cv_printed:
            continue
        if not one.is_of_the_paper:
            yield _another(one)
            continue
        try:
            found = study.variation(one)
        except ValueError as error:
            yield _untested(one.name, str(error))
            continue
        for kind, printed in zip("kva", one.cv_printed):
            if kind not in found.kind:
                yield _untested(one.name, f"{kind.upper()} was not recorded", kind)
                continue
            cv, low, high = (found[name].sel(kind=kind).item() for name in ("cv", "cv_low", "cv_high"))
            verdict = near(low, high, printed / 100, LIKE_PRINTED)
            yield Row(one.name, kind, cv, low, high, verdict, f"printed {printed:g} %", one.prompts)


def _another(one: Member) -> Row:
    """Of a trace that goes by the name of a model that it is not."""
    layers, parameters = CONFIGURED[one.model]
    own = f"{plural(one.attention_layers, 'layer')} and {billions(one.parameters) if one.parameters else 'unknown'}"
    return _untested(one.name, f"has {own} parameters, not {layers} and {billions(parameters)}: not {one.model} itself")


def _of_several(row: Row) -> Row:
    """A row that has no interval; what one or two prompts do alike is no verdict on a model."""
    return row._replace(verdict=UNDERPOWERED) if row.prompts < FEWEST else row


def _untested(of: str, why: str, kind: str = "") -> Row:
    return Row(of, kind, float("nan"), float("nan"), float("nan"), NOT_TESTED, why)

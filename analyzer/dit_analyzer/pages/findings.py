"""Pages of a study with what its traces say beyond the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Iterator

from dit_analyzer.measures.axes import AXES
from dit_analyzer.measures.components import components
from dit_analyzer.measures.concordance import concordance, mean_curves
from dit_analyzer.measures.depth import depth_profile, depth_trend, kind_contrast
from dit_analyzer.measures.pairing import ComparisonError
from dit_analyzer.measures.variation import variation
from dit_analyzer.members import Member
from dit_analyzer.pairs import Pairs, between, roughness_of, stability_of, within
from dit_analyzer.show import beside, figures, papertables
from dit_analyzer.show import depth as show_depth
from dit_analyzer.show import stability as show_stability
from dit_analyzer.show import variation as show_variation
from dit_analyzer.study import Output, Study, text_of


def variation_pages(study: Study) -> Iterator[Output]:
    """How far prompts differ, and in what."""

    def page() -> list[bytes]:
        found = [_varied(study, one) for one in study.members]
        rows = [row for one in found for row in show_variation.records(one)]
        return [text_of(study, show_variation.page(found)), papertables.records_to_csv(rows).encode()]

    yield Output(("variation.md", "variation.csv"), page)


def _varied(study: Study, one: Member) -> show_variation.Varied:
    try:
        return show_variation.Varied(one.name, study.measured(variation, one), study.measured(components, one))
    except ValueError as error:
        return show_variation.Varied(one.name, str(error), str(error))


def stability_pages(study: Study) -> Iterator[Output]:
    """Whether curves have the same shape: the models' matrix, and each model's runs beside each other."""

    def page() -> list[bytes]:
        found = list(compared(study))
        rows = list(show_stability.records(found))
        return [text_of(study, show_stability.page(found)), papertables.records_to_csv(rows).encode()]

    yield Output(("stability.md", "stability.csv"), page)
    if between(study.members):
        yield _figure("stability-models", lambda: _matrix(study))
    for first in study.defaults:
        runs = [one for one in study.members if one.model == first.model]
        if len(runs) > 1:
            yield _figure(f"stability-{first.name}", lambda runs=runs: _curves(study, runs))


def depth_pages(study: Study) -> Iterator[Output]:
    """How change depends on depth and kind, and how rough curves are."""

    def page() -> list[bytes]:
        trends = [study.measured(depth_trend, one) for one in study.members]
        contrasts = [study.measured(kind_contrast, one) for one in study.members]
        names = [one.name for one in study.members]
        rough = [
            show_depth.Rough(one.name, other.name, roughness_of(study, one, other))
            for one, other in within(study.members, "steps")
        ]
        rows = [row for each in zip(names, trends, contrasts) for row in show_depth.records(*each)]
        return [
            text_of(study, show_depth.page(names, trends, contrasts, rough)),
            papertables.records_to_csv(rows).encode(),
        ]

    yield Output(("depth.md", "depth.csv"), page)
    yield _figure("depth", lambda: _profile(study))


def compared(study: Study) -> Iterator[show_stability.Compared]:
    """All that is set against each other in a study."""
    pairs: dict[str, Pairs] = {"between": between(study.members)}
    pairs |= {role: within(study.members, role) for role in ("steps", "scheduler")}
    for set_apart, each in pairs.items():
        for one, other in each:
            found = {axis: stability_of(study, one, other, axis) for axis in AXES}
            yield show_stability.Compared(set_apart, one.name, other.name, found)


def _matrix(study: Study) -> figures.Figure:
    views = study.views(study.defaults)
    return beside.matrix(concordance(views, "step"), [one.name for one in study.defaults], "step")


def _curves(study: Study, runs: list[Member]) -> figures.Figure:
    views, names = study.views(runs), [one.name for one in runs]
    curves = []
    for axis in AXES:
        try:
            curves.append(mean_curves(views, axis))
        except ComparisonError:
            continue  # the page says why
    return beside.overlaid(curves, names)


def _profile(study: Study) -> figures.Figure:
    shown = study.defaults or study.members
    profiles = [depth_profile(view) for view in study.views(shown)]
    return show_depth.profile([one.name for one in shown], profiles)


def _figure(name: str, draw: figures.Draw) -> Output:
    names = tuple(f"{name}.{ending}" for ending in figures.UNDATED)
    return Output(names, lambda: list(figures.rendered(draw())))

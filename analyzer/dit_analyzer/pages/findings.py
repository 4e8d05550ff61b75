"""Pages of a study with what its traces say beyond the paper's tables and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dit_analyzer.measures.axes import AXES, common_points, places
from dit_analyzer.measures.components import components
from dit_analyzer.measures.concordance import concordance, mean_curves
from dit_analyzer.measures.depth import depth_profile, depth_trend, kind_contrast
from dit_analyzer.measures.pairing import ComparisonError
from dit_analyzer.members import Member
from dit_analyzer.pairs import Pairs, between, roughness_of, stability_of, within
from dit_analyzer.show import beside, figures, papertables
from dit_analyzer.show import depth as show_depth
from dit_analyzer.show import stability as show_stability
from dit_analyzer.show import variation as show_variation
from dit_analyzer.study import Output, Study, drawing, text_of


def variation_pages(study: Study) -> Iterator[Output]:
    """How far prompts differ, and in what."""

    def page() -> list[bytes]:
        found = [_varied(study, one) for one in study.members]
        rows = [row for one in found for row in show_variation.records(one)]
        return [text_of(study, show_variation.page(found)), papertables.records_to_csv(rows).encode()]

    yield Output(("variation.md", "variation.csv"), page)


def _varied(study: Study, one: Member) -> show_variation.Varied:
    try:
        return show_variation.Varied(one.name, study.variation(one), study.measured(components, one))
    except ValueError as error:
        return show_variation.Varied(one.name, str(error), str(error))


def stability_pages(study: Study) -> Iterator[Output]:
    """Whether curves have the same shape: the models' matrix, and each model's runs beside each other."""

    def page() -> list[bytes]:
        found = list(compared(study))
        rows = list(show_stability.records(found))
        return [text_of(study, show_stability.page(found)), papertables.records_to_csv(rows).encode()]

    yield Output(("stability.md", "stability.csv"), page)
    for axis, name in (("step", "stability-models"), ("noise", "stability-models-noise")):
        if between(study.members) and _drawable(study, study.defaults, axis):
            yield drawing(name, lambda axis=axis: _matrix(study, axis))
    for first in study.defaults:
        runs = [one for one in study.members if one.model == first.model]
        axes = [axis for axis in AXES if _drawable(study, runs, axis)]
        if len(runs) > 1 and axes:
            yield drawing(f"stability-{first.name}", lambda runs=runs, axes=axes: _curves(study, runs, axes))


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
        rows += [row for pair in rough for row in show_depth.ratio_records(pair)]
        return [
            text_of(study, show_depth.page(names, trends, contrasts, rough)),
            papertables.records_to_csv(rows).encode(),
        ]

    yield Output(("depth.md", "depth.csv"), page)
    yield drawing("depth", lambda: _profile(study))


def compared(study: Study) -> Iterator[show_stability.Compared]:
    """All that is set against each other in a study."""
    pairs: dict[str, Pairs] = {"between": between(study.members)}
    pairs |= {role: within(study.members, role) for role in show_stability.WITHIN}
    for set_apart, each in pairs.items():
        for one, other in each:
            found = {axis: stability_of(study, one, other, axis) for axis in AXES}
            yield show_stability.Compared(set_apart, one.name, other.name, found)


def _drawable(study: Study, runs: Sequence[Member], axis: str) -> bool:
    """Whether these can be laid over each other; where not, the page says why."""
    try:
        common_points(*(places(view, axis) for view in study.views(runs)))
    except ComparisonError:
        return False
    return True


def _matrix(study: Study, axis: str) -> figures.Figure:
    return beside.matrix(concordance(study.views(study.defaults), axis), [one.name for one in study.defaults], axis)


def _curves(study: Study, runs: Sequence[Member], axes: Sequence[str]) -> figures.Figure:
    views = study.views(runs)
    return beside.overlaid([mean_curves(views, axis) for axis in axes], [one.name for one in runs])


def _profile(study: Study) -> figures.Figure:
    shown = study.defaults or study.members
    profiles = [depth_profile(view) for view in study.views(shown)]
    return show_depth.profile([one.name for one in shown], profiles)

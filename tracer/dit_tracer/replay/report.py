"""Tells what a replay found: a table, JSON, pictures side by side, and quality against speed as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dit_formats.console import harmless
from dit_formats.plan import Plan
from scipy.stats import spearmanr

from dit_tracer.replay.comparing import SHARE, Outcome
from dit_tracer.replay.quality import Mean
from dit_tracer.replay.schedules import UNCACHED

COLUMNS = ("schedule", "computed", "speed", "relative L1 of latents", "times ours", "PSNR", "SSIM", "")
FEWEST = 3
"""Plans of which a rank correlation says something."""


def lines_of(outcomes: Sequence[Outcome], reasons: dict[str, str]) -> Iterator[str]:
    """The table, and what follows from it."""
    ours = _ours(outcomes)
    rows = [COLUMNS, *(_row(one, ours) for one in outcomes)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(COLUMNS))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
    for one in outcomes:
        yield from (f"lost of {harmless(one.schedule.name)}: {line}" for line in one.schedule.lost)
    for name, why in reasons.items():
        yield f"not run: {name}, {why}"
    yield from findings(outcomes)


def findings(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What an outcome means: which baselines the plan beats, and whether predicted and measured errors rank alike."""
    ours = _ours(outcomes)
    if ours is None:
        return
    plan = ours.schedule.plan
    if plan is not None and plan.predicted.get("verdict") == "do not cache":
        yield "verdict of the plan: do not cache; " + _cheapest(plan)
    yield from _online(outcomes)
    own = [one for one in outcomes if one.schedule.plan is not None or one.schedule.policy is not None]
    others = [one for one in outcomes if one not in own and one.schedule.name != UNCACHED]
    if others:
        if any(one.schedule.policy for one in own):
            yield f"of {ours.schedule.name}:"
        yield _beaten("prompt by prompt", [one for one in others if one.against(ours).low > 1], others)
        apart = [one for one in others if ours.mean("error").high < one.mean("error").low]
        yield _beaten("by means whose intervals do not overlap", apart, others)
    fewer = next((one for one in others if one.schedule.call.get("num_inference_steps")), None)
    if fewer is not None and fewer.mean("error").value <= ours.mean("error").value:
        yield f"do not cache: {fewer.schedule.note} are as near to the uncached picture, and as cheap"
    rank = rank_of(outcomes)
    if rank is not None:
        yield f"predicted and measured errors of {rank[1]} plans rank alike: Spearman {rank[0]:.3f}"


def _online(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """How each policy stands to its static plan, and how much it really computed."""
    for one in outcomes:
        policy = one.schedule.policy
        static = next((other for other in outcomes if policy and other.schedule.plan is policy.static), None)
        if static is None:
            continue
        against, predicted = one.against(static), policy.predicted.get("computed_share", {}).get("value")
        better = one if against.high < 1 else static if against.low > 1 else None
        told = "neither is better" if better is None else f"{better.schedule.name} is better"
        expected = "" if predicted is None else f", {predicted:.1%} predicted"
        yield (
            f"{one.schedule.name} computed {_interval(one.mean(SHARE), '{:.1%}')}{expected}, {static.schedule.name} "
            f"{static.share:.1%}: {_interval(against, '{:.2f}')} times its error, so {told}"
        )


def _beaten(how: str, beaten: list[Outcome], others: list[Outcome]) -> str:
    level = ", ".join(one.schedule.name for one in others if one not in beaten)
    return f"error below that of {len(beaten)} of {len(others)} others {how}" + (f"; not of {level}" if level else "")


def rank_of(outcomes: Sequence[Outcome]) -> tuple[float, int] | None:
    """Rank correlation of predicted and measured errors over distinct plans that leave something out."""
    distinct = {}
    for one in outcomes:
        plan = one.schedule.plan
        if plan is not None and not plan.mask.all() and plan.predicted.get("error") is not None:
            distinct[one.schedule.plan.mask.tobytes()] = one
    if len(distinct) < FEWEST:
        return None
    pairs = [(one.schedule.plan.predicted["error"], one.mean("error").value) for one in distinct.values()]
    return float(spearmanr(*zip(*pairs))[0]), len(pairs)


def as_json(outcomes: Sequence[Outcome], reasons: dict[str, str], told: dict[str, Any]) -> dict[str, Any]:
    """Numbers for programs: a record for each schedule, with values by prompt."""
    ours, rank = _ours(outcomes), rank_of(outcomes)
    return told | {
        "schedules": [_record(one, ours) for one in outcomes],
        "not_run": reasons,
        "findings": list(findings(outcomes)),
        "spearman": None if rank is None else {"rho": rank[0], "plans": rank[1]},
    }


def _record(one: Outcome, ours: Outcome | None) -> dict[str, Any]:
    plan = one.schedule.plan or one.schedule.policy
    means = {name: one.mean(name).as_json() for name in one.measures}
    predicted = {name: plan.predicted.get(name) for name in ("error", "low", "high", "seconds")} if plan else None
    against = one.against(ours).as_json() if ours is not None and one is not ours else None
    return {
        "schedule": one.schedule.name,
        "note": one.schedule.note,
        "lost": list(one.schedule.lost),
        "computed_share": one.share,
        "speed": one.speed.as_json(),
        **means,
        "times_ours": against,
        "predicted": predicted,
        "mask": [int(step) for step in one.schedule.mask] or None,
        "prompts": one.measures,
    }


def _row(one: Outcome, ours: Outcome | None) -> tuple[str, ...]:
    against = (
        "" if ours is None or one is ours or one.schedule.name == UNCACHED else _interval(one.against(ours), "{:.2f}")
    )
    return (
        harmless(one.schedule.name),
        _interval(one.mean(SHARE), "{:.1%}") if SHARE in one.measures else f"{one.share:.1%}",
        _interval(one.speed, "{:.2f}"),
        _interval(one.mean("error"), "{:.4f}"),
        against,
        f"{one.mean('psnr').value:.1f}",
        f"{one.mean('ssim').value:.4f}",
        harmless(one.schedule.note),
    )


def _interval(mean: Mean, form: str) -> str:
    if np.isnan(mean.value):
        return ""
    value = form.format(mean.value)
    return value if np.isnan(mean.low) else f"{value} [{form.format(mean.low)}, {form.format(mean.high)}]"


def _ours(outcomes: Sequence[Outcome]) -> Outcome | None:
    return next((one for one in outcomes if one.schedule.plan is not None), None)


def _cheapest(plan: Plan) -> str:
    cost = plan.predicted.get("cheapest_step")
    if cost is None:
        return "no step may be left out"
    return f"leaving out the one cheapest of {plan.request.num_steps} steps already costs {cost:.1%}"


def draw_quality(outcomes: Sequence[Outcome], path: Path, title: str) -> None:
    """Error against speed, a point for each schedule with its intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot()
    plans = [one for one in outcomes if one.schedule.plan is not None and one.mean("error").value > 0]
    others = [one for one in outcomes if one.schedule.plan is None and one.mean("error").value > 0]
    _points(axes, plans, "C0", "o", "plan" if len(plans) == 1 else f"{len(plans)} plans")
    for place, one in enumerate(others):
        _points(axes, [one], f"C{1 + place % 9}", "svD^P*Xd<>"[place % 10], one.schedule.name)
    axes.set(xlabel="times as fast as uncached", ylabel="relative L1 of final latents", yscale="log", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix in (".pdf", ".svg") else None)


def _points(axes: Any, outcomes: Sequence[Outcome], colour: str, marker: str, label: str) -> None:
    if not outcomes:
        return
    speeds, errors = ([one.speed for one in outcomes], [one.mean("error") for one in outcomes])
    bars = {"xerr": _bars(speeds), "yerr": _bars(errors)}
    axes.errorbar(
        [m.value for m in speeds], [m.value for m in errors], **bars, color=colour, marker=marker, label=label,
        linestyle="none", markersize=5, elinewidth=0.8, capsize=2,
    )  # fmt: skip


def _bars(means: Sequence[Mean]) -> Any:
    if any(np.isnan(mean.low) for mean in means):
        return None
    return np.array([[m.value - m.low for m in means], [m.high - m.value for m in means]])


def draw_samples(outcomes: Sequence[Outcome], texts: Sequence[str], path: Path, most: int = 12) -> None:
    """The first picture of the first prompts, a row for each schedule."""
    from matplotlib.figure import Figure

    shown = list(outcomes)[:most]
    columns = len(shown[0].pictures)
    height, width = shown[0].pictures[0].shape[1:3]
    wide = min(max(1.4 * width / height, 0.9), 3.0)  # inches; titles need some
    figure = Figure(figsize=(wide * columns + 1.6, wide * height / width * len(shown) + 0.6), layout="constrained")
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for row, one in zip(grid, shown):
        for axes, pictures in zip(row, one.pictures):
            axes.imshow(pictures[len(pictures) // 2], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(one.schedule.name, rotation=0, ha="right", va="center", fontsize=8)
    for axes, text in zip(grid[0], texts):
        axes.set_title(_short(text), fontsize=6)
    figure.savefig(path, dpi=150)


def _short(text: str, width: int = 26, lines: int = 3) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(harmless(text), width, max_lines=lines, placeholder=" ..."))

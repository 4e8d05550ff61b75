"""Tells a plan in a few lines, and draws predicted error against computed share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from dit_formats.console import harmless, plural
from dit_formats.plan import GRID, LAYERS, STEPS, Plan
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dit_analyzer.show.figures import STYLE

PERCENT = FuncFormatter(lambda value, _: f"{100 * value:g} %")

FEW = 10
"""Prompts below which a held-out error says little."""

MOST_ROWS = 12
"""Rows of a plan that are shown."""

COMPUTED, LEFT_OUT = "#", "."
COLUMNS = ("computed", "steps", "left out", "predicted error", "95 % interval", "plan")

MEANT = {
    "prediction": "relative L1 of the final latents, to first order",
    "outputs": "relative L1 of the layers' outputs, mean over steps and layers",
}

AXIS = {
    "prediction": "predicted error of the final latents",
    "outputs": "predicted error of the layers' outputs",
}


def lines_of(plan: Plan) -> Iterator[str]:
    """The plan for a reader: what is computed, what that costs, how sure that is, and what was recorded of time."""
    request, predicted = plan.request, plan.predicted
    yield f"{request.model}, {plural(request.num_steps, 'step')}, {request.scheduler}; {_what(plan)}"
    width = max(len(row.name) for row in plan.rows[:MOST_ROWS])
    for row in plan.rows[:MOST_ROWS]:
        name = "computed" if len(plan.rows) == 1 else row.name
        yield f"{name:<{width}}  {_drawn(row.compute)}  {sum(row.compute)} of {len(row.compute)}"
    if len(plan.rows) > MOST_ROWS:
        yield f"... and {len(plan.rows) - MOST_ROWS} more rows in the file"
    yield f"computed share {plan.computed_share:.1%}, longest run left out {plural(_longest(plan), 'step')}"
    for step, why in plan.made.get("forced", {}).items():
        yield f"step {step} is always computed: {why}"
    error = _error(predicted) if plan.computed_share < 1 else "0.00%, for nothing is left out"
    yield f"predicted error {error}: {MEANT[plan.made['signal']]}"
    yield from _caveats(plan)
    if "seconds" in predicted:
        now, before = predicted["seconds"], predicted["seconds_uncached"]
        yield f"time at best {now * 1e3:.0f} ms of {before * 1e3:.0f} ms, {before / max(now, 1e-9):.2f} times as fast"
    if predicted["verdict"] == "do not cache":
        yield f"verdict: do not cache; {_why_not(predicted['cheapest_step'])}"


def _why_not(cheapest: float | None) -> str:
    if cheapest is None:
        return "no step may be left out"
    return f"leaving out the one cheapest step already costs {cheapest:.1%}"


def _what(plan: Plan) -> str:
    values = "reused" if plan.predictor == "reuse" else "predicted linearly from the last two computed"
    if plan.granularity == GRID:
        return "only the marked steps are made"
    whose = "the network's prediction is" if plan.granularity == STEPS else "outputs of layers are"
    return f"elsewhere {whose} {values}"


def _caveats(plan: Plan) -> Iterator[str]:
    prompts = plan.made["prompts"]
    if not prompts["held_out"]:
        yield "the error is of the one prompt that the plan was made from, no test; trace more prompts"
    elif prompts["planned"] + prompts["held_out"] < FEW:
        held = plural(prompts["held_out"], "prompt")
        yield f"{held} held out of {prompts['planned'] + prompts['held_out']}: that says little; trace {FEW} or more"
    recorded, steps = plan.made["recorded_steps"], plan.request.num_steps
    if recorded != steps:
        beyond = plan.made["extrapolated_steps"]
        reach = (
            f"its last step lies {beyond:.2f} recorded steps beyond the last" if beyond else "within what was recorded"
        )
        yield f"carried over from {recorded} steps along the noise level, {reach}; trace --steps {steps} to be sure"


def _error(predicted: dict[str, Any]) -> str:
    if predicted["low"] is None:
        return f"{predicted['error']:.2%} (no interval: {plural(predicted['held_out_prompts'], 'held-out prompt')})"
    return (
        f"{predicted['error']:.2%} [{predicted['low']:.2%}, {predicted['high']:.2%}] on "
        f"{plural(predicted['held_out_prompts'], 'held-out prompt')}"
    )


def _drawn(compute: Sequence[bool]) -> str:
    return "".join(COMPUTED if one else LEFT_OUT for one in compute)


def _longest(plan: Plan) -> int:
    """Most steps in a row that a layer is left out."""
    most = 0
    for compute in plan.mask:
        run = 0
        for one in compute:
            run = 0 if one else run + 1
            most = max(most, run)
    return most


def curve_rows(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """A record for each plan of a curve."""
    return [
        {
            "computed_share": plan.computed_share,
            "steps": int(plan.steps_mask.sum()),
            **{name: plan.predicted[name] for name in ("error", "low", "high")},
            **{name: plan.predicted[name] for name in ("seconds",) if name in plan.predicted},
            "compute": ["".join(str(int(one)) for one in row.compute) for row in plan.rows],
        }
        for plan in plans
    ]


def curve_lines(plans: Sequence[Plan]) -> Iterator[str]:
    """The curve as a table, equal plans once."""
    yield f"{'computed':>8}  {'predicted error':>15}  {'95 % interval':<18}" + (
        "  steps" if plans[0].granularity in (STEPS, GRID) else ""
    )
    seen = set()
    for plan in plans:
        if (key := plan.mask.tobytes()) in seen:
            continue
        seen.add(key)
        low, high = (plan.predicted[name] for name in ("low", "high"))
        interval = f"[{low:.2%}, {high:.2%}]" if low is not None else ""
        mask = _drawn(plan.rows[0].compute) if len(plan.rows) == 1 else ""
        yield f"{plan.computed_share:>8.1%}  {plan.predicted['error']:>15.2%}  {interval:<18}  {mask}".rstrip()
    yield f"{len(plans)} plans, {len(seen)} of them distinct; error: {MEANT[plans[0].made['signal']]}"


def draw_curve(plans: Sequence[Plan]) -> Figure:
    """Predicted error against computed share, with the interval over held-out prompts."""
    shares = np.array([plan.computed_share for plan in plans])
    error, low, high = (
        np.array([np.nan if plan.predicted[name] is None else plan.predicted[name] for plan in plans], float)
        for name in ("error", "low", "high")
    )
    shown = error > 0
    with matplotlib.rc_context(STYLE):
        figure = Figure((4.6, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.fill_between(shares[shown], low[shown], high[shown], alpha=0.2, linewidth=0, label="95 % over prompts")
        axes.plot(shares[shown], error[shown], "o-", markersize=3, label="held-out prompts")
        axes.set(yscale="log", xlabel="computed share of evaluations", ylabel=AXIS[plans[0].made["signal"]])
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_formatter(PERCENT)
            side.set_minor_formatter(NullFormatter())
        axes.set_xlim(1.02, min(shares) - 0.02)
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
        axes.set_title(_title(plans[0]))
    return figure


def _title(plan: Plan) -> str:
    by = {STEPS: "steps", GRID: "noise levels", LAYERS: "layers"}.get(plan.granularity, "types of layers")
    return harmless(f"{plan.request.model}, {plan.request.num_steps} steps: plans by {by}, {plan.predictor}")

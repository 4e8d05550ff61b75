"""Online rules from a trace: what they would skip, at which threshold, and whether a static plan does as well.

The rule itself, and the change that it looks at, is of `dit_formats.policy`. It is simulated on the changes that were
recorded. These are of an uncached run: once steps are skipped, latents and so the changes differ a little from them,
and a replay may compute another number of steps. Of guidance halves the largest change counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from dit_formats.console import plural
from dit_formats.plan import STEPS, Plan
from dit_formats.policy import IDENTITY, MODULATED, SIGNALS, Policy
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from numpy.typing import ArrayLike, NDArray

from dit_analyzer.measures.bootstrap import drawn_shares, percentiles
from dit_analyzer.measures.jackknife import Estimate, jackknife_t
from dit_analyzer.measures.signals import signals
from dit_analyzer.measures.views.given import halves, need_sites
from dit_analyzer.plans.costs import Costs, Expected, expected, geometric
from dit_analyzer.plans.course import OutOfReachError
from dit_analyzer.plans.planner import Planner, request_of
from dit_analyzer.plans.teacache import fit, pairs, reached

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FIRST, LAST, MOST = (1, 2, 3, 4), (0, 1, 2, 3), (0, 1, 2, 3)
"""Numbers of steps that a choice of settings tries."""

POLICY, STATIC, NEITHER = "policy", "static plan", "neither"
NOTE = "signals are of an uncached run; with steps skipped they differ, and so may the steps that are computed"


@dataclass(frozen=True)
class Settings:
    """What of a rule is not its threshold; as `dit_formats.policy.Policy` has it."""

    signal: str = MODULATED
    coefficients: tuple[float, ...] = IDENTITY
    most: int = 0
    first: int = 1
    last: int = 0


@dataclass(frozen=True)
class Threshold:
    """A calibrated threshold.

    Args:
        low, high: Ends of its 95 % interval, from prompts drawn with replacement; NaN of one prompt.
        share: Computed share on the prompts that it was calibrated on.
    """

    value: float
    low: float
    high: float
    share: float


def changes_of(trace: Trace, signal: str = MODULATED) -> Floats:
    """Relative change of a signal from a step to the next, the largest over guidance halves, (prompt, transition).

    NaN where a half was not recorded: the rule computes such a step.

    Raises:
        ValueError: No such signal.
        IncompleteError: No stack or no such site, or one step only.
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal {signal!r}: give one of {', '.join(SIGNALS)}")
    need_sites(trace, signal)
    found = signals(trace)["rel_l1"].sel(site=signal).isel(branch=halves(trace, STACK))
    return found.transpose("prompt", "branch", "transition").values.max(1)


def simulated(changes: ArrayLike, threshold: ArrayLike, settings: Settings = Settings()) -> Mask:
    """Which steps a rule computes, (..., step), there being one more than transitions.

    Args:
        changes: (..., transition)
        threshold: One, or an array (...).

    >>> simulated([0.1, 0.1, 0.1, 0.1], 0.25).astype(int)
    array([1, 0, 0, 1, 0])
    """
    x = np.asarray(changes, float)
    values = np.where(np.isfinite(x), np.maximum(np.polyval(settings.coefficients, np.nan_to_num(x)), 0.0), np.inf)
    limit = np.asarray(threshold, float)
    shape, steps = np.broadcast_shapes(values.shape[:-1], limit.shape), values.shape[-1] + 1
    mask, total, reused = np.ones((*shape, steps), bool), np.zeros(shape), np.zeros(shape, int)
    for step in range(max(settings.first, 1), steps - settings.last):
        total = total + values[..., step - 1]
        tired = (settings.most > 0) & (reused >= settings.most)
        mask[..., step] = tired | ~(total < limit)
        total = np.where(mask[..., step], 0.0, total)
        reused = np.where(mask[..., step], 0, reused + 1)
    return mask


def _errors(costs: Costs, prompt: int, masks: Mask) -> Floats:
    """Error of masks (mask, step) on one of the prompts to plan with; without tracks by the mean costs."""
    distinct, place = np.unique(masks, axis=0, return_inverse=True)
    errors = np.array([costs.planned_error(prompt, mask[None]) for mask in distinct])
    return errors[place.ravel()]


def _means(errors: Floats, shares: Floats) -> Floats:
    """As `geometric`, with the share that each prompt has in the mean: (..., prompt) of errors (prompt, threshold)."""
    positive = (errors > 0).all(0)
    return np.where(positive, np.exp(shares @ np.log(np.where(positive, errors, 1.0))), shares @ errors)


@dataclass(frozen=True)
class Calibration:
    """Thresholds that may be chosen, and what each gives on the prompts to plan with.

    Args:
        changes: Of the prompts to plan with, (prompt, transition).
        costs: By whole steps, so of one row.
    """

    changes: Floats
    costs: Costs
    settings: Settings

    @cached_property
    def thresholds(self) -> Floats:
        """Up to 400 that decide otherwise, ascending; the first computes every step."""
        x = np.where(np.isfinite(self.changes), self.changes, 0.0)
        return np.append(0.0, reached(np.maximum(np.polyval(self.settings.coefficients, x), 0.0)))

    @cached_property
    def masks(self) -> Mask:
        """(prompt, threshold, step)."""
        return simulated(self.changes[:, None, :], self.thresholds, self.settings)

    def for_share(self, share: float) -> Threshold:
        """The threshold whose computed share, a mean over prompts, is nearest; of several the smallest."""
        _need_share(share)
        shares = self.masks.mean(-1)
        return self._chosen(shares, lambda means: np.abs(means - share).argmin(-1))

    def for_error(self, error: float) -> Threshold:
        """The largest threshold whose error, a mean over prompts, is no larger; geometric where all err."""
        if not error >= 0:
            raise ValueError(f"error {error}: give 0 or more")
        found = np.array([_errors(self.costs, place, masks) for place, masks in self._known])
        last = len(self.thresholds) - 1
        return self._chosen(found, lambda means: last - (means <= error)[..., ::-1].argmax(-1), _means)

    def error_at(self, threshold: float) -> float:
        """The error of one of the thresholds, a mean over prompts."""
        place = int(np.flatnonzero(self.thresholds == threshold)[0])
        return geometric(np.array([_errors(self.costs, n, masks[[place]])[0] for n, masks in self._known])).error

    @property
    def _known(self) -> list[tuple[int, Mask]]:
        """The prompts whose error can be told, and their masks (threshold, step)."""
        return list(enumerate(self.masks))[: len(self.costs.tracks) or None]

    def _chosen(self, values: Floats, choose: Any, mean: Any = lambda values, shares: shares @ values) -> Threshold:
        """By means over prompts, and over prompts drawn anew for the interval."""
        num = len(values)
        place = int(choose(mean(values, np.full(num, 1 / num))))
        low, high = (float(e) for e in percentiles(self.thresholds[choose(mean(values, drawn_shares(num)))], num))
        return Threshold(float(self.thresholds[place]), low, high, float(self.masks[:, place].mean()))


def best_settings(
    trace: Trace, costs: Costs, share: float, signal: str = MODULATED, *, fitted: bool = False
) -> Settings:
    """Which first and last steps to always compute, and how many to reuse in a row, for the least error at a share.

    Of the combinations of `FIRST`, `LAST` and `MOST` that come within half a step of the share on the prompts to plan
    with, or else nearest to it, the one whose error there is least. What `policy_of` predicts is from other prompts.

    Raises:
        OutOfReachError, ValueError, IncompleteError: As `policy_of`.
    """
    _need_steps(trace, costs)
    start = _fitted(trace, list(costs.planned_with), Settings(signal)) if fitted else Settings(signal)
    changes = changes_of(trace, signal)[list(costs.planned_with)]
    tried = []
    for first, last, most in product(FIRST, LAST, MOST):
        settings = replace(start, first=first, last=last, most=most)
        calibration = Calibration(changes, costs, settings)
        found = calibration.for_share(share)
        off = max(abs(found.share - share) - 0.5 / costs.num_steps, 0.0)
        tried.append((off, calibration.error_at(found.value), most, first, last, settings))
    return min(tried, key=lambda one: one[:-1])[-1]


def policy_of(
    trace: Trace,
    costs: Costs,
    planner: Planner,
    share: float | None = None,
    *,
    error: float | None = None,
    settings: Settings = Settings(),
    fitted: bool = False,
) -> Policy:
    """A policy that computes this share of the steps on the prompts to plan with, or errs by so much there.

    Steps that the planner was told to force are forced in the static plan alone.

    Args:
        costs: By whole steps, of the trace's own number of steps.
        planner: Of these costs; it gives the static plan of the same share.
        error: Instead of a share.
        fitted: With TeaCache's polynomial of the prediction's change, one that nowhere falls and from the prompts to
            plan with, in place of `settings.coefficients`.

    Raises:
        OutOfReachError: Costs of another granularity, or of another number of steps than was traced.
        ValueError: Neither a share nor an error, or both, or one that cannot be.
        IncompleteError: The trace does not hold the signal.
    """
    if (share is None) == (error is None):
        raise ValueError("give a computed share or an error, one of them")
    _need_steps(trace, costs)
    if fitted:
        settings = _fitted(trace, list(costs.planned_with), settings)
    changes = changes_of(trace, settings.signal)
    calibration = Calibration(changes[list(costs.planned_with)], costs, settings)
    found = calibration.for_share(share) if share is not None else calibration.for_error(error or 0.0)
    static = planner.with_share(found.share)
    predicted = _predicted(changes, costs, static, found, settings)
    return Policy(
        request_of(trace, costs),
        settings.signal,
        found.value,
        tuple(map(float, settings.coefficients)),
        costs.predictor,
        static.levels,
        settings.most,
        settings.first,
        settings.last,
        static,
        static.made | {"threshold": _json(vars(found)), "changes": "largest over guidance halves", "note": NOTE},
        predicted,
    )


def lines_of(policy: Policy) -> list[str]:
    """What a policy is expected to do, and how that stands to the static plan, for people."""
    told, made = policy.predicted, policy.made["threshold"]
    rest = told["computed_share"]
    against = told["times_static"]
    held = told["held_out_prompts"]
    where = plural(held, "held-out prompt") if held else "the prompts it is made from"
    verdicts = {
        POLICY: "the policy is predicted to be better than the static plan",
        STATIC: "the static plan is predicted to be better than the policy",
        NEITHER: "it is not told which of policy and static plan is better",
    }
    lines = [
        f"reuse while the added change of {policy.signal} is below {_interval(made, 'value')}",
        f"computed share {_interval(rest, 'value', '.1%')} on {where}, {rest['least']:.1%} to {rest['most']:.1%} of "
        f"single prompts; {made['share']:.1%} where it was calibrated",
        f"predicted error {_interval(told, 'error')}, static plan {_interval(policy.static.predicted, 'error')} at "
        f"{policy.static.computed_share:.1%}",
        f"{verdicts[told['better']]}: {_interval(against, 'value', '.3g')} times its error",
        NOTE,
    ]
    if told["different_masks"] == 1 and policy.made["prompts"]["planned"] > 1:
        lines.append(f"all of {where} compute the same steps: a static plan of these would do as much")
    return lines


def _predicted(changes: Floats, costs: Costs, static: Plan, found: Threshold, settings: Settings) -> dict[str, Any]:
    """On held-out prompts by each one's own mask; with none, on those it was calibrated on, by mean costs."""
    held = list(costs.held)
    masks = simulated(changes[held or list(costs.planned_with)], found.value, settings)
    known = costs.held_error if held else lambda _, mask: costs.planning_error(mask)
    ours = np.array([known(place, mask[None]) for place, mask in enumerate(masks)])
    theirs = np.array([known(place, static.mask) for place in range(len(masks))])
    error, against = geometric(ours), _ratio(ours, theirs, bool(held))
    if not held:
        error = Expected(error.error, np.nan, np.nan, 0)
    return {
        "error": error.error,
        **_json({"low": error.low, "high": error.high}),
        "held_out_prompts": len(held),
        "computed_share": _share(masks.mean(-1)),
        "different_masks": len(np.unique(masks, axis=0)),
        "static_error": expected(costs, static.mask).error,
        "times_static": _json({"value": against.error, "low": against.low, "high": against.high}),
        "better": POLICY if against.high < 1 else STATIC if against.low > 1 else NEITHER,
    }


def _ratio(ours: Floats, theirs: Floats, known: bool) -> Expected:
    """Error of the policy over that of the static plan, prompt by prompt; 1 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = geometric(np.where(ours == theirs, 1.0, ours / theirs))
    return found if known else Expected(found.error, np.nan, np.nan, 0)


def _share(shares: Floats) -> dict[str, Any]:
    found: Estimate = jackknife_t(lambda kept: shares[kept].mean(), len(shares))
    ends = {"low": float(found.low), "high": float(found.high)}
    return {"value": float(found.value), **_json(ends), "least": float(shares.min()), "most": float(shares.max())}


def _fitted(trace: Trace, prompts: list[int], settings: Settings) -> Settings:
    """With the polynomial that turns changes of the modulated input into changes of the prediction."""
    if settings.signal != MODULATED:
        raise ValueError(f"the polynomial is of {MODULATED}; signal {settings.signal} goes without")
    every = pairs(trace, "prediction")
    seen = replace(every, x=every.x[prompts], y=every.y[prompts])
    return replace(settings, coefficients=tuple(fit(seen, monotone=True).coefficients.tolist()))


def _need_steps(trace: Trace, costs: Costs) -> None:
    if costs.granularity != STEPS:
        raise OutOfReachError(f"a policy decides on whole steps, not by {costs.granularity}; leave out the granularity")
    if costs.num_steps != trace.num_steps:
        told = f"a policy for {costs.num_steps} steps from changes between {trace.num_steps}"
        raise OutOfReachError(f"{told}; trace the model with --steps {costs.num_steps}")


def _need_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"computed share {share}: give more than 0 and up to 1")


def _json(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: float(value) if np.isfinite(value) else None for name, value in values.items()}


def _interval(values: dict[str, Any], name: str, form: str = ".4g") -> str:
    low, high = values.get("low"), values.get("high")
    told = f"{values[name]:{form}}" if values[name] is not None else "unknown"
    return told if low is None or high is None else f"{told} [{low:{form}}, {high:{form}}]"

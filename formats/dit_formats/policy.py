"""An online rule: what the network is given at a step decides whether it is computed. The file is JSON, version 1.

At step t, from the second on, a polynomial of the signal's relative change since the step before,

    change[t] = mean |x[t] - x[t-1]| / mean |x[t-1]|    (TeaCache, arXiv 2411.19108, equation 4),

is added up, a negative value counting as 0. While the sum stays below the threshold the network as a whole is reused,
or predicted from its last two values; a computed step sets the sum back to 0. The signal is of what the network is
given, so it is known before anything is decided. Of guidance halves that are computed in one call the largest change
counts; a pipeline with a call for each half decides in the first, and the others follow.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dit_formats import plan as plans
from dit_formats.plan import PREDICTORS, STEPS, Plan, PlanError, Request
from dit_formats.publish import published

FORMAT, VERSION = "dit-policy", 1

MODULATED, MODEL_INPUT = "modulated", "model_input"
SIGNALS = (MODULATED, MODEL_INPUT)
"""Sites of the stack that are known before the blocks run: what the first attention layer is given, and the latents."""

IDENTITY = (1.0, 0.0)


@dataclass(frozen=True)
class Policy:
    """A rule, and the static plan that computes as many steps.

    Args:
        signal: One of `SIGNALS`.
        threshold: Below which steps are reused; at 0 every step is computed.
        coefficients: Of the polynomial, highest power first; `IDENTITY` leaves changes as they are.
        predictor, levels: As of a plan.
        most: Consecutive steps that may be reused, at most; 0 for no limit.
        first, last: How many steps at the start, at least one, and at the end are always computed.
        static: By whole steps, of the same request.
        made: From what and how: traces, prompts, calibration with its interval.
        predicted: Computed share and error with intervals, and how they stand to those of the static plan.
    """

    request: Request
    signal: str
    threshold: float
    coefficients: tuple[float, ...]
    predictor: str
    levels: tuple[float, ...]
    most: int
    first: int
    last: int
    static: Plan
    made: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.request.num_steps
        if self.signal not in SIGNALS or self.predictor not in PREDICTORS:
            raise PlanError(f"signal {self.signal!r} or predictor {self.predictor!r} is not known")
        if not (np.isfinite(self.threshold) and self.threshold >= 0):
            raise PlanError(f"threshold {self.threshold} must be 0 or more, and finite")
        if not self.coefficients or not np.isfinite(self.coefficients).all():
            raise PlanError("coefficients must be one or more finite numbers")
        counts = self.most, self.first, self.last
        if any(type(count) is not int for count in counts) or self.most < 0 or self.last < 0:
            raise PlanError(f"numbers of steps must be whole and 0 or more: {counts}")
        if self.first < 1 or self.first > steps or self.last > steps:
            raise PlanError(f"{self.first} first and {self.last} last of {steps} steps cannot be always computed")
        if self.static.granularity != STEPS or self.static.request != self.request:
            raise PlanError("the static plan must be one by whole steps, for the same request")
        if self.levels != self.static.levels:
            raise PlanError("levels must be those of the static plan")


class Rule:
    """A policy at work in one generation: told the change at each step, it says whether the step is computed.

    >>> rule = Rule(4, threshold=0.25)
    >>> [rule.computes(step, 0.1) for step in range(4)]
    [True, False, False, True]
    """

    def __init__(
        self,
        num_steps: int,
        threshold: float,
        coefficients: Sequence[float] = IDENTITY,
        most: int = 0,
        first: int = 1,
        last: int = 0,
    ) -> None:
        self._forced = [step < max(first, 1) or step >= num_steps - last for step in range(num_steps)]
        self._threshold, self._coefficients, self._most = threshold, np.asarray(coefficients, float), most
        self._sum, self._reused = 0.0, 0

    def computes(self, step: int, change: float) -> bool:
        """Whether the step is computed; one whose change is not finite is. Steps are told in their order."""
        self._sum += max(float(np.polyval(self._coefficients, change)), 0.0) if np.isfinite(change) else np.inf
        tired = self._most > 0 and self._reused >= self._most
        computed = step >= len(self._forced) or self._forced[step] or tired or not self._sum < self._threshold
        self._sum, self._reused = (0.0, 0) if computed else (self._sum, self._reused + 1)
        return computed


def rule_of(policy: Policy) -> Rule:
    """The rule, at the start of a generation."""
    return Rule(policy.request.num_steps, policy.threshold, policy.coefficients, policy.most, policy.first, policy.last)


def write_policy(path: Path, policy: Policy, *, force: bool = False) -> None:
    """Write a policy; it appears whole.

    Raises:
        FileExistsError: There is a file, and it shall not be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, replace=force) as file:
        file.write(to_json(policy).encode() + b"\n")


def to_json(policy: Policy) -> str:
    """The content of the file."""
    static = plans.to_data(policy.static)
    own = {name: value for name, value in vars(policy).items() if name not in ("request", "static")}
    data = {"format": FORMAT, "version": VERSION, "request": static["request"], **own, "static": static}
    return json.dumps(plans.finite(data), indent=1, allow_nan=False)


def read_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        FileNotFoundError: There is none.
        PlanError: It is not a policy, damaged, or of a newer version.
    """
    return plans.parsed(path, FORMAT, VERSION, from_data)


def read_either(path: Path) -> Plan | Policy:
    """The plan or the policy in a file, as its format says."""
    return read_policy(path) if plans.content(path).get("format") == FORMAT else plans.read_plan(path)


def from_data(data: dict[str, Any]) -> Policy:
    """The policy that this content of a file is."""
    static = data["static"]
    if static.get("format") != plans.FORMAT or static.get("version") != plans.VERSION:
        raise PlanError(f"its static plan is not of format {plans.FORMAT} {plans.VERSION}")
    known = {"format", "version", *Policy.__dataclass_fields__}
    if set(data) != known:
        raise PlanError(f"its fields are others: {', '.join(sorted(set(data) ^ known))}")
    return Policy(
        plans.request_from(data["request"]),
        data["signal"],
        float(data["threshold"]),
        tuple(float(x) for x in data["coefficients"]),
        data["predictor"],
        tuple(float(x) for x in data["levels"]),
        data["most"],
        data["first"],
        data["last"],
        plans.from_data(static),
        dict(data["made"]),
        dict(data["predicted"]),
    )

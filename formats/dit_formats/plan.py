"""A cache plan: which layers are computed in which steps, and for what it was made. The file is JSON, version 1.

In a step that is not computed, what is left out is reused from the last step that computed it, or predicted from the
last two. A plan by steps leaves out the network as a whole, and its prediction is reused; others leave out attention
layers and feed-forward networks, and their outputs are reused. Guidance branches are cached apart and planned alike. A
grid leaves the steps themselves out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dit_formats.errors import TraceError
from dit_formats.publish import published

FORMAT, VERSION = "dit-plan", 1
LARGEST = 1 << 26
"""Bytes that a file of a plan may have."""

STEPS, TYPES, LAYERS, GRID = "step", "type", "layer", "grid"
GRANULARITIES = (STEPS, TYPES, LAYERS, GRID)
"""`grid` makes no other steps than those that are computed: a run with fewer steps, at chosen noise levels."""

REUSE, LINEAR = "reuse", "linear"
PREDICTORS = (REUSE, LINEAR)

Made = TypeVar("Made")


class PlanError(TraceError):
    """A file that is no plan, or a plan that does not fit; the message says which."""


@dataclass(frozen=True)
class Request:
    """The generation that a plan is for; another may not be run with it.

    Args:
        model: Name in the trace.
        weights: Fingerprints of the denoising networks, by component.
        revision: Of the repository; None where there is none, or it is not known.
        pipeline, transformer, scheduler: Names of classes.
        scheduler_sha256: Of the scheduler's configuration as canonical JSON.
        timesteps, sigmas: Before each step, (step).
        call: Arguments of the pipeline that are not None, with sizes and guidance.
    """

    model: str
    weights: dict[str, str]
    revision: str | None
    pipeline: str
    transformer: str
    scheduler: str
    scheduler_sha256: str
    num_steps: int
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    dtype: str
    call: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """Layers that are computed in the same steps.

    Args:
        name: `all`, a type of layers, or the name of the one layer.
        layers: Their names in the trace, in execution order.
        compute: Whether they are computed, by step; the first step always is.
    """

    name: str
    layers: tuple[str, ...]
    compute: tuple[bool, ...]


@dataclass(frozen=True)
class Plan:
    """Rows of layers with the steps that compute them.

    Args:
        granularity: One of `GRANULARITIES`.
        predictor: `reuse` of the last computed value, or `linear` prediction from the last two along `levels`.
        levels: Where each step stands for linear prediction, strictly monotone, (step).
        types: Type of every layer in the rows, by name.
        made: From what and how: traces, prompts, cost, optimiser, steps that were forced.
        predicted: Errors and times that are expected, with intervals.
    """

    request: Request
    granularity: str
    predictor: str
    levels: tuple[float, ...]
    rows: tuple[Row, ...]
    types: dict[str, str]
    made: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.request.num_steps
        if self.granularity not in GRANULARITIES or self.predictor not in PREDICTORS:
            raise PlanError(f"granularity {self.granularity!r} or predictor {self.predictor!r} is not known")
        if steps < 1 or any(len(x) != steps for x in (self.levels, self.request.timesteps, self.request.sigmas)):
            raise PlanError(f"timesteps, sigmas and levels must be {steps}, one for each step")
        if not self.rows or (self.granularity in (STEPS, GRID) and len(self.rows) != 1):
            raise PlanError("a plan has rows of layers, and one by steps has a single row")
        if not np.isfinite(self.levels).all() or (steps > 1 and len(set(np.sign(np.diff(self.levels)))) != 1):
            raise PlanError("levels must be finite, and rise or fall from step to step")
        names = [layer for row in self.rows for layer in row.layers]
        if len(set(names)) != len(names) or set(names) != set(self.types):
            raise PlanError("every layer stands in one row, and has a type")
        for row in self.rows:
            if not row.layers or len(row.compute) != steps or not row.compute[0]:
                raise PlanError(f"row {row.name!r}: needs layers, and {steps} steps of which the first is computed")

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Whether a row is computed, (row, step)."""
        return np.array([row.compute for row in self.rows])

    @property
    def steps_mask(self) -> NDArray[np.bool_]:
        """Steps in which any row is computed, (step): what is left for an engine that skips whole steps."""
        return self.mask.any(0)

    @property
    def computed_share(self) -> float:
        """Share of the evaluations of layers that are computed."""
        weights = [len(row.layers) for row in self.rows]
        return float(np.average(self.mask.mean(1), weights=weights))

    def of_layer(self, name: str) -> tuple[bool, ...]:
        """Steps in which a layer is computed.

        Raises:
            LookupError: The plan does not name it.
        """
        for row in self.rows:
            if name in row.layers:
                return row.compute
        raise LookupError(f"the plan has no layer {name}")


def scheduler_hash(config: dict[str, Any]) -> str:
    """SHA-256 of a scheduler's configuration, as a trace holds it in `settings`."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def text_hash(text: str) -> str:
    """Tells a prompt that planning has seen, as `made` holds it, from one that it has not."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_plan(path: Path, plan: Plan, *, force: bool = False) -> None:
    """Write a plan; it appears whole.

    Raises:
        FileExistsError: There is a file, and it shall not be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with published(path, replace=force) as file:
        file.write(to_json(plan).encode() + b"\n")


def to_json(plan: Plan) -> str:
    """The content of the file."""
    return as_text(to_data(plan))


def as_text(data: dict[str, Any]) -> str:
    """JSON, with null for what is not finite."""
    return json.dumps(finite(data), indent=1, allow_nan=False)


def to_data(plan: Plan) -> dict[str, Any]:
    """The same before it is text; what is not finite is null."""
    data = {"format": FORMAT, "version": VERSION, **asdict(plan)}
    data["rows"] = [
        {"name": row.name, "layers": row.layers, "compute": [int(c) for c in row.compute]} for row in plan.rows
    ]
    return data


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both, as for the first sigma of a schedule without signal."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        FileNotFoundError: There is none.
        PlanError: It is not a plan, damaged, or of a newer version.
    """
    return parsed(path, FORMAT, VERSION, from_data)


def parsed(path: Path, name: str, version: int, made: Callable[[dict[str, Any]], Made]) -> Made:
    """What is made of the content of a file, if its format has this name and its version is no newer."""
    data = content(path)
    if data.get("format") != name or type(data.get("version")) is not int:
        raise PlanError(f"{path}: no plan (its format is not {name}); dit-analyze plan TRACE writes one")
    if data["version"] > version:
        raise PlanError(f"{path}: version {data['version']}, this version reads up to {version}; upgrade ditscope")
    try:
        return made(data)
    except PlanError as error:
        raise PlanError(f"{path}: {error}; make it again with dit-analyze plan") from None
    except KeyError as error:
        raise PlanError(f"{path}: damaged, it has no {error}; make it again with dit-analyze plan") from None
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise PlanError(f"{path}: damaged ({error}); make it again with dit-analyze plan") from None


def content(path: Path) -> dict[str, Any]:
    """What a file of JSON holds.

    Raises:
        FileNotFoundError: There is none.
        PlanError: It is too large, not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such plan; dit-analyze plan TRACE writes one")
    if path.stat().st_size > LARGEST:
        raise PlanError(f"{path}: larger than any plan ({path.stat().st_size} bytes)")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{path}: not JSON ({error}); dit-analyze plan TRACE writes plans") from None
    if not isinstance(data, dict):
        raise PlanError(f"{path}: no plan (not an object of JSON); dit-analyze plan TRACE writes one")
    return data


def request_from(data: Any) -> Request:
    """The request that this part of a file's content is."""
    request = dict(_typed(data, dict, "request"))
    if set(request) != {one.name for one in fields(Request)}:
        raise PlanError(f"its request has other fields: {', '.join(sorted(request))}")
    for name, value in request.items():
        request[name] = numbers(value, name) if name in ("timesteps", "sigmas") else _typed(value, OF[name], name)
    for name in request["weights"].values():
        _typed(name, str, "weights")
    return Request(**request)


def from_data(data: dict[str, Any]) -> Plan:
    """The plan that this content of a file is."""
    types = _typed(data["types"], dict, "types")
    return Plan(
        request_from(data["request"]),
        _typed(data["granularity"], str, "granularity"),
        _typed(data["predictor"], str, "predictor"),
        numbers(data["levels"], "levels"),
        tuple(_row(_typed(row, dict, "rows")) for row in _typed(data["rows"], list, "rows")),
        {name: _typed(kind, str, "types") for name, kind in types.items()},
        _typed(data["made"], dict, "made"),
        _typed(data["predicted"], dict, "predicted"),
    )


OF: dict[str, Any] = {
    **dict.fromkeys(("model", "pipeline", "transformer", "scheduler", "scheduler_sha256", "dtype"), str),
    **{"weights": dict, "revision": (str, type(None)), "num_steps": int, "call": dict},
}
"""Types of the fields of a request that are no lists of numbers."""


def _row(row: dict[str, Any]) -> Row:
    layers, compute = (_typed(row[name], list, name) for name in ("layers", "compute"))
    if any(isinstance(one, float) or one not in (0, 1) for one in compute):
        raise PlanError("compute must be 0 or 1 for each step")
    names = tuple(_typed(layer, str, "layers") for layer in layers)
    return Row(_typed(row["name"], str, "name"), names, tuple(map(bool, compute)))


def _typed(value: Any, kind: Any, name: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise PlanError(f"{name} is of another type ({type(value).__name__})")
    return value


def numbers(values: Any, name: str) -> tuple[float, ...]:
    """Numbers by step, NaN where they are null."""
    found = _typed(values, list, name)
    if any(isinstance(one, bool) or not isinstance(one, (int, float, type(None))) for one in found):
        raise PlanError(f"{name} must be numbers")
    return tuple(float("nan") if one is None else float(one) for one in found)

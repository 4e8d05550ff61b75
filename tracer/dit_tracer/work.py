"""Says which generations a run makes: prompts times seeds, and the arguments that prompts bring along."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dit_formats.prompts import Request, read_requests
from dit_formats.schema import Prompt

if TYPE_CHECKING:
    from dit_tracer.models.catalog import Model

SET_BY_OPTIONS = ("prompt", "class_labels", "generator", "num_inference_steps", "output_type", "return_dict", "self")
"""Arguments of pipelines that nobody else may set."""


@dataclass(frozen=True)
class Task:
    """One generation to make: a text, a seed, and arguments of the pipeline that hold for this one."""

    text: str
    seed: int
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """All generations of a run.

    Args:
        shared: Arguments that the prompts came with and that are the same for all; they are settings of the trace.
        varies: Names of those that differ from one prompt to the next.
    """

    tasks: list[Task]
    shared: dict[str, Any] = field(default_factory=dict)
    varies: tuple[str, ...] = ()

    @property
    def prompts(self) -> list[Prompt]:
        return [Prompt(place, task.text, task.seed) for place, task in enumerate(self.tasks)]


def requests_of(model: Model, source: str | None, limit: int | None) -> list[Request]:
    """The prompts that a source holds; without one, as many of the model's own as are asked for.

    Raises:
        LookupError: The model has none.
    """
    if source is not None:
        return read_requests(source)
    if model.captions is None:
        raise LookupError(f"{model.name} has no built-in prompts; give some with -p")
    return [Request(text) for text in model.captions(limit or 16)]


def plan(requests: list[Request], seeds: list[int], limit: int | None = None) -> Work:
    """The first `limit` prompts with each of the seeds, but for a prompt that brings its own.

    What a prompt may change is a text or a picture. Anything else, numbers above all, decides what a trace is made of
    (how many tokens, how much guidance), so it must be given with every prompt, and be equal. This looks at all
    prompts, also those beyond the limit: raising it later goes on with the same trace.

    Raises:
        LookupError: Numbers differ; or one text with one seed comes twice, with other arguments.
    """
    names = sorted({name for request in requests for name in request.arguments} - {"seed"})
    shared = {name: _only([r.arguments.get(name) for r in requests], name) for name in names if _fixed(requests, name)}
    varies = tuple(name for name in names if name not in shared)
    distinct: dict[str, Request] = {}
    for request in requests:
        distinct.setdefault(json.dumps([request.text, request.arguments], sort_keys=True), request)
    tasks: dict[tuple[str, int], Task] = {}
    for request in list(distinct.values())[:limit]:
        for seed in [_seed(request.arguments["seed"])] if "seed" in request.arguments else seeds:
            task = Task(request.text, seed, {name: v for name, v in request.arguments.items() if name in varies})
            if tasks.setdefault((task.text, seed), task) != task:
                raise LookupError(
                    f"{task.text!r} with seed {seed} comes twice, with other arguments; a trace tells prompts apart by "
                    "text and seed, so give one of the lines another seed"
                )
    return Work(list(tasks.values()), shared, varies)


def _fixed(requests: list[Request], name: str) -> bool:
    """Whether this argument must be one for all: anything but texts (and names of pictures), and lists of them."""
    values = [request.arguments[name] for request in requests if name in request.arguments]
    return not all(isinstance(one, str) for value in values for one in (value if isinstance(value, list) else [value]))


def _only(values: list[Any], name: str) -> Any:
    """The one value that all of them are."""
    different = sorted({json.dumps(value) for value in values}, key=lambda text: (len(text), text))
    if len(different) > 1:
        found = " and ".join("none" if text == "null" else text for text in different[:2])
        raise LookupError(
            f"prompts differ in {name} ({found}), which must be one for all prompts of a trace; trace them apart"
        )
    return values[0]


def _seed(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise LookupError(f"a line of prompts gives the seed {value!r}; give a number from 0 to {2**63 - 1}")
    return value

"""Puts another scheduler into a pipeline, after making sure that the two fit: a wrong one would still give pictures."""

from __future__ import annotations

import ast
import copy
import difflib
import inspect
import json
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from dit_tracer.models.catalog import MODELS
from dit_tracer.models.loading import hub_advice, hush

PRESETS: dict[str, dict[str, Any]] = {
    "flux.1-dev": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "base_shift": 0.5,
        "max_shift": 1.15,
    },
    "sd3": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
}
"""Schedulers by the model that they belong to, for use without a network."""

SETTING = re.compile(r"(retrieve|set)_timesteps$")

USUAL = {"model_output", "timestep", "sample"}
"""What pipelines hand to a scheduler's step."""


@dataclass(frozen=True)
class Choice:
    """A scheduler class, and its configuration; None for that of the pipeline's own scheduler."""

    kind: type
    config: dict[str, Any] | None = None


def find(spec: str) -> Choice:
    """The scheduler that is meant: a class of diffusers, a model whose scheduler it is, a JSON file, or a folder or
    repository of a pipeline or scheduler.

    Raises:
        LookupError: There is no such scheduler; the message says what there is.
    """
    path = Path(spec)
    if spec in PRESETS:
        return _configured(spec, PRESETS[spec])
    if path.is_file() or path.suffix == ".json":
        return _configured(spec, _read(path))
    if path.is_dir():
        return _of_folder(path)
    if spec in MODELS or "/" in spec:
        source = MODELS[spec].source if spec in MODELS else spec
        return _of_folder(Path(source)) if Path(source).is_dir() else _configured(spec, _fetch(source))
    return Choice(_class(spec))


def replace(pipeline: Any, spec: str | Choice, steps: int = 8) -> None:
    """Give the pipeline this scheduler; one of another class keeps the configuration of the pipeline's own.

    Raises:
        LookupError: There is no such scheduler, or the pipeline cannot work with it; the pipeline stays as it was.
    """
    choice = find(spec) if isinstance(spec, str) else spec
    own = pipeline.scheduler
    try:
        scheduler = choice.kind.from_config(_carried(own, choice.kind) if choice.config is None else choice.config)
    except Exception as error:  # whatever a configuration of somebody else makes a constructor do
        raise LookupError(f"{choice.kind.__name__}: cannot be made of its configuration: {_brief(error)}") from error
    _check_prediction(pipeline, own, scheduler)
    _check_step(pipeline, scheduler)
    _rehearse(pipeline, scheduler, steps)
    pipeline.register_modules(scheduler=scheduler)


def num_steps(pipeline: Any, steps: int) -> int | None:
    """How many steps the pipeline's scheduler makes of so many that are asked for; None where it cannot be told."""
    scheduler = copy.deepcopy(pipeline.scheduler)
    try:
        scheduler.set_timesteps(**_arguments(type(pipeline), scheduler, steps))
        return len(scheduler.timesteps)
    except Exception:  # a pipeline of its own kind, which gives its scheduler something else
        return None


def count(choice: Choice, steps: int) -> int:
    """How many steps a scheduler makes of so many that are asked for, without a pipeline."""
    try:
        scheduler = choice.kind.from_config(dict(choice.config or {}) | {"use_dynamic_shifting": False})
        scheduler.set_timesteps(num_inference_steps=steps)
        return len(scheduler.timesteps)
    except Exception:  # whatever a configuration of somebody else makes a scheduler do; the run will tell
        return steps


# Which one


def _class(name: str) -> type:
    try:
        kind = getattr(diffusers, name)
    except (AttributeError, RuntimeError):
        kind = None
    if isinstance(kind, type) and "dummy" in kind.__module__:
        raise LookupError(f"the scheduler {name} needs a package that is not installed: {', '.join(kind._backends)}")
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin) and hasattr(kind, "set_timesteps")):
        known = [*PRESETS, *(each for each in dir(diffusers) if each.endswith("Scheduler"))]
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        meant = f"; did you mean {' or '.join(close)}?" if close else ""
        raise LookupError(
            f"unknown scheduler {name!r}: give a class of diffusers, {' or '.join(PRESETS)}, a scheduler_config.json, "
            f"or the folder or repository of a pipeline{meant}"
        )
    return kind


def _configured(where: str, config: Any) -> Choice:
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise LookupError(f"{where}: no configuration of a scheduler (it names no _class_name)")
    return Choice(_class(name), config)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise LookupError(f"{path}: no such file; give a scheduler_config.json")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LookupError(f"{path}: not JSON ({error}); give a scheduler_config.json") from None


def _of_folder(folder: Path) -> Choice:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return _configured(str(path), _read(path))
    raise LookupError(f"{folder}: holds no scheduler/scheduler_config.json; give the folder of a pipeline")


def _fetch(repo: str) -> Any:
    """The scheduler's configuration of a repository; nothing else is downloaded."""
    hush()
    try:
        path = hf_hub_download(repo, "scheduler_config.json", subfolder="scheduler")
    except Exception as error:  # the libraries raise whatever they met
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise LookupError(f"--scheduler {repo}: the repository has no scheduler/scheduler_config.json") from None
        raise LookupError(f"--scheduler {repo}: {hub_advice(error, repo) or _brief(error)}") from error
    return _read(Path(path))


def _carried(own: Any, kind: type) -> dict[str, Any]:
    """The configuration of the pipeline's own scheduler, in the words of the other class.

    Flow-matching samplers and the general ones that can sample flows name the same things differently.
    """
    config, known = dict(own.config), inspect.signature(kind.__init__).parameters
    if _predicts(own) != "flow":
        return config
    shift = config.get("shift", config.get("flow_shift", 1.0))
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift, "shift": shift}
    if "use_flow_sigmas" in known or "flow" in kind.__name__.lower():
        return config | {name: value for name, value in flow.items() if name in known}
    return {name: value for name, value in config.items() if name != "prediction_type"}  # it knows no flows


# Whether it fits


def _predicts(scheduler: Any) -> str | None:
    """What the scheduler takes the model's output for; None where nothing says so.

    A configuration also keeps what its class does not know, if it was made from that of another class.
    """
    known = inspect.signature(type(scheduler).__init__).parameters
    said = scheduler.config.get("prediction_type") if "prediction_type" in known else None
    if said is None:
        return "flow" if "flow" in type(scheduler).__name__.lower() else None
    return "flow" if said == "flow_prediction" and "use_flow_sigmas" in known else said


def _check_prediction(pipeline: Any, own: Any, scheduler: Any) -> None:
    given, taken = _predicts(own), _predicts(scheduler)
    if given != taken and given is not None and taken is not None:
        raise LookupError(
            f"{type(scheduler).__name__}: does not fit {type(pipeline).__name__}, whose model predicts {given}, and "
            f"this scheduler would take that for {taken}; give one that samples {given}"
        )


def _check_step(pipeline: Any, scheduler: Any) -> None:
    """A scheduler that wants more than pipelines usually hand over fits only those that know it by name."""
    name = type(scheduler).__name__
    parameters = inspect.signature(scheduler.step).parameters.values()
    needs = {p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if needs - USUAL and name not in _source(type(pipeline)):
        further = ", ".join(sorted(needs - USUAL))
        raise LookupError(f"{name}: does not fit {type(pipeline).__name__}, which gives its step no {further}")


def _rehearse(pipeline: Any, scheduler: Any, steps: int) -> None:
    """Set timesteps on a copy as the pipeline will do: now, and not after minutes of encoding text."""
    name, caller = type(scheduler).__name__, type(pipeline).__name__
    arguments = _arguments(type(pipeline), scheduler, steps)
    known = inspect.signature(scheduler.set_timesteps).parameters
    unknown = ", ".join(word for word in arguments if word not in known)
    if unknown:
        raise LookupError(f"{name}: does not fit {caller}, which hands it {unknown}, and it takes none")
    try:
        copy.deepcopy(scheduler).set_timesteps(**arguments)
    except Exception as error:  # schedulers check with whatever is at hand, assertions too
        given = ", ".join(arguments)
        raise LookupError(f"{name}: does not fit {caller}, which gives it {given}: {_brief(error)}") from error


def _arguments(kind: type, scheduler: Any, steps: int) -> dict[str, Any]:
    """What a pipeline of this class will set the timesteps of this scheduler by."""
    given, source, config = _handed_over(kind), _source(kind), scheduler.config
    own_sigmas = "sigmas" in given and not (config.get("use_flow_sigmas") and "use_flow_sigmas" in source)
    mu = "mu" in given or (config.get("use_dynamic_shifting") and re.search(r"\bmu\b", source))
    by = {"sigmas": np.linspace(1.0, 1 / steps, steps)} if own_sigmas else {"num_inference_steps": steps}
    return by | ({"mu": 1.0} if mu else {})


@cache
def _source(kind: type) -> str:
    """The code of a pipeline's call, for what no signature says; empty where there is none to read."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(kind.__call__)))
    except (OSError, TypeError):
        return ""


def _handed_over(kind: type) -> set[str]:
    """Which of `sigmas` and `mu` a pipeline hands to its scheduler in every case, not only when it is given them."""
    nodes = list(ast.walk(ast.parse(_source(kind))))
    assigned = [node.targets for node in nodes if isinstance(node, ast.Assign)]
    own_sigmas = any(isinstance(t, ast.Name) and t.id == "sigmas" for targets in assigned for t in targets)
    calls = [node for node in nodes if isinstance(node, ast.Call) and SETTING.search(ast.unparse(node.func))]
    always_mu = bool(calls) and all(any(word.arg == "mu" for word in call.keywords) for call in calls)
    return {name for name, yes in (("sigmas", own_sigmas), ("mu", always_mu)) if yes}


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

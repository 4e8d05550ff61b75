"""Which traces a folder holds, what each was run for, and which figure of the paper it gives (arXiv 2411.13588).

Works from the traces. `study.json`, which `dit-trace study` leaves beside them, says only in which order they come and
what each was run for; it may be missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from dit_formats.errors import ConflictError, TraceError
from dit_formats.reader import Trace, open_trace, shard_paths
from dit_formats.study import NAME, read_study
from numpy.typing import NDArray

from dit_analyzer.measures.paper import LEFT_OUT
from dit_analyzer.printed import CONFIGURED, FLUX, PAPER


@dataclass(frozen=True)
class Member:
    """One trace of a study, in a few records.

    Args:
        name: Of its folder or file, without the ending.
        scheduler: Class and configuration.
        layers: How many of each type.
        seeds: Of the noise, as many as there are.
        parameters: Of the transformers; None where the trace does not say.
        transitions: Which elements exact changes were taken over, `exact` for all.
        role: In what it differs from the first run of its model: `default` (that run), `steps`, `scheduler`, or
            `steps+scheduler`.
        figure: Number in the paper, or `S1`, `S2`, ... in order for what the paper does not show.
    """

    path: Path
    name: str
    model: str
    num_steps: int
    scheduler: tuple[str, str]
    layers: dict[str, int]
    prompts: int
    asked: int
    seeds: int
    parameters: int | None
    has_samples: bool
    transitions: str
    sigmas: NDArray[np.float64] = field(repr=False)
    role: str = "default"
    figure: str = ""

    @property
    def scheduler_name(self) -> str:
        """Class without the word that all of them end in, and how it shifts noise levels if it does."""
        kind, config = self.scheduler
        settings = json.loads(config)
        if settings.get("use_dynamic_shifting"):
            shift = ", dynamic shift"
        else:
            shift = f", shift {settings['shift']:g}" if isinstance(settings.get("shift"), int | float) else ""
        return kind.removesuffix("Scheduler") + shift

    @property
    def has_random_weights(self) -> bool:
        """Whether it is of a twin, a miniature that was not trained."""
        return self.model.startswith("tiny:")

    @property
    def attention_layers(self) -> int:
        """How many layers the paper looks at: those without cross-attention and feed-forward networks."""
        return sum(number for kind, number in self.layers.items() if kind not in LEFT_OUT)

    @property
    def is_of_the_paper(self) -> bool:
        """Whether it is one of the paper's models at its full size: that name, as many layers, as many parameters.

        Whether weights were trained is in no trace.
        """
        layers, parameters = CONFIGURED.get(self.model, (0, 0))
        return layers == self.attention_layers and self.parameters in (None, parameters)

    @property
    def cv_printed(self) -> tuple[float, ...]:
        """CV of K, V and A in percent as the paper's Table 2 has it; empty where it has none for this setting."""
        published = PAPER.get(self.model)
        return published.cv if published and self.figure == str(published.figure) else ()

    @property
    def incomplete(self) -> str:
        """`3 of 8 prompts`, or nothing."""
        return f"{self.prompts} of {self.asked} prompts" if self.prompts < self.asked else ""


def member(path: Path) -> Member:
    """What a trace says of itself; its role is not known yet.

    Raises:
        FileNotFoundError, TraceError: As `open_trace`.
    """
    with open_trace(path) as trace:
        scheduler = trace.run.settings.get("scheduler")
        scheduler = scheduler if isinstance(scheduler, dict) else {}
        return Member(
            path,
            name_of(path),
            str(trace.run.settings.get("model", "")),
            trace.num_steps,
            (str(scheduler.get("class", "")), json.dumps(scheduler.get("config") or {}, sort_keys=True)),
            dict(Counter(layer.type for layer in trace.layers)),
            len(trace.prompts),
            trace.num_asked,
            len({prompt.seed for prompt in trace.prompts}),
            _parameters(trace),
            all(trace.shape(stream, "token")[-1] for stream in trace.streams),
            trace.transitions,
            trace.sigmas,
        )


def _parameters(trace: Trace) -> int | None:
    number = trace.run.provenance.get("parameters")
    return number if isinstance(number, int) and number > 0 else None


def name_of(path: Path) -> str:
    """A trace's name: that of its folder or file, without .trace or .h5."""
    return path.resolve().name.removesuffix(".trace").removesuffix(".h5")


def traces_in(folder: Path) -> list[Path]:
    """The traces that lie in a folder, by name: folders with shards, and packed files.

    Raises:
        FileNotFoundError: There is no such folder.
        TraceError: It holds none, or is a trace itself.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; dit-trace study writes one, or put traces into one")
    if any(_is_shard(path) for path in shard_paths(folder)):
        raise TraceError(f"{folder}: is a trace; name the folder in which it lies, or run dit-analyze figures")
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and shard_paths(path))
    found = sorted([*inside, *shard_paths(folder)])
    if not found:
        raise TraceError(f"{folder}: holds no trace; dit-trace study writes traces into it, dit-trace run one of them")
    return found


def _is_shard(path: Path) -> bool:
    """Whether a file is named as shards are, `000007-1f3a9c2e.h5`."""
    index, _, key = path.stem.partition("-")
    return index.isdigit() and len(index) == 6 and len(key) == 8


def members_of(paths: Sequence[Path], plan: dict[str, str] | None = None) -> list[Member]:
    """The traces with their roles and figures, in the order of the plan; else models in the paper's order, then others.

    Args:
        plan: Role by name of folder or file, as `read_plan` gives it.

    Raises:
        FileNotFoundError, TraceError: As `open_trace`.
        ConflictError: Two traces have one name.
    """
    plan = plan or {}
    found = [member(path) for path in paths]
    names = Counter(one.name for one in found)
    if twice := [str(one.path) for one in found if names[one.name] > 1]:
        raise ConflictError(f"{' and '.join(twice[:2])}: two traces of one name; rename one, or leave it out")
    ranks = {name: rank for rank, name in enumerate(plan)}
    models = list(PAPER)
    guessed = [replace(one, role=plan.get(one.path.name, role)) for one, role in zip(found, _roles(found))]
    whole = {one.model for one in guessed if one.role == "default"}
    own = zip(guessed, _roles(found))  # where the planned first run is not there, as if there were no plan
    guessed = [one if one.model in whole else replace(one, role=role) for one, role in own]
    guessed.sort(
        key=lambda one: (
            ranks.get(one.path.name, len(ranks)),
            models.index(one.model) if one.model in PAPER else len(models),
            one.model,
            one.role != "default",
            "scheduler" in one.role,
            one.num_steps,
            one.name,
        )
    )
    return _numbered(guessed)


def read_plan(folder: Path) -> tuple[dict[str, str], str]:
    """Role of each trace that `study.json` plans, by name of its folder; and what is wrong with the file, if anything.

    A file that is missing or not understood plans nothing.
    """
    try:
        planned = read_study(folder)
    except (OSError, TraceError) as error:
        return {}, f"{folder / NAME}: not understood ({error}); roles are taken from the traces"
    return {run.folder: run.role for run in planned.runs} if planned else {}, ""


def _roles(members: list[Member]) -> list[str]:
    """What each trace was run for, judged by the others of its model."""
    roles = {}
    for model in {one.model for one in members}:
        group = [one for one in members if one.model == model]
        own = _own_scheduler(group)
        steps = _own_steps(group, [one.num_steps for one in group if one.scheduler == own] or [-1])
        for one in group:
            differs = {"steps": one.num_steps != steps and steps > 0, "scheduler": one.scheduler != own}
            roles[id(one)] = "+".join(name for name, yes in differs.items() if yes) or "default"
    return [roles[id(one)] for one in members]


def _own_scheduler(group: list[Member]) -> tuple[str, str] | None:
    """FLUX's shifts noise levels by the size of the picture; another model's is what most of its traces have."""
    if group[0].model == FLUX:
        return next((one.scheduler for one in group if is_dynamic(one)), None)
    return Counter(one.scheduler for one in sorted(group, key=lambda one: one.name)).most_common(1)[0][0]


def _own_steps(group: list[Member], candidates: list[int]) -> int:
    """The paper's number; else what most traces of the model have, and of several such the middle one."""
    published = PAPER.get(group[0].model)
    if published and published.steps in candidates:
        return published.steps
    counts = Counter(one.num_steps for one in group)
    most = max(counts[steps] for steps in candidates)
    common = sorted({steps for steps in candidates if counts[steps] == most})
    return common[len(common) // 2]


def is_dynamic(one: Member) -> bool:
    """Whether the scheduler shifts noise levels by the size of the picture, as FLUX's own does."""
    return bool(json.loads(one.scheduler[1]).get("use_dynamic_shifting"))


def _is_sd3(one: Member) -> bool:
    config = json.loads(one.scheduler[1])
    return one.scheduler[0] == "FlowMatchEulerDiscreteScheduler" and config.get("shift") == 3 and not is_dynamic(one)


def _in_paper(one: Member) -> int | None:
    """Number of the paper's figure that shows this model under this setting."""
    published = PAPER.get(one.model)
    if published is None:
        return None
    if one.model != FLUX:
        return published.figure if one.role == "default" and one.num_steps == published.steps else None
    if is_dynamic(one):
        return {28: 2, 56: 9, 14: 10}.get(one.num_steps)
    return 11 if _is_sd3(one) and one.num_steps == 28 else None


def _numbered(members: list[Member]) -> list[Member]:
    """Each with its figure; of two that give the same one of the paper's, the second gets a number of its own."""
    numbered: list[Member] = []
    for one in members:
        figure = str(_in_paper(one) or "")
        if not figure or figure in {other.figure for other in numbered}:
            figure = f"S{1 + sum(other.figure.startswith('S') for other in numbered)}"
        numbered.append(replace(one, figure=figure))
    return numbered

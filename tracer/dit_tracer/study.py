"""Reads studies: small TOML files that say which models to run, over which steps, schedulers and seeds. Knows no torch.

Of every list of steps and of schedulers the first is the model's default run; the others change one thing at a time,
or with `product = true` everything with everything.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dit_formats.study import StudyRun

from dit_tracer.models.catalog import Model, find
from dit_tracer.work import SET_BY_OPTIONS

STUDIES = Path(__file__).parent / "studies"
OWN = "own"
"""Instead of a scheduler: the model's own."""

KINDS = ("k", "v", "q", "a", "o", "f")


class StudyError(ValueError):
    """A study that cannot be read as one; the message names file and key."""

    exit_code = 2


@dataclass(frozen=True)
class Settings:
    """What a study says of a model, in the words of the options of `dit-trace run`; None for the model's own.

    Args:
        prompts: How many.
        stack: Whether to record what enters and leaves the blocks as a whole.
        threads: Of torch on a CPU; None for its default.
    """

    prompts: int = 16
    steps: tuple[int, ...] | None = None
    schedulers: tuple[str, ...] = (OWN,)
    product: bool = False
    seeds: tuple[int, ...] = (42,)
    guidance_scale: float | None = None
    pipeline_kwargs: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    revision: str | None = None
    dtype: str | None = None
    kinds: tuple[str, ...] | None = None
    attention: tuple[str, ...] = ()
    stack: bool = True
    boundary: tuple[str, ...] = ()
    halves: bool = False
    step_pairs: tuple[tuple[int, int], ...] | None = ()
    sample: int | None = None
    stats_only: bool = False
    pilot: bool = False
    time: bool = False
    threads: int | None = None


@dataclass(frozen=True)
class Definition:
    """A study as its file says it.

    Args:
        path: Its file; names of further files in it are taken from its folder.
        prompts_file: Where the prompts are; None for those built in.
        models: What is said of each, by the name that the file gives it.
    """

    name: str
    title: str
    path: Path
    prompts_file: str | None
    models: dict[str, Settings]

    def beside(self, name: str) -> str:
        """The file of this name beside the study's; the name as it stands where there is none."""
        path = self.path.parent / name
        return str(path) if path.is_file() else name


@dataclass(frozen=True)
class Planned:
    """A run of a study: what `study.json` will say of it, and all that was asked for it.

    Args:
        scheduler: Where its scheduler is described; None for the model's own.
    """

    run: StudyRun
    model: Model
    settings: Settings
    scheduler: str | None

    @property
    def told(self) -> str:
        """`digits-flux, 14 steps`, with another scheduler if there is one."""
        other = f", scheduler {self.run.scheduler}" if self.run.scheduler else ""
        return f"{self.run.model}, {self.run.steps} steps{other}"


def embedded() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in STUDIES.glob("*.toml"))


def read_study(name: str) -> Definition:
    """The study of this name, or of the file at this path.

    Raises:
        FileNotFoundError: There is neither.
        StudyError: The file is no study.
    """
    path = STUDIES / f"{name}.toml" if name in embedded() else Path(name)
    if not path.is_file():
        known = " or ".join(embedded())
        raise FileNotFoundError(f"{name}: no such study; give {known}, or a TOML file that describes one")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{path}: not TOML ({error})") from None
    return _Reader(path).study(data)


def expand(study: Definition, chosen: list[str] | None = None, limit: int | None = None) -> list[Planned]:
    """The runs of a study, model after model, each beginning with its default.

    Args:
        chosen: Models to run; None for all.
        limit: At most so many prompts in each run.

    Raises:
        LookupError: The study has no such model.
    """
    for name in chosen or ():
        if name not in study.models:
            raise LookupError(f"--models {name}: not in the study {study.name}; it has {', '.join(study.models)}")
    runs = [
        planned
        for name, settings in study.models.items()
        if chosen is None or name in chosen
        for planned in _runs(study, find(name), replace(settings, prompts=min(settings.prompts, limit or 10**9)))
    ]
    places: dict[str, Planned] = {}
    for planned in runs:
        other = places.setdefault(planned.run.folder, planned)
        if other is not planned:
            raise StudyError(
                f"{study.path}: models: {other.told} and {planned.told} would both be {planned.run.folder}"
            )
    return runs


def as_settings(study: Definition, prompts: list[Any] | None) -> dict[str, Any]:
    """All that makes it this study and no other, but for numbers of prompts.

    Args:
        prompts: What the file of prompts holds; it may lie elsewhere the next time.
    """
    models = {name: dict(vars(settings)) for name, settings in study.models.items()}
    for values in models.values():
        for name in ("prompts", "weights", "threads"):  # a copy of the weights is the same model, or its trace refuses
            del values[name]
    texts = json.dumps([vars(prompt) for prompt in prompts or ()], sort_keys=True)
    found = hashlib.sha256(texts.encode()).hexdigest()[:16] if prompts else "built in"
    return json.loads(json.dumps({"models": models, "prompts": found}, default=str))


def _runs(study: Definition, model: Model, settings: Settings) -> list[Planned]:
    """The default, then other steps, then other schedulers, then what a product adds."""
    first, *further = settings.steps or (model.steps,)
    own, *others = settings.schedulers
    runs = [(first, own, "default")]
    runs += [(steps, own, "steps") for steps in further] + [(first, other, "scheduler") for other in others]
    if settings.product:
        runs += [(steps, other, "steps+scheduler") for steps in further for other in others]
    return [_planned(study, model, settings, *run) for run in runs]


def _planned(study: Definition, model: Model, settings: Settings, steps: int, scheduler: str, role: str) -> Planned:
    other = None if scheduler == OWN else scheduler
    name = f"{model.name}-{steps}" + (f"-{Path(other).stem}" if other else "")
    folder = re.sub(r"[^\w.-]+", "-", name) + ".trace"
    shown = Path(other).stem if other and Path(other).suffix == ".json" else other
    run = StudyRun(model.name, steps, shown, settings.seeds, settings.prompts, folder, role)
    return Planned(run, model, settings, other and study.beside(other))


class _Reader:
    """Reads what a file says, strictly; errors name the file and the key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        texts, numbers = (self._some(_is_text, "texts"), self._some(_is_count, "whole numbers from 1"))
        self._of: dict[str, Callable[[str, Any], Any]] = {
            "prompts": self._one(_is_count, "a whole number from 1"),
            "steps": numbers,
            "schedulers": texts,
            "seeds": self._some(lambda x: type(x) is int and 0 <= x < 2**63, "whole numbers from 0"),
            "guidance_scale": self._one(lambda x: type(x) in (int, float), "a number"),
            "pipeline_kwargs": self._one(_is_kwargs, f"a table without {', '.join(SET_BY_OPTIONS)}"),
            "weights": self._one(_is_text, "a text"),
            "revision": self._one(_is_text, "a text"),
            "dtype": self._one(lambda x: x in ("float32", "float16", "bfloat16"), "float32, float16 or bfloat16"),
            "kinds": self._some(lambda x: x in KINDS, f"some of {', '.join(KINDS)}"),
            "attention": texts,
            "threads": self._one(_is_count, "a whole number from 1"),
            "boundary": texts,
            "step_pairs": self._pairs,
            "sample": self._one(lambda x: x == 0 or _is_count(x), "a whole number"),
            **{
                name: self._one(lambda x: type(x) is bool, "true or false")
                for name in ("product", "stack", "halves", "stats_only", "pilot", "time")
            },
        }

    def study(self, data: dict[str, Any]) -> Definition:
        own = {"name", "title", "models", "prompts_file", "override"}
        self._known(data, own | set(self._of))
        models = self._some(_is_text, "names of models")("models", data.get("models"))
        for name in models:
            try:
                find(name)
            except LookupError as error:
                raise self._wrong("models", error.args[0]) from None
        override = self._one(_is_table, "tables, one a model")("override", data.get("override", {}))
        for name in override:
            if name not in models:
                raise self._wrong(f'override."{name}"', f"not among the models, which are {', '.join(models)}")
        common = {key: value for key, value in data.items() if key not in own}
        source, text = data.get("prompts_file"), self._one(_is_text, "a text")
        return Definition(
            text("name", data.get("name", self._path.stem)),
            text("title", data.get("title", self._path.stem)),
            self._path,
            None if source is None else text("prompts_file", source),
            {name: self._settings(common, override.get(name, {}), f'override."{name}".') for name in models},
        )

    def _settings(self, common: dict[str, Any], override: Any, where: str) -> Settings:
        if not _is_table(override):
            raise self._wrong(where[:-1], "give a table")
        self._known(override, self._of, where)
        values = {key: self._of[key](key, value) for key, value in common.items()}
        values |= {key: self._of[key](where + key, value) for key, value in override.items()}
        if values.get("stats_only") and (values.get("sample") or values.get("pilot")):
            raise self._wrong("stats_only", "no values are kept, and sample or pilot asks for some; give one of them")
        return Settings(**values)

    def _known(self, table: dict[str, Any], known: Any, where: str = "") -> None:
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                meant = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(sorted(known))}"
                raise self._wrong(where + key, f"unknown{meant}")

    def _one(self, fits: Callable[[Any], bool], told: str) -> Callable[[str, Any], Any]:
        def read(key: str, value: Any) -> Any:
            if not fits(value):
                raise self._wrong(key, f"{_brief(value)}; give {told}")
            return value

        return read

    def _some(self, fits: Callable[[Any], bool], told: str) -> Callable[[str, Any], tuple[Any, ...]]:
        """A list of at least one, each once."""

        def read(key: str, value: Any) -> tuple[Any, ...]:
            if not isinstance(value, list) or not value or not all(fits(one) for one in value):
                raise self._wrong(key, f"{'missing' if value is None else _brief(value)}; give a list of {told}")
            if len(set(value)) < len(value):
                raise self._wrong(key, f"{_brief(value)}; give each once")
            return tuple(value)

        return read

    def _pairs(self, key: str, value: Any) -> tuple[tuple[int, int], ...] | None:
        if value == "all":
            return None
        told = 'give pairs of steps, earlier first, as [[0, 10], [5, 25]], or "all"'
        if not isinstance(value, list) or not all(_is_pair(one) for one in value):
            raise self._wrong(key, f"{_brief(value)}; {told}")
        return tuple(sorted({tuple(one) for one in value}))

    def _wrong(self, key: str, what: str) -> StudyError:
        return StudyError(f"{self._path}: {key}: {what}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 10**9


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and [type(x) for x in value] == [int, int] and 0 <= value[0] < value[1]


def _is_kwargs(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys() & set(SET_BY_OPTIONS)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""The file `study.json`: which traces a folder is planned to hold, and in what they differ; it appears whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dit_formats.alone import alone
from dit_formats.errors import ConflictError, TraceError
from dit_formats.publish import published
from dit_formats.schema import differences

NAME = "study.json"
LOCK = ".study.lock"
FORMAT, VERSION = "dit-study", 1


@dataclass(frozen=True)
class StudyRun:
    """One trace of a study.

    Args:
        scheduler: What takes the place of the model's own; None for its own.
        seeds: Of the noise; every prompt is traced with each.
        prompts: How many are asked for.
        folder: Name of the trace, beside the file.
        role: In what it differs from the model's first run: `default` (that run itself), `steps`, `scheduler`, or
            `steps+scheduler`.
    """

    model: str
    steps: int
    scheduler: str | None
    seeds: tuple[int, ...]
    prompts: int
    folder: str
    role: str


@dataclass(frozen=True)
class Study:
    """What a folder is planned to hold.

    Args:
        settings: All that the study was asked to be, but for numbers of prompts; equal as long as it is the same study.
    """

    name: str
    title: str
    runs: tuple[StudyRun, ...]
    settings: dict[str, Any] = field(default_factory=dict)


def read_study(folder: Path) -> Study | None:
    """The study planned in a folder; None where there is no such file.

    Raises:
        TraceError: The file is not what its name says, or of a newer version.
    """
    path = folder / NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise TraceError(f"{path}: not JSON ({error}); remove it, and run dit-trace study again") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("version"), int):
        raise TraceError(f"{path}: no plan of a study (its format is not {FORMAT}); give another folder")
    if data["version"] > VERSION:
        raise TraceError(f"{path}: version {data['version']}, this version reads up to {VERSION}; upgrade ditscope")
    try:
        return _study(data)
    except (KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{path}: damaged ({error}); remove it, and run dit-trace study again") from None


def write_study(folder: Path, study: Study) -> None:
    """Plan a study in a folder. What was planned there before is kept: runs are added, and prompts grow in number.

    Several processes may do so at once; each adds its own.

    Raises:
        ConflictError: Another study is planned there; the message names what differs.
    """
    if read_study(folder) == joined(folder, study):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / LOCK):
        while (before := read_study(folder)) != (now := joined(folder, study)):
            data = {"format": FORMAT, "version": VERSION, **asdict(now)}
            try:
                with published(folder / NAME, replace=before is not None) as file:
                    file.write(json.dumps(data, indent=1).encode() + b"\n")
            except FileExistsError:
                continue  # no locks here, and another process was faster: join what it wrote


def joined(folder: Path, study: Study) -> Study:
    """What the folder's plan will be when `write_study` adds this one.

    Raises:
        ConflictError: Another study is planned there; the message names what differs.
    """
    if (before := read_study(folder)) is None:
        return study
    told = [line.replace(" in the trace", " there") for line in differences(_compared(before), _compared(study))]
    if told:
        raise ConflictError(f"{folder}: holds another study ({'; '.join(told[:5])}); give another folder with -o")
    runs = {run.folder: run for run in before.runs}
    for run in study.runs:
        most = max(run.prompts, runs[run.folder].prompts if run.folder in runs else 0)
        runs[run.folder] = StudyRun(**vars(run) | {"prompts": most})
    return Study(study.name, study.title, tuple(runs.values()), study.settings)


def _compared(study: Study) -> dict[str, Any]:
    """The title is no part of it."""
    return {"name": study.name, **json.loads(json.dumps(study.settings))}


def _study(data: dict[str, Any]) -> Study:
    words, settings = (data["name"], data["title"]), data["settings"]
    if not all(isinstance(word, str) for word in words) or not isinstance(settings, dict):
        raise TypeError("name, title or settings are of another type")
    return Study(*words, tuple(_run(values) for values in data["runs"]), settings)


def _run(values: dict[str, Any]) -> StudyRun:
    values = {each.name: values[each.name] for each in fields(StudyRun)} | {"seeds": tuple(values["seeds"])}
    texts = [values[name] for name in ("model", "folder", "role")]
    numbers = [values["steps"], values["prompts"], *values["seeds"]]
    if not all(isinstance(text, str) for text in (*texts, values["scheduler"] or "")):
        raise TypeError("model, scheduler, folder or role of a run is no text")
    if not all(type(number) is int for number in numbers):
        raise TypeError("steps, prompts or seeds of a run are no whole numbers")
    if Path(values["folder"]).name != values["folder"]:
        raise ValueError(f"the trace {values['folder']!r} is not beside it")
    return StudyRun(**values)

"""Reads prompts: a text, or a file of them (.txt, .csv, COCO captions .json, .jsonl with arguments for each)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_formats.errors import PromptError

READERS: dict[str, Callable[[Path], list[Request]]]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Request:
    """One prompt, and the arguments that its line gives beside it.

    Args:
        arguments: Plain values by name; a picture is the path of its file, which exists.
    """

    text: str
    arguments: dict[str, Any] = field(default_factory=dict)


def read_prompts(source: str) -> list[str]:
    """The texts of `read_requests`."""
    return [request.text for request in read_requests(source)]


def read_requests(source: str) -> list[Request]:
    """The prompts that `source` means: those of a file, or itself.

    Raises:
        FileNotFoundError: It ends like a file of prompts, and there is none; or a picture that it names is missing.
        PromptError: The file holds no prompts, or is not what its ending says.
    """
    path = Path(source)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        if not source.strip():
            raise PromptError("the prompt is empty; give a text or a file (.txt, .csv, .jsonl, .json)")
        if re.fullmatch(r"\S+\.\w{1,5}", source) and not _is_there(path):
            raise FileNotFoundError(f"{path}: no such prompt file; give an existing file, or the text of a prompt")
        if _is_there(path):
            raise PromptError(
                f"{path}: not a file of prompts; give a {', '.join(READERS)} file, or the text of a prompt"
            )
        return [Request(source)]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file; give an existing file, or the text of a prompt")
    try:
        requests = [request for request in reader(path) if request.text]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        what = f"{path}: not a {path.suffix} file of prompts ({error})"
        raise PromptError(f"{what}; a .txt with one prompt a line always works") from error
    if not requests:
        raise PromptError(f"{path}: holds no prompts; write one a line")
    return requests


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").split("\n")


def _txt(path: Path) -> list[Request]:
    return [Request(line.strip()) for line in _lines(path)]


def _csv(path: Path) -> list[Request]:
    """The column `prompt` or `caption`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        column = next((name for name in rows.fieldnames or [] if name.lower() in ("prompt", "caption")), None)
        if column is None:
            raise ValueError("no column named prompt")
        return [Request((row[column] or "").strip()) for row in rows]


def _jsonl(path: Path) -> list[Request]:
    """A string, or an object with `prompt` and further arguments, on each line."""
    requests = []
    for number, line in enumerate(_lines(path), 1):
        value = json.loads(line) if line.strip() else ""
        further = dict(value) if isinstance(value, dict) else {}
        text = further.pop("prompt", None) if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(f"line {number} is no string and has no prompt")
        further = {name: _located(value, path, number) for name, value in further.items()}
        requests.append(Request(text.strip(), further))
    return requests


def _located(value: Any, path: Path, number: int) -> Any:
    """The value; a picture's name is taken from the folder of the list, as whoever moves the two together expects."""
    if not isinstance(value, str) or Path(value).suffix.lower() not in PICTURES or re.search(r"\s", value.strip()):
        return value
    picture = path.parent / value
    if not _is_there(picture):
        raise FileNotFoundError(f"{path}: line {number}: {value}: no such picture in {path.parent}")
    return str(picture)


def _coco(path: Path) -> list[Request]:
    """The first caption of each image, in the order of the images."""
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(data, dict) or not {"images", "annotations"} <= set(data):
        raise ValueError("no COCO captions: images or annotations missing")
    first: dict[int, str] = {}
    for annotation in sorted(data["annotations"], key=lambda a: a["id"]):
        first.setdefault(annotation["image_id"], annotation["caption"])
    return [Request(first[image["id"]].strip()) for image in data["images"] if image["id"] in first]


def _is_there(path: Path) -> bool:
    """Whether this names a file or folder; a long prompt is no name at all."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


READERS = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".json": _coco}

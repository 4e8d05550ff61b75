"""Reads prompts: a text, or a file of them (.txt, .csv, .jsonl, COCO captions .json)."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

from dit_formats.errors import PromptError

READERS: dict[str, Callable[[Path], list[str]]]


def read_prompts(source: str) -> list[str]:
    """The prompts that `source` means: those of a file, or itself.

    Raises:
        FileNotFoundError: It ends like a file of prompts, and there is none.
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
        return [source]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such prompt file; give an existing file, or the text of a prompt")
    try:
        prompts = [text for text in map(str.strip, reader(path)) if text]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        what = f"{path}: not a {path.suffix} file of prompts ({error})"
        raise PromptError(f"{what}; a .txt with one prompt a line always works") from error
    if not prompts:
        raise PromptError(f"{path}: holds no prompts; write one a line")
    return prompts


def _txt(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").split("\n")


def _csv(path: Path) -> list[str]:
    """The column `prompt` or `caption`."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        column = next((name for name in rows.fieldnames or [] if name.lower() in ("prompt", "caption")), None)
        if column is None:
            raise ValueError("no column named prompt")
        return [row[column] or "" for row in rows]


def _jsonl(path: Path) -> list[str]:
    """A string, or an object with `prompt`, on each line."""
    prompts = []
    for number, line in enumerate(_txt(path), 1):
        value = json.loads(line) if line.strip() else ""
        text = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(f"line {number} is no string and has no prompt")
        prompts.append(text)
    return prompts


def _coco(path: Path) -> list[str]:
    """The first caption of each image, in the order of the images."""
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(data, dict) or not {"images", "annotations"} <= set(data):
        raise ValueError("no COCO captions: images or annotations missing")
    first: dict[int, str] = {}
    for annotation in sorted(data["annotations"], key=lambda a: a["id"]):
        first.setdefault(annotation["image_id"], annotation["caption"])
    return [first[image["id"]] for image in data["images"] if image["id"] in first]


def _is_there(path: Path) -> bool:
    """Whether this names a file or folder; a long prompt is no name at all."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


READERS = {".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".json": _coco}

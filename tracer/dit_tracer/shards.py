"""Says which prompts a folder holds by now, from the names in it; cheap enough to ask again and again."""

from __future__ import annotations

import os
from pathlib import Path

from dit_formats.access import ShardFile
from dit_formats.schema import Prompt


class Shards:
    """The shards of a folder, and the notes of prompts that failed, as of the last `look`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sizes: dict[str, int] = {}
        """Bytes by name; shards never change."""
        self._of: dict[str, list[str]] = {}
        self._notes: dict[str, int] = {}
        self._failed: set[str] = set()
        self.look()
        self._failed.clear()

    def look(self) -> None:
        try:
            entries = list(os.scandir(self._folder))
        except FileNotFoundError:
            entries = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.endswith(".h5") and entry.name not in self.sizes:
                self.sizes[entry.name] = _stat(entry)[0]
                self._of.setdefault(hash_of(entry.name), []).append(entry.name)
            elif entry.name.endswith(".failed"):
                self._note(entry)

    def hold(self, prompt: Prompt) -> bool:
        """Whether the prompt is there, under whatever index."""
        names = self._of.get(hash_of(prompt.stem), [])
        return f"{prompt.stem}.h5" in names or any(self._is(name, prompt) for name in names)

    def count(self, prompts: set[str]) -> int:
        """How many of these are there, each given by the hash in its name."""
        return len(prompts & self._of.keys())

    def failed(self, prompt: Prompt) -> bool:
        """Whether the prompt failed since this object was made, in any process."""
        return f"{prompt.stem}.failed" in self._failed

    @property
    def any(self) -> Path | None:
        """One of the shards, if there is one."""
        return next((self._folder / name for name in self.sizes), None)

    def _note(self, entry: os.DirEntry[str]) -> None:
        changed = _stat(entry)[1]
        if self._notes.get(entry.name) != changed:
            self._notes[entry.name] = changed
            self._failed.add(entry.name)

    def _is(self, name: str, prompt: Prompt) -> bool:
        """Two prompts may have one hash, though hardly ever."""
        return any(held.key == prompt.key for held in ShardFile(self._folder / name).prompts)


def hash_of(name: str) -> str:
    """What tells prompts apart in the name of a shard, whatever their index."""
    return name.partition(".")[0].rpartition("-")[2]


def _stat(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        found = entry.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_size, found.st_mtime_ns

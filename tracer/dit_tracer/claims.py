"""Tells processes that write into one folder which prompts the others are at, so that none is traced twice.

A claim is a lock on one byte of an empty hidden file, which is there while they run; the system drops it when the
process ends, however it ends. Claims save work and are no more than advice: where a file system has no locks,
everything is claimed with success, and what makes a trace right is that a shard appears only under a name that is free.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dit_formats.schema import Prompt

from dit_tracer.shards import hash_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".claims"
LEFT = 3600.0
"""Seconds after which a hidden file is no longer one that somebody is about to give its name; writing takes a few."""

_FIRST = 1 << 40
_HERE = _FIRST + 1
"""Bytes with a meaning of their own, beyond those of prompts."""


class Claims:
    """The claims of this process on prompts of the trace at `folder`, kept while the `with` block runs.

    Folders that were made for it go again if nothing came of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / NAME
        self._file: int | None = None
        self._made: list[Path] = []

    def __enter__(self) -> Claims:
        self._made = [one for one in (self._folder, *self._folder.parents) if not one.exists()]
        self._folder.mkdir(parents=True, exist_ok=True)
        while fcntl and not self._open():
            time.sleep(0.02)
            self._folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(self._folder)
        return self

    def __exit__(self, *error: object) -> None:
        """The last one out removes the file."""
        if self.alone():
            self._path.unlink(missing_ok=True)
        self._close()
        with suppress(OSError):  # something is in them
            for folder in self._made:
                folder.rmdir()

    def alone(self) -> bool:
        """Whether no other process is between entering and leaving, and none will be before this one leaves."""
        return self._file is not None and self._lock("LOCK_EX", _HERE) and self._file is not None

    def take(self, prompt: Prompt) -> bool:
        """Claim a prompt, whatever its index; False while another process has it."""
        return self._lock("LOCK_EX", _byte(prompt))

    def give_back(self, prompt: Prompt) -> None:
        self._unlock(_byte(prompt))

    @contextmanager
    def first(self) -> Iterator[None]:
        """Between the look that finds no shard and the first shard, no other process does the same."""
        while not self._lock("LOCK_EX", _FIRST):
            time.sleep(0.05)
        try:
            yield
        finally:
            self._unlock(_FIRST)

    def wait_for_others(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Until no other process is between entering and leaving, but for those that wait too, or it was `enough`."""
        self._unlock(_HERE)
        while not self._lock("LOCK_EX", _HERE) and not enough():
            time.sleep(0.2)

    def _open(self) -> bool:
        """False if the file is just being removed, or its folder."""
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            return False  # the folder is just being removed
        except OSError:
            return True  # somebody else's, or a disk that is full, which the first shard will tell
        if self._lock("LOCK_SH", _HERE) and (self._file is None or _is_at(self._file, self._path)):
            return True
        self._close()
        return False

    def _lock(self, how: str, byte: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.lockf(self._file, getattr(fcntl, how) | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # this file system has no locks
            self._close()
            self._path.unlink(missing_ok=True)
        return True

    def _unlock(self, byte: int) -> None:
        if self._file is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, byte)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _byte(prompt: Prompt) -> int:
    return int(hash_of(prompt.stem), 16)


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left half-written, by the clock of the file system."""
    try:
        os.utime(folder / NAME)
        now = (folder / NAME).stat().st_mtime
    except OSError:
        now = time.time()
    for path in folder.glob(".*.partial"):
        try:
            if now - path.stat().st_mtime > LEFT:
                path.unlink()
        except OSError:
            pass  # another process removed it, or it is somebody else's

"""Makes files appear whole: written under a hidden name, synced, then linked to their own."""

from __future__ import annotations

import glob
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from threading import get_ident


@contextmanager
def published(path: Path, *, replace: bool = False) -> Iterator[BufferedRandom]:
    """A file to write. It has its name, complete and on disk, when the block ends; after an error nothing is left.

    Raises:
        FileExistsError: There is a file of that name, and it shall not be replaced.
        OSError: The disk is full or read-only.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{get_ident()}.partial")  # two threads may write one file
    try:
        with open(partial, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        (os.replace if replace else os.link)(partial, path)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # a read-only disk, which holds no such file
            partial.unlink()
    _sync_folder(path.parent)


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left of this file; what is younger than an hour may be at work still."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > 3600:
                partial.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

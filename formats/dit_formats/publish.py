"""Makes files appear whole: written under a hidden name, synced, then linked to their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path


@contextmanager
def published(path: Path, *, replace: bool = False) -> Iterator[BufferedRandom]:
    """A file to write. It has its name, complete and on disk, when the block ends; after an error nothing is left.

    Raises:
        FileExistsError: There is a file of that name, and it shall not be replaced.
        OSError: The disk is full or read-only.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

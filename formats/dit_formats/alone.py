"""Lets one process after the other change a folder.

The lock is on an empty hidden file, which the last one out removes; the system drops it when its holder ends, however
that ends. Where a file system has no locks, nobody waits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """No other thread or process is in such a block with the same `path`, which is the name of the hidden file."""
    file = _locked(path) if fcntl else None
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # before the lock goes: who has it then sees that its file is no longer there
                path.unlink()
            os.close(file)


def _locked(path: Path) -> int | None:
    """The file, open and locked; None where that cannot be, which writing beside it will tell."""
    while True:
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # this file system has no locks
            os.close(file)
            path.unlink(missing_ok=True)
            return None
        if _is_at(file, path):
            return file
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """False if whoever had the lock before has removed the file."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False

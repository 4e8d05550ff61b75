"""A file on disk for HDF5 to write, which tells of a full disk without harm."""

from __future__ import annotations

import os
from io import RawIOBase
from typing import Any


class Disk:
    """HDF5's library crashes the process after a write that failed. So from then on it writes into memory instead.

    Whoever writes through it looks at `error` now and then, stops, and raises it when HDF5 has closed the file.
    """

    def __init__(self, file: RawIOBase) -> None:
        self.error: OSError | None = None
        self._file = file
        self._lost: list[tuple[int, bytes]] = []
        self._at = self._end = 0

    def raise_error(self) -> None:
        if self.error:
            raise self.error

    # What HDF5 asks of a file --------------------------------------------------

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        content = bytearray(size)
        self.readinto(content)
        return bytes(content)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._file.seek(self._at)
        done = 0
        while done < len(view) and (count := self._file.readinto(view[done:])):
            done += count
        view[done:] = bytes(len(view) - done)
        for start, content in self._lost:
            first, last = max(start, self._at), min(start + len(content), self._at + len(view))
            if first < last:
                view[first - self._at : last - self._at] = content[first - start : last - start]
        self._at += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        content = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._write(content)
            except OSError as error:
                self.error = error
        if self.error is not None:
            self._lost.append((self._at, bytes(content)))
        self._at += len(content)
        self._end = max(self._end, self._at)
        return len(content)

    def truncate(self, size: int) -> int:
        self._end = size
        if self.error is None:
            try:
                self._file.truncate(size)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing is held back."""

    def _write(self, content: memoryview) -> None:
        self._file.seek(self._at)
        while content:
            content = content[self._file.write(content) :]

"""Writes finished prompts in the background, so that the next one can be generated meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from dit_formats.errors import PresentError

LIMIT = 256 << 20
"""Bytes of finished prompts that may wait on the host."""


class Background:
    """Runs jobs one after the other in a thread of its own.

    Whoever would make more than `LIMIT` bytes wait, waits: a disk that is too slow slows the generation down, and fills
    no memory. An error of a job is raised at the next `submit`, `flush` or `close`; jobs that wait by then are dropped.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.beaten = 0
        """Prompts that another process had written meanwhile."""
        self._limit = limit
        self._waiting = 0
        self._room = threading.Condition()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], int] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], None], nbytes: int) -> None:
        """Run `job`, which holds on to `nbytes`, when those before are done."""
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="dit-trace writer")
            self._thread.start()
        with self._room:
            self._room.wait_for(lambda: not self._waiting or self._waiting + nbytes <= self._limit)
            self._waiting += nbytes
        self._jobs.put((job, nbytes))

    def flush(self) -> None:
        """Wait until everything is written."""
        with self._room:
            self._room.wait_for(lambda: not self._waiting)
        self._raise()

    def close(self) -> None:
        """Finish everything, and the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, nbytes = item
            try:
                if self._error is None:
                    job()
            except PresentError:
                self.beaten += 1
            except BaseException as error:  # told to the one who waits for it
                self._error = error
            finally:
                del job, item
                with self._room:
                    self._waiting -= nbytes
                    self._room.notify_all()

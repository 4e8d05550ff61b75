"""Writes finished prompts in the background, so that the next one can be generated meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from dit_formats.errors import PresentError

Job = Callable[[], None]


class WritingError(OSError):
    """A prompt that could not be written, for a reason other than the disk; it is not the fault of the next one."""


class Background:
    """Runs jobs one after the other in a thread of its own.

    Whoever hands in a job while another runs, waits: a disk that is too slow slows the generation down and fills no
    memory, and a process that is killed loses one finished prompt at most. An error of a job is raised at the next
    `submit`, `flush` or `close`.
    """

    def __init__(self) -> None:
        self.beaten = 0
        """Prompts that another process had written meanwhile."""
        self._idle = threading.Event()
        self._idle.set()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None

    def submit(self, job: Job) -> None:
        """Run `job` when the one before is done."""
        self.flush()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="dit-trace writer")
            self._thread.start()
        self._idle.clear()
        self._jobs.put(job)

    def flush(self) -> None:
        """Wait until everything is written."""
        self._idle.wait()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Finish everything, and the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self.flush()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except PresentError:
                self.beaten += 1
            except OSError as error:  # told to the one who waits for it
                self._error = error
            except BaseException as error:
                self._error = WritingError(f"a finished prompt could not be written ({error})")
                self._error.__cause__ = error
            finally:
                del job  # and what it holds on to
                self._idle.set()

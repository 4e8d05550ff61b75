"""Processes of our own that answer one question about many parts.

They are started as commands, not forked or spawned: that works from a script without `if __name__ == "__main__"`, a
notebook or a test, whatever threads run there, and a worker never runs the caller's script again. One that loses its
caller ends.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from queue import SimpleQueue
from typing import Any

MOST = 8
"""Workers at most: so many read as fast as disks give, and stay within a gigabyte."""

_START = "import sys; sys.path[:] = {path!r}; from dit_analyzer.workers import serve; serve()"


class WorkerError(RuntimeError):
    """A worker ended before it answered."""

    exit_code = 1


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def by_processes(
    function: Callable[[Any, Any], Any], common: Any, parts: Sequence[Any], count: int
) -> Iterator[tuple[int, Any]]:
    """Place and `function(common, part)` of every part, as they come; no more than a few wait."""
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(count))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        idle: SimpleQueue[Worker] = SimpleQueue()
        for _ in range(count):
            idle.put(stack.enter_context(Worker(function, common)))

        def ask(part: Any) -> Any:
            worker = idle.get()
            try:
                return worker.ask(part)
            finally:
                idle.put(worker)

        pending: dict[Future[Any], int] = {}
        for place, part in enumerate(parts):
            pending[threads.submit(ask, part)] = place
            if len(pending) > count:
                yield from _finished(pending)
        while pending:
            yield from _finished(pending)


def _finished(pending: dict[Future[Any], int]) -> Iterator[tuple[int, Any]]:
    for future in wait(pending, return_when=FIRST_COMPLETED).done:  # Ctrl-C comes through here
        yield pending.pop(future), future.result()


class Worker:
    """A process that answers one part after the other; outside its `with` block it is gone."""

    def __init__(self, function: Callable[[Any, Any], Any], common: Any) -> None:
        self._question = pickle.dumps((function, common))

    def __enter__(self) -> Worker:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the caller, who then ends the workers
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            try:
                pipe.close()
            except OSError:  # what was still to be sent has nobody to go to
                pass

    def ask(self, part: Any) -> Any:
        """The answer for a part; what went wrong there is raised here."""
        try:
            self._process.stdin.write(self._question + pickle.dumps(part))
            self._process.stdin.flush()
            self._question = b""
            good, answer = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            what = f"a worker process ended early (exit code {self._process.wait()})"
            raise WorkerError(f"{what}; is there enough memory? Run the same command again") from error
        if not good:
            raise answer
        return answer


def serve() -> None:
    """Answer on stdout what comes on stdin, until nothing comes."""
    source, target = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not mix with answers
    function, common = pickle.load(source)
    while True:
        try:
            part = pickle.load(source)
        except EOFError:
            return
        try:
            reply = True, function(common, part)
        except Exception as error:
            reply = False, error
        pickle.dump(reply, target, protocol=pickle.HIGHEST_PROTOCOL)
        target.flush()

"""Lets a run be stopped, by a signal or a limit of time: at once, with everything that is finished kept."""

from __future__ import annotations

import _thread
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
"""What schedulers, launchers and people send to end a run; SLURM's --signal=USR1@60 among them."""

RESUMABLE = 75
PATIENCE = 9.0
"""Seconds from a signal to the end, should the libraries not let go of the process."""

ECHO = 1.0
"""Seconds in which further signals are the same one again: terminals and launchers both send it to every process."""


LIMIT = "the time limit"


class Stopped(BaseException):
    """Raised in the middle of whatever runs; no library takes it for an error to handle."""


class Stopping:
    """Turns signals into `Stopped` while its `with` block runs.

    Args:
        limit: Seconds from now after which to stop.
        farewell: What to say on stderr if the process has to be ended from outside.
        ends: Whether the process ends afterwards. Signals that then still come, while it winds up, change nothing.
    """

    def __init__(self, limit: float | None = None, farewell: str = "", *, ends: bool = False) -> None:
        self.reason: str | None = None
        """Why the run has to end; None as long as it has not."""
        self._limit, self._farewell, self._ends = limit, farewell, ends
        self._began = time.monotonic()
        self._took: deque[float] = deque(maxlen=10)
        self._signalled: float | None = None
        self._raises = True
        self._lost = False
        self._over = threading.Event()

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._listen()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._over.set()
        if threading.current_thread() is threading.main_thread():
            self._unlisten()

    @property
    def signalled(self) -> bool:
        """Whether a signal, and not the limit, is the reason."""
        return self.reason not in (None, LIMIT)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Measures what one prompt takes."""
        began = time.monotonic()
        yield
        self._took.append(time.monotonic() - began)

    def before_next(self) -> bool:
        """Whether to stop before the next prompt: it was said, or the next would not be done in time.

        What the next takes is what the slowest of the last ten took.
        """
        left = None if self._limit is None else self._limit - (time.monotonic() - self._began)
        if self.reason is None and left is not None and left <= max(self._took, default=0.0):
            self.reason = LIMIT
        return self.reason is not None

    def close(self) -> None:
        """From now on nothing is raised; `reason` tells."""
        self._raises = False

    def resume(self) -> None:
        """After `close`, for another run: raise again, unless it is to stop by now; forget what prompts took."""
        self._took.clear()
        self._raises = self.reason is None

    # Signals

    def _listen(self) -> None:
        self._handlers: dict[int, Any] = {}
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):  # as nohup asks for
                self._handlers[number] = signal.signal(number, self._on_signal)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        self._ours, self._woken = socket.socketpair()
        self._ours.setblocking(False)
        self._before = signal.set_wakeup_fd(self._ours.fileno(), warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        if self._limit is not None:
            threading.Thread(target=self._wait_for_limit, args=(self._limit,), daemon=True).start()

    def _unlisten(self) -> None:
        signal.set_wakeup_fd(self._before)
        sys.unraisablehook = self._unraisable
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_IGN if self._ends and self.reason else handler)
        self._ours.close()
        self._watcher.join()
        self._woken.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            self.reason = self.reason or signal.Signals(number).name
        elif now - self._signalled > ECHO and not self._lost:
            _end_now()
        self._lost = False
        if self._raises:
            self._raises = False
            raise Stopped(self.reason)

    def _on_unraisable(self, unraisable: Any) -> None:
        """Python drops what is raised in callbacks of its own, as when an object goes; then raise it again, outside."""
        if unraisable.exc_type is not Stopped:
            return self._unraisable(unraisable)
        self._lost = self._raises = True
        threading.Timer(0.01, self._interrupt).start()

    def _interrupt(self) -> None:
        """As if a signal had come; one of those that are not ignored."""
        for number in self._handlers:
            return _thread.interrupt_main(number)

    def _watch(self) -> None:
        """See signals also while the main thread is in a long call of a library; end the process if it stays there."""
        while not self._over.is_set():
            numbers = self._woken.recv(64)
            if set(numbers) & set(self._handlers):
                break
        if not self._over.wait(PATIENCE):
            _end_now(self._farewell)

    def _wait_for_limit(self, limit: float) -> None:
        if not self._over.wait(max(0.0, limit - (time.monotonic() - self._began))):
            self.reason = self.reason or LIMIT
            self._interrupt()
            if not self._over.wait(PATIENCE):
                _end_now(self._farewell)


def _end_now(farewell: str = "") -> None:
    """End in the middle of whatever runs; what is half-written stays under a hidden name."""
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a bar hides the cursor
    if farewell:
        os.write(2, f"{farewell}\n".encode())
    os._exit(RESUMABLE)


def seconds(text: str) -> float:
    """Seconds that `3h50m`, `45m`, `90s` or `5400` mean.

    Raises:
        ValueError: It is none of them, or no time at all.
    """
    found = re.fullmatch(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?", text.strip())
    if not found or not any(found.groups()):
        raise ValueError(f"{text!r} is no time; write 3h50m, 45m, 90s, or seconds")
    total = sum(float(part or 0) * unit for part, unit in zip(found.groups(), (86400, 3600, 60, 1)))
    if not total:
        raise ValueError(f"{text!r} is no time at all; leave it out for no limit")
    return total

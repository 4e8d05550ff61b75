"""Shows how far a run is, over all processes that write into the folder: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import sys
import threading
import time

from dit_formats.console import harmless, plural
from dit_formats.schema import Prompt

from dit_tracer.shards import Shards, hash_of

LOOK, LINE = 3.0, 60.0
"""Seconds between looks into the folder, and between lines."""


class Progress:
    """Reports on stderr, while its `with` block runs, how many of the prompts the folder holds.

    Args:
        shards: Those of the folder; looked at by this object alone.
    """

    def __init__(self, what: str, shards: Shards, prompts: list[Prompt], quiet: bool) -> None:
        self._what, self._shards = harmless(what), shards
        self._prompts = {hash_of(prompt.stem) for prompt in prompts}
        self._over = threading.Event()
        self._thread = None if quiet else threading.Thread(target=self._report, daemon=True)
        self._began, self._before = time.monotonic(), shards.count(self._prompts)

    def __enter__(self) -> Progress:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()

    def _report(self) -> None:
        if sys.stderr.isatty():
            self._show_bar()
        else:
            self._say_lines()

    def _show_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar

        texts = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[told]}", markup=False)
        console = Console(stderr=True)
        if console.is_dumb_terminal:
            return self._say_lines()
        with Bar(texts[0], BarColumn(), MofNCompleteColumn(), texts[1], console=console, transient=True) as bar:
            task = bar.add_task(self._what, total=len(self._prompts), told="")
            while True:
                self._shards.look()
                bar.update(task, completed=self._done, told=", ".join(self._told()))
                if self._over.wait(LOOK):
                    return

    def _say_lines(self) -> None:
        self._say()
        while not self._over.wait(LINE):
            self._say()
        self._say()  # so that a log ends with how far it came

    def _say(self) -> None:
        self._shards.look()
        done = f"{self._what}: {self._done} of {plural(len(self._prompts), 'prompt')}"
        print(", ".join([done, *self._told()]), file=sys.stderr, flush=True)

    @property
    def _done(self) -> int:
        return self._shards.count(self._prompts)

    def _told(self) -> list[str]:
        """Rate, time left and bytes, as far as they are known."""
        new = self._done - self._before
        passed = time.monotonic() - self._began
        told = []
        if new > 0:
            told.append(rate(new / passed))
            told.append(f"{span((len(self._prompts) - self._done) * passed / new)} left")
        return [*told, size(sum(self._shards.sizes.values()))] if self._done else told


def rate(a_second: float) -> str:
    """`3.2 a minute`, in the unit of time in which it is more than one, if there is one."""
    for unit, seconds in (("a second", 1), ("a minute", 60)):
        if a_second * seconds >= 1:
            return f"{a_second * seconds:.1f} {unit}"
    return f"{a_second * 3600:.1f} an hour"


def span(seconds: float) -> str:
    """`50s`, `12m`, `3h50m`, `2d4h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 99.5:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24}h"


def size(count: float) -> str:
    """`312 kB`, `1.4 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if count >= 99.5 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"

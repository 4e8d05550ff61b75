"""Shows how far a run is: a bar on a terminal, a plain line a minute elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def progress(what: str, quiet: bool) -> Callable[[Sequence[Item]], Iterator[Item]]:
    """A function that passes items on and reports on stderr how many are done."""
    if quiet:
        return iter
    return (lambda items: _bar(what, items)) if sys.stderr.isatty() else (lambda items: _lines(what, items))


def _bar(what: str, items: Sequence[Item]) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield from bar.track(items, description=what)


def _lines(what: str, items: Sequence[Item], every: float = 60.0) -> Iterator[Item]:
    said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said >= every:
            said = time.monotonic()
            print(f"{what} {done} of {len(items)}", file=sys.stderr, flush=True)
        yield item

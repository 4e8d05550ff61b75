"""What is shown while a run goes on, on a terminal and elsewhere."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from dit_formats.schema import Prompt, Shard
from dit_formats.writer import write_shard
from dit_tracer import progress
from dit_tracer.progress import Progress, rate, size, span
from dit_tracer.shards import Shards

PROMPTS = [Prompt(index, f"prompt {index}", 42) for index in range(5)]


def test_lines_count_the_folder_and_carry_no_control_codes(
    trace_folder: Path,
    shard: Callable[..., Shard],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A shard that another process writes counts; one of a prompt that was not asked for does not."""
    monkeypatch.setattr(progress, "LINE", 0.2)
    with Progress("tracing mine", Shards(trace_folder), PROMPTS, quiet=False):
        time.sleep(0.3)
        write_shard(trace_folder, shard(3))
        write_shard(trace_folder, shard(8))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"tracing mine: 3 of 5 prompts, [\d.]+ kB", first)
    assert re.fullmatch(r"tracing mine: 4 of 5 prompts, [\d.]+ a (second|minute), \ds left, [\d.]+ kB", last)


def test_quiet_says_nothing(trace_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("tracing mine", Shards(trace_folder), PROMPTS, quiet=True):
        pass
    assert capsys.readouterr().err == ""


def _all_of(terminal: int) -> str:
    """What was written to a terminal whose other side is closed; one read may give a part of it."""
    parts = []
    with os.fdopen(terminal, "rb", buffering=0) as source, suppress(OSError):  # Linux says EIO at the end
        while part := source.read(1 << 16):
            parts.append(part)
    return b"".join(parts).decode()


@pytest.mark.parametrize("coloured", [True, False])
def test_bar_on_a_terminal(trace_folder: Path, monkeypatch: pytest.MonkeyPatch, coloured: bool) -> None:
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "" if coloured else "1")
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with Progress("tracing mine", Shards(trace_folder), PROMPTS, quiet=False):
            time.sleep(0.5)
    shown = _all_of(ours)
    assert re.search(r"tracing mine .*3/5.* [\d.]+ kB", shown)
    assert bool(re.search(r"\x1b\[\d+m", shown)) == coloured
    assert shown.count("\x1b[?25h") == 1  # the cursor is back


def test_quantities_read_well() -> None:
    assert [rate(2), rate(0.5), rate(1 / 90)] == ["2.0 a second", "30.0 a minute", "40.0 an hour"]
    assert [span(s) for s in (50, 99, 100, 720, 13800, 190800)] == ["50s", "99s", "2m", "12m", "3h50m", "2d5h"]
    assert [size(n) for n in (12, 3456, 312_000, 1_400_000_000)] == ["12 bytes", "3.5 kB", "312 kB", "1.4 GB"]

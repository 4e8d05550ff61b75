"""Habits of all commands."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator

import click
import dit_analyzer.cli
import dit_tracer.cli
import pytest

PROGRAMS = {"dit-trace": dit_tracer.cli.main, "dit-analyze": dit_analyzer.cli.main}
SLOW_TO_LOAD = ("torch", "scipy.stats", "xarray", "matplotlib", "h5py")


def commands() -> Iterator[tuple[str, ...]]:
    for name, program in PROGRAMS.items():
        yield (name,)
        for command in program.commands:
            yield name, command


def run_help(command: tuple[str, ...]) -> tuple[str, list[str], float]:
    """Output of `command --help` in a fresh process, what it loaded, and its CPU seconds."""
    module = "dit_tracer.cli" if command[0] == "dit-trace" else "dit_analyzer.cli"
    code = (
        f"import sys; from {module} import main\n"
        f"main([*{command[1:]!r}, '--help'], prog_name={command[0]!r}, standalone_mode=False)\n"
        f"print([m for m in {SLOW_TO_LOAD!r} if m in sys.modules], file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, ast.literal_eval(done.stderr.strip()), seconds


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_help_starts_at_once_and_ends_with_an_example(command: tuple[str, ...]) -> None:
    runs = [run_help(command) for _ in range(3)]
    text, loaded, _ = runs[0]
    assert loaded == []
    assert min(seconds for *_, seconds in runs) < 0.3
    prose = text.split("Options:")[0].strip()
    assert prose.splitlines()[-1].strip().startswith("Example: dit-")


@pytest.mark.parametrize("command", list(commands()), ids=" ".join)
def test_every_option_is_explained(command: tuple[str, ...]) -> None:
    program: click.Command = PROGRAMS[command[0]]
    if len(command) == 2:
        program = PROGRAMS[command[0]].commands[command[1]]
    options = [p for p in program.params if isinstance(p, click.Option)]
    assert [option.name for option in options if not option.help] == []

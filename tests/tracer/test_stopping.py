"""Stopping by signals and limits, in the process of the tests itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from dit_tracer.stopping import SIGNALS, Stopped, Stopping, seconds


def soon(name: str, after: float = 0.05) -> None:
    threading.Timer(after, os.kill, (os.getpid(), getattr(signal, name))).start()


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_stops_at_once_and_handlers_are_put_back(name: str) -> None:
    before = [signal.getsignal(getattr(signal, each)) for each in SIGNALS], sys.unraisablehook
    with pytest.raises(Stopped, match=name), Stopping() as stopping:
        soon(name)
        time.sleep(5)
    assert stopping.reason == name and stopping.signalled
    assert before == ([signal.getsignal(getattr(signal, each)) for each in SIGNALS], sys.unraisablehook)


def test_what_python_would_drop_is_raised_again() -> None:
    """What is raised while a weak reference dies is only printed."""

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: time.sleep(0.5))
    with pytest.raises(Stopped, match="SIGTERM"), Stopping():
        soon("SIGTERM", 0.1)
        del thing
        for _ in range(500):
            time.sleep(0.01)
    assert reference() is None


def test_signal_that_is_ignored_stays_ignored() -> None:
    """As nohup does it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopping() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopping.reason is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_nothing_is_raised_while_closing() -> None:
    with Stopping() as stopping:
        stopping.close()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.before_next() and stopping.reason == "SIGTERM"


def test_limit_stops_what_runs() -> None:
    with pytest.raises(Stopped, match="the time limit"), Stopping(0.1) as stopping:
        for _ in range(500):
            time.sleep(0.01)
    assert not stopping.signalled


def test_limit_stops_what_runs_also_where_the_usual_signal_is_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(Stopped, match="the time limit"), Stopping(0.1):
            for _ in range(500):
                time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signals_change_nothing_while_a_stopped_process_winds_up() -> None:
    code = """
import os, signal, sys
from dit_tracer.stopping import Stopped, Stopping
try:
    with Stopping(ends=True):
        os.kill(os.getpid(), signal.SIGTERM)
except Stopped:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    sys.exit(75)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 75


def test_nothing_is_begun_that_would_not_be_done_in_time() -> None:
    with Stopping(1000) as stopping:
        assert not stopping.before_next()
        stopping._took.extend([1, 2000, 1])
        assert stopping.before_next() and stopping.reason == "the time limit"
        assert not Stopping().before_next()


END = """
import signal, sys, time
from dit_tracer import stopping
stopping.ECHO, stopping.PATIENCE = 0.2, 1.0
with stopping.Stopping(farewell="go on with the same command"):
    ready = False
    while True:
        try:
            ready = ready or not print("ready", flush=True)
            time.sleep(60)
        except BaseException:
            pass  # a library that does not let go
"""


@pytest.mark.parametrize("again", [True, False])
def test_process_ends_also_where_a_library_holds_on(again: bool) -> None:
    """At once with a second signal, and soon without."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", END], **pipes) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        if again:
            time.sleep(0.4)
            process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert (process.returncode, said) == (75, "" if again else "go on with the same command\n")


@pytest.mark.parametrize(
    ("text", "value"), [("3h50m", 13800), ("90s", 90), ("45m", 2700), ("120", 120), ("1d2h", 93600), ("1m30", 90)]
)
def test_times_as_people_write_them(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "soon", "1h 30m", "-5", "0", "5 minutes", "m5", "1e3", "nan"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 3h50m|no time at all"):
        seconds(text)


def test_help_and_stopping_load_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys, dit_tracer.stopping, dit_tracer.ranks; assert not {'torch', 'h5py', 'numpy'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)

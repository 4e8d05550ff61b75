"""One question about many parts: in processes of this machine and on a Dask cluster, with the same answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dit_analyzer.mapping
import pytest
from click.testing import CliRunner
from distributed import LocalCluster
from dit_analyzer import distances
from dit_analyzer.cli import main
from dit_analyzer.mapping import ClusterError, mapped
from dit_analyzer.workers import WorkerError, by_processes
from dit_formats import TraceError, open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard


@pytest.fixture
def folder(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    """A trace of more prompts than fit in one part."""
    for index in range(20):
        write_shard(tmp_path, shard(index))
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are started for traces of any size, on any machine."""
    monkeypatch.setattr(dit_analyzer.mapping, "WORTH", 0)
    monkeypatch.setattr(dit_analyzer.mapping, "cores", lambda: 2)


@pytest.mark.parametrize("arguments", [{}, {"source": "sample"}, {"source": "sample", "lag": 3}])
def test_processes_give_the_same_bits(
    folder: Path, arguments: dict[str, object], request: pytest.FixtureRequest
) -> None:
    with open_trace(folder) as trace:
        here = distances(trace, **arguments)
        request.getfixturevalue("always")
        assert distances(trace, **arguments).identical(here)


@pytest.mark.parametrize("source", ["exact", "sample"])
def test_a_cluster_gives_the_same_bits(folder: Path, cluster: LocalCluster, source: str) -> None:
    with open_trace(folder) as trace:
        found = distances(trace, source=source, dask=cluster.scheduler_address)
        assert found.identical(distances(trace, source=source))


def test_commands_read_on_a_cluster(trace_folder: Path, cluster: LocalCluster, tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": cluster.scheduler_address}))
    results = [CliRunner().invoke(main, ["summary", str(trace_folder), "--json", *more])
               for more in ([], ["--dask", cluster.scheduler_address], ["--dask", str(file)])]  # fmt: skip
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert results[0].stdout == results[1].stdout == results[2].stdout


def test_a_damaged_shard_is_told_by_processes_and_cluster(folder: Path, cluster: LocalCluster, always: None) -> None:
    with open_trace(folder) as trace:
        shard = sorted(folder.glob("*.h5"))[-1]
        shard.write_bytes(shard.read_bytes()[:-2000])
        for dask in (None, cluster.scheduler_address):
            with pytest.raises(TraceError, match=shard.name):
                distances(trace, dask=dask)


@pytest.mark.parametrize(("address", "said"), [
    ("tcp://127.0.0.1:9", "no Dask scheduler answers"),
    ("nonsense", "neither a file nor an address"),
    (__file__, "not a file that dask scheduler wrote"),
])  # fmt: skip
def test_no_cluster_there_is_one_line(
    trace_folder: Path, address: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dit_analyzer.mapping, "PATIENCE", 1)
    result = CliRunner().invoke(main, ["summary", str(trace_folder), "--dask", address])
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_without_dask_its_package_is_named(trace_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with open_trace(trace_folder) as trace, pytest.raises(ClusterError, match=r"pip install \"ditscope\[dask\]\""):
        distances(trace, dask="tcp://127.0.0.1:9")


def test_answers_come_for_every_part(always: None) -> None:
    assert sorted(mapped(divmod, 100, list(range(1, 30)), seconds=9)) == [(i, divmod(100, i + 1)) for i in range(29)]


def test_an_error_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(by_processes(divmod, 1, [1, 0, 2], 2))


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(WorkerError, match="ended early"):
        list(by_processes(os.kill, 0, [signal.SIGKILL], 1))


SCRIPT = """
import sys, time
import dit_analyzer.mapping as mapping
from dit_analyzer import distances
from dit_formats import open_trace
print("started", flush=True)
mapping.WORTH, mapping.cores = 0, lambda: 2
with open_trace(sys.argv[1]) as trace:
    print(distances(trace).sizes["prompt"])
"""


def test_a_script_needs_no_guard(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["started", "20"], "")


def test_interruption_ends_everything_at_once() -> None:
    code = "import operator, time; from dit_analyzer.workers import by_processes\n"
    code += "print(list(by_processes(pow, 2, [1], 1)), flush=True)\n"
    code += "list(by_processes(operator.call, time.sleep, [60, 60], 2))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "[(0, 2)]"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=50)  # well before the 60 seconds that it sleeps
    assert "KeyboardInterrupt" in told

"""Several processes, one trace: real launchers, prompts in other orders, failures, and runs that are stopped."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import h5py
import pytest
import torch
from click.testing import CliRunner, Result
from dit_formats import open_trace
from dit_formats.errors import ConflictError
from dit_formats.prompts import Request
from dit_tracer.cli import main
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.settings import Sample, What
from dit_tracer.runs import Outcome, run
from dit_tracer.sharing import HOPELESS
from dit_tracer.work import plan

SD3 = find("tiny:sd3")
COMMAND = [sys.executable, "-c", "import sys; from dit_tracer.cli import main; sys.exit(main())"]


def command(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def trace(load: Callable[[], Any], texts: str, path: Path, **call: Any) -> Outcome:
    """Trace prompts that are one letter each."""
    settings = {"model": "mine", "sample": Sample(64, 64), "what": What(), "defaults": {"num_inference_steps": 2}}
    return run(load, plan([Request(text) for text in texts], [0]), path, call=SD3.call | call, quiet=True, **settings)


def numbers(path: Path) -> dict[tuple[str, int, str], bytes]:
    """All arrays of a trace, by text, seed and name."""
    found = {}
    for shard in path.glob("*.h5"):
        with h5py.File(shard) as file:
            key = file["prompts/text"][0].decode(), int(file["prompts/seed"][0])
            for group in ("latent", "text", "stack", "layers", "steps"):
                for name, dataset in file.get(group, {}).items():
                    found[*key, f"{group}/{name}"] = dataset[()].tobytes()
    return found


def torchrun(processes: int, *arguments: object) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--no-python"]
    return subprocess.Popen(
        [*launcher, *COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_torchrun_with_four_processes_traces_every_prompt_once(tmp_path: Path) -> None:
    options = ["run", "digits-flux", "-n", 10, "--steps", 3]
    with torchrun(4, *options, "-o", tmp_path / "four", "--json") as process:
        said, told = process.communicate()
    assert process.returncode == 0, told
    outcomes = [json.loads(line) for line in said.splitlines()]
    assert sorted(outcome["process"] for outcome in outcomes) == [0, 1, 2, 3]
    assert sum(outcome["traced"] for outcome in outcomes) == 10
    assert told.count("tracing digits-flux: 0 of 10 prompts") == 1
    assert command(*options, "-o", tmp_path / "one").exit_code == 0
    assert numbers(tmp_path / "four") == numbers(tmp_path / "one")
    assert sorted(os.listdir(tmp_path / "four")) == sorted(os.listdir(tmp_path / "one"))


@pytest.mark.slow
def test_stopped_run_goes_on_with_two_processes_and_then_with_one(tmp_path: Path) -> None:
    options = ["run", "digits-pixart", "-n", 16, "--steps", 5]
    path = tmp_path / "many"
    for processes in (4, 2):
        before = len(list(path.glob("*.h5")))
        with torchrun(processes, *options, "-o", path) as process:
            while len(list(path.glob("*.h5"))) < before + 3:
                assert process.poll() is None
                time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate()
        assert time.monotonic() - began < 15
        assert process.returncode == 1  # torchrun's own
        assert told.count("stopped by SIGTERM; every finished prompt is kept, and the same command goes on") == 1
    result = command(*options, "-o", path, "--json")
    outcome = json.loads(result.stdout)
    assert (result.exit_code, outcome["traced"] + outcome["present"]) == (0, 16)
    assert 6 <= outcome["present"] < 16
    assert command(*options, "-o", tmp_path / "one").exit_code == 0
    assert numbers(path) == numbers(tmp_path / "one")


@pytest.mark.slow
def test_other_settings_are_told_once_by_all_processes_together(tmp_path: Path) -> None:
    assert command("run", "digits-flux", "-n", 1, "--steps", 2, "-o", tmp_path / "t").exit_code == 0
    with torchrun(3, "run", "digits-flux", "-n", 4, "--steps", 3, "-o", tmp_path / "t") as process:
        _, told = process.communicate()
    assert process.returncode == 1
    assert told.count("made with other settings (call.num_inference_steps: 2 in the trace, 3 now)") == 1


@pytest.mark.slow
def test_accelerate_launch_traces_every_prompt_once(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    further = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--no_python"]
    options = ["run", "digits-flux", "-n", "4", "--steps", "2", "-o", str(tmp_path / "t")]
    subprocess.run([*launcher, *further, *COMMAND, *options], check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    with open_trace(tmp_path / "t") as opened:
        assert len(opened.prompts) == 4


def test_tasks_of_slurm_take_their_own_share_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two, alone: it begins with the second prompt, and does the others too."""
    for name, value in (("SLURM_PROCID", 1), ("SLURM_NTASKS", 2), ("SLURM_LOCALID", 1)):
        monkeypatch.setenv(name, str(value))
    result = command("run", "digits-flux", "-n", 3, "--steps", 2, "-o", tmp_path / "t")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 't'}: 3 prompts traced by process 1 of 2\n")
    assert result.stderr == ""  # the first task speaks
    shards = sorted((tmp_path / "t").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name[:6] for path in shards] == ["000001", "000002", "000000"]


def test_same_prompts_in_another_order_are_traced_once(tmp_path: Path) -> None:
    """The other run comes and goes while this one loads."""

    def load() -> Any:
        assert trace(lambda: tiny.build("sd3"), "cba", tmp_path / "t") == Outcome(traced=3)
        return tiny.build("sd3")

    assert trace(load, "abcd", tmp_path / "t") == Outcome(traced=1, present=3)
    with open_trace(tmp_path / "t") as opened:
        assert [prompt.text for prompt in opened.prompts] == list("cbad")


def test_settings_are_compared_with_a_shard_that_appeared_meanwhile(tmp_path: Path) -> None:
    def load() -> Any:
        trace(lambda: tiny.build("sd3"), "z", tmp_path / "t", num_inference_steps=3)
        return tiny.build("sd3")

    with pytest.raises(ConflictError, match="call.num_inference_steps: 3 in the trace, 2 now"):
        trace(load, "abc", tmp_path / "t")
    assert len(list((tmp_path / "t").iterdir())) == 1


class Late(diffusers.StableDiffusion3Pipeline):
    """A pipeline that calls `meanwhile` when a generation is done."""

    @functools.wraps(diffusers.StableDiffusion3Pipeline.__call__)
    def __call__(self, prompt: str, **options: Any) -> Any:
        result = super().__call__(prompt, **options)
        self.meanwhile(prompt)
        return result


def late(meanwhile: Callable[[str], None]) -> Late:
    pipeline = Late(**tiny.build("sd3").components)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.meanwhile = meanwhile
    return pipeline


def test_settings_are_compared_once_more_before_the_first_shard_is_written(tmp_path: Path) -> None:
    """Two processes began at the same time in an empty folder, and the other was faster."""

    trace(lambda: tiny.build("sd3"), "z", tmp_path / "other", num_inference_steps=3)
    (other,) = (tmp_path / "other").iterdir()

    def meanwhile(_: str) -> None:
        (tmp_path / "t").mkdir(exist_ok=True)
        shutil.copy(other, tmp_path / "t")

    with pytest.raises(ConflictError, match="call.num_inference_steps: 3 in the trace, 2 now"):
        trace(lambda: late(meanwhile), "abc", tmp_path / "t")
    assert len(list((tmp_path / "t").glob("*.h5"))) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), MemoryError(), RuntimeError("a bug")])
def test_prompt_that_fails_is_noted_and_the_run_goes_on(error: Exception, tmp_path: Path) -> None:
    """Also if it is the first."""

    def meanwhile(text: str) -> None:
        if text == "a":
            raise error

    outcome = trace(lambda: late(meanwhile), "abc", tmp_path / "t")
    assert (outcome.traced, outcome.present, len(outcome.failures)) == (2, 0, 1)
    assert outcome.failures[0].startswith(f"'a' failed: {str(error) or 'MemoryError'}; ")
    assert len(list((tmp_path / "t").glob("*.failed"))) == 1
    assert trace(lambda: tiny.build("sd3"), "abc", tmp_path / "other").traced == 3
    assert trace(lambda: late(lambda _: None), "abc", tmp_path / "t") == Outcome(traced=1, present=2)


def test_model_that_always_fails_is_given_up(tmp_path: Path) -> None:
    def meanwhile(_: str) -> None:
        raise RuntimeError("no kernel")

    assert len(trace(lambda: late(meanwhile), "abcdefg", tmp_path / "t").failures) == HOPELESS


def stop_after(shards: int, path: Path, name: str) -> None:
    """Send a signal to this process when a trace has so many shards and the next prompt runs."""

    def wait() -> None:
        while len(list(path.glob("*.h5"))) < shards:
            time.sleep(0.01)
        os.kill(os.getpid(), getattr(signal, name))

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_drops_the_running_prompt_and_keeps_the_others(name: str, tmp_path: Path) -> None:
    path = tmp_path / "t"
    options = ["run", "digits-pixart", "-n", 6, "--steps", 4, "-o", path, "--json"]
    stop_after(2, path, name)
    result = command(*options)
    first = json.loads(result.stdout)
    assert (result.exit_code, first["stopped"]) == (75, name), result.stderr
    assert 2 <= first["traced"] < 6 and first["failures"] == []
    assert result.stderr.splitlines()[-1] == (
        f"dit-trace: stopped by {name}; every finished prompt is kept, and the same command goes on from there"
    )
    assert {name.rpartition(".")[2] for name in os.listdir(path)} == {"h5"}
    again = command(*options)
    assert again.exit_code == 0
    assert json.loads(again.stdout)["traced"] == 6 - first["traced"]


def test_limit_of_time_ends_a_run_and_all_done_is_done(tmp_path: Path) -> None:
    options = ["run", "digits-pixart", "--steps", 4, "-o", tmp_path / "t"]
    stopped = command(*options, "-n", 200, "--time-limit", "4s")
    assert stopped.exit_code == 75, stopped.stderr
    assert "dit-trace: stopped by the time limit; every finished prompt is kept" in stopped.stderr
    with open_trace(tmp_path / "t") as opened:
        assert 0 < len(opened.prompts) < 200
    assert command(*options, "-n", 1, "--time-limit", "1m").exit_code == 0


def test_limit_that_is_no_time_is_wrong_usage(tmp_path: Path) -> None:
    result = command("run", "digits-pixart", "-o", tmp_path / "t", "--time-limit", "soon")
    assert (result.exit_code, result.stderr) == (
        2,
        "dit-trace: --time-limit 'soon' is no time; write 3h50m, 45m, 90s, or seconds; see dit-trace run --help\n",
    )


def test_signal_ends_a_process_that_loads(tmp_path: Path) -> None:
    arguments = ["run", "digits-flux", "-n", "1", "-o", str(tmp_path / "t")]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGTERM)
        told = process.stderr.read()
    assert process.returncode == 75
    assert told.splitlines()[-1].startswith("dit-trace: stopped by SIGTERM; every finished prompt is kept")
    assert not (tmp_path / "t").exists()

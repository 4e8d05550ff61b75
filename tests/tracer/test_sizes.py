"""What --dry-run says, against what runs really write; and where the step before is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import h5py
import pytest
from click.testing import CliRunner
from dit_formats import open_trace
from dit_tracer import forecast, memory
from dit_tracer.cli import main
from dit_tracer.models.catalog import SEVEN
from dit_tracer.models.sketch import of_the_seven
from dit_tracer.recording.settings import Sample, What
from dit_tracer.sizes import size_of

GB = 10**9


def run(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def written(path: Path) -> tuple[int, int]:
    """Bytes of all arrays of a trace's first shard, and of the file."""
    shard = sorted(path.glob("*.h5"))[0]
    found: list[int] = []
    with h5py.File(shard) as file:
        file.visititems(lambda _, item: found.append(item.nbytes) if isinstance(item, h5py.Dataset) else None)
    return sum(found), shard.stat().st_size


@pytest.mark.parametrize("further", [[], ["--stats-only"]], ids=["default", "stats-only"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "model", ["digits-flux", "digits-pixart", "tiny:sd3", "tiny:wan2.2", "tiny:cogvideox-5b", "tiny:mochi-1-preview"]
)
def test_forecast_is_what_a_run_writes(model: str, dtype: str, further: list[str], tmp_path: Path) -> None:
    words = ["run", model, "-n", 1, "--dtype", dtype, "--steps", 6, "-o", tmp_path / "out.trace", *further]
    told = json.loads(run(*words, "--dry-run", "--json").stdout)["bytes_per_prompt"]
    assert not (tmp_path / "out.trace").exists()
    assert run(*words, "-q").exit_code == 0
    arrays, file = written(tmp_path / "out.trace")
    assert told["arrays"] == pytest.approx(arrays, rel=0.02)
    assert told["file"] == pytest.approx(file, rel=0.3)


def test_forecast_follows_what_is_recorded(tmp_path: Path) -> None:
    words = ["run", "tiny:pixart-alpha", "-n", 1, "--steps", 6, "-o", tmp_path / "out.trace"]
    words += ["--kinds", "q,k,f", "--halves", "--step-pairs", "0:2,1:5", "--sample", 300]
    words += ["--boundary", "transformer_blocks.0"]
    told = json.loads(run(*words, "--dry-run", "--json").stdout)["bytes_per_prompt"]
    assert run(*words, "-q").exit_code == 0
    arrays, file = written(tmp_path / "out.trace")
    assert told["arrays"] == pytest.approx(arrays, rel=0.02)
    assert told["file"] == pytest.approx(file, rel=0.3)


def test_dry_run_names_the_command_and_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "a b.trace"
    words = ["run", "digits-flux", "--steps", 2, "-o", path]
    run(*words, "-n", 1, "-q")
    before = os.listdir(path)
    result = run(*words, "-n", 3, "--dry-run")
    assert result.exit_code == 0 and os.listdir(path) == before
    assert result.stdout.splitlines()[-1] == f"dit-trace run digits-flux --steps 2 -o '{path}' -n 3"
    assert "1 are there already" in result.stdout
    for word in ("layers", "kinds", "sample", "per prompt", "step before", "host", "device", "disk"):
        assert f"\n{word}" in f"\n{result.stdout}"


def test_dry_run_refuses_what_a_run_would_refuse(tmp_path: Path) -> None:
    words = ["run", "digits-flux", "-n", 1, "-q", "-o", tmp_path / "a"]
    run(*words, "--steps", 2)
    for options in (["--steps", 3], ["--steps", 2, "--kinds", "k"], ["--steps", 2, "--sample", 64]):
        result = run(*words, *options, "--dry-run")
        assert result.exit_code == 1 and "made with other settings" in result.stderr


def test_run_on_a_gpu_is_planned_on_any_machine(tmp_path: Path) -> None:
    """The precision is then the model's own, as it would be there."""
    options = ["run", "pixart-alpha", "-p", "a cat", "-o", str(tmp_path / "t"), "--dry-run", "--json"]
    here, there = (json.loads(CliRunner().invoke(main, [*options, *more]).stdout)
                   for more in (["--device", "cpu"], ["--device", "cuda"]))  # fmt: skip
    assert there["previous_step"]["device"] == here["previous_step"]["device"] / 2
    assert there["command"].endswith("--json --device cuda")


def test_heun_makes_more_steps() -> None:
    words = ["run", "sd3", "-p", "a text", "--scheduler", "FlowMatchHeunDiscreteScheduler", "--dry-run", "--json"]
    assert json.loads(run(*words).stdout)["steps"] == 55


@pytest.mark.parametrize(
    ("model", "call", "gigabytes"),
    [("flux.1-dev", {}, 4.8), ("cogvideox-5b", {"num_frames": 49}, 27), ("mochi-1-preview", {}, 79)],
)
def test_step_before_of_large_models_is_known(model: str, call: dict[str, Any], gigabytes: float) -> None:
    what = What(kinds=("k", "v", "a"), stack=False)
    found = of_the_seven(SEVEN[model], call, what, SEVEN[model].steps, "bfloat16")
    assert found.step_nbytes / GB == pytest.approx(gigabytes, rel=0.05)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_flux_fits_what_was_promised(dtype: str) -> None:
    flux = of_the_seven(SEVEN["flux.1-dev"], {}, What(), 28, dtype)
    assert size_of(flux, What(), Sample()).file < 40e6
    assert size_of(flux, What(), Sample(0, 0)).file < 700e3


def test_without_guidance_there_is_one_branch() -> None:
    found = of_the_seven(SEVEN["sd3"], {"guidance_scale": 1.0}, What(), 28)
    assert found.branches == ("cond",)


@pytest.mark.parametrize(
    ("need", "own", "device", "host", "exact", "kept"),
    [
        (5 * GB, 2 * GB, 40 * GB, 100 * GB, False, "device"),
        (5 * GB, 2 * GB, 6 * GB, 100 * GB, False, "host"),
        (79 * GB, 9 * GB, 50 * GB, 120 * GB, False, "host"),
        (79 * GB, 9 * GB, 50 * GB, 64 * GB, False, "subset"),
        (79 * GB, 9 * GB, 50 * GB, 64 * GB, True, "host"),
        (5 * GB, 2 * GB, None, 16 * GB, False, "device"),
        (5 * GB, 2 * GB, None, 6 * GB, False, "subset"),
        (5 * GB, 2 * GB, None, 6 * GB, True, "device"),
        (0, 1 * GB, 1 * GB, 1 * GB, False, "device"),
    ],
)
def test_step_before_is_kept_where_there_is_room(
    need: int, own: int, device: int | None, host: int, exact: bool, kept: str
) -> None:
    assert memory.choose(need, own, device, host, exact) == kept


def test_free_memory_is_between_nothing_and_all_of_it() -> None:
    assert 0 < memory.free_on_host() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory.free_on_device("cpu") is None


def test_run_says_where_it_keeps_the_step_before(tmp_path: Path) -> None:
    words = ["run", "digits-flux", "--steps", 2, "-o", tmp_path / "out.trace"]
    result = run(*words, "-n", 1, "--previous", "subset")
    assert "kept in part, 2^18 values of each activation" in result.stderr
    recorded = open_trace(tmp_path / "out.trace").run.settings["recorded"]
    assert recorded["transitions"] == "subset of 262144"
    assert "kept in part, 2^18 values" in run(*words, "-n", 2).stderr
    refused = run(*words, "-n", 3, "--previous", "host")
    assert refused.exit_code == 1 and "recorded.transitions" in refused.stderr


def test_full_disk_is_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "free_disk", lambda path: 1000)
    words = ["run", "digits-flux", "-n", 1, "--steps", 2, "-o", tmp_path / "out.trace", "-q"]
    result = run(*words)
    assert result.exit_code == 1 and not (tmp_path / "out.trace").exists()
    assert "1 prompt would take about" in result.stderr and "--ignore-disk" in result.stderr
    assert run(*words, "--ignore-disk").exit_code == 0


def test_statistics_only_keeps_no_values(tmp_path: Path) -> None:
    words = ["run", "digits-flux", "-n", 1, "--steps", 2, "-o", tmp_path / "out.trace", "--stats-only"]
    assert run(*words, "--sample", 5).exit_code == 2
    assert run(*words, "--pilot").exit_code == 2
    assert run(*words, "-q").exit_code == 0
    assert open_trace(tmp_path / "out.trace").geometry("latent", "token").shape[-1] == 0

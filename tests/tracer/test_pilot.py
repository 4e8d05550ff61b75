"""Samples that a pilot allots to channels."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import dit_analyzer
import numpy as np
import pytest
from click.testing import CliRunner
from dit_formats import open_trace
from dit_formats.errors import ConflictError
from dit_tracer.claims import Claims
from dit_tracer.cli import main
from dit_tracer.pilot import NAME, settled, withdrawn
from dit_tracer.recording.recorder import NonFiniteError, Recorder
from dit_tracer.recording.sampling import allot, balanced_scatter, neyman_mix
from dit_tracer.recording.settings import Sample

STAY = """
import sys
from pathlib import Path
from dit_tracer.claims import Claims

with Claims(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""

TOKENS, CHANNELS, DRAWS = 1024, 384, 100


def run(*words: Any) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def heavy() -> np.ndarray:
    """|d| of a tensor with massive channels and massive tokens, (token, channel)."""
    rng = np.random.default_rng(0)
    scale = rng.lognormal(0, 0.8, CHANNELS)
    scale[[3, 50, 200]] *= 30
    x = np.abs(rng.normal(size=(TOKENS, CHANNELS))) * scale * rng.lognormal(0, 0.3, (TOKENS, 1))
    x[[5, 77, 300]] *= 3
    return x


@pytest.mark.parametrize("n", [64, 256, 1024, 4096, TOKENS * CHANNELS - 5])
def test_positions_are_distinct_as_many_as_asked_and_weigh_one(n: int) -> None:
    one = allot(heavy().std(0), TOKENS, n)
    kept = neyman_mix(one, TOKENS, np.random.default_rng(0))
    assert one.count.sum() == n and one.count.min() >= 1
    assert len(set(zip(kept.token.tolist(), kept.channel.tolist()))) == n
    assert kept.weight.sum() == pytest.approx(1) and kept.token.max() < TOKENS
    if n >= CHANNELS:
        counts = np.bincount(kept.channel, minlength=CHANNELS)
        assert counts.min() >= 1
        np.testing.assert_allclose(kept.weight, 1 / (CHANNELS * counts[kept.channel]))


@pytest.mark.parametrize("n", [64, 256, 1024])
def test_weighted_means_are_unbiased_and_a_quarter_of_the_values_does(n: int) -> None:
    x = heavy()
    one = allot(x.std(0), TOKENS, n)
    ours, plain = [], []
    for draw in range(DRAWS):
        kept = neyman_mix(one, TOKENS, np.random.default_rng(draw))
        ours.append((kept.weight * x[kept.token, kept.channel]).sum())
        kept = balanced_scatter(TOKENS, CHANNELS, 4 * n, np.random.default_rng(draw))
        plain.append(x[kept.token, kept.channel].mean())
    error = np.std(ours) / np.sqrt(DRAWS)
    assert abs(np.mean(ours) - x.mean()) < 4 * error
    assert np.std(ours) < np.std(plain)


def test_spread_that_tells_nothing_gives_every_channel_as_many() -> None:
    for spread in (np.zeros(8), np.full(8, np.nan)):
        assert allot(spread, 100, 80).count.tolist() == [10] * 8


def test_all_prompts_have_the_positions_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    words = ["run", "digits-flux", "--steps", 3, "-o", path, "--pilot", "-q"]
    assert run(*words, "-n", 1).exit_code == 0
    (path / NAME).unlink()  # from here on the shards tell
    assert run(*words, "-n", 2).exit_code == 0
    trace = open_trace(path)
    assert len(trace.prompts) == 2
    assert trace.run.settings["sample"]["rule"] == "neyman mix" and trace.run.settings["sample"]["latent"] == 1024
    assert np.ptp(trace.geometry("latent", "weight")[0, 0]) > 0
    exact, sampled = (dit_analyzer.distances(trace, source=source) for source in ("exact", "sample"))
    z = ((sampled["l1"] - exact["l1"]) / sampled["l1_se"]).values
    assert 0.4 < np.sqrt(np.nanmean(z**2)) < 1.6
    refused = run(*words[:-2], "-n", 3)
    assert refused.exit_code == 1 and "sample.rule" in refused.stderr


@pytest.fixture
def numbers_run_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt fails, and the pilot before them does not."""

    def refuse(*_: Any) -> None:
        raise NonFiniteError("the prediction has values that are not finite")

    monkeypatch.setattr(Recorder, "_refuse_nonfinite", refuse)


@pytest.mark.usefixtures("numbers_run_away")
def test_run_that_traces_nothing_leaves_no_pilot(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.trace"
    words = ["run", "digits-flux", "--steps", 2, "-n", 2, "-o", path, "--pilot", "-q"]
    assert run(*words).exit_code == 1
    assert {one.suffix for one in path.iterdir()} == {".failed"}


def test_run_whose_pilot_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ConflictError("refused")

    monkeypatch.setattr("dit_tracer.runs.fly", refuse)
    result = run("run", "digits-flux", "--steps", 2, "-n", 1, "-o", tmp_path / "deep" / "out.trace", "--pilot", "-q")
    assert result.exit_code == 1 and "refused" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_pilot_stays_while_another_process_is_at_work_or_a_shard_was_made_with_it(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    settle = partial(settled, path, "one", Sample(64, 16), lambda: {("latent", "k", "layer"): (32, np.ones(24))})
    with subprocess.Popen([sys.executable, "-c", STAY, path], stdin=PIPE, stdout=PIPE) as other:
        other.stdout.readline()
        with Claims(path) as claims, withdrawn(path, claims):
            settle()
        assert (path / NAME).exists()
    with Claims(path) as claims, withdrawn(path, claims):
        settle()
    assert list(path.iterdir()) == []
    assert run("run", "digits-flux", "--steps", 2, "-n", 1, "-o", path, "--pilot", "-q").exit_code == 0
    assert (path / NAME).exists()


def test_pilot_of_a_run_that_another_was_faster_than_goes(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    assert run("run", "digits-flux", "--steps", 2, "-n", 1, "-o", path, "-q").exit_code == 0
    with pytest.raises(ConflictError, match="other settings"), Claims(path) as claims, withdrawn(path, claims):
        settled(path, "one", Sample(64, 16), lambda: {("latent", "k", "layer"): (32, np.ones(24))})
        raise ConflictError("made with other settings")
    assert [one.suffix for one in path.iterdir()] == [".h5"]


def test_allotment_that_others_would_refuse_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="no allotment"):
        settled(tmp_path, "one", Sample(64, 16), lambda: {("text", "k", "layer"): (0, np.ones(24))})
    assert list(tmp_path.iterdir()) == []


def test_first_of_several_processes_decides(tmp_path: Path) -> None:
    rng, key = np.random.default_rng(0), ("latent", "k", "layer")

    def begin(_: int) -> str:
        return settled(tmp_path, "one", Sample(64, 16), lambda: {key: (32, rng.random(24))}).hash

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(begin, range(8)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    with pytest.raises(ConflictError, match="other settings"):
        settled(tmp_path, "another", Sample(64, 16), dict)


@pytest.mark.parametrize(
    "rows", [5, [["latent"]], [["latent", "k", "x", 4, [0, 1], [1, 10**9]]], [["latent", "k", "x", 4, [0, 7], [64, 0]]]]
)
def test_file_that_is_no_allotment_is_refused(rows: Any, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"for": "one", "allotted": rows}))
    with pytest.raises(ConflictError, match="no allotment"):
        settled(tmp_path, "one", Sample(64, 16), dict)

"""Stability of a real model: digits-flux at two step counts and under two schedulers with clearly different noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dit_analyzer
import dit_tracer.cli
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner
from dit_analyzer.cli import main
from dit_formats import open_trace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four prompts at 12 and 6 steps, and at 12 steps with the shift of SD3's scheduler; three prompts for the last."""
    folder = tmp_path_factory.mktemp("digits")
    settings: dict[str, tuple[Any, ...]] = {
        "steps-12": ("-n", 4, "--steps", 12),
        "steps-6": ("-n", 4, "--steps", 6),
        "sd3": ("-n", 3, "--steps", 12, "--scheduler", "sd3"),
    }
    paths = {name: folder / f"{name}.trace" for name in settings}
    for name, given in settings.items():
        arguments = ["run", "digits-flux", *map(str, given), "--stats-only", "-q", "-o", str(paths[name])]
        result = CliRunner().invoke(dit_tracer.cli.main, arguments)
        assert result.exit_code == 0, result.output
    return paths


def view(path: Path) -> xr.Dataset:
    with open_trace(path) as trace:
        return dit_analyzer.paper_view(dit_analyzer.distances(trace))


def test_the_noise_axis_agrees_better_where_schedulers_differ(traces: dict[str, Path]) -> None:
    result = CliRunner().invoke(main, ["compare", str(traces["steps-12"]), str(traces["sd3"]), "--json"])
    (pair,) = json.loads(result.stdout)["pairs"]
    assert pair["prompts"] == 3 and pair["schedulers_differ"] and pair["headline"] == "noise"
    assert 0.2 < pair["max_dsigma"] < 0.3
    for step, noise in zip(pair["axes"]["step"], pair["axes"]["noise"]):
        assert noise["s"] > step["s"] and noise["d"] < step["d"]
        assert abs(np.log(noise["level"])) < abs(np.log(step["level"]))


def test_half_the_steps_have_the_same_noise_and_nearly_twice_the_change(traces: dict[str, Path]) -> None:
    found = dit_analyzer.stability(view(traces["steps-6"]), view(traces["steps-12"]))
    assert found["max_dsigma"] < 1e-6 and found["prompts"] == 4
    assert ((found["level"] > 0.45) & (found["level"] < 0.7)).all()
    assert ((found["s_low"] <= found["s"]) & (found["s"] <= found["s_high"])).all()


def test_depth_kinds_and_roughness_have_intervals(traces: dict[str, Path]) -> None:
    long, short = view(traces["steps-12"]), view(traces["steps-6"])
    trend, contrast = dit_analyzer.depth_trend(long), dit_analyzer.kind_contrast(long)
    assert ((trend["low"] <= trend["slope"]) & (trend["slope"] <= trend["high"])).all()
    assert contrast["log_ratio"].notnull().all() and contrast.pair.values.tolist() == ["a/v", "a/k", "v/k"]
    rough = dit_analyzer.roughness(long, short)
    assert rough["points"] == 5 and rough["matched"].notnull().all()

"""Every number that the paper's own recorder measured, through record, distances and paper_view.

`data/gold` holds tiny FLUX and PixArt-Alpha pipelines and those numbers, made with DiTCacheAnalysis 457c316 on
diffusers 0.31 in float32 (see its README). FLUX differs a little by the rounding of sigmas in that diffusers.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import dit_analyzer
import dit_formats
import dit_tracer
import numpy as np
import pytest
import torch
import xarray as xr
from numpy.typing import NDArray

GOLD = Path(__file__).parents[1] / "data" / "gold"
TOLERANCE = {"flux": 5e-5, "pixart-alpha": 1e-5}
TEXT = {"ek": "k", "ev": "v", "ea": "a"}


@pytest.fixture(scope="module", params=TOLERANCE)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trace_path(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of all prompts of a family, whose final latents were equal to untraced ones."""
    spec = importlib.util.spec_from_file_location("load_gold", GOLD / "load_gold.py")
    gold = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gold)
    path = tmp_path_factory.mktemp("gold") / f"{family}.trace"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the numbers were measured
    _, pipeline, numbers, tensors = gold.load(family)
    with dit_tracer.record(pipeline, path) as recorder:
        for prompt in range(len(numbers["prompt_seeds"])):
            untraced = gold.run(pipeline, numbers, tensors, prompt)
            with recorder.prompt(f"prompt {prompt}"):
                traced = gold.run(pipeline, numbers, tensors, prompt)
            assert torch.equal(traced, untraced)
    torch.set_num_threads(threads)
    return path


@pytest.fixture(scope="module")
def numbers(family: str) -> dict[str, Any]:
    return json.loads((GOLD / family / "gold.json").read_text())


def test_layers_are_those_of_the_paper(trace_path: Path, numbers: dict[str, Any]) -> None:
    with dit_formats.open_trace(trace_path) as trace:
        view = dit_analyzer.paper_view(dit_analyzer.distances(trace))
    assert view.layer_name.values.tolist() == [f"transformer.{layer['module']}" for layer in numbers["layers"]]


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("quantity", ["k", "v", "a", "ek", "ev", "ea"])
def test_numbers_are_those_of_the_paper(
    trace_path: Path, family: str, numbers: dict[str, Any], quantity: str, source: str
) -> None:
    """The tensors are small enough that the sample is the whole tensor: both sources must give every number."""
    with dit_formats.open_trace(trace_path) as trace:
        view = dit_analyzer.paper_view(dit_analyzer.distances(trace, source=source))
    prefix, kind = ("text_", TEXT[quantity]) if quantity in TEXT else ("", quantity)
    for name, found in (("means", view[f"{prefix}l1"]), ("vars", view[f"{prefix}variance"])):
        expected = _array(numbers[name].get(quantity), found.sel(kind=kind))
        np.testing.assert_allclose(found.sel(kind=kind).values, expected, rtol=TOLERANCE[family])


def test_variation_is_that_of_the_paper(trace_path: Path, family: str) -> None:
    expected = json.loads((GOLD / family / "analysis.json").read_text())["exp1_cv"]
    with dit_formats.open_trace(trace_path) as trace:
        cv = dit_analyzer.variation(dit_analyzer.paper_view(dit_analyzer.distances(trace)))["cv_published"]
    found = {kind: float(cv.sel(kind=kind)) for kind in expected}
    assert found == pytest.approx(expected, rel=TOLERANCE[family])


def test_noise_levels_are_those_of_the_scheduler(trace_path: Path, family: str, numbers: dict[str, Any]) -> None:
    with dit_formats.open_trace(trace_path) as trace:
        np.testing.assert_allclose(trace.timesteps, numbers["timesteps"], rtol=1e-6)
        if family == "flux":
            np.testing.assert_allclose(trace.sigmas, np.array(numbers["timesteps"]) / 1000, rtol=1e-6)
        else:
            betas = np.linspace(1e-4, 0.02, 1000)
            a = np.cumprod(1 - betas)[np.round(trace.timesteps).astype(int)]
            np.testing.assert_allclose(trace.sigmas, np.sqrt((1 - a) / a), rtol=1e-3)


def _array(nested: Any, like: xr.DataArray) -> NDArray[np.float64]:
    """Numbers (prompt, layer, transition); where the paper recorded nothing there is null."""
    nothing = np.full(like.shape[-1], np.nan)
    if nested is None:
        return np.full(like.shape, np.nan)
    return np.array([[nothing if layer is None else layer for layer in prompt] for prompt in nested], float)

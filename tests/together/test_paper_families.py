"""The paper's numbers of all seven families: a trace against references that are written out from the definitions.

`references.py` computes K, V and A of the same generations without the recorder. Twins are small enough that the sample
holds every value, so that both sources of distances must give every number.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dit_analyzer
import dit_formats
import dit_tracer
import numpy as np
import pytest
import torch
import xarray as xr
from dit_tracer.models import catalog, tiny
from dit_tracer.recording.settings import Sample
from numpy.typing import NDArray


def _references() -> Any:
    spec = importlib.util.spec_from_file_location("references", Path(__file__).with_name("references.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


references = _references()

FAMILIES = references.REFERENCES
GUIDED = [name for name, reference in FAMILIES.items() if reference.guided]
INTERLEAVED = ["open-sora", "latte-1"]

PROMPTS = ("a red bus", "a blue fox")
STEPS = 4
TOLERANCE = 5e-6
"""Relative, of float32 networks against float64 references."""

EVERYTHING = Sample(latent=10**9, text=10**9)
TEXT = {"ek": "k", "ev": "v", "ea": "a"}


@dataclass(frozen=True)
class Family:
    """What one family's trace of two prompts gives, by source, and what the reference saw: (prompt, layer, step)."""

    name: str
    views: dict[str, xr.Dataset]
    seen: list[list[list[dict[str, NDArray[np.float64]]]]]

    @property
    def layers(self) -> tuple[str, ...]:
        return FAMILIES[self.name].layers

    @property
    def quantities(self) -> set[str]:
        return {quantity for layer in self.seen[0] for quantity in layer[0]}

    def l1(self, quantity: str, half: int | None = None) -> NDArray[np.float64]:
        """Mean absolute change (prompt, layer, transition); NaN for layers that do not have the quantity."""
        return np.array([[_l1([step.get(quantity) for step in layer], half) for layer in one] for one in self.seen])


def _l1(series: list[NDArray[np.float64] | None], half: int | None) -> list[float]:
    if series[0] is None:
        return [np.nan] * (len(series) - 1)
    if half is not None:
        series = [np.split(x, 2)[half] for x in series]
    return [float(np.abs(after - before).mean()) for before, after in zip(series, series[1:])]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    path = tmp_path_factory.mktemp("families") / f"{request.param}.trace"
    seen = _trace(request.param, path, PROMPTS)
    with dit_formats.open_trace(path) as trace:
        found = {source: dit_analyzer.distances(trace, source=source) for source in ("exact", "sample")}
    return Family(request.param, {source: dit_analyzer.paper_view(ds) for source, ds in found.items()}, seen)


def _trace(name: str, path: Path, prompts: tuple[str, ...], **what: Any) -> list[Any]:
    """Trace a twin, and give what its reference saw of each prompt."""
    call = catalog.find(f"tiny:{name}").call | {"num_inference_steps": STEPS, "output_type": "latent"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pipeline, found = tiny.build(name), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        with dit_tracer.record(pipeline, path, sample=EVERYTHING, **what) as recorder:
            for text in prompts:
                measuring = references.measuring(FAMILIES[name], pipeline.transformer)
                with measuring as seen, recorder.prompt(text, seed=42):
                    pipeline(text, generator=torch.Generator().manual_seed(42), **call)
                found.append(seen)
    torch.set_num_threads(threads)
    return found


def test_every_layer_is_seen_once_a_step(family: Family) -> None:
    assert len(family.seen) == len(PROMPTS)
    assert all(len(layer) == STEPS for prompt in family.seen for layer in prompt)
    batches = {len(step["k"]) for prompt in family.seen for layer in prompt for step in layer}
    assert all((size % 2 == 0) == (family.name in GUIDED) for size in batches)


def test_layers_are_the_papers_in_its_order(family: Family) -> None:
    for view in family.views.values():
        assert view["l1"].dims == ("prompt", "kind", "layer", "transition")
        assert view["l1"].shape == (len(PROMPTS), 3, len(family.layers), STEPS - 1)
        assert view.layer_name.values.tolist() == [f"transformer.{path}" for path in family.layers]
        assert view.kind.values.tolist() == ["k", "v", "a"]


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("kind", ["k", "v", "a"])
def test_numbers_are_those_of_the_definitions(family: Family, kind: str, source: str) -> None:
    expected = family.l1(kind)
    assert (expected > 0).all()
    np.testing.assert_allclose(family.views[source]["l1"].sel(kind=kind).values, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("quantity", TEXT)
def test_text_is_measured_apart_where_the_paper_did(family: Family, quantity: str) -> None:
    found = family.views["exact"]["text_l1"].sel(kind=TEXT[quantity]).values
    np.testing.assert_allclose(found, family.l1(quantity), rtol=TOLERANCE)


def test_other_definitions_give_other_numbers(family: Family) -> None:
    """In every layer that has both; else the agreement above would show nothing."""
    others = {name: name.split()[0] for name in family.quantities if " " in name}
    assert others
    for name, quantity in others.items():
        deviations = _deviations(family.l1(name), family.l1(quantity))
        assert len(deviations) and (deviations > 50 * TOLERANCE).all(), name


@pytest.mark.parametrize("family", GUIDED, indirect=True)
def test_both_guidance_halves_are_one_tensor(family: Family) -> None:
    """Either half alone gives other numbers in some layer; the first may see the same latents in both."""
    for kind in ("k", "v", "a"):
        expected = family.l1(kind)
        halves = [family.l1(kind, half) for half in (0, 1)]
        np.testing.assert_allclose(np.mean(halves, axis=0), expected, rtol=1e-12)
        assert all((_deviations(half, expected) > 50 * TOLERANCE).any() for half in halves), kind


@pytest.mark.parametrize("family", INTERLEAVED, indirect=True)
def test_spatial_layers_come_before_temporal_ones_though_they_run_in_turns(family: Family) -> None:
    layers = family.views["exact"].layer.values
    assert (np.diff(layers) < 0).any()
    in_turns = family.l1("k")[:, np.argsort(layers)]
    assert (_deviations(in_turns, family.l1("k")) > 50 * TOLERANCE).any()


def test_a_of_mochi_is_missing_where_the_heads_output_was_not_recorded(tmp_path: Path) -> None:
    _trace("mochi-1-preview", tmp_path / "a.trace", PROMPTS[:1], kinds=("k", "v", "a"))
    with dit_formats.open_trace(tmp_path / "a.trace") as trace:
        l1 = dit_analyzer.paper_view(dit_analyzer.distances(trace))["l1"]
    assert l1.sel(kind="a").isnull().all() and l1.sel(kind=["k", "v"]).notnull().all()


def _deviations(values: NDArray[np.float64], expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative difference of each layer that has the values: the median over prompts and transitions."""
    relative = np.median(np.abs(values / expected - 1), axis=(0, 2))
    return relative[~np.isnan(relative)]

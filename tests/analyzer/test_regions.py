"""The block of layers and steps that changes least, and how far prompts lie apart."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import xarray as xr
from dit_analyzer.measures.levels import prompt_levels
from dit_analyzer.measures.regions import least_block, least_changing


def brute(values: np.ndarray, share: float) -> float:
    """The smallest mean of any block that is large enough and has a value everywhere."""
    layers, transitions = values.shape
    blocks = (
        values[top:bottom, first:last]
        for top, bottom in combinations(range(layers + 1), 2)
        for first, last in combinations(range(transitions + 1), 2)
    )
    return min(float(b.mean()) for b in blocks if b.size >= share * values.size and np.isfinite(b).all())


@pytest.mark.parametrize("seed", range(5))
def test_no_block_of_that_size_changes_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random((5, 7))
    values[rng.random((5, 7)) < 0.1] = np.nan
    found = least_block(values, 0.2)
    assert found is not None
    top, bottom, first, last = *found.layers, *found.transitions
    inside = values[top : bottom + 1, first : last + 1]
    assert inside.mean() == pytest.approx(found.inside) and inside.size >= 0.2 * values.size
    assert found.inside == pytest.approx(brute(values, 0.2))


def test_one_cell_is_its_own_block() -> None:
    found = least_block(np.array([[0.3]]))
    assert found is not None and (found.layers, found.transitions, found.inside) == ((0, 0), (0, 0), 0.3)


@pytest.mark.parametrize("shape", [(3, 4), (0, 4)])
def test_without_values_there_is_none(shape: tuple[int, int]) -> None:
    assert least_block(np.full(shape, np.nan)) is None


def view(l1: np.ndarray) -> xr.Dataset:
    axes = ("prompt", "kind", "layer", "transition")
    return xr.Dataset({"l1": (axes, l1), "rel_l1": (axes, l1)}, {"prompt": range(len(l1))})


def test_a_region_is_of_the_mean_over_prompts_and_kinds() -> None:
    l1 = np.ones((2, 2, 4, 4))
    l1[:, :, 1:3, 2:] = 0.5
    found = least_changing(view(l1))
    assert found is not None and (found.layers, found.transitions) == ((1, 2), (2, 3))
    assert (found.inside, found.overall) == (0.5, 0.875)


def test_levels_are_factors_over_the_geometric_mean() -> None:
    l1 = np.full((2, 1, 1, 3), 1.0)
    l1[1] = 4.0
    np.testing.assert_allclose(prompt_levels(view(l1)).values, [0.5, 2.0])


def test_levels_leave_out_cells_without_a_logarithm() -> None:
    l1 = np.full((2, 1, 1, 3), 2.0)
    l1[0, ..., 0], l1[1, ..., 1] = 0, np.nan
    np.testing.assert_allclose(prompt_levels(view(l1)).values, [1.0, 1.0])
    assert np.isnan(prompt_levels(view(l1 * 0)).values).all()

"""What the paper's scripts compute, against their arithmetic step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import as_published, variation
from dit_analyzer.measures.published import running_mean


def view(values: np.ndarray) -> xr.Dataset:
    return xr.Dataset({"l1": (("prompt", "kind", "layer", "transition"), values[:, None])}, {"kind": ["k"]})


def script_cv(values: np.ndarray, batchsize: int = 10) -> float:
    """Of plain numbers, as `exp_1_varying_prompt.py` goes through them."""
    ratios = []
    for layer in range(values.shape[1]):
        for step in range(values.shape[2]):
            column = [float(values[prompt, layer, step]) for prompt in range(batchsize)]
            mean = sum(column) / batchsize
            variance = sum((x - mean) ** 2 for x in column) / batchsize
            ratios.append(math.sqrt(variance) / mean if mean else math.nan)
    return sum(ratios) / len(ratios)


def script_mean(values: np.ndarray, batchsize: int = 10) -> np.ndarray:
    """As `exp_2_varying_model.py` goes through the prompts: the first is taken, the others are added."""
    mean = np.zeros(values.shape[1:])
    for b in range(batchsize):
        mean = values[b] if b == 0 else mean * (b - 1) / b + values[b] / b
    return mean


VALUES = np.random.default_rng(0).lognormal(sigma=0.3, size=(25, 3, 4))


def test_numbers_are_those_of_the_scripts() -> None:
    found = as_published(view(VALUES)).isel(kind=0)
    assert found["cv_script"].item() == pytest.approx(script_cv(VALUES), rel=1e-12)
    np.testing.assert_allclose(found["l1_script"], script_mean(VALUES), rtol=1e-12)


def test_correct_numbers_stand_beside_them() -> None:
    found, whole = as_published(view(VALUES)).isel(kind=0), variation(view(VALUES)).isel(kind=0)
    assert found["cv"].item() == whole["cv"].item() and found["cv_low"].item() == whole["cv_low"].item()
    assert found["cv_first"].item() == variation(view(VALUES[:10]))["cv"].item()
    np.testing.assert_allclose(found["l1"], VALUES.mean(0))
    np.testing.assert_allclose(found["l1_ratio"], script_mean(VALUES) / VALUES.mean(0))
    assert (found.attrs["prompts"], found.attrs["script_prompts"]) == (25, 10)


def test_first_prompt_counts_for_nothing() -> None:
    other = VALUES.copy()
    other[0] = 1e6
    one, two = (as_published(view(values))["l1_script"] for values in (VALUES, other))
    xr.testing.assert_identical(one, two)
    assert (as_published(view(other))["l1_ratio"] < 0.01).all()


def test_fewer_prompts_are_all_taken() -> None:
    found = as_published(view(VALUES[:3])).isel(kind=0)
    assert found["cv_script"].item() == pytest.approx(script_cv(VALUES[:3], 3))
    np.testing.assert_allclose(found["l1_script"], VALUES[1:3].mean(0))


@pytest.mark.parametrize("lost", [0.0, np.nan])
def test_one_cell_without_a_value_loses_the_cv_of_the_kind(lost: float) -> None:
    values = VALUES.copy()
    values[:, 1, 2] = lost
    ds = view(values).assign(count=view(np.ones_like(values))["l1"])
    found = as_published(ds).isel(kind=0)
    assert np.isnan(found["cv_script"].item()) and found["cv"].item() > 0


def test_layers_that_were_not_recorded_are_no_loss() -> None:
    values, count = VALUES.copy(), np.ones_like(VALUES)
    values[:, 1] = count[:, 1] = np.nan
    found = as_published(view(values).assign(count=view(count)["l1"])).isel(kind=0)
    assert found["cv_script"].item() == pytest.approx(script_cv(VALUES[:, [0, 2]]))


def test_one_prompt_is_refused_and_has_no_running_mean() -> None:
    assert running_mean(VALUES[:1]).tolist() == script_mean(VALUES[:1], 1).tolist()
    with pytest.raises(ValueError, match="two prompts"):
        as_published(view(VALUES[:1]))

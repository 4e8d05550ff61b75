"""Coefficients of variation: properties, known truths, and what has none."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import variation
from dit_analyzer.measures.jackknife import jackknife_t
from dit_analyzer.measures.variation import REASONS, left_out
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def curves(values: np.ndarray) -> xr.Dataset:
    """l1 (prompt, kind, layer, transition) of one kind."""
    return xr.Dataset({"l1": (("prompt", "kind", "layer", "transition"), values[:, None])}, {"kind": ["k"]})


VALUES = arrays(float, (4, 2, 3), elements=st.floats(0.01, 100))


@settings(deadline=None)
@given(VALUES, st.floats(0.01, 100), st.permutations(range(4)))
def test_variation_ignores_scale_and_order_of_prompts(values: np.ndarray, scale: float, order: list[int]) -> None:
    one, other = variation(curves(values)), variation(curves(values[order] * scale))
    for name in ("cv", "cv_published", "cv_median", "cv_ratio"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-6, atol=1e-9)


def test_variation_of_equal_prompts_is_zero() -> None:
    found = variation(curves(np.full((5, 2, 3), 0.7)))
    for name in ("cv", "cv_low", "cv_high", "cv_published", "cv_median", "cv_ratio"):
        assert found[name].item() == 0


def test_variation_by_hand() -> None:
    values = np.array([1.0, 2, 3]).reshape(3, 1, 1)
    found = variation(curves(values))
    assert found["cv_published"].item() == pytest.approx(np.sqrt(2 / 3) / 2)
    assert found["cv"].item() == pytest.approx((1 + 1 / 12) * 1 / 2)


def test_constant_cells_are_left_out_and_counted() -> None:
    values = np.random.default_rng(0).uniform(1, 2, (4, 2, 3))
    whole = variation(curves(values))["cell_cv"]
    values[2, 1, 0] = 0
    values[0, 0, 2] = np.inf
    found = variation(curves(values))
    assert found["cells"].item() == 4 and found["cells_left_out"].item() == 2
    assert [found[f"cells_{name}"].item() for name in REASONS[1:]] == [0, 1, 1]
    kept = found["cell_cv"].notnull()
    assert int(kept.sum()) == 4
    np.testing.assert_allclose(found["cv"].item(), whole.where(kept).mean().item())


def test_variation_of_one_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="two prompts"):
        variation(curves(np.ones((1, 2, 3))))


def test_interval_ignores_scale_and_order_of_prompts() -> None:
    rng = np.random.default_rng(1)
    values = rng.lognormal(sigma=0.2, size=(6, 3, 4))
    one, other = variation(curves(values)), variation(curves(values[rng.permutation(6)] * 1e-7))
    for name in ("cv_low", "cv_high", "cv_error"):
        np.testing.assert_allclose(one[name], other[name], rtol=1e-9)


def test_interval_is_the_jackknife_of_its_definition() -> None:
    """Of one prompt apart from the others, for which the jackknife's error is larger than that of normal values."""
    values = np.random.default_rng(0).lognormal(sigma=0.2, size=(7, 3, 4))
    values[3] *= 4
    found = variation(curves(values))

    def cv(kept: np.ndarray) -> float:
        x = values[kept]
        return ((1 + 1 / 4 / len(x)) * x.std(0, ddof=1) / x.mean(0)).mean()

    expected = jackknife_t(cv, 7, "log")
    got = [found[name].item() for name in ("cv", "cv_low", "cv_high", "cv_error")]
    np.testing.assert_allclose(got, [expected.value, expected.low, expected.high, expected.error], rtol=1e-9)
    assert found["cv_low"] < found["cv"] < found["cv_high"]


def test_error_is_at_least_that_of_normal_values() -> None:
    """Of one cell it is 1 / sqrt(2 (N - 1)); of prompts that are of two sorts the jackknife would find none."""
    values = np.tile([1.0, 2.0], 5).reshape(10, 1, 1)
    one, many = (variation(curves(values * np.ones((1, *size))))["cv_error"].item() for size in ((1, 1), (3, 4)))
    assert one == pytest.approx(many) == pytest.approx(1 / np.sqrt(18))
    apart = np.random.default_rng(0).normal(1, 0.1, (10, 30, 30))
    assert variation(curves(apart))["cv_error"].item() < 0.15 / np.sqrt(18), "of cells that have nothing in common"


def test_interval_is_not_known_with_two_prompts() -> None:
    found = variation(curves(np.random.default_rng(0).uniform(1, 2, (2, 2, 3))))
    assert found["cv"].item() > 0 and np.isnan(found["cv_low"].item()) and np.isnan(found["cv_high"].item())


def test_corrected_cv_has_no_bias_where_the_published_one_has() -> None:
    """Ten prompts, lognormal with a CV of 11.6 %: the published one is 7 % too low."""
    rng = np.random.default_rng(0)
    values = rng.lognormal(sigma=np.sqrt(np.log1p(0.116**2)), size=(10, 60, 60))
    found = variation(curves(values))
    assert found["cv"].item() == pytest.approx(0.116, rel=0.01)
    assert found["cv_published"].item() == pytest.approx(0.116 * 0.927, rel=0.01)


def test_ratio_and_median_stand_against_cells_near_zero() -> None:
    values = np.random.default_rng(0).normal(1, 0.1, (20, 10, 10))
    values[:, :2] = np.where(np.arange(20)[:, None, None] == 3, 1.0, 1e-6)
    found = variation(curves(values))
    assert found["cv"].item() > 0.8
    assert found["cv_median"].item() == pytest.approx(0.1, abs=0.02)
    assert found["cv_ratio"].item() < 0.2


def test_what_is_left_out_is_named() -> None:
    values = np.random.default_rng(0).uniform(1, 2, (4, 2, 5))
    values[:, 1] = 0
    values[2, 0, 3] = 0
    values[1, 0, [0, 1]] = np.nan
    ds = curves(values).assign_coords(layer=[4, 7], layer_name=("layer", ["a.attn", "b.attn"]), transition=range(5))
    assert [str(one) for one in left_out(variation(ds))] == [
        "layer 4 (a.attn), k: transitions 3, zero",
        "layer 4 (a.attn), k: transitions 0 to 1, nonfinite",
        "layer 7 (b.attn), k: transitions 0 to 4, constant",
    ]


def test_cells_lost_in_every_prompt_are_counted_and_those_not_recorded_are_not() -> None:
    values = np.random.default_rng(0).uniform(1, 2, (4, 3, 2))
    values[:, 1:] = np.nan
    ds = curves(values)
    count = np.array([10, 0, np.nan]).reshape(1, 1, 3, 1)
    ds["count"] = ds["l1"].dims, np.broadcast_to(count, ds["l1"].shape)
    found = variation(ds)
    assert (found["cells"].item(), found["cells_nonfinite"].item(), found["cells_left_out"].item()) == (2, 2, 2)


def test_nothing_but_nan_has_no_cv() -> None:
    found = variation(curves(np.full((3, 2, 2), np.nan)))
    assert np.isnan(found["cv"].item()) and found["cells"].item() == 0


def test_no_kinds_have_no_cv() -> None:
    assert variation(curves(np.ones((3, 2, 2))).isel(kind=[]))["cells"].size == 0


def test_one_cell_and_many_prompts_have_a_cv() -> None:
    values = np.random.default_rng(0).lognormal(sigma=0.3, size=(2000, 1, 1))
    found = variation(curves(values))
    assert found["cv_low"].item() < np.sqrt(np.expm1(0.09)) < found["cv_high"].item()


def test_prompts_under_several_seeds_are_compared_at_each_seed() -> None:
    rng = np.random.default_rng(0)
    of_text, of_seed = rng.lognormal(sigma=0.1, size=(5, 1, 2, 3)), np.array([1.0, 10.0])[:, None, None]
    values = (of_text * of_seed).reshape(10, 2, 3)
    ds = curves(values).assign_coords(text=("prompt", np.repeat(list("abcde"), 2)), seed=("prompt", [0, 1] * 5))
    found, alone = variation(ds), variation(ds.isel(prompt=ds.seed == 0))
    for name in ("cv", "cv_low", "cv_high"):
        np.testing.assert_allclose(found[name], alone[name])
    assert found.attrs["prompts"] == 5 and found["cells"].item() == 12


def test_sampled_positions_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(sigma=0.1, size=(8, 3, 4))
    ds = curves(values)
    groups = [curves(values ** (1 + rng.normal(0, 0.02))) for _ in range(20)]
    found, known = variation(ds, xr.concat(groups, "group")), variation(ds)
    assert found["cv"].item() == known["cv"].item() and found["cv_position_error"].item() > 0
    assert found["cv_low"].item() < known["cv_low"].item() and found["cv_high"].item() > known["cv_high"].item()
    same = variation(ds, xr.concat([ds] * 20, "group"))
    np.testing.assert_allclose(same["cv_high"], known["cv_high"])

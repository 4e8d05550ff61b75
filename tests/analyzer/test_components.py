"""Variance components recover what they were made of."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import components
from dit_analyzer.measures.components import full_table

ONE_SEED = {"p": 0.0072, "pl": 0.0009, "pt": 0.0028, "plt": 0.0025}
SEEDS = ONE_SEED | {"s": 0.004, "sl": 0.001, "st": 0.002, "slt": 0.001, "ps": 0.003, "psl": 0.0005, "pst": 0.001,
                    "pslt": 0.002}  # fmt: skip
PATTERN = 0.25


def made_of(s2: dict[str, float], rng: np.random.Generator, sizes: tuple[int, ...]) -> xr.Dataset:
    """l1 whose log is a pattern and an effect of each set of factors, prompts p by seeds s, layers l, transitions t."""
    y = rng.normal(0, PATTERN**0.5, (1, 1, *sizes[2:])) + np.zeros(sizes)
    for effect, variance in s2.items():
        y = y + rng.normal(0, variance**0.5, [n if name in effect else 1 for name, n in zip("pslt", sizes)])
    return dataset(np.exp(y))


def dataset(l1: np.ndarray) -> xr.Dataset:
    prompts, seeds, *cell = l1.shape
    return xr.Dataset(
        {"l1": (("prompt", "kind", "layer", "transition"), l1.reshape(prompts * seeds, 1, *cell))},
        {
            "kind": ["k"],
            "text": ("prompt", [f"text {i}" for i in range(prompts) for _ in range(seeds)]),
            "seed": ("prompt", list(range(seeds)) * prompts),
        },
    )


@pytest.mark.parametrize(
    ("s2", "sizes"), [(ONE_SEED, (10, 1, 12, 14)), (SEEDS, (8, 4, 10, 12))], ids=["prompts", "seeds"]
)
def test_known_components_are_found(s2: dict[str, float], sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    found = [components(made_of(s2, rng, sizes)).isel(kind=0) for _ in range(60)]
    values = np.array([one["s2"].values for one in found])
    errors = values.std(0, ddof=1) / np.sqrt(len(found))
    truth = np.array([s2[effect] for effect in found[0].effect.values])
    assert set(found[0].effect.values) == set(s2)
    np.testing.assert_array_less(abs(values.mean(0) - truth), 4 * errors)
    pattern = np.array([one["s2_pattern"].item() for one in found])
    assert abs(pattern.mean() - PATTERN) < 4 * pattern.std(ddof=1) / np.sqrt(len(found))


def test_components_of_prompts_are_the_closed_form_of_one_table() -> None:
    l1 = np.random.default_rng(0).lognormal(sigma=0.3, size=(6, 1, 4, 5))
    r = np.log(l1[:, 0]) - np.log(l1[:, 0]).mean(0)
    n, layers, transitions = r.shape
    p = r.mean((1, 2), keepdims=True)
    pl, pt = r.mean(2, keepdims=True) - p, r.mean(1, keepdims=True) - p
    e = r - p - pl - pt
    ms_p = layers * transitions * (p**2).sum() / (n - 1)
    ms_pl = transitions * (pl**2).sum() / ((n - 1) * (layers - 1))
    ms_pt = layers * (pt**2).sum() / ((n - 1) * (transitions - 1))
    ms_e = (e**2).sum() / ((n - 1) * (layers - 1) * (transitions - 1))
    s2 = {"p": (ms_p - ms_pl - ms_pt + ms_e) / (layers * transitions), "pl": (ms_pl - ms_e) / transitions,
          "pt": (ms_pt - ms_e) / layers, "plt": ms_e}  # fmt: skip
    found = components(dataset(l1)).isel(kind=0)
    assert dict(zip(found.effect.values, found["s2"].values)) == pytest.approx(s2)
    assert found["cv_level"].item() == pytest.approx(np.sqrt(np.expm1(max(s2["p"], 0) + max(s2["pl"], 0))))


@pytest.mark.parametrize("seeds", [1, 3])
def test_leaving_a_prompt_out_of_the_sums_is_leaving_it_out(seeds: int) -> None:
    from dit_analyzer.measures.components import Squares

    y = np.random.default_rng(0).normal(size=(5, seeds, 3, 4))
    for left in range(5):
        quick, direct = Squares(y).numbers(left), Squares(np.delete(y, left, 0)).numbers()
        assert quick[0] == pytest.approx(direct[0], nan_ok=True) and quick[1] == pytest.approx(direct[1])


def test_scale_and_order_of_prompts_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    ds = made_of(ONE_SEED, rng, (6, 1, 4, 5))
    other = ds.isel(prompt=rng.permutation(6)) * 1e5
    xr.testing.assert_allclose(components(ds), components(other))


def test_level_alone_has_no_shape() -> None:
    rng = np.random.default_rng(0)
    found = components(made_of({"p": 0.04}, rng, (12, 1, 4, 5))).isel(kind=0)
    assert found["cv_shape"].item() == pytest.approx(0, abs=1e-6)
    assert found["cv_level_low"].item() < 0.2 < found["cv_level_high"].item()


def test_one_seed_is_said() -> None:
    found = components(made_of(ONE_SEED, np.random.default_rng(0), (4, 1, 3, 3)))
    assert found.attrs["design"] == "seed not varied" and np.isnan(found["cv_seed"].item())


def test_seeds_that_go_with_prompts_are_said() -> None:
    ds = made_of(ONE_SEED, np.random.default_rng(0), (4, 1, 3, 3)).assign_coords(seed=("prompt", range(4)))
    assert "cannot be told apart" in components(ds).attrs["design"]


def test_text_that_lacks_a_seed_is_left_out() -> None:
    ds = made_of(SEEDS, np.random.default_rng(0), (4, 3, 3, 3))
    found = components(ds.isel(prompt=range(11)))
    assert (found.attrs["design"], found.attrs["texts"], found.attrs["seeds"]) == ("prompts by seeds", 3, 3)
    xr.testing.assert_allclose(found, components(ds.isel(prompt=range(9))))


def test_cells_without_a_log_take_as_little_with_them_as_may_be() -> None:
    usable = np.ones((4, 6), bool)
    usable[2] = False
    usable[0, 5] = False
    rows, columns = full_table(usable)
    assert rows.tolist() == [0, 1, 3] and columns.tolist() == [0, 1, 2, 3, 4]
    l1 = np.random.default_rng(0).lognormal(size=(5, 1, 4, 6))
    l1[:, :, 2], l1[1, :, 0, 5] = 0, np.nan
    found = components(dataset(l1)).isel(kind=0)
    assert (found["layers"].item(), found["transitions"].item()) == (3, 5) and np.isfinite(found["s2"]).all()


@pytest.mark.parametrize("sizes", [(5, 1, 1, 6), (5, 1, 4, 1), (5, 1, 1, 1), (2, 1, 3, 3)], ids=str)
def test_small_tables_give_what_they_can(sizes: tuple[int, ...]) -> None:
    found = components(dataset(np.random.default_rng(0).lognormal(sigma=0.2, size=sizes))).isel(kind=0)
    assert found["cv_level"].item() >= 0
    assert np.isnan(found["cv_shape"].item()) == (sizes[3] == 1)
    assert np.isnan(found["cv_level_low"].item()) == (sizes[0] == 2)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_to_take_the_log_of_gives_nan(value: float) -> None:
    found = components(dataset(np.full((3, 1, 2, 2), value))).isel(kind=0)
    assert np.isnan(found["cv_level"].item()) and found["layers"].item() == 0


def test_no_kinds_have_no_components() -> None:
    assert components(dataset(np.ones((3, 1, 2, 2))).isel(kind=[]))["s2"].shape == (0, 4)


def test_equal_prompts_have_no_variance() -> None:
    found = components(dataset(np.broadcast_to(np.array([1.0, 2, 3]), (4, 1, 2, 3)))).isel(kind=0)
    assert found["cv_level"].item() == found["cv_shape"].item() == 0 and found["icc_pattern"].item() == 1


def test_one_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="two prompts"):
        components(dataset(np.ones((1, 1, 2, 2))))

"""Change points and shape words of all curves of a trace."""

from __future__ import annotations

import io

import dit_analyzer
import numpy as np
import pytest
import xarray as xr
from dit_analyzer import change_points, changes, joint_change_points, points, shape_of, words
from dit_analyzer.measures.changes import ALL, dips
from dit_analyzer.measures.words import VOCABULARY

AXES = ("prompt", "kind", "layer", "transition")
STEPS = 28


def view(l1: np.ndarray, steps: int = STEPS) -> xr.Dataset:
    """As `paper_view` gives it, layers not in the order of their numbers."""
    _, kinds, layers, transitions = l1.shape
    coordinates = {
        "kind": list("kva")[:kinds],
        "layer": 3 * np.arange(layers)[::-1],
        "transition": np.arange(transitions),
        "sigma": ("transition", np.linspace(1, 0, steps)[:transitions]),
        "layer_name": ("layer", [f"blocks.{layer}" for layer in range(layers)]),
    }
    return xr.Dataset({"l1": (AXES, l1)}, coordinates, {"num_steps": steps, "model": "mine"})


def broken(prompts: int = 4, layers: int = 3, noise: float = 0.02) -> xr.Dataset:
    """K falls and jumps x2.2 at transition 10, in the last layer at 11; V is smooth; A too, with a dip in layer 0."""
    rng = np.random.default_rng(0)
    t = np.arange(STEPS - 1)
    jumps = np.stack([t >= 10] * (layers - 1) + [t >= 11])
    log = np.stack([-0.1 * t + 0.8 * jumps, *[np.tile(-0.05 * t, (layers, 1))] * 2])
    log[2, 0, 16] -= 0.5
    return view(np.exp(log + noise * rng.standard_normal((prompts, *log.shape))))


def test_each_curve_and_each_kind_is_as_if_asked_alone() -> None:
    one = broken()
    found = changes(one)
    mean = one["l1"].mean("prompt")
    for kind in "kva":
        joint = joint_change_points(mean.sel(kind=kind), num_steps=STEPS)
        assert found["joint_any"].sel(kind=kind) == joint.any
        np.testing.assert_array_equal(found["joint_probability"].sel(kind=kind), joint.probability)
        for layer in one.layer.values:
            alone = change_points(mean.sel(kind=kind, layer=layer), num_steps=STEPS)
            cell = found.sel(kind=kind, layer=layer)
            np.testing.assert_array_equal(cell["probability"], alone.probability)
            assert cell["any"] == alone.any
            told = [point.transition for point in alone.points]
            assert cell.transition.values[cell["declared"]].tolist() == told
            for point in alone.points:
                for name in ("posterior", "low", "high", "jump", "slope"):
                    assert cell[name].sel(transition=point.transition) == getattr(point, name)
            assert cell["jump"].notnull().sum() == len(told)


def test_declared_points_are_a_tidy_list_with_the_layers_that_share_them() -> None:
    found = points(changes(broken()))
    assert [(one["kind"], one["layer"], one["transition"]) for one in found] == [
        ("k", ALL, 10),
        ("k", 6, 10),
        ("k", 3, 10),
        ("k", 0, 11),
    ]
    first = found[0]
    assert (first["from_step"], first["to_step"], first["paper_step"], first["sigma"]) == (10, 11, 16, 1 - 10 / 27)
    assert [(one["layers"], one["of_layers"]) for one in found] == [(3, 3)] * 4
    assert found[1]["jump"] == pytest.approx(np.exp(0.8), rel=0.1)
    assert all(one["low"] <= one["transition"] <= one["high"] and one["posterior"] >= 0.5 for one in found)


def test_a_dip_is_told_and_its_cell_takes_no_part() -> None:
    found = changes(broken())
    (dip,) = dips(found)
    assert (dip["kind"], dip["layer"], dip["transition"], dip["length"]) == ("a", 6, 16, 1)
    assert dip["factor"] == pytest.approx(np.exp(-0.5), rel=0.1)
    cell = found.sel(kind="a", layer=6, transition=16)
    assert cell["reason"] == "a dip" and np.isnan(cell["probability"])


def test_one_prompt_and_one_layer_give_points_and_no_agreement() -> None:
    one = broken(prompts=1, layers=1)
    assert [(r["layer"], r["transition"]) for r in points(changes(one)) if r["kind"] == "k"] == [(ALL, 11), (0, 11)]
    assert words(one)["agreement"].isnull().all() and (words(one)["shape"] != "").all()


@pytest.mark.parametrize("transitions", [1, 2, 5])
def test_too_few_steps_are_nan_and_say_so(transitions: int) -> None:
    found = changes(view(np.ones((2, 3, 2, transitions)), transitions + 1))
    assert found["probability"].isnull().all() and found["any"].isnull().all() and found["joint_any"].isnull().all()
    assert not found["declared"].any() and points(found) == []
    assert (found["note"] == f"{transitions} usable transitions; a change needs 6, 3 on each side").all()
    assert found["joint_note"].str.contains("none of the 2 layers has 6 transitions").all()


def test_all_equal_has_no_change_and_is_flat() -> None:
    one = view(np.full((3, 1, 2, 27), 0.3))
    found = changes(one)
    assert (found["any"] < 0.05).all() and (found["joint_any"] < 0.05).all() and points(found) == []
    assert (words(one)["shape"] == "flat").all() and words(one)["layers"].sel(word="flat") == 2


@pytest.mark.parametrize("value, why", [(np.nan, "not finite"), (0.0, "constant: L1 is zero"), (np.inf, "not finite")])
def test_a_layer_without_a_usable_value_stays_and_says_why(value: float, why: str) -> None:
    one = broken()
    one["l1"][:, 0, 1] = value
    found, told = changes(one), words(one)
    assert found.sizes == changes(broken()).sizes
    cell = found.isel(kind=0, layer=1)
    assert cell["probability"].isnull().all() and np.isnan(cell["any"])
    assert cell["reason"].str.startswith(why).all() and why in cell["note"].item()
    assert found["joint_note"].values[0].startswith("1 of 3 layers took no part")
    assert [record["of_layers"] for record in points(found)][0] == 2
    assert told["shape"][0, 1] == "" and "0 of 27 transitions" in told["note"][0, 1].item()
    assert told["layers"].sum("word").values.tolist() == [2, 3, 3]


def test_all_nan_is_nan_throughout() -> None:
    one = broken().where(False)
    found, told = changes(one), words(one)
    assert found["any"].isnull().all() and found["joint_any"].isnull().all() and points(found) == [] == dips(found)
    assert (found["note"] != "").all() and (told["shape"] == "").all() and int(told["layers"].sum()) == 0


def test_one_cell_that_a_prompt_lacks_is_left_out_and_named() -> None:
    one = broken()
    one["l1"][0, 1, 2, 5] = np.nan
    found = changes(one)
    cells = found["reason"].sel(kind="v")
    assert cells[2, 5] == "not finite (nan)" and int((cells != "").sum()) == 1
    assert np.isnan(found["probability"].sel(kind="v")[2, 5])


@pytest.mark.parametrize("shape", [(2, 0, 2, 27), (2, 3, 0, 27)])
def test_no_kind_or_no_layer_gives_nothing(shape: tuple[int, ...]) -> None:
    one = view(np.ones(shape))
    assert points(changes(one)) == [] == dips(changes(one)) and int(words(one)["layers"].sum()) == 0


def test_order_of_dimensions_and_of_prompts_says_nothing() -> None:
    one = broken()
    other = one.isel(prompt=slice(None, None, -1)).transpose("transition", "layer", "prompt", "kind")
    for variable in ("declared", "reason", "joint_declared", "joint_layers"):
        np.testing.assert_array_equal(changes(one)[variable], changes(other)[variable])
    np.testing.assert_array_equal(words(one)["shape"], words(other)["shape"])


def test_words_are_those_of_each_curve_and_are_counted() -> None:
    one = broken()
    told = words(one)
    for kind in "kva":
        for layer in one.layer.values:
            alone = shape_of(one["l1"].sel(kind=kind, layer=layer))
            cell = told.sel(kind=kind, layer=layer)
            assert (cell["shape"], cell["phrase"], cell["agreement"]) == (alone.word, alone.phrase, alone.agreement)
        counts = told["layers"].sel(kind=kind)
        assert int(counts.sum()) == 3
        assert counts.sel(word="decreasing") == int((told["shape"].sel(kind=kind) == "decreasing").sum())


def test_every_word_that_a_curve_gets_is_in_the_vocabulary() -> None:
    rng = np.random.default_rng(0)
    walks = np.exp(np.cumsum(0.5 * rng.standard_normal((1, 3, 100, 27)), -1))
    told = words(view(np.concatenate([walks, walks[..., ::-1], np.full_like(walks, 1)], 2)))
    assert set(np.unique(told["shape"])) <= set(VOCABULARY)
    assert int(told["layers"].sum()) == 900


@pytest.mark.parametrize("make", [changes, words])
def test_netcdf_holds_all_of_it(make: object) -> None:
    one = broken()
    one["l1"][:, 0, 1] = np.nan
    found = make(one)
    with xr.open_dataset(io.BytesIO(found.to_netcdf(engine="scipy", format="NETCDF3_64BIT")), engine="scipy") as back:
        xr.testing.assert_equal(back.load(), found)


def test_they_are_exported() -> None:
    assert {"changes", "points", "words"} <= set(dit_analyzer.__all__)


def test_the_mean_over_layers_has_a_word_too_without_those_that_lack_a_value() -> None:
    one = broken()
    whole = words(one)
    one["l1"][:, 0, 1, 4] = 0
    mean = np.exp(np.log(one["l1"][:, 0].isel(layer=[0, *range(2, one.sizes["layer"])])).mean("layer"))
    found = words(one)
    assert found["mean_shape"][0] == shape_of(mean).word and found["mean_phrase"][0] == shape_of(mean).phrase
    assert found["mean_agreement"][0] == shape_of(mean).agreement
    assert (found["mean_shape"][1:] == whole["mean_shape"][1:]).all()
    one["l1"][:, 0] = np.nan
    assert words(one)["mean_shape"][0] == "" and "0 of" in words(one)["mean_note"][0].item()

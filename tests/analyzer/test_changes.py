"""Change points and words of whole traces."""

from __future__ import annotations

import dit_analyzer
import numpy as np
import pytest
import xarray as xr
from dit_analyzer.measures.changes import changes, declared, dips
from dit_analyzer.measures.words import words
from zoo.curves import run, shifted


def broken(jump: float = 1.0, layers: int = 5, prompts: int = 10, steps: int = 28) -> xr.Dataset:
    """K that falls and jumps between steps 10 and 11 in all layers; A that only falls."""
    view = run(sigmas=shifted(steps), prompts=prompts, layers=layers, kinds="ka", noise=0.04)
    t = view.transition.values
    rng = np.random.default_rng(3)
    log = -0.05 * t + np.array([jump, 0])[:, None, None] * (t >= 10) + rng.normal(0, 0.03, view["l1"].shape)
    return view.assign(l1=(view["l1"].dims, np.exp(log)))


def test_what_is_said_of_a_layer_is_what_change_points_says_of_its_mean_curve() -> None:
    view = broken()
    found = changes(view)
    one = dit_analyzer.change_points(view["l1"].mean("prompt")[0, 3], num_steps=28)
    np.testing.assert_array_equal(found["probability"][0, 3], one.probability)
    (point,) = one.points
    row = found.isel(kind=0, layer=3).sel(transition=point.transition)
    assert [row[name].item() for name in ("posterior", "jump", "low", "high", "slope")] == [
        point.posterior, point.jump, point.low, point.high, point.slope,
    ]  # fmt: skip
    joint = dit_analyzer.joint_change_points(view["l1"].mean("prompt")[0], num_steps=28)
    assert found["joint_any"][0] == joint.any and found["effective_layers"][0] == joint.effective_layers


def test_a_break_of_all_layers_is_one_record_that_counts_as_the_paper_does() -> None:
    records = list(declared(changes(broken())))
    (joint,) = [one for one in records if one["layer"] == "all"]
    assert (joint["kind"], joint["transition"], joint["paper_step"], joint["layers_near"]) == ("k", 10, 16, 5)
    assert joint["jump"] == pytest.approx(np.e, rel=0.1) and joint["sigma"] == pytest.approx(1 - 10 / 28)
    assert [one["layer"] for one in records if one["layer"] != "all"] == list(range(5))


def test_curves_without_a_break_have_none() -> None:
    found = changes(broken(jump=0))
    assert list(declared(found)) == [] and (found["any"] < 0.5).all() and list(dips(found)) == []


@pytest.mark.parametrize("length", [1, 2])
def test_dips_are_counted_over_layers(length: int) -> None:
    view = broken(jump=0)
    place = (view.transition >= 15) & (view.transition < 15 + length) & (view.kind == "k") & (view.layer < 3)
    found = list(dips(changes(view.assign(l1=view["l1"].where(~place, view["l1"] * 0.5)))))
    (dip,) = found
    assert (dip["kind"], dip["transition"], dip["paper_step"], dip["length"]) == ("k", 15, 11, length)
    assert dip["layers"] == 3 and dip["factor"] == pytest.approx(0.5, abs=0.05)


def test_layers_and_kinds_without_a_value_have_no_answer_and_disturb_nobody() -> None:
    view, whole = broken(), changes(broken())
    found = changes(view.assign(l1=view["l1"].where((view.layer != 2) & (view.kind == "k"))))
    assert np.isnan(found["probability"].sel(kind="k", layer=2)).all() and np.isnan(found["any"].sel(kind="a")).all()
    assert np.isnan(found["joint_any"].sel(kind="a"))
    xr.testing.assert_equal(found["probability"].sel(kind="k", layer=3), whole["probability"].sel(kind="k", layer=3))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_values_without_a_logarithm_give_no_change_and_no_word(value: float) -> None:
    view = broken()
    found, said = (measure(view.assign(l1=xr.full_like(view["l1"], value))) for measure in (changes, words))
    assert found["probability"].isnull().all() and list(declared(found)) == []
    assert (said["word"] == "").all() and (said["mean_word"] == "").all() and (said["layers_agree"] == 0).all()


@pytest.mark.parametrize(("prompts", "layers", "steps"), [(1, 1, 2), (1, 1, 8), (2, 1, 28), (1, 5, 28)])
def test_few_prompts_layers_or_steps_are_no_error(prompts: int, layers: int, steps: int) -> None:
    view = broken(prompts=prompts, layers=layers, steps=steps)
    found, said = changes(view), words(view)
    assert found.sizes["layer"] == said.sizes["layer"] == layers
    assert np.isnan(found["any"]).all() == (steps < 7)
    assert np.isnan(said["mean_agreement"]).all() == (prompts < 2 or steps < 5)


def test_words_are_those_of_shape_of() -> None:
    view = broken()
    said = words(view)
    shape = dit_analyzer.shape_of(view["l1"].sel(kind="k", layer=1))
    row = said.sel(kind="k", layer=1)
    assert [row[name].item() for name in ("word", "phrase", "agreement")] == [shape.word, shape.phrase, shape.agreement]
    assert said["mean_word"].sel(kind="a") == "decreasing" and said["layers_agree"].sel(kind="a") == 5
    assert said["mean_word"].sel(kind="k") == "decreasing with a sharp rise"

"""Stability of runs over different prompts."""

from __future__ import annotations

import numpy as np
import pytest
from dit_analyzer.measures.pairing import ComparisonError
from dit_analyzer.measures.stability import stability
from dit_analyzer.measures.unpaired import unpaired
from zoo.curves import bend, run, shifted


def other(sigma: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(7 * sigma + depth)


def test_s_and_d_are_those_of_curves_whose_truth_is_known() -> None:
    one, two = run(prompts=40, noise=0.1), run(other, prompts=40, noise=0.1, first=100, draw=1)
    true = stability(run(noise=0), run(other, noise=0)).isel(kind=0)
    found = unpaired(one, two).isel(kind=0)
    assert found["d_low"] < true["d"] < found["d_high"] and found["s_low"] < true["s"] < found["s_high"]
    assert found["verdict"] == "different" and np.isnan(found["p_value"]) and found["prompts"] == 40


def test_the_same_curves_over_other_prompts_are_equivalent() -> None:
    found = unpaired(run(prompts=30, noise=0.1), run(prompts=30, noise=0.1, first=100, draw=1)).isel(kind=0)
    assert found["verdict"] == "equivalent" and found["d_low"] == 0 and found["d_high"] < 0.15


def test_the_interval_of_d_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = stability(run(noise=0), run(other, noise=0)).isel(kind=0)["d"].item()
    draws = [unpaired(run(noise=0.3, draw=2 * i), run(other, noise=0.3, first=50, draw=2 * i + 1)) for i in range(100)]
    covered = np.mean([bool(found["d_low"][0] <= truth <= found["d_high"][0]) for found in draws])
    assert 0.88 <= covered <= 1.0


def test_it_is_symmetric_and_level_is_no_part_of_it() -> None:
    one, two = run(prompts=6, noise=0.2), run(other, prompts=9, noise=0.2, first=100, draw=1)
    there, back = unpaired(one, two).isel(kind=0), unpaired(two, one).isel(kind=0)
    louder = unpaired(one.assign(l1=one["l1"] * 3), two).isel(kind=0)
    for name in ("s", "s_low", "d", "d_high"):
        assert there[name].item() == pytest.approx(back[name].item()) == pytest.approx(louder[name].item())
    assert there["level"].item() == pytest.approx(1 / back["level"].item()) == pytest.approx(3 * louder["level"].item())


@pytest.mark.parametrize("prompts", [1, 2])
def test_too_few_prompts_give_a_number_and_no_verdict(prompts: int) -> None:
    found = unpaired(run(prompts=prompts, noise=0.1), run(bend, prompts=9, first=50)).isel(kind=0)
    assert np.isfinite(found["s"]) and np.isnan(found["d_high"]) and found["verdict"] == "undecided"


def test_curves_without_a_cell_have_no_number() -> None:
    one = run()
    found = unpaired(one.assign(l1=one["l1"] * 0), run(first=50)).isel(kind=0)
    assert np.isnan(found["s"]) and found["verdict"] == "undecided" and found["cells_left_out"] == 55


def test_one_transition_is_refused() -> None:
    with pytest.raises(ComparisonError, match="two transitions"):
        unpaired(run(sigmas=shifted(2)), run(first=50))

"""Words for curves, on curves that deserve them."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import shape_of
from numpy.typing import NDArray

Array = NDArray[np.float64]
U = np.linspace(0, 1, 30)
LOGS = {
    "flat": 0.1 * U,
    "decreasing": -2 * U,
    "increasing": 1.5 * U,
    "U-shaped": 6 * (U - 0.5) ** 2,
    "mid bump": np.exp(-(((U - 0.5) / 0.15) ** 2)),
    "decrease-increase-decrease": np.interp(U, [0, 0.3, 0.6, 1], [0, -1, 0, -1]),
    "decreasing with a sharp rise": -1.5 * U + 0.9 * (U > 0.35),
    "early fluctuation": np.where(U < 0.35, np.where(np.arange(30) % 4 < 2, -1.0, -3.0), -2 - U),
    "late spike": -0.2 * U + 1.5 * (U > 0.9),
}


def noisy(log: Array, noise: float, seed: int) -> Array:
    return np.exp(log + noise * np.random.default_rng(seed).standard_normal(log.shape))


@pytest.mark.parametrize("word", LOGS)
def test_each_shape_gets_its_word(word: str) -> None:
    assert shape_of(np.exp(LOGS[word])).word == word
    for seed in range(20):
        assert shape_of(noisy(LOGS[word], 0.04, seed), noise=0.04).word == word


@pytest.mark.parametrize("word", LOGS)
def test_scale_says_nothing(word: str) -> None:
    one, other = shape_of(noisy(LOGS[word], 0.04, 0)), shape_of(1e-4 * noisy(LOGS[word], 0.04, 0))
    assert (one.word, one.phrase) == (other.word, other.phrase)


def test_reversal_turns_the_words_around() -> None:
    turned = {"decreasing": "increasing", "U-shaped": "U-shaped", "mid bump": "mid bump", "flat": "flat"}
    for word, back in turned.items():
        assert shape_of(np.exp(LOGS[word])[::-1]).word == back


def test_moves_are_what_the_curve_does() -> None:
    l1 = np.exp(np.concatenate([np.linspace(0, -1, 10), np.linspace(-0.2, -1.2, 17)]))
    shape = shape_of(l1)
    assert [(move.start, move.stop) for move in shape.moves] == [(0, 9), (9, 10), (10, 26)]
    assert [move.factor for move in shape.moves] == pytest.approx([np.exp(-1), np.exp(0.8), np.exp(-1)])
    assert shape.phrase == "falls x0.37 to transition 9, jumps x2.2 in 1 transition, falls x0.37 to transition 26"


def test_flat_curve_says_how_flat() -> None:
    shape = shape_of(np.full(20, 0.7))
    assert (shape.word, shape.phrase, shape.moves, shape.noise) == ("flat", "stays within x1.00", (), 0)
    assert shape_of(np.exp(0.1 * U)).phrase == "stays within x1.11"


def test_a_turn_within_the_noise_is_no_move() -> None:
    curve = np.exp(np.interp(U, [0, 0.4, 0.6, 1], [0, -1.2, -0.7, -2]))
    assert shape_of(curve, noise=0.05).word == "decrease-increase-decrease"
    assert shape_of(curve, noise=0.15).word == "decreasing"


def test_what_has_no_word_is_irregular() -> None:
    shape = shape_of(np.exp(np.sin(6 * np.pi * U)))
    assert shape.word == "irregular" and len(shape.moves) == 7


def test_prompts_say_how_sure_the_word_is() -> None:
    prompts = noisy(np.tile(LOGS["U-shaped"], (12, 1)), 0.12, 1)
    shape = shape_of(prompts)
    assert shape.word == "U-shaped" and shape.agreement == 1
    assert shape.noise == pytest.approx(0.12 / np.sqrt(12), rel=0.2)
    half = noisy(np.stack([LOGS["decreasing"]] * 2 + [LOGS["increasing"] - 2] * 2), 0.04, 2)
    assert 0.1 < shape_of(half, noise=0.02).agreement < 0.9


def test_agreement_does_not_change_from_call_to_call() -> None:
    prompts = noisy(np.tile(LOGS["mid bump"], (6, 1)), 0.4, 3)
    assert shape_of(prompts) == shape_of(prompts)


def test_levels_of_prompts_are_no_noise() -> None:
    levels = np.geomspace(0.01, 100, 5)[:, None]
    assert shape_of(levels * np.exp(LOGS["U-shaped"])).noise == pytest.approx(0, abs=1e-9)


def test_one_prompt_has_no_agreement() -> None:
    one = shape_of(np.exp(LOGS["decreasing"])[None])
    assert np.isnan(one.agreement) and one.word == "decreasing"


def test_unusable_transitions_are_named_and_left_out() -> None:
    prompts = noisy(np.tile(LOGS["decreasing"], (4, 1)), 0.02, 4)
    prompts[2, 5], prompts[:, 20], prompts[0, 7] = np.nan, 0, -1
    shape = shape_of(prompts)
    assert shape.left_out == (5, 7, 20) and shape.word == "decreasing"


def test_labels_of_an_array_are_used() -> None:
    prompts = xr.DataArray(
        np.tile(np.exp(LOGS["U-shaped"]), (3, 1)), {"transition": range(5, 35)}, ["prompt", "transition"]
    )
    for array in (prompts, prompts.T, prompts.mean("prompt")):
        shape = shape_of(array)
        assert shape.word == "U-shaped" and shape.moves[0].start == 5 and shape.moves[-1].stop == 34


@pytest.mark.parametrize(
    "curve", [np.zeros(9), np.full(9, np.nan), np.ones(3), np.ones((0, 9)), [], np.ones((2, 2, 9))]
)
def test_too_little_to_see_a_shape_is_refused(curve: Array) -> None:
    with pytest.raises(ValueError, match="expected one curve|a shape needs 4"):
        shape_of(curve)


def test_foreign_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="with or without prompt"):
        shape_of(xr.DataArray(np.ones((2, 9)), dims=("layer", "transition")))

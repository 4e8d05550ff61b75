"""TeaCache's polynomial, its worth on held-out prompts and its rule, on arrays and on traces made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dit_analyzer.plans import teacache
from dit_analyzer.plans.teacache import FitError, Pairs, Rule
from dit_formats import IncompleteError, open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

TRUE = np.array([0.0, 0, 3.0, 0.5, 0.02])
FALLING = np.array([0.0, 0, 20.0, -3.0, 0.2])
"""Falls up to x = 0.075."""


def drawn(prompts: int = 10, steps: int = 20, noise: float = 0.0, curve: np.ndarray = TRUE, seed: int = 0) -> Pairs:
    """Changes of an input between 0.02 and 0.15, and of an output that follows a polynomial up to noise."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.02, 0.15, (prompts, 2, steps - 1))
    return Pairs("residual", ("cond", "uncond"), x, np.polyval(curve, x) + rng.normal(0, noise, x.shape))


def traced(folder: Path, *shards: Shard) -> Path:
    folder.mkdir()
    for shard in shards:
        write_shard(folder, shard)
    return folder


@pytest.fixture
def folder(tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]) -> Path:
    return traced(tmp_path / "a.trace", *(states(shard(index)) for index in range(3)))


def test_too_few_points_are_refused_even_by_force() -> None:
    for pairs in (drawn(1, 2), drawn(1, 3), Pairs("last", ("cond",), np.full((9, 1, 9), 0.1), np.ones((9, 1, 9)))):
        with pytest.raises(FitError, match="needs 6 or more"):
            teacache.fit(pairs)


def test_nothing_finite_is_refused() -> None:
    with pytest.raises(FitError, match="0 different changes"):
        teacache.fit(Pairs("last", ("cond",), np.full((2, 1, 9), np.nan), np.ones((2, 1, 9))))


def test_one_prompt_has_a_polynomial_of_unknown_worth() -> None:
    found = teacache.fit(drawn(1))
    np.testing.assert_allclose(found.coefficients, TRUE, atol=1e-6)
    assert np.isnan(found.r_squared) and np.isnan(found.rmse) and found.within == pytest.approx(1)
    with pytest.raises(FitError, match="one prompt, or all changes are equal"):
        teacache.require(found)
    assert teacache.require(found, force=True) is found


def test_an_output_that_changes_equally_is_of_unknown_worth() -> None:
    pairs = drawn()
    found = teacache.fit(Pairs("last", pairs.branches, pairs.x, np.full(pairs.x.shape, 0.1)))
    assert np.isnan(found.r_squared) and np.isnan(found.within) and found.rmse < 1e-9
    with pytest.raises(FitError, match="all changes are equal"):
        teacache.require(found)


def test_missing_transitions_are_left_out() -> None:
    pairs = drawn()
    whole = teacache.fit(pairs)
    pairs.x[2, 0, 3] = pairs.y[4, 1, 7] = np.nan
    found = teacache.fit(pairs)
    assert found.points == whole.points - 2
    np.testing.assert_allclose(found.coefficients, TRUE, atol=1e-6)


def test_the_polynomial_is_that_of_polyfit() -> None:
    pairs = drawn(noise=0.02)
    found = teacache.fit(pairs)
    expected = np.polyfit(pairs.x.ravel(), pairs.y.ravel(), 4)
    np.testing.assert_allclose(found.coefficients, expected, rtol=1e-6)
    assert (found.low, found.high) == (pairs.x.min(), pairs.x.max())
    assert found.prompts == 10 and found.points == 380


def test_held_out_prompts_have_no_part_in_their_prediction() -> None:
    pairs = drawn(noise=0.02)
    residual, spread = [], []
    for fold in range(5):
        kept = np.arange(10) % 5 != fold
        coefficients = np.polyfit(pairs.x[kept].ravel(), pairs.y[kept].ravel(), 4)
        residual.append(pairs.y[~kept] - np.polyval(coefficients, pairs.x[~kept]))
        spread.append(pairs.y[~kept] - pairs.y[kept].mean())
    residual, spread = np.array(residual), np.array(spread)
    found = teacache.fit(pairs)
    assert found.r_squared == pytest.approx(1 - (residual**2).sum() / (spread**2).sum())
    assert found.rmse == pytest.approx(np.sqrt((residual**2).mean()))
    assert found.r_squared < found.within


def test_noise_alone_is_refused_and_written_by_force() -> None:
    pairs = drawn(noise=1.0)
    found = teacache.fit(pairs)
    assert found.r_squared < 0.1
    with pytest.raises(FitError, match=r"R\^2 -?0.\d\d on held-out prompts, 0.5 is the floor; --force") as caught:
        teacache.require(found)
    assert caught.value.exit_code == 1
    assert teacache.require(found, force=True) is found


def test_a_polynomial_that_falls_is_known_and_the_other_never_does() -> None:
    pairs = drawn(curve=FALLING, noise=0.002)
    free, bound = teacache.fit(pairs), teacache.fit(pairs, monotone=True)
    assert not free.monotone and bound.monotone
    values = np.polyval(bound.coefficients, np.linspace(bound.low, bound.high, 10001))
    assert np.diff(values).min() >= -1e-12 and values.min() >= -1e-12
    assert bound.r_squared < free.r_squared


@pytest.mark.parametrize("seed", range(20))
def test_the_monotone_polynomial_never_falls_whatever_the_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = Pairs("last", ("cond",), rng.lognormal(-3, 1, (6, 1, 12)), rng.normal(0, 1, (6, 1, 12)))
    found = teacache.fit(pairs, monotone=True)
    values = np.polyval(found.coefficients, np.linspace(found.low, found.high, 5001))
    assert found.monotone
    assert np.diff(values).min() >= -1e-9 * max(values.max(), 1e-9) and values.min() >= -1e-9 * max(values.max(), 1)


def test_where_points_ascend_both_are_the_same() -> None:
    pairs = drawn()
    free, bound = teacache.fit(pairs), teacache.fit(pairs, monotone=True)
    assert free.monotone
    np.testing.assert_allclose(bound.coefficients, free.coefficients, atol=1e-6)


def test_pairs_are_relative_changes_of_the_two_sites(folder: Path) -> None:
    with open_trace(folder) as trace:
        for output in teacache.OUTPUTS:
            pairs = teacache.pairs(trace, output)
            for values, site in ((pairs.x, "modulated"), (pairs.y, output)):
                x = trace.samples("stack", 1)[:, 0, trace.sites().index(site)].astype("f8")
                np.testing.assert_allclose(values[1], abs(np.diff(x)).mean(1) / abs(x[..., :-1]).mean(1), rtol=1e-5)
        assert pairs.branches == ("cond", "uncond")
        with pytest.raises(ValueError, match="give one of residual, last, prediction"):
            teacache.pairs(trace, "first")


def test_no_stack_one_step_and_a_lacking_site_are_refused(
    trace_folder: Path, tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]
) -> None:
    lacking = traced(tmp_path / "b", states(shard(0), sites=("model_input", "modulated", "prediction")))
    for path, told in (
        (trace_folder, "--no-stack"),
        (traced(tmp_path / "a", shard(0, steps=1)), "--steps 2"),
        (lacking, "no residual"),
    ):
        with open_trace(path) as trace, pytest.raises(IncompleteError, match=told):
            teacache.pairs(trace)
    with open_trace(lacking) as trace:
        assert teacache.pairs(trace, "prediction").x.shape == (1, 2, 4)


def by_hand(coefficients: np.ndarray, x: list[float], threshold: float, rule: Rule) -> list[bool]:
    """The rule as a loop over plain numbers."""
    mask, total = [False], 0.0
    for step in range(1, len(x) + 1):
        value = float(np.poly1d(coefficients)(x[step - 1]))
        total += abs(value) if rule.absolute else value
        skip = total < threshold and not (rule.last and step == len(x))
        total = total if skip else 0.0
        mask.append(skip)
    return mask


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_the_rule_is_that_of_a_plain_loop(last: bool, absolute: bool) -> None:
    """With a polynomial that is negative over a part of the range."""
    rng, rule, seen = np.random.default_rng(2), Rule(last, absolute), set()
    for _ in range(30):
        x, threshold = rng.uniform(0, 0.3, 12), rng.exponential(0.2)
        coefficients = np.array([0, 0, 4, 0.3, -0.05])
        found = teacache.skipped(coefficients, x, threshold, rule)
        assert found.tolist() == by_hand(coefficients, x.tolist(), threshold, rule)
        seen.add(int(found.sum()))
    assert len(seen) > 2


def test_a_missing_change_makes_a_step_computed_and_the_sum_start_anew() -> None:
    mask = teacache.skipped([1, 0], [0.1, np.nan, 0.1, 0.1, 0.1], 0.25, Rule(last=False))
    assert mask.astype(int).tolist() == [0, 1, 0, 1, 1, 0]


def test_the_first_step_and_the_last_are_computed_at_any_threshold() -> None:
    mask = teacache.skipped(TRUE, drawn().x, 1e9)
    assert not mask[..., 0].any() and not mask[..., -1].any() and mask[..., 1:-1].all()


def test_skips_are_means_over_prompts_with_an_interval() -> None:
    pairs = drawn()
    told = teacache.skips(TRUE, pairs.x, 0.3)
    numbers = teacache.skipped(TRUE, pairs.x, 0.3).sum(-1).mean(1)
    assert told.number == pytest.approx(numbers.mean()) and told.num_steps == 20
    assert (told.least, told.most) == (numbers.min(), numbers.max())
    half = 2.262157 * numbers.std(ddof=1) / np.sqrt(10)  # t of nine degrees
    assert (told.low, told.high) == pytest.approx((numbers.mean() - half, numbers.mean() + half), rel=1e-6)
    assert np.isnan(teacache.skips(TRUE, pairs.x[:1], 0.3).low)


def test_a_threshold_for_a_share_skips_it_and_little_more() -> None:
    pairs = drawn()
    for share in (0.1, 0.4, 0.8):
        threshold = teacache.threshold_for(TRUE, pairs.x, share)
        assert share <= teacache.skips(TRUE, pairs.x, threshold).share < share + 0.05
        assert teacache.skips(TRUE, pairs.x, threshold * 0.97).share < share


def test_a_share_that_cannot_be_reached_is_refused_with_the_largest() -> None:
    x = drawn(steps=10).x
    with pytest.raises(ValueError, match=r"up to 80% \(8 of 10 steps\)"):
        teacache.threshold_for(TRUE, x, 0.9)
    assert (
        teacache.skips(TRUE, x, teacache.threshold_for(TRUE, x, 0.9, Rule(last=False)), Rule(last=False)).share >= 0.9
    )
    with pytest.raises(ValueError, match="up to 0%"):
        teacache.threshold_for(TRUE, x[..., :1], 0.5)

"""MagCache's ratios and its rule, on arrays and on traces made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dit_analyzer.plans import magcache
from dit_formats import IncompleteError, open_trace
from dit_formats.plan import PlanError
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

HALVES = ("cond", "uncond")


def of(ratio: np.ndarray, branches: tuple[str, ...] = HALVES) -> magcache.Ratios:
    """Ratios (prompt, branch, transition) without deviations over tokens."""
    return magcache.of_values(ratio, np.zeros(ratio.shape), np.ones(ratio.shape), branches)


def drawn(prompts: int = 8, steps: int = 20, spread: float = 0.02, seed: int = 0) -> np.ndarray:
    """Ratios that fall over the steps, with noise of their own for each prompt, (prompt, branch, transition)."""
    rng = np.random.default_rng(seed)
    return np.linspace(1.05, 0.9, steps - 1) * np.exp(rng.normal(0, spread, (prompts, 2, steps - 1)))


def by_hand(ratios: list[float], threshold: float, most: int, retention: float) -> list[bool]:
    """The rule as a loop over plain numbers."""
    mask, product, error, run = [], 1.0, 0.0, 0
    for step, ratio in enumerate(ratios):
        skip = False
        if step >= int(retention * len(ratios) + 0.5):
            product, run = product * ratio, run + 1
            error += abs(1 - product)
            skip = step > 0 and error <= threshold and run <= most
            if not skip:
                product, error, run = 1.0, 0.0, 0
        mask.append(skip)
    return mask


@pytest.fixture
def traced(tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]) -> Path:
    path = tmp_path / "a.trace"
    path.mkdir()
    for index in range(3):
        write_shard(path, states(shard(index)))
    return path


def test_one_prompt_has_ratios_and_no_spread() -> None:
    found = of(drawn(prompts=1))
    assert np.isnan(found.prompt_std[:, 1:]).all() and np.isnan(found.low[:, 1:]).all()
    told = magcache.skips(found, 0.06)
    assert np.isnan(told.low) and told.least == told.number == told.most
    assert "one prompt, so no interval" in str(told)


def test_two_steps_have_one_ratio() -> None:
    found = of(np.full((3, 2, 1), 1.25))
    np.testing.assert_array_equal(found.ratios, [[1, 1.25]] * 2)
    assert magcache.skips(found, 0.3, retention=0).number == 1
    assert magcache.skips(found, 0.2, retention=0).number == 0


def test_equal_prompts_have_an_interval_of_no_width() -> None:
    found = of(np.repeat(drawn(prompts=1), 4, 0))
    np.testing.assert_allclose(found.low, found.ratios)
    np.testing.assert_allclose(found.high, found.ratios)
    told = magcache.skips(found, 0.1)
    assert told.low == told.number == told.high


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_step_without_a_ratio_is_refused_by_its_number(bad: float) -> None:
    ratio = drawn()
    ratio[3, 1, 4] = bad
    with pytest.raises(PlanError, match="into step 5: not recorded there"):
        of(ratio)


def test_a_trace_without_a_stack_or_with_one_step_is_refused(
    trace_folder: Path, tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]
) -> None:
    with open_trace(trace_folder) as trace, pytest.raises(IncompleteError, match="--no-stack"):
        magcache.ratios(trace)
    (tmp_path / "one").mkdir()
    write_shard(tmp_path / "one", shard(0, steps=1))
    with open_trace(tmp_path / "one") as trace, pytest.raises(IncompleteError, match="--steps 2"):
        magcache.ratios(trace)
    (tmp_path / "none").mkdir()
    write_shard(tmp_path / "none", states(shard(0), sites=("model_input", "prediction")))
    with open_trace(tmp_path / "none") as trace, pytest.raises(IncompleteError, match="has no residual"):
        magcache.ratios(trace)


def test_blocks_that_add_nothing_are_refused(
    tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]
) -> None:
    (tmp_path / "a").mkdir()
    write_shard(tmp_path / "a", states(shard(0), np.zeros((2, 8, 12, 5))))
    with open_trace(tmp_path / "a") as trace, pytest.raises(PlanError, match="the blocks add nothing"):
        magcache.ratios(trace)


def test_ratios_are_means_over_tokens_and_prompts_led_by_one(traced: Path) -> None:
    with open_trace(traced) as trace:
        found = magcache.ratios(trace)
        site = trace.sites().index("residual")
        x = np.stack([trace.samples("stack", p)[:, 0, site] for p in range(3)]).astype("f8")
    norms = np.linalg.norm(x.reshape(3, 2, 4, 3, 5), axis=3)
    ratio = norms[..., 1:] / norms[..., :-1]
    np.testing.assert_allclose(found.ratios[:, 1:], ratio.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(found.token_std[:, 1:], ratio.std(2).mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.prompt_std[:, 1:], ratio.mean(2).std(0, ddof=1), rtol=1e-4)
    assert (found.ratios[:, 0] == 1).all() and (found.cosine[:, 0] == 1).all() and (found.token_std[:, 0] == 0).all()
    assert found.branches == HALVES
    assert (found.low <= found.ratios).all() and (found.ratios <= found.high).all()
    assert found.interleaved[:4].tolist() == [1, 1, *found.ratios[:, 1]]
    np.testing.assert_allclose(found.joint, found.ratios.mean(0))


@pytest.mark.parametrize("retention", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("most", [0, 1, 3, 100])
def test_the_rule_is_that_of_a_plain_loop(most: int, retention: float) -> None:
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(30):
        ratios, threshold = np.exp(rng.normal(0, 0.05, 15)), rng.exponential(0.1)
        found = magcache.skipped(ratios, threshold, most, retention)
        assert found.tolist() == by_hand(ratios.tolist(), threshold, most, retention)
        seen.add(int(found.sum()))
    assert (len(seen) > 1) == (most > 0 and retention < 1)


def test_the_first_step_is_computed_and_constant_ratios_of_one_skip_all_that_may_be() -> None:
    mask = magcache.skipped(np.ones(9), 0.0, max_skip=3, retention=0)
    assert mask.astype(int).tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 0]


def test_many_rows_and_thresholds_are_taken_at_once() -> None:
    ratios, thresholds = drawn()[:, 0], np.array([0.02, 0.1])
    found = magcache.skipped(ratios[:, None], thresholds)
    for row, column in np.ndindex(8, 2):
        assert (found[row, column] == magcache.skipped(ratios[row], thresholds[column])).all()


def test_a_threshold_for_a_share_skips_what_the_smallest_one_does_that_skips_enough() -> None:
    ratios = of(drawn()).joint
    fine = np.linspace(0, 2, 20001)
    masks = magcache.skipped(ratios, fine)
    for share in (0.05, 0.25, 0.5):
        found = magcache.skipped(ratios, magcache.threshold_for(ratios, share))
        assert (found == masks[masks.sum(-1) >= share * 20][0]).all()
        assert found.sum() >= share * 20


def test_a_share_that_cannot_be_reached_is_refused_with_the_largest() -> None:
    with pytest.raises(ValueError, match=r"up to 60% \(12 of 20 steps, at most 3 in a row and none of the first 20%"):
        magcache.threshold_for(np.ones(20), 0.9)
    with pytest.raises(ValueError, match="give more than 0"):
        magcache.threshold_for(np.ones(20), 0)
    with pytest.raises(ValueError, match="up to 0%"):
        magcache.threshold_for(np.ones(1), 0.5)


def test_the_interval_holds_what_other_prompts_give() -> None:
    """Of 100 sets of 32 prompts, about 95 % have the number of very many prompts in their interval."""
    true = int(magcache.skips(of(drawn(prompts=4000, seed=999)), 0.1).number)
    hits = 0
    for seed in range(100):
        told = magcache.skips(of(drawn(prompts=32, spread=0.05, seed=seed)), 0.1)
        hits += told.low <= true <= told.high
    assert hits >= 90

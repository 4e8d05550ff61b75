"""Both optimisers against every plan there is."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
from dit_analyzer.plans.optimise import AIMS, MINIMAX, TOTAL, Best, allotted, best_plans

TRIALS = range(60)


def left_out(errors: np.ndarray, computed: tuple[int, ...]) -> list[float]:
    """The errors of a plan, step by step."""
    found = []
    for step in range(errors.shape[-1]):
        if step not in computed:
            past = [one for one in computed if one < step]
            before = past[-2] if past[1:] else past[-1]
            found.append(float(errors[before if len(errors) > 1 else 0, past[-1], step]))
    return found


def judged(found: list[float], aim: str) -> Any:
    return sum(found) if aim == TOTAL else tuple(sorted(found, reverse=True))


def brute(errors: np.ndarray, number: int, forced: list[int], aim: str) -> Any:
    """The least label of all plans that compute so many steps; None if there is none."""
    every = ((0, *rest) for rest in combinations(range(1, errors.shape[-1]), number - 1))
    labels = [judged(left_out(errors, one), aim) for one in every if set(forced) <= set(one)]
    possible = [label for label in labels if np.isfinite(label).all()]
    return min(possible, default=None)


def some_errors(seed: int) -> tuple[np.ndarray, list[int]]:
    """Errors with ties, steps that cannot be reused, and forced steps, each in some of the trials."""
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 8))
    errors = rng.random((steps if seed % 2 else 1, steps, steps)).round(1 if seed % 3 == 0 else 6)
    if seed % 4 == 0:
        errors[rng.random(errors.shape) < 0.2] = np.inf
    forced = rng.choice(steps, rng.integers(0, steps + 1), replace=False).tolist() if seed % 5 == 0 else []
    return errors, forced


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("seed", TRIALS)
def test_the_best_plan_is_the_best_of_all(seed: int, aim: str) -> None:
    errors, forced = some_errors(seed)
    found = best_plans(errors, forced, aim)
    assert len(found) == errors.shape[-1]
    for number, best in enumerate(found, 1):
        truth = brute(errors, number, forced, aim)
        assert (best is None) == (truth is None)
        if best is not None:
            assert best.compute.sum() == number and best.compute[0] and best.compute[forced].all()
            own = judged(left_out(errors, tuple(np.flatnonzero(best.compute))), aim)
            assert own == pytest.approx(truth, abs=1e-12) and best.label == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("aim", AIMS)
def test_one_step_is_computed(aim: str) -> None:
    (best,) = best_plans(np.zeros((1, 1, 1)), (), aim)
    assert best is not None and best.compute.tolist() == [True] and best.label == (0.0 if aim == TOTAL else ())


@pytest.mark.parametrize("aim", AIMS)
def test_a_step_that_nothing_can_stand_in_for_is_computed(aim: str) -> None:
    errors = np.full((1, 4, 4), 1.0)
    errors[:, :, 2] = np.inf
    one, two, *_ = best_plans(errors, (), aim)
    assert one is None and two is not None and two.compute.tolist() == [True, False, True, False]


@pytest.mark.parametrize("aim", AIMS)
def test_with_all_steps_forced_only_the_whole_run_is_left(aim: str) -> None:
    *fewer, whole = best_plans(np.ones((1, 4, 4)), (0, 1, 2, 3), aim)
    assert fewer == [None] * 3 and whole is not None and whole.compute.all()


# Several rows ----------------------------------------------------------------------


def brute_rows(rows: list[list[Best | None]], weights: list[int], cells: int, aim: str) -> Any:
    """The least label of all numbers of steps that come to so many cells; None if there is none."""
    labels = [label_of(rows, weights, numbers, aim) for numbers in product(*(range(1, len(r) + 1) for r in rows))
              if sum(n * w for n, w in zip(numbers, weights)) == cells]  # fmt: skip
    return min((label for label in labels if label is not None), default=None)


def label_of(rows: list[list[Best | None]], weights: list[int], numbers: Any, aim: str) -> Any:
    plans = [row[number - 1] for row, number in zip(rows, numbers)]
    if None in plans:
        return None
    if aim == TOTAL:
        return sum(weight * plan.label for plan, weight in zip(plans, weights))
    return tuple(sorted((e for plan, weight in zip(plans, weights) for e in plan.label * weight), reverse=True))


def some_rows(seed: int, aim: str) -> tuple[list[list[Best | None]], list[int]]:
    rng = np.random.default_rng(seed)
    steps, number = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    weights = rng.integers(1, 5, number).tolist() if seed % 3 else [1] * number
    rows = []
    for _ in range(number):
        errors = rng.random((steps if seed % 2 else 1, steps, steps)) * rng.choice([0.1, 1, 10])
        errors = errors.round(1) if seed % 4 == 0 else errors
        forced = [int(rng.integers(steps))] if seed % 5 == 0 else []
        rows.append(best_plans(errors, forced, aim))
    return rows, weights


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("seed", range(150))
def test_steps_are_shared_out_among_rows_as_well_as_can_be(seed: int, aim: str) -> None:
    rows, weights = some_rows(seed, aim)
    for cells in range(len(rows[0]) * sum(weights) + 2):
        truth = brute_rows(rows, weights, cells, aim)
        if truth is None:
            with pytest.raises(ValueError, match=f"come to {cells} computed cells"):
                allotted(rows, weights, cells, aim)
            continue
        numbers = allotted(rows, weights, cells, aim)
        assert sum(n * w for n, w in zip(numbers, weights)) == cells
        assert label_of(rows, weights, numbers, aim) == pytest.approx(truth, abs=1e-12)


def test_a_bound_that_leaves_cells_over_gives_way_to_one_that_fits() -> None:
    """With 6 cells 1 + 2 steps keep errors at 1 but come to 5; 4 + 1 come to 6, though an error is 2 then."""

    def row(*largest: float) -> list[Best | None]:
        whole = len(largest)
        return [Best((one,) * (whole - n), np.arange(whole) < n) for n, one in enumerate(largest, 1)]

    light, heavy = row(1.0, 3.0, 3.0, 0.5, 0.0), row(2.0, 1.0, 0.5, 0.2, 0.0)
    assert allotted([light, heavy], [1, 2], 6, MINIMAX) == [4, 1]


def test_layers_that_weigh_alike_and_change_alike_share_alike() -> None:
    errors = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))[None]
    for aim in AIMS:
        rows = [best_plans(errors, (), aim) for _ in range(4)]
        assert allotted(rows, [1] * 4, 12, aim) == [3] * 4

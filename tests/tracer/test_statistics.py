from __future__ import annotations

import numpy as np
import pytest
import torch
from dit_tracer.recording.history import History
from dit_tracer.recording.statistics import step_sums, transition_sums


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    previous, current = torch.randn(2, 3, 1, 4, 50, 6, generator=generator).to(dtype)
    return previous, current


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_are_those_of_float64(dtype: torch.dtype) -> None:
    previous, current = tensors(dtype)
    x, y = previous.double().numpy().reshape(3, -1), current.double().numpy().reshape(3, -1)
    step = np.stack([abs(y).sum(1), (y**2).sum(1), abs(y).max(1), np.full(3, 1200.0), np.zeros(3)], 1)
    d = y - x
    pair = np.stack([abs(d).sum(1), (d**2).sum(1), (x * y).sum(1), np.full(3, 1200.0)], 1)
    np.testing.assert_allclose(step_sums(current).numpy(), step, rtol=1e-6)
    np.testing.assert_allclose(transition_sums(previous, current).numpy(), pair, rtol=1e-6, atol=1e-4)


def test_views_give_the_sums_of_copies() -> None:
    _, current = tensors()
    view = current.transpose(2, 3).narrow(2, 10, 20)
    assert torch.equal(step_sums(view), step_sums(view.contiguous()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_elements_are_left_out_and_counted(bad: float) -> None:
    previous, current = tensors()
    whole = step_sums(current), transition_sums(previous, current)
    value, before = current[1, 0, 0, 0, 0].item(), previous[1, 0, 0, 0, 0].item()
    current[1, 0, 0, 0, 0] = bad
    sums, pair = step_sums(current), transition_sums(previous, current)
    assert torch.isfinite(sums).all() and torch.isfinite(pair).all()
    assert sums[:, 3].tolist() == [1200, 1199, 1200] and sums[:, 4].tolist() == [0, 1, 0]
    assert pair[:, 3].tolist() == [1200, 1199, 1200]
    assert sums[1, 0].item() == pytest.approx(whole[0][1, 0].item() - abs(value), rel=1e-6)
    assert pair[1, 0].item() == pytest.approx(whole[1][1, 0].item() - abs(value - before), rel=1e-6)
    assert torch.equal(sums[0], whole[0][0]) and torch.equal(pair[2], whole[1][2])


def test_history_gives_the_step_before_and_nothing_else() -> None:
    history, (x, y) = History(), tensors()
    assert history.swap("k", 0, x) is None
    assert torch.equal(history.swap("k", 1, y), x)
    assert history.swap("v", 1, y) is None
    assert history.swap("k", 3, x) is None, "step 2 is missing"


def test_history_keeps_by_reference_from_the_second_step() -> None:
    history, (x, y) = History(), tensors()
    history.swap("k", 0, x)
    history.swap("k", 1, y)
    assert history.swap("k", 2, x).data_ptr() == y.data_ptr()


def test_history_survives_a_model_that_writes_into_its_activations() -> None:
    history = History()
    for step in range(4):
        x = torch.full((3,), float(step))
        previous = history.swap("k", step, x)
        x.mul_(100)
        if step:
            assert previous.tolist() == [step - 1] * 3


def test_history_refuses_a_late_change_in_place() -> None:
    history = History()
    history.swap("k", 0, torch.zeros(3))
    late = torch.ones(3)
    history.swap("k", 1, late)
    late.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        history.swap("k", 2, torch.zeros(3))


def test_history_works_in_inference_mode() -> None:
    history = History()
    with torch.inference_mode():
        for step in range(3):
            x = torch.full((3,), float(step))
            previous = history.swap("k", step, x)
            x.mul_(100)
    assert previous.tolist() == [1, 1, 1]

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dit_tracer.recording import chunked, compiled
from dit_tracer.recording.history import History
from dit_tracer.recording.statistics import step_sums, transition_sums, unchanged


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


def test_what_does_not_change_is_known_without_summing() -> None:
    _, current = tensors()
    found = unchanged(step_sums(current))
    torch.testing.assert_close(found, transition_sums(current, current), rtol=1e-12, atol=0)


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


LAYOUTS = {
    "as it lies": lambda t: t,
    "heads apart": lambda t: t.transpose(2, 3),
    "part of the tokens": lambda t: t.narrow(3, 10, 20),
    "part of the tokens, heads apart": lambda t: t.transpose(2, 3).narrow(2, 10, 20),
    "every other token": lambda t: t[:, :, :, ::2],
    "one element": lambda t: t[:1, :, :1, :1, :1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_sums_are_the_plain_ones(layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "SERIAL", 256)  # so that these tensors have several pieces
    previous, current = (LAYOUTS[layout](t) for t in tensors(dtype))
    for before in (previous, previous.contiguous()):
        sums, changes = chunked.measure(current, before)
        torch.testing.assert_close(sums, step_sums(current), rtol=2e-7, atol=0)
        torch.testing.assert_close(changes, transition_sums(before, current), rtol=2e-7, atol=1e-5)
    alone, none = chunked.measure(current, None)
    torch.testing.assert_close(alone, sums, rtol=2e-7, atol=0)
    assert none is None


@pytest.mark.parametrize("layout", ["as it lies", "heads apart", "part of the tokens"])
def test_compiled_sums_are_the_plain_ones(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While everything else runs as it is written, as it does within a recorder."""
    assert compiled.usable(), "the tests need a C++ compiler"
    monkeypatch.setattr(compiled, "LARGE", 1)
    generator = torch.Generator().manual_seed(0)
    previous, current = torch.randn(2, 2, 1, 4, 160, 64, generator=generator)
    previous, current = (LAYOUTS[layout](t) for t in (previous, current))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        first, none = compiled.measure(current, None)
        found = compiled.measure(current, previous)
        current[0, 0, 1, 3, 3] = torch.inf
        assert compiled.measure(current, previous) is None, "what is not finite is told apart in the slow way"
        current[0, 0, 1, 3, 3] = 1.0
        expected = step_sums(current), transition_sums(previous, current)
        torch.testing.assert_close(compiled.measure(current, previous), expected, rtol=5e-7, atol=1e-4)
    torch.testing.assert_close(first, found[0], rtol=5e-7, atol=1e-4)
    assert none is None


def test_small_or_odd_activations_are_not_worth_compiling() -> None:
    assert compiled.measure(torch.zeros(1, 1, 1, 100, 100), None) is None
    assert compiled.measure(torch.zeros(1, 1, 1, 1, 131071), None) is None, "a prime number of elements"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_fast_sums_leave_out_what_is_not_finite(bad: float) -> None:
    previous, current = tensors()
    current[1, 0, 2, 7, 3], previous[2, 0, 0, 0, 0] = bad, bad
    sums, changes = chunked.measure(current, previous)
    torch.testing.assert_close(sums, step_sums(current), rtol=2e-7, atol=0)
    torch.testing.assert_close(changes, transition_sums(previous, current), rtol=2e-7, atol=1e-5)
    assert sums[:, 4].tolist() == [0, 1, 0] and changes[:, 3].tolist() == [1200, 1199, 1199]


def test_large_tensors_are_summed_without_loss() -> None:
    """BLAS would be 1e-6 off here, and 1 - cosine of neighbouring steps may be smaller than that."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 1, 4000, 256, generator=generator).bfloat16()
    y = (x.float() * 1.01).bfloat16()
    sums, changes = chunked.measure(y, x)
    x8, y8 = x.double(), y.double()
    assert sums[0, :2].tolist() == pytest.approx([y8.abs().sum().item(), (y8**2).sum().item()], rel=1e-7)
    expected = [(y8 - x8).abs().sum(), ((y8 - x8) ** 2).sum(), (x8 * y8).sum()]
    assert changes[0, :3].tolist() == pytest.approx([value.item() for value in expected], rel=1e-7)


BY_REFERENCE = ("device", True)
HOW = [("device",), ("host",), BY_REFERENCE]


def kept(history: History, place: str, step: int, x: torch.Tensor) -> torch.Tensor | None:
    """The step before, having kept this one as a meter does."""
    before, now, keep = history.swap(place, step, x)
    assert now is x
    before = None if before is None else before.clone()
    if keep is not None:
        keep.copy_(x)
    return before


@pytest.mark.parametrize("how", HOW)
def test_history_gives_the_step_before_and_nothing_else(how: tuple[Any, ...]) -> None:
    history, (x, y) = History(*how), tensors()
    assert kept(history, "k", 0, x) is None
    assert torch.equal(kept(history, "k", 1, y), x)
    assert kept(history, "v", 1, y) is None
    assert kept(history, "k", 3, x) is None, "step 2 is missing"
    history.end()
    assert kept(history, "k", 4, y) is None, "another generation"


def test_history_keeps_by_reference_from_the_second_step() -> None:
    history, (x, y) = History(*BY_REFERENCE), tensors()
    kept(history, "k", 0, x)
    kept(history, "k", 1, y)
    assert history.swap("k", 2, x).before.data_ptr() == y.data_ptr()


@pytest.mark.parametrize("how", HOW)
def test_history_survives_a_model_that_writes_into_its_activations(how: tuple[Any, ...]) -> None:
    history = History(*how)
    for step in range(4):
        x = torch.full((3,), float(step))
        before = kept(history, "k", step, x)
        x.mul_(100)
        if step:
            assert before.tolist() == [step - 1] * 3


def test_history_refuses_a_late_change_in_place() -> None:
    history = History(*BY_REFERENCE)
    history.swap("k", 0, torch.zeros(3))
    late = torch.ones(3)
    history.swap("k", 1, late)
    late.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        history.swap("k", 2, torch.zeros(3))


def test_host_keeps_copies_in_the_same_memory() -> None:
    history, (x, y) = History("host"), tensors()
    kept(history, "k", 0, x)
    memory = history.at("k", 0)
    assert torch.equal(kept(history, "k", 1, y), x)
    assert history.at("k", 1).data_ptr() == memory.data_ptr() != y.data_ptr()
    assert torch.equal(history.at("k", 1), y)


def test_subset_compares_the_same_elements_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dit_tracer.recording.history.HELD", 500)
    history = History("subset")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 4, 50, 6, generator=generator)
    history.swap("k", 0, x)
    for step, other in ((1, x + 3), (2, (x + 4).transpose(2, 3).contiguous().transpose(2, 3))):
        before, now, keep = history.swap("k", step, other)
        assert keep is None
        assert before.shape == now.shape == (2, 500)
        assert torch.allclose(now - before, torch.tensor(3.0 if step == 1 else 1.0), atol=1e-6)
    assert history.at("k", 2) is None, "there is no whole activation"


def test_subset_of_a_small_activation_is_all_of_it() -> None:
    history, (x, y) = History("subset"), tensors()
    history.swap("k", 0, x)
    before, now, _ = history.swap("k", 1, y)
    assert sorted(before[1].tolist()) == sorted(x[1].flatten().tolist())
    torch.testing.assert_close(transition_sums(before, now), transition_sums(x, y))


@pytest.mark.parametrize("how", HOW)
def test_history_works_in_inference_mode(how: tuple[Any, ...]) -> None:
    history = History(*how)
    with torch.inference_mode():
        for step in range(3):
            x = torch.full((3,), float(step))
            before = kept(history, "k", step, x)
            x.mul_(100)
    assert before.tolist() == [1, 1, 1]

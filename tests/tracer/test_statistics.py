from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from dit_tracer.recording import chunked, compiled, statistics
from dit_tracer.recording.history import History
from dit_tracer.recording.picking import offsets, picked
from dit_tracer.recording.statistics import norm_ratios, step_sums, token_norms, transition_sums


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tensors(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    previous, current = torch.randn(2, 3, 1, 4, 50, 6, generator=seeded()).to(dtype)
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


@pytest.mark.parametrize("shape", [(2, 1, 4, 0, 6), (2, 1, 0, 5, 6)])
def test_sums_of_no_elements_are_zero(shape: tuple[int, ...]) -> None:
    nothing = torch.empty(shape)
    assert compiled.measure(nothing, nothing, nothing) is None  # it leaves that to the others
    for found in (chunked.measure(nothing, nothing), statistics.measure(nothing, nothing)):
        assert [sums.tolist() for sums in found] == [[[0.0] * 5] * 2, [[0.0] * 4] * 2]


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", ["apart", "over the step before", "nowhere"])
def test_compiled_sums_are_the_plain_ones(layout: str, kept: str) -> None:
    assert compiled.usable(), "the tests need a C compiler"
    previous, current = (LAYOUTS[layout](t) for t in torch.randn(2, 2, 2, 4, 160, 64, generator=seeded()))
    own = torch.empty_like(current).copy_(previous)  # as a history keeps it
    keep = {"apart": torch.empty_like(current), "over the step before": own, "nowhere": None}[kept]
    (first, none), (steps, changes) = compiled.measure(current, None), compiled.measure(current, own, keep)
    torch.testing.assert_close(steps, step_sums(current), rtol=2e-7, atol=0)
    assert torch.equal(first, steps)
    torch.testing.assert_close(changes, transition_sums(previous, current), rtol=2e-7, atol=1e-4)
    assert none is None
    assert keep is None or torch.equal(keep, current)


@pytest.mark.parametrize("turned", [False, True])
def test_compiled_norms_are_the_plain_ones(turned: bool) -> None:
    previous, current = torch.randn(2, 2, 1, 1, 50, 24, generator=seeded())
    if turned:
        previous, current = (t.mT.contiguous().mT for t in (previous, current))
    previous[0, 0, 0, 3], current[1, 0, 0, 7, 5] = 0.0, torch.nan
    norms = [token_norms(previous), token_norms(current)]
    found = [compiled.token_norms(previous), compiled.token_norms(current)]
    torch.testing.assert_close(found, norms, equal_nan=True)
    torch.testing.assert_close(compiled.norm_ratios(*found), norm_ratios(*norms), rtol=1e-6, atol=0)
    folded = torch.ones(1, 2, 1, 3, 4)
    assert torch.equal(compiled.token_norms(folded), token_norms(folded))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_elements_are_picked_out_of_any_layout(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 1, 4, 50, 6, generator=seeded()).to(dtype)[0].transpose(2, 3)[:, :, 10:]
    axes = tuple(torch.randint(0, size, (20,), generator=seeded()) for size in x.shape[1:])
    assert torch.equal(picked(x, offsets(x, axes)), torch.stack([part[axes] for part in x]))
    assert picked(x, offsets(x, tuple(axis[:0] for axis in axes))).shape == (3, 0)


def test_compiled_sums_do_not_depend_on_the_number_of_threads() -> None:
    previous, current = torch.randn(2, 2, 1, 4, 300, 64, generator=seeded())
    threads = torch.get_num_threads()
    try:
        one, two = (torch.set_num_threads(n) or compiled.measure(current, previous) for n in (1, 2))
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, one, two))


def test_compiled_sums_are_made_in_a_forked_process_too() -> None:
    code = """
import os, signal, torch
from dit_tracer.recording import compiled
torch.set_num_threads(2)
x = torch.ones(1, 1, 1, 1000, 1000)
compiled.measure(x, x)
child = os.fork()
if not child:
    signal.alarm(20)
    compiled.measure(x, x)
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_compiled_sums_are_not_for_all() -> None:
    previous, current = tensors(torch.bfloat16)
    assert compiled.measure(current, previous) is None
    previous, current = tensors()
    assert compiled.measure(current, previous[:, :, :, :40]) is None, "another shape"
    assert compiled.measure(current[..., ::2], None) is None, "no two elements lie together"
    assert compiled.measure(torch.zeros(2, 1, 1, 0, 4), None) is None


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_without_a_compiler_the_plain_way_is_taken(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler)
    compiled.library.cache_clear()
    try:
        assert not compiled.usable() and compiled.measure(torch.ones(1, 1, 1, 2, 2), None) is None
    finally:
        compiled.library.cache_clear()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("way", [chunked, compiled])
def test_fast_sums_leave_out_what_is_not_finite(way: Any, bad: float) -> None:
    previous, current = tensors()
    current[1, 0, 2, 7, 3], previous[2, 0, 0, 0, 0] = bad, bad
    sums, changes = way.measure(current, previous)
    torch.testing.assert_close(sums, step_sums(current), rtol=2e-7, atol=0)
    torch.testing.assert_close(changes, transition_sums(previous, current), rtol=2e-7, atol=1e-5)
    assert sums[:, 4].tolist() == [0, 1, 0] and changes[:, 3].tolist() == [1200, 1199, 1199]


def test_large_tensors_are_summed_without_loss() -> None:
    """BLAS would be 1e-6 off here, and 1 - cosine of neighbouring steps may be smaller than that."""
    x = torch.randn(1, 1, 1, 4000, 256, generator=seeded()).bfloat16()
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

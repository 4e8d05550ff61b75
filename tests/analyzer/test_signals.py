"""Signals of the stack, and cosines of guidance halves and of steps, from traces made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dit_analyzer import branch_cosines, distances, paper_view, signals, step_cosines
from dit_formats import IncompleteError, open_trace
from dit_formats.check import check
from dit_formats.schema import STACK, STACK_STATISTICS, Shard, StreamData
from dit_formats.writer import write_shard

SITES = ("model_input", "input", "residual")
PAIRS = ((0, 3), (1, 2))


def with_more(shard: Shard) -> Shard:
    """The shard with a stack of three sites, and products of halves and steps in its latent stream."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(1, 2, 1, 3, 12, 5)).astype("f4").astype("f8")  # prompt, branch, kind, site, element, step
    d = np.diff(x, axis=-1)
    norms = np.linalg.norm(x.reshape(1, 2, 1, 3, 4, 3, 5), axis=-2)
    ratio = norms[..., 1:] / norms[..., :-1]
    count = np.full((1, 2, 1, 3, 5), 12.0)
    steps = [abs(x).sum(-2), (x**2).sum(-2), abs(x).max(-2), count, count * 0]
    changes = [abs(d).sum(-2), (d**2).sum(-2), (x[..., 1:] * x[..., :-1]).sum(-2), count[..., 1:]]
    token, channel = np.divmod(np.arange(12), 3)
    cell = np.ones((1, 3, 1), "i8")
    arrays = {
        "samples": x.astype("f4"),
        "step_sums": np.stack(steps, -2),
        "transition_sums": np.stack([*changes, ratio.mean(-2), ratio.std(-2)], -2),
        "recorded": np.ones((2, 1, 3, 5), "u1"),
        "token": cell * token,
        "channel": cell * channel,
        "weight": cell / 12 * np.ones(12),
        "num_tokens": cell[..., 0] * 4,
        "num_channels": cell[..., 0] * 3,
    }
    stack = StreamData(("cond", "uncond"), ("x",), "float32", arrays, SITES)
    latent = shard.streams["latent"]
    values = latent.arrays["samples"].astype("f8")
    products = {
        "branch_products": (values[:, :1] * values[:, 1:]).sum(-2),
        "pair_products": np.stack([(values[..., a] * values[..., b]).sum(-1) for a, b in PAIRS], -1),
    }
    told = tuple(f"{a}:{b}" for a, b in PAIRS)
    latent = replace(latent, arrays=latent.arrays | products, branch_pairs=("cond|uncond",), step_pairs=told)
    return replace(shard, streams=shard.streams | {"latent": latent, STACK: stack})


@pytest.fixture
def folder(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    path = tmp_path / "a.trace"
    path.mkdir()
    for index in range(2):
        write_shard(path, with_more(shard(index)))
    return path


def test_stack_is_read_back_and_is_no_stream(folder: Path) -> None:
    assert check(folder).problems == []
    with open_trace(folder) as trace:
        assert trace.streams == ("latent", "text")
        assert trace.has_stack and trace.sites() == SITES and trace.sites("latent") == ()
        assert trace.transition_statistics(STACK) == STACK_STATISTICS
        assert trace.branch_pairs("latent") == ("cond|uncond",) and trace.branch_pairs("text") == ()
        assert trace.step_pairs("latent") == ("0:3", "1:2")
        assert distances(trace).stream.values.tolist() == ["latent", "text"]


def test_signals_are_those_of_the_values(folder: Path) -> None:
    with open_trace(folder) as trace:
        found = signals(trace).isel(prompt=0, branch=1).sel(site="residual")
        x = trace.samples(STACK, 0)[1, 0, 2].astype("f8")
    d = np.diff(x, axis=1)
    np.testing.assert_allclose(found["l1"], abs(d).mean(0))
    np.testing.assert_allclose(found["rel_l1"], abs(d).mean(0) / abs(x[:, :-1]).mean(0))
    np.testing.assert_allclose(found["rms"], np.sqrt((d**2).mean(0)))
    lengths = np.linalg.norm(x, axis=0)
    np.testing.assert_allclose(found["cosine"], (x[:, 1:] * x[:, :-1]).sum(0) / (lengths[1:] * lengths[:-1]))
    norms = np.linalg.norm(x.reshape(4, 3, 5), axis=1)
    np.testing.assert_allclose(found["ratio_mean"], (norms[:, 1:] / norms[:, :-1]).mean(0))


def test_cosines_are_those_of_the_values(folder: Path) -> None:
    with open_trace(folder) as trace:
        halves, pairs = branch_cosines(trace).isel(prompt=0), step_cosines(trace).isel(prompt=0)
        x = trace.samples("latent", 0).astype("f8")
    one, other = x[0, 1, 0], x[1, 1, 0]
    expected = (one * other).sum(0) / (np.linalg.norm(one, axis=0) * np.linalg.norm(other, axis=0))
    np.testing.assert_allclose(halves.sel(kind="v", layer=0), expected)
    a, b = one[:, 0], one[:, 3]
    np.testing.assert_allclose(pairs.sel(kind="v", layer=0, step_pair="0:3")[0], a @ b / np.sqrt(a @ a * (b @ b)))
    assert halves.sel(kind="k", layer=1).isnull().all(), "cross-attention has no K of latent tokens"


def test_what_was_not_recorded_is_said(trace_folder: Path) -> None:
    with open_trace(trace_folder) as trace:
        for measure in (signals, branch_cosines, step_cosines):
            with pytest.raises(IncompleteError):
                measure(trace)


def test_paper_takes_mochi_before_its_projection(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    """And has no A of it where the heads were not recorded."""
    networks = {"transformers": {"transformer": {"class": "MochiTransformer3DModel"}}}
    whole = shard(0, **networks)
    streams = {name: replace(stream, kinds=("k", "o", "a")) for name, stream in whole.streams.items()}
    for name, one in (("with", replace(whole, streams=streams)), ("without", whole)):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name, one)
    with open_trace(tmp_path / "with") as trace:
        ds = distances(trace)
        view = paper_view(ds)
        np.testing.assert_allclose(
            view["l1"].sel(kind="a", layer=0)[0], ds["l1"].sel(kind="o", stream="latent", layer=0).mean("branch")[0]
        )
    with open_trace(tmp_path / "without") as trace:
        assert paper_view(distances(trace))["l1"].sel(kind="a").isnull().all()


def test_calls_beside_the_guidance_halves_are_left_out(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    whole = shard(0)
    streams = {name: replace(stream, branches=("call1", "cond")) for name, stream in whole.streams.items()}
    write_shard(tmp_path, replace(whole, streams=streams))
    with open_trace(tmp_path) as trace:
        ds = distances(trace)
        view = paper_view(ds)
    np.testing.assert_allclose(
        view["l1"].sel(kind="k", layer=0), ds["l1"].sel(kind="k", layer=0, stream="latent", branch="cond")
    )

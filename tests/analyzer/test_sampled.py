"""Errors of what is read from sampled tensors, on tensors that are known as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import (
    audit,
    distances,
    left_out_positions,
    mean_curves,
    paper_view,
    position_error,
    position_errors,
    variation,
)
from dit_analyzer.measures.groups import member_weights, without_each
from dit_analyzer.measures.positions import Positions
from dit_formats import IncompleteError, open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard

TOKENS, CHANNELS, POSITIONS, STEPS, PROMPTS = 60, 24, 480, 5, 4


def tensors(prompt: int) -> np.ndarray:
    """(kind, layer, element, step), with channels of unequal size, and much in common between prompts."""
    shape = 3, 2, TOKENS, CHANNELS, STEPS
    rng, common = np.random.default_rng(prompt), np.random.default_rng(99)
    scale = common.lognormal(sigma=0.8, size=CHANNELS)
    field = 0.95 * common.normal(size=shape) + 0.3 * rng.normal(size=shape)
    x = field * scale[:, None] * rng.lognormal(sigma=0.1)
    return x.reshape(3, 2, -1, STEPS).astype("f4")


def positions() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and channels, each as often as the others."""
    rng = np.random.default_rng(5)
    channel = np.concatenate([rng.permutation(CHANNELS) for _ in range(POSITIONS // CHANNELS)])
    return rng.permuted(np.arange(POSITIONS) * TOKENS // POSITIONS), channel


def sampled(shard: Shard, prompt: int) -> Shard:
    """The shard with such tensors, all of a single stream and branch, and their exact sums."""
    x = tensors(prompt)
    d, x8 = np.diff(x.astype("f8")), x.astype("f8")
    token, channel = positions()
    ones, kinds = np.ones((3, 2, 1), "i8"), np.full((3, 2, 1, STEPS), x.shape[2], float)
    steps = [abs(x8).sum(2), (x8**2).sum(2), abs(x8).max(2), kinds[:, :, 0], kinds[:, :, 0] * 0]
    pairs = [abs(d).sum(2), (d**2).sum(2), (x8[..., 1:] * x8[..., :-1]).sum(2), kinds[:, :, 0, 1:]]
    arrays = {
        "samples": x[:, :, token * CHANNELS + channel][None, None],
        "step_sums": np.stack(steps, 2)[None, None],
        "transition_sums": np.stack(pairs, 2)[None, None],
        "recorded": np.ones((1, 3, 2, STEPS), "u1"),
        "token": ones * token,
        "channel": ones * channel,
        "weight": ones / POSITIONS * np.ones(POSITIONS),
        "num_tokens": ones[..., 0] * TOKENS,
        "num_channels": ones[..., 0] * CHANNELS,
    }
    stream = replace(shard.streams["latent"], branches=("cond",), arrays=arrays)
    layers = tuple(replace(layer, type="self") for layer in shard.layers)
    return replace(shard, streams={"latent": stream}, layers=layers)


@pytest.fixture
def trace(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    for prompt in range(PROMPTS):
        write_shard(tmp_path, sampled(shard(prompt), prompt))
    return tmp_path


def test_left_out_is_what_the_other_positions_give(trace: Path) -> None:
    with open_trace(trace) as opened:
        found = left_out_positions(opened, groups=4, lag=2)
        whole = distances(opened, source="sample", lag=2)
        x = opened.samples("latent", 1)[0, 2, 1].astype(float)
    _, channel = positions()
    group = np.empty(POSITIONS, int)
    group[np.argsort(channel, kind="stable")] = np.arange(POSITIONS) % 4
    share = np.sqrt(1 - POSITIONS / (TOKENS * CHANNELS))
    at = {"prompt": 1, "branch": "cond", "stream": "latent", "kind": "a", "layer": 1}
    for g in range(4):
        kept, one = x[group != g], found.sel(at).isel(group=g)
        l1, all_l1 = abs(kept[:, 2:] - kept[:, :-2]).mean(0), abs(x[:, 2:] - x[:, :-2]).mean(0)
        np.testing.assert_allclose(one["l1"], all_l1 + share * (l1 - all_l1))
        size, all_size = abs(kept[:, :-2]).mean(0), abs(x[:, :-2]).mean(0)
        np.testing.assert_allclose(one["size"], all_size + share * (size - all_size))
        np.testing.assert_allclose(one["rel_l1"], one["l1"] / one["size"])
    xr.testing.assert_identical(found["count"], whole["count"])
    xr.testing.assert_allclose(found["speed"].mean("group"), whole["speed"], rtol=1e-2)


def test_jackknife_agrees_with_the_formula_of_one_activation(trace: Path) -> None:
    """A group has one position of each channel here, so that groups differ as strata tell."""
    with open_trace(trace) as opened:
        found = position_error(opened, lambda ds: ds["l1"])
        told = distances(opened, source="sample")["l1_se"]
    ratio = found.error / told.values
    assert 0.9 < np.sqrt((ratio**2).mean()) < 1.1


def test_error_of_a_cv_is_about_how_far_it_is_off(trace: Path) -> None:
    with open_trace(trace) as opened:
        exact = variation(paper_view(distances(opened)))["cv"].values
        found = position_error(opened, lambda ds: variation(paper_view(ds))["cv"], "log")
        view, without = paper_view(distances(opened, source="sample")), paper_view(left_out_positions(opened))
    assert (found.low < exact).all() and (exact < found.high).all()
    carried = variation(view, without)
    np.testing.assert_allclose(carried["cv_position_error"], found.error)
    assert (carried["cv_high"] >= variation(view)["cv_high"]).all()


def test_sample_of_everything_has_no_error(trace_folder: Path) -> None:
    with open_trace(trace_folder) as opened:
        found = position_error(opened, lambda ds: paper_view(ds)["l1"].mean("prompt"))
        assert np.nanmax(found.error) < 1e-12, "but what sums in another order leave"
        assert audit(opened).cells == 0 and audit(opened).plausible


def test_mean_over_prompts_carries_both_errors(trace: Path) -> None:
    with open_trace(trace) as opened:
        ds, without, exact = distances(opened, source="sample"), left_out_positions(opened), distances(opened)
    found, known = mean_curves(ds, without), mean_curves(exact)
    np.testing.assert_allclose(found["se_prompts"], ds["l1"].std("prompt", ddof=1) / np.sqrt(PROMPTS))
    np.testing.assert_allclose(found["se"], np.hypot(found["se_prompts"], found["se_positions"]))
    assert (known["se_positions"] == 0).all() and (known["ratio_se_positions"].dropna("transition") == 0).all()
    assert (mean_curves(ds)["se_positions"] >= 0.7 * found["se_positions"]).mean() > 0.9, "without groups, a bound"
    assert mean_curves(ds)["ratio_se_positions"].isnull().all()
    off = abs(found["l1"] - known["l1"]) / found["se_positions"]
    assert float((off < 2.1).mean()) > 0.8


def test_error_of_a_mean_over_prompts_is_that_of_the_means_of_positions(trace: Path) -> None:
    with open_trace(trace) as opened:
        found, one = position_errors(opened, lag=2), position_errors(opened)
        x = np.stack([opened.samples("latent", prompt)[0, 1, 0] for prompt in range(PROMPTS)]).astype(float)
        ds, without = distances(opened, source="sample"), left_out_positions(opened)
    _, channel = positions()
    change = abs(x[..., 2:] - x[..., :-2]).mean(0)
    missing = 1 - POSITIONS / (TOKENS * CHANNELS)
    variances = [change[channel == c].var(0, ddof=1) * (channel == c).sum() for c in range(CHANNELS)]
    expected = np.sqrt(missing * np.sum(variances, 0)) / POSITIONS
    np.testing.assert_allclose(found["se"].sel(branch="cond", stream="latent", kind="v", layer=0), expected)
    formula, jackknife = mean_curves(ds, one), mean_curves(ds, without)
    for name in ("se_positions", "ratio_se_positions"):
        ratio = (formula[name] / jackknife[name]).values
        assert 0.8 < np.sqrt(np.nanmean(ratio**2)) < 1.2
    assert (formula["se"] >= formula["se_positions"]).all()


def test_position_that_some_prompt_lacks_is_left_out_of_the_error() -> None:
    rng = np.random.default_rng(0)
    channel, values = np.arange(40) % 5, rng.normal(size=(40, 3))
    short = Positions(np.full(40, 1 / 40), channel, 100, 5)
    lost = values.copy()
    lost[:5] = np.nan
    kept = Positions(np.full(35, 1 / 35), channel[5:], 100, 5)
    np.testing.assert_allclose(short.mean(lost), kept.mean(values[5:]))
    np.testing.assert_allclose(short.error(lost), kept.error(values[5:]), rtol=1e-6)
    assert np.isnan(short.error(values * np.nan)).all()


def test_ratio_of_two_steps_has_its_own_error(trace: Path) -> None:
    with open_trace(trace) as opened:
        ds = distances(opened)
    found = mean_curves(ds)
    l1 = ds["l1"].values
    mean = l1.mean(0)
    share = l1 / mean
    expected = (share[..., 1:] - share[..., :-1]).std(0, ddof=1) / np.sqrt(PROMPTS)
    np.testing.assert_allclose(found["ratio"].values[..., 1:], mean[..., 1:] / mean[..., :-1])
    np.testing.assert_allclose(found["ratio_se"].values[..., 1:], expected)
    assert found["ratio"].isel(transition=0).isnull().all()
    scaled = mean_curves(ds.assign(l1=ds["l1"] * xr.DataArray([1.0, 5, 2, 9], dims="prompt")).isel(prompt=[0]))
    assert scaled["se"].isnull().all() and scaled["l1"].notnull().all(), "one prompt says nothing of the others"


def test_values_that_are_not_there_are_left_out() -> None:
    samples = np.random.default_rng(0).normal(size=(40, 4)).astype("f4")
    channel = np.arange(40) % 8
    short = np.concatenate([samples, np.full((5, 4), np.nan, "f4")])
    members = member_weights(np.full(40, 1 / 40), channel, 5)
    padded = np.concatenate([members, np.full((5, 5), 0.2)], axis=1)
    np.testing.assert_allclose(without_each(short, padded, 1.0, 1), without_each(samples, members, 1.0, 1))


def test_positions_of_no_channel_are_in_no_group() -> None:
    members = member_weights(np.full(6, 0.25), np.array([3, 1, -1, 2, 0, -1]), 2)
    assert members.sum(0).tolist() == [0.25, 0.25, 0, 0.25, 0.25, 0]
    assert (members > 0).sum(1).tolist() == [2, 2]


def test_one_group_is_refused(trace: Path) -> None:
    with open_trace(trace) as opened, pytest.raises(ValueError, match="two or more"):
        left_out_positions(opened, groups=1)


def test_statistics_only_have_nothing_to_leave_out_or_audit(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(positions=0))
    with open_trace(tmp_path) as opened:
        for ask in (left_out_positions, audit):
            with pytest.raises(IncompleteError, match="no samples"):
                ask(opened)


def test_audit_of_a_fair_sample_finds_it_fair(trace: Path) -> None:
    with open_trace(trace) as opened:
        found = audit(opened)
    assert found.cells == PROMPTS * 6 * (STEPS - 1) and found.sampled == 6 and found.whole == 0
    assert found.plausible and abs(found.mean) < 1 and 0.6 < found.spread < 1.4 and found.inside > 0.85


def test_audit_names_where_the_sample_is_wrong(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    for prompt in range(2):
        one = sampled(shard(prompt), prompt)
        one.streams["latent"].arrays["samples"][0, 0, 1, 1, :, 3:] *= 2
        write_shard(tmp_path, one)
    with open_trace(tmp_path) as opened:
        found = audit(opened, prompts=1)
    first = found.worst[0]
    assert (first.kind, first.layer, first.name) == ("v", 1, "transformer.blocks.0.attn2") and first.z > 4
    assert first.transition >= 2 and found.prompts == 1
    assert str(first).startswith(f"z {first.z:+.1f} at layer 1 (transformer.blocks.0.attn2), v, latent cond, prompt 0")


def test_audit_doubts_a_sample_of_other_tensors(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    one = sampled(shard(0), 0)
    one.streams["latent"].arrays["samples"][...] *= 1.5
    write_shard(tmp_path, one)
    with open_trace(tmp_path) as opened:
        assert not audit(opened).plausible

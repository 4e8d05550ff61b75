"""How stale K and V are: warm-up steps from curves, refusals and pictures of degenerate traces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dit_analyzer.measures.views.stale import THRESHOLDS, later, stale_kv, warm_up
from dit_analyzer.views import VIEWS
from dit_formats import IncompleteError, open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard
from matplotlib.text import Text


def written(folder: Path, *shards: Shard) -> Path:
    folder.mkdir()
    for shard in shards:
        write_shard(folder, shard)
    return folder


def constant(shard: Shard, value: float) -> Shard:
    """The shard with one value everywhere in its latent stream."""
    latent = shard.streams["latent"]
    steps, pairs = latent.arrays["step_sums"].copy(), latent.arrays["transition_sums"].copy()
    for place, total in enumerate((12 * abs(value), 12 * value**2, abs(value))):
        steps[..., place, :] = np.where(np.isnan(steps[..., place, :]), np.nan, total)
    for place, total in enumerate((0, 0, 12 * value**2)):
        pairs[..., place, :] = np.where(np.isnan(pairs[..., place, :]), np.nan, total)
    samples = np.where(np.isnan(latent.arrays["samples"]), np.nan, value).astype("f4")
    arrays = latent.arrays | {"samples": samples, "step_sums": steps, "transition_sums": pairs}
    return replace(shard, streams=shard.streams | {"latent": replace(latent, arrays=arrays)})


def test_warm_up_ends_after_the_last_large_change_of_the_first_half() -> None:
    """Of 8 steps, the first half ends with step 3, whose change is the third one."""
    curve = np.array([0.3, 0.06, 0.12, 0.3, 0.04, 0.04, 0.3])
    assert warm_up(curve, (0.05, 0.1, 0.2, 0.5)).tolist() == [4, 4, 2, 1]
    assert later(curve, (0.05, 0.1, 0.2, 0.5)).tolist() == [2, 2, 2, 0]


def test_a_change_at_the_threshold_is_large() -> None:
    assert warm_up(np.array([0.25, 0.1, 0.1, 0.1]), (0.25,)).tolist() == [2]


def test_the_first_step_is_always_computed_and_two_steps_have_no_first_half() -> None:
    assert warm_up(np.array([0.0]), (0.1,)).tolist() == [1] and later(np.array([0.0]), (0.1,)).tolist() == [0]
    assert warm_up(np.array([0.3]), (0.1,)).tolist() == [1] and later(np.array([0.3]), (0.1,)).tolist() == [1]


def test_warm_up_never_rises_with_the_threshold() -> None:
    curves = np.exp(np.random.default_rng(0).normal(-2, 1, (200, 9)))
    for count in (warm_up, later):
        assert (np.diff(count(curves, (0.05, 0.1, 0.2, 0.4))) <= 0).all()


def test_a_missing_change_leaves_no_suggestion() -> None:
    curve = np.array([0.3, np.nan, 0.1, 0.1])
    assert np.isnan(warm_up(curve)).all() and np.isnan(later(curve)).all()


def test_means_are_over_self_attention_and_both_halves(trace_folder: Path) -> None:
    """Layer 1 of the trace is cross-attention, which has no K and V of latent tokens."""
    with open_trace(trace_folder) as trace:
        view = stale_kv(trace)
        x = trace.samples("latent", 1)[:, :2, 0].astype("f8")  # branch, kind, position, step
    expected = (abs(np.diff(x)).mean(2) / abs(x[..., :-1]).mean(2)).mean(0)
    assert view.layer.values.tolist() == [0]
    np.testing.assert_allclose(view["rel_l1"].isel(prompt=1, layer=0), expected)
    np.testing.assert_allclose(view["joint"].isel(prompt=1), expected)
    np.testing.assert_allclose(view["warm_up"], warm_up(view["joint"].mean("prompt").values))
    assert ((view["warm_up_low"] <= view["warm_up"]) & (view["warm_up"] <= view["warm_up_high"])).all()


def test_both_sources_agree_where_all_is_sampled(trace_folder: Path) -> None:
    with open_trace(trace_folder) as trace:
        exact, sampled = stale_kv(trace), stale_kv(trace, "sample")
    for name in ("rel_l1", "joint"):
        np.testing.assert_allclose(sampled[name], exact[name], rtol=1e-6)
        assert (sampled[f"{name}_se"] == 0).all() and (exact[f"{name}_se"] == 0).all()


def test_one_prompt_has_no_interval(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    with open_trace(written(tmp_path / "a", shard(0))) as trace:
        view = stale_kv(trace)
    assert view["warm_up"].notnull().all() and view["warm_up_low"].isnull().all()
    words = " ".join(text.get_text() for text in VIEWS["stale-kv"].draw(view, "").findobj(Text)).replace("\n", " ")
    assert "one prompt; warm-up for less than 0.05: K 3, V 3 steps" in words


def test_what_never_changes_needs_the_first_step_alone(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    with open_trace(written(tmp_path / "a", *(constant(shard(i), 2.0) for i in range(2)))) as trace:
        view = stale_kv(trace)
    assert (view["rel_l1"] == 0).all() and (view["warm_up"] == 1).all() and (view["later"] == 0).all()
    VIEWS["stale-kv"].draw(view, "").draw_without_rendering()


def test_of_zeros_there_is_no_relative_change_and_no_suggestion(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    with open_trace(written(tmp_path / "a", *(constant(shard(i), 0.0) for i in range(2)))) as trace:
        view = stale_kv(trace)
    assert view["joint"].isnull().all() and view["warm_up"].isnull().all()
    figure = VIEWS["stale-kv"].draw(view, "")
    figure.draw_without_rendering()
    assert "K ?, V ? steps" in " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


def test_no_keys_and_one_step_are_refused(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    whole = shard(0)
    streams = {name: replace(stream, kinds=("o", "f", "a")) for name, stream in whole.streams.items()}
    with open_trace(written(tmp_path / "a", replace(whole, streams=streams))) as trace:
        with pytest.raises(IncompleteError, match="trace with --kinds k,v,o,f,a"):
            stale_kv(trace)
    with open_trace(written(tmp_path / "b", shard(0, steps=1))) as trace:
        with pytest.raises(IncompleteError, match="--steps 2"):
            stale_kv(trace)


def test_statistics_alone_have_no_samples_to_take(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    with open_trace(written(tmp_path / "a", shard(positions=0))) as trace:
        assert stale_kv(trace)["warm_up"].sizes["threshold"] == len(THRESHOLDS)
        with pytest.raises(IncompleteError, match="--stats-only|exact source"):
            stale_kv(trace, "sample")

"""Distances and the paper's view, on small traces written by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dit_analyzer import distances, paper_view
from dit_analyzer.measures.distance import AXES
from dit_analyzer.measures.positions import Positions
from dit_formats import IncompleteError, open_trace
from dit_formats.pack import pack
from dit_formats.schema import Shard
from dit_formats.writer import write_shard


@pytest.fixture
def ds(trace_folder: Path) -> xr.Dataset:
    with open_trace(trace_folder) as trace:
        return distances(trace)


def test_distances_are_the_means_of_their_definition(trace_folder: Path, ds: xr.Dataset) -> None:
    with open_trace(trace_folder) as trace:
        x = trace.samples("latent", 1)[0, 2, 1].astype(float)  # all 12 elements of A of the cross layer, by step
        sigmas = trace.sigmas
    got = ds.sel(prompt=1, branch="cond", stream="latent", kind="a", layer=1)
    d = np.diff(x)
    before, after = x[:, :-1], x[:, 1:]
    np.testing.assert_allclose(got["l1"], abs(d).mean(0))
    np.testing.assert_allclose(got["rel_l1"], abs(d).mean(0) / abs(before).mean(0))
    np.testing.assert_allclose(got["rms"], np.sqrt((d**2).mean(0)))
    cosine = (before * after).sum(0) / np.linalg.norm(before, axis=0) / np.linalg.norm(after, axis=0)
    np.testing.assert_allclose(got["cosine"], cosine)
    np.testing.assert_allclose(got["speed"], abs(d).mean(0) / abs(np.diff(sigmas)))
    assert got["count"].values.tolist() == [12] * 4


def test_axes_are_labelled(ds: xr.Dataset) -> None:
    assert ds["l1"].dims == AXES
    assert ds.branch.values.tolist() == ["cond", "uncond"] and ds.kind.values.tolist() == ["k", "v", "a"]
    assert ds.layer_type.values.tolist() == ["self", "cross"]
    assert ds.transition.values.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(ds.sigma, np.linspace(1, 0.1, 5)[:-1])


def test_what_was_not_recorded_is_nan(ds: xr.Dataset) -> None:
    l1 = ds["l1"]
    assert l1.sel(stream="text", layer=0).isnull().all()
    assert l1.sel(stream="latent", layer=1, kind=["k", "v"]).isnull().all()
    assert l1.sel(stream="latent", layer=0).notnull().all() and l1.sel(stream="text", layer=1, kind="k").notnull().all()


def test_samples_of_everything_give_the_exact_distances(trace_folder: Path, ds: xr.Dataset) -> None:
    with open_trace(trace_folder) as trace:
        sampled = distances(trace, source="sample")
    xr.testing.assert_allclose(sampled.drop_vars("l1_se"), ds.drop_vars("l1_se"))
    assert float(sampled["l1_se"].max()) == 0, "nothing is missing"


@pytest.mark.parametrize("source", ["exact", "sample"])
def test_lost_branch_is_not_averaged_away(tmp_path: Path, shard: Callable[..., Shard], source: str) -> None:
    one = shard()
    arrays = one.streams["latent"].arrays
    for name in ("samples", "step_sums", "transition_sums"):
        arrays[name][:, 0, 0, 0] = np.nan
    arrays["step_sums"][:, 0, 0, 0, 3] = arrays["transition_sums"][:, 0, 0, 0, 3] = 0
    write_shard(tmp_path, one)
    with open_trace(tmp_path) as trace:
        view = paper_view(distances(trace, source=source))
    assert view["l1"].sel(kind="k").isnull().all() and view["l1"].sel(kind="v").notnull().all()


def test_lag_compares_steps_further_apart(trace_folder: Path) -> None:
    with open_trace(trace_folder) as trace:
        x = trace.samples("text", 0)[1, 0, 1].astype(float)
        got = distances(trace, lag=3).sel(prompt=0, branch="uncond", stream="text", kind="k", layer=1)
    np.testing.assert_allclose(got["l1"], abs(x[:, 3:] - x[:, :-3]).mean(0))


@pytest.mark.parametrize(("arguments", "said"), [
    ({"source": "guess"}, "'exact' or 'sample'"),
    ({"lag": 2, "source": "exact"}, "source='sample'"),
    ({"lag": 0, "source": "sample"}, "give 1 to 4"),
    ({"lag": 5, "source": "sample"}, "give 1 to 4"),
])  # fmt: skip
def test_wrong_arguments_are_told(trace_folder: Path, arguments: dict[str, object], said: str) -> None:
    with open_trace(trace_folder) as trace, pytest.raises(ValueError, match=said):
        distances(trace, **arguments)


def test_one_step_has_nothing_to_compare(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(steps=1))
    with open_trace(tmp_path) as trace, pytest.raises(IncompleteError, match="one step"):
        distances(trace)


def test_statistics_only_answer_the_exact_question_alone(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(positions=0))
    with open_trace(tmp_path) as trace:
        assert distances(trace)["l1"].notnull().any()
        with pytest.raises(IncompleteError, match="no samples"):
            distances(trace, source="sample")


def test_changes_over_a_part_of_the_elements_carry_an_error(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    one = shard(recorded={"transitions": "subset of 6"})
    arrays = one.streams["latent"].arrays
    part = np.diff(arrays["samples"][..., :6, :].astype(float))
    sums = arrays["transition_sums"]
    sums[..., 0, :], sums[..., 1, :], sums[..., 3, :] = abs(part).sum(-2), (part**2).sum(-2), 6
    write_shard(tmp_path, one)
    with open_trace(tmp_path) as trace:
        ds = distances(trace).sel(prompt=0, branch="cond", stream="latent", kind="a", layer=1)
    values = abs(part[0, 0, 2, 1])
    np.testing.assert_allclose(ds["l1"], values.mean(0))
    np.testing.assert_allclose(ds["l1_se"], np.sqrt((1 - 6 / 12) * values.var(0) / 6))
    assert ds["count"].values.tolist() == [12] * 4, "of the whole tensor: it weighs streams"


def test_packed_trace_gives_the_same_distances(trace_folder: Path, tmp_path: Path) -> None:
    with open_trace(trace_folder) as trace:
        pack(trace, tmp_path / "one.h5")
        with open_trace(tmp_path / "one.h5") as packed:
            for source in ("exact", "sample"):
                assert distances(packed, source=source).identical(distances(trace, source=source))


def test_standard_error_covers_the_truth() -> None:
    """Over many draws of positions from a tensor with unequal channels, at the nominal rate of 95 %."""
    rng = np.random.default_rng(0)
    tokens, channels, n = 256, 64, 1024
    x = abs(rng.normal(size=(tokens, channels))) * rng.lognormal(sigma=0.8, size=channels)
    inside = []
    for _ in range(300):
        channel = np.concatenate([rng.permutation(channels) for _ in range(n // channels)])
        token = rng.permuted(np.arange(n) * tokens // n)
        sample = np.stack([np.zeros(n), x[token, channel]], 1).astype("f4")
        mean, *_, se = Positions(np.full(n, 1 / n), channel, tokens, channels).means(sample, 1)[:, 0]
        inside.append(abs(mean - x.mean()) < 1.96 * se)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_paper_view_leaves_out_cross_attention_and_joins_branches(ds: xr.Dataset) -> None:
    view = paper_view(ds)
    assert view["l1"].dims == ("prompt", "kind", "layer", "transition")
    assert view.layer_type.values.tolist() == ["self"]
    both = ds["l1"].sel(stream="latent", layer=[0]).mean("branch")
    np.testing.assert_allclose(view["l1"], both.transpose("prompt", "kind", "layer", "transition"))


def test_paper_view_joins_streams_of_single_layers_by_size() -> None:
    ds = view_input(["joint", "single"], l1={"latent": 2.0, "text": 8.0}, count={"latent": 30, "text": 10})
    view = paper_view(ds)
    assert view["l1"].sel(layer=0).values.flatten().tolist() == [2, 2]
    assert view["l1"].sel(layer=1).values.flatten().tolist() == [3.5, 3.5]
    assert view["text_l1"].sel(layer=0).values.flatten().tolist() == [8, 8]
    assert view["text_l1"].sel(layer=1).isnull().all()


def test_paper_view_does_not_hide_a_lost_part() -> None:
    ds = view_input(["joint", "single"], l1={"latent": 2.0, "text": 8.0}, count={"latent": 30, "text": 10})
    ds["l1"][0, 0, 1, 0, :, 1] = np.nan
    ds["count"][0, 0, 1, 0, :, 1] = 0
    view = paper_view(ds)
    assert view["l1"].sel(layer=0).values.flatten().tolist() == [2, 2]
    assert view["l1"].sel(layer=1, transition=0).item() == 3.5
    assert np.isnan(view["l1"].sel(layer=1, transition=1).item())
    assert np.isnan(view["text_l1"].sel(layer=0, transition=1).item())


def test_paper_view_lists_spatial_layers_before_temporal_ones() -> None:
    ds = view_input(["spatial", "temporal", "cross", "spatial", "temporal"], l1={"latent": 1.0}, count={"latent": 1})
    assert paper_view(ds).layer.values.tolist() == [0, 3, 1, 4]


def view_input(types: list[str], l1: dict[str, float], count: dict[str, float]) -> xr.Dataset:
    """A dataset like that of `distances`, with one value per stream."""
    streams = list(l1)
    shape = (1, 1, len(streams), 1, len(types), 2)

    def filled(values: dict[str, float]) -> tuple[tuple[str, ...], np.ndarray]:
        return AXES, np.broadcast_to(np.array([values[s] for s in streams], float)[:, None, None, None], shape).copy()

    variables = {"l1": filled(l1), "rms": filled(l1), "size": filled(l1), "count": filled(count)}
    coordinates = {
        "branch": ["cond"], "stream": streams, "kind": ["k"], "layer": range(len(types)), "transition": range(2),
        "layer_type": ("layer", types), "layer_name": ("layer", types),
    }  # fmt: skip
    return xr.Dataset(variables, coordinates)


def test_paper_view_tells_lost_cells_from_those_that_were_not_recorded(ds: xr.Dataset) -> None:
    ds["l1"].loc[{"kind": "v", "transition": 2}] = np.nan
    view = paper_view(ds)
    assert view["count"].sel(kind="v", transition=2).notnull().all()
    assert view["text_l1"].isnull().all()


def test_distances_of_some_prompts_are_those_of_all(trace_folder: Path, ds: xr.Dataset) -> None:
    with open_trace(trace_folder) as trace:
        some = distances(trace, prompts=[2, 0])
    assert some.identical(ds.isel(prompt=[2, 0]))
    assert some.text.values.tolist() == ["prompt 2", "prompt 0"] and some.seed.values.tolist() == [42, 42]

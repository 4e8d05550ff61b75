"""Views of traces of the bundled models, against the formulas in plain numpy on whole tensors; and small samples."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from dit_analyzer.cli import main as analyze
from dit_analyzer.show import figures
from dit_analyzer.views import VIEWS
from dit_formats import open_trace
from dit_formats.reader import Trace
from dit_formats.schema import STACK
from dit_tracer.cli import main
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text
from numpy.typing import NDArray

STEPS = 5
MORE = {"pixart": ("--halves", "--step-pairs", "all"), "flux": ()}
"""Of FLUX's steps there are no products, so that its cosines are from samples."""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two prompts of each model, with samples so large that they are the whole tensors."""
    folder = tmp_path_factory.mktemp("views")
    for model, more in MORE.items():
        command = ["run", f"digits-{model}", "-n", "2", "--steps", str(STEPS), "--kinds", "k,v,a,f,o", *more]
        result = CliRunner().invoke(main, [*command, "--sample", "12288", "-o", str(folder / model)])
        assert result.exit_code == 0, result.output
    return {model: folder / model for model in MORE}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two prompts of a guided model, of which few values are stored and no products of steps or halves."""
    path = tmp_path_factory.mktemp("small") / "small.trace"
    command = ["run", "digits-pixart", "-n", "2", "--steps", str(STEPS), "--kinds", "k,v,a,f,o", "--sample", "300"]
    result = CliRunner().invoke(main, [*command, "-o", str(path)])
    assert result.exit_code == 0, result.output
    return path


def whole(trace: Trace, stream: str, kind: str, layer: int, prompt: int = 1) -> NDArray[np.float64]:
    """An activation of one prompt, (branch, element, step)."""
    place = trace.kinds(stream).index(kind)
    shard, row = trace.rows[prompt]
    with shard:
        branches = range(len(trace.branches(stream)))
        x = np.stack([shard.cell(stream, row, branch, place, layer) for branch in branches]).astype("f8")
    x = x[:, trace.geometry(stream, "channel")[place, layer] >= 0]
    tokens, channels = (trace.geometry(stream, name)[place, layer] for name in ("num_tokens", "num_channels"))
    assert x.shape[1] == tokens * channels > 0
    return x


def state(trace: Trace, site: str) -> NDArray[np.float64]:
    return whole(trace, STACK, "x", trace.sites().index(site))


def layers(trace: Trace, *types: str) -> list[int]:
    """Layers of some types that have latent tokens; those of a text's feed-forward networks have none."""
    seen = trace.geometry("latent", "recorded").any((0, 1, 3))
    return [i for i, layer in enumerate(trace.layers) if layer.type in types and seen[i]]


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_l2c_is_the_squared_norm_of_the_change(traces: dict[str, Path], model: str, source: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["l2c"].measure(trace, source).isel(prompt=1)["square"]
        attention = layers(trace, "self", "joint", "single")
        for kind, places in (("a", attention), ("f", layers(trace, "ff"))):
            expected = [(np.diff(whole(trace, "latent", kind, at)) ** 2).sum(1).mean(0) for at in places]
            np.testing.assert_allclose(view.sel(kind=kind, layer=places), expected, rtol=1e-5)
            assert view.sel(kind=kind).dropna("layer").layer.values.tolist() == places


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_tgate_is_the_norm_of_the_change_of_cross_attention_or_else_of_text(
    traces: dict[str, Path], model: str, source: str
) -> None:
    stream, types = ("text", ("joint", "single")) if model == "flux" else ("latent", ("cross",))
    with open_trace(traces[model]) as trace:
        view = VIEWS["tgate"].measure(trace, source)
        changes = [np.diff(whole(trace, stream, "o", at)) for at in layers(trace, *types)]
    expected = np.mean([np.linalg.norm(change, axis=1).mean(0) for change in changes], 0)
    np.testing.assert_allclose(view["distance"].isel(prompt=1), expected, rtol=1e-5)
    assert ("no cross-attention" in view.notes) == (model == "flux")


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_pab_is_the_mean_squared_change_by_type(traces: dict[str, Path], model: str, source: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["pab"].measure(trace, source)["mse"].isel(prompt=1)
        for name in view.type.values:
            changes = [np.diff(whole(trace, "latent", "a", at)) for at in layers(trace, name)]
            np.testing.assert_allclose(
                view.sel(type=name), np.mean([(d**2).mean((0, 1)) for d in changes], 0), rtol=1e-5
            )
    names = {"pixart": ["self", "cross"], "flux": ["joint", "single"]}
    assert view.type.values.tolist() == names[model]


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_smoothcache_is_the_relative_error_of_an_older_output(traces: dict[str, Path], model: str, source: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["smoothcache"].measure(trace, source)
        error = view["error"].isel(prompt=1)
        for name in view.type.values:
            outputs = [whole(trace, "latent", "f" if name == "ff" else "a", at) for at in layers(trace, name)]
            for lag in (1, 2, 3):
                expected = np.mean(
                    [abs(x[..., lag:] - x[..., :-lag]).sum((0, 1)) / abs(x[..., lag:]).sum((0, 1)) for x in outputs], 0
                )
                np.testing.assert_allclose(error.sel(type=name, lag=lag)[lag:], expected, rtol=1e-5)
                assert error.sel(type=name, lag=lag)[:lag].isnull().all()
    one, other = view["error"].values
    np.testing.assert_allclose(view["half_width"], 12.7062047 * abs(one - other) / 2, rtol=1e-6)  # t of one degree


@pytest.mark.parametrize("model", MORE)
def test_magcache_from_samples_is_of_whole_tensors(traces: dict[str, Path], model: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["magcache"].measure(trace, "sample").isel(prompt=1)
        r = state(trace, "last") - state(trace, "input")
    lengths = np.linalg.norm(r, axis=1)
    np.testing.assert_allclose(view["ratio"], lengths[:, 1:] / lengths[:, :-1], rtol=1e-5)
    cosine = (r[..., 1:] * r[..., :-1]).sum(1) / (lengths[:, 1:] * lengths[:, :-1])
    np.testing.assert_allclose(view["distance"], 1 - cosine, atol=1e-6)
    assert "ratio_std" not in view


@pytest.mark.parametrize("model", MORE)
def test_magcache_is_of_the_residual(traces: dict[str, Path], model: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["magcache"].measure(trace).isel(prompt=1)
        r = state(trace, "last") - state(trace, "input")
        tokens = trace.geometry(STACK, "num_tokens")[0, trace.sites().index("last")]
    norms = np.linalg.norm(r.reshape(len(r), tokens, -1, STEPS), axis=2)
    ratio = norms[..., 1:] / norms[..., :-1]
    np.testing.assert_allclose(view["ratio"], ratio.mean(1), rtol=1e-4)
    assert (abs(view["ratio_std"] / ratio.std(1) - 1) < 0.02).all(), "by n or by n - 1"
    lengths = np.linalg.norm(r, axis=1)
    cosine = (r[..., 1:] * r[..., :-1]).sum(1) / (lengths[:, 1:] * lengths[:, :-1])
    np.testing.assert_allclose(view["distance"], 1 - cosine, atol=1e-6)


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_teacache_is_relative_l1_and_its_least_squares_polynomial(
    traces: dict[str, Path], model: str, source: str
) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["teacache"].measure(trace, source)
        for site in ("model_input", "modulated", "prediction"):
            x = state(trace, site)
            expected = abs(np.diff(x)).mean(1) / abs(x[..., :-1]).mean(1)
            np.testing.assert_allclose(view["rel_l1"].isel(prompt=1).sel(site=site), expected, rtol=1e-5)
    x, y = (view["rel_l1"].sel(site=site).values.ravel() for site in ("modulated", "prediction"))
    fitted = np.polyval(np.polyfit(x, y, 4), x)
    np.testing.assert_allclose(np.polynomial.polynomial.polyval(x, view["coefficient"]), fitted, rtol=1e-4, atol=1e-6)
    assert view.r_squared.item() == pytest.approx(1 - ((y - fitted) ** 2).sum() / ((y - y.mean()) ** 2).sum(), abs=1e-6)


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_delta_dit_is_of_the_offsets_of_block_groups(traces: dict[str, Path], model: str, source: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["delta-dit"].measure(trace, source).isel(prompt=1)
        entered, middle, last = (state(trace, site) for site in ("input", "middle", "last"))
    for group, x in (("front", middle - entered), ("rear", last - middle), ("all", last - entered)):
        expected = abs(np.diff(x)).mean(1) / abs(x[..., :-1]).mean(1)
        np.testing.assert_allclose(view["rel_l1"].sel(group=group), expected, rtol=1e-4)
        lengths = np.linalg.norm(x, axis=1)
        cosine = (x[..., 1:] * x[..., :-1]).sum(1) / (lengths[:, 1:] * lengths[:, :-1])
        np.testing.assert_allclose(view["cosine"].sel(group=group), cosine, rtol=1e-5)


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_ditfastattn_is_the_cosine_of_steps_and_of_halves(traces: dict[str, Path], model: str, source: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["ditfastattn"].measure(trace, source)
        places = layers(trace, "self", "joint", "single")
        assert view.layer.values.tolist() == places
        for at in places:
            x = whole(trace, "latent", "a", at)
            both = x.reshape(-1, STEPS) / np.linalg.norm(x, axis=(0, 1))
            one = view.isel(prompt=1).sel(layer=at)
            np.testing.assert_allclose(one["step_cosine"], both.T @ both, rtol=1e-5, atol=1e-6)
            if model != "flux":
                of_halves = (x[0] * x[1]).sum(0) / np.linalg.norm(x, axis=1).prod(0)
                np.testing.assert_allclose(one["half_cosine"], of_halves, rtol=1e-5, atol=1e-6)
    assert ("half_cosine" in view) == (model != "flux")
    neighbours = "neighbours exact, others from samples" if source == "exact" else "from samples"
    assert ("between steps: exact" if source == "exact" and model == "pixart" else neighbours) in view.notes


@pytest.mark.parametrize("source", ["exact", "sample"])
@pytest.mark.parametrize("model", MORE)
def test_stale_kv_is_the_relative_change_of_keys_and_values(traces: dict[str, Path], model: str, source: str) -> None:
    with open_trace(traces[model]) as trace:
        view = VIEWS["stale-kv"].measure(trace, source)
        places = layers(trace, "self", "joint", "single")
        assert view.layer.values.tolist() == places, "cross-attention has no K and V of latent tokens"
        for kind in ("k", "v"):
            tensors = [whole(trace, "latent", kind, at) for at in places]
            expected = np.array([(abs(np.diff(x)).mean(1) / abs(x[..., :-1]).mean(1)).mean(0) for x in tensors])
            np.testing.assert_allclose(view["rel_l1"].isel(prompt=1).sel(kind=kind), expected, rtol=1e-5)
            np.testing.assert_allclose(view["joint"].isel(prompt=1).sel(kind=kind), expected.mean(0), rtol=1e-5)


def test_states_of_one_shape_are_sampled_at_the_same_places(tmp_path: Path) -> None:
    """So that a group of blocks can be told by what it adds, also where the sample is small."""
    command = ["run", "digits-flux", "-n", "1", "--steps", "3", "--sample", "300", "-o", str(tmp_path / "small")]
    assert CliRunner().invoke(main, command).exit_code == 0
    with open_trace(tmp_path / "small") as trace:
        places = [trace.sites().index(site) for site in ("input", "middle", "last", "residual")]
        for name in ("token", "channel"):
            assert (np.ptp(trace.geometry(STACK, name)[0, places], axis=0) == 0).all()
        x = trace.samples(STACK, 0)[0, 0]
        np.testing.assert_allclose(x[places[2]] - x[places[0]], x[places[3]], atol=1e-5)
        assert VIEWS["delta-dit"].measure(trace)["rel_l1"].notnull().all()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("model", MORE)
def test_a_sample_of_all_elements_has_no_error_and_hits_the_exact_values(
    traces: dict[str, Path], model: str, view: str
) -> None:
    with open_trace(traces[model]) as trace:
        sampled, exact = (VIEWS[view].measure(trace, source) for source in ("sample", "exact"))
    quantities = [name for name in sampled if f"{name}_se" in sampled]
    assert quantities
    for name in quantities:
        assert sampled[f"{name}_se"].max() == exact[f"{name}_se"].max() == 0
        assert not sampled[f"{name}_exact"].any()
        if (view, name) != ("magcache", "ratio"):  # which is of tokens in one, of the whole in the other
            np.testing.assert_allclose(sampled[name], exact[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_from_a_small_sample_strays_from_the_exact_one_as_its_errors_say(small: Path, view: str) -> None:
    with open_trace(small) as trace:
        sampled, exact = (VIEWS[view].measure(trace, source) for source in ("sample", "exact"))
    for name in sampled:
        if f"{name}_se" not in sampled or (view, name) == ("magcache", "ratio"):
            continue
        error = sampled[f"{name}_se"]
        apart = (sampled[name] - exact[name]).where(exact[f"{name}_exact"])
        mean = apart.mean([axis for axis in apart.dims if axis not in error.dims], skipna=False)
        z = (mean / error.where(error > 0)).values
        z = z[np.isfinite(z)]
        if name == "half_cosine":  # of which nothing exact was recorded
            assert not len(z)
            continue
        assert len(z) and np.sqrt((z**2).mean()) < 3  # few positions are common to all steps, so all z stray alike
        assert not (exact[f"{name}_se"].where(exact[f"{name}_exact"]) > 0).any()


@pytest.fixture(scope="module")
def written(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """All views of it, and what the command printed."""
    folder = tmp_path_factory.mktemp("written") / "out"
    result = CliRunner().invoke(analyze, [*every_view_of(small), str(folder)])
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def every_view_of(path: Path) -> list[str]:
    return ["figures", str(path), *(word for view in VIEWS for word in ("--view", view)), "-o"]


def test_how_far_samples_are_from_exact_statistics_is_printed_and_kept(written: tuple[Path, str]) -> None:
    folder, printed = written
    assert "small: smoothcache error from samples deviates by median" in printed
    assert "small: ditfastattn half cosine from samples: nothing exact to compare with" in printed
    assert "pab" not in printed.replace("small-pab", "")
    tables = {path.name: list(csv.DictReader(path.read_text().splitlines())) for path in folder.glob("*.csv")}
    sampled = ("smoothcache", "delta-dit", "ditfastattn")
    assert set(tables) == {f"small-{view}-sampling.csv" for view in sampled}
    for rows in tables.values():
        assert {"trace", "model", "view", "quantity", "cells", "median", "largest"} <= set(rows[0])
    first = tables["small-smoothcache-sampling.csv"][0]
    assert 0 < float(first["median"]) < float(first["largest"]) < 1 and first["quantity"] == "error"


@pytest.mark.parametrize("source", ["exact", "sample"])
def test_what_is_from_samples_has_bars_or_a_largest_error_and_its_deviation_below(small: Path, source: str) -> None:
    shown = ("smoothcache", "delta-dit", "ditfastattn")
    with open_trace(small) as trace:
        found = {view: VIEWS[view].measure(trace, source).assign_attrs(deviation="so far off") for view in shown}
    for view, measured in found.items():
        figure = VIEWS[view].draw(measured, "")
        words = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
        bars = [one for panel in figure.axes for one in panel.containers if isinstance(one, ErrorbarContainer)]
        assert ("standard error" in words) and "so far off" in words
        assert bool(bars) == (view != "ditfastattn")


def test_there_are_no_bars_where_all_is_exact(small: Path) -> None:
    with open_trace(small) as trace:
        figure = VIEWS["pab"].draw(VIEWS["pab"].measure(trace), "")
    assert not any(panel.containers for panel in figure.axes)


def test_every_view_is_written_as_the_same_bytes_by_another_process(
    small: Path, written: tuple[Path, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "dit_analyzer.cli", *every_view_of(small), str(tmp_path / "again")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    found = {path.name: path.read_bytes() for path in written[0].iterdir()}
    assert {f"small-{view}.{ending}" for view in VIEWS for ending in figures.UNDATED} <= set(found)
    assert found == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of a guided model alone."""
    path = tmp_path_factory.mktemp("bare") / "bare.trace"
    command = [
        "run",
        "digits-pixart",
        "-n",
        "1",
        "--steps",
        "3",
        "--kinds",
        "k,v,a,f,o",
        "--stats-only",
        "-o",
        str(path),
    ]
    assert CliRunner().invoke(main, command).exit_code == 0
    return path


@pytest.mark.parametrize("view", VIEWS)
def test_statistics_alone_are_drawn_as_no_archive_or_refused_with_the_option(
    bare: Path, tmp_path: Path, view: str
) -> None:
    option = {"ditfastattn": "--step-pairs all --halves", "delta-dit": "without --stats-only"}.get(view)
    result = CliRunner().invoke(analyze, ["figures", str(bare), "--view", view, "-o", str(tmp_path / "out")])
    if option:
        assert result.exit_code == 4 and result.stderr.count("\n") == 1
        assert "no archive" in result.stderr and result.stderr.rstrip().endswith(option)
        return
    assert result.exit_code == 0
    with open_trace(bare) as trace:
        notes = VIEWS[view].measure(trace).notes
    assert "statistics only, no archive" in notes
    assert ("k = 2 not shown: trace without --stats-only" in notes) == (view == "smoothcache")


@pytest.mark.parametrize("view", VIEWS)
def test_statistics_alone_have_no_samples_to_draw(bare: Path, tmp_path: Path, view: str) -> None:
    command = ["figures", str(bare), "--view", view, "--source", "sample", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(analyze, command)
    assert result.exit_code == 4 and result.stderr.count("\n") == 1
    assert "no archive" in result.stderr and "--stats-only" in result.stderr

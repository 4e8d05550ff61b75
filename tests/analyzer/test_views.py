"""Views of earlier papers: refusals, figures and degenerate traces, on traces made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_analyzer.views import VIEWS
from dit_formats import IncompleteError, open_trace
from dit_formats.schema import Shard
from dit_formats.writer import write_shard
from matplotlib.text import Text

FROM_ATTENTION = ("tgate", "pab", "ditfastattn")
"""Views that a trace of K, V and A without a stack has."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def one_of(folder: Path, shard: Shard) -> Path:
    folder.mkdir()
    write_shard(folder, shard)
    return folder


def with_samples(shard: Shard, change: Callable[[np.ndarray], np.ndarray]) -> Shard:
    """The shard with other values in its latent stream, and the sums that belong to them."""
    latent = shard.streams["latent"]
    x = change(latent.arrays["samples"].astype("f8"))
    d = np.diff(x)
    finite, both = np.isfinite(x), np.isfinite(d)
    recorded = latent.arrays["recorded"][None].astype(bool)
    zero = np.where(finite, x, 0)
    steps = [abs(zero).sum(-2), (zero**2).sum(-2), abs(zero).max(-2), finite.sum(-2), (~finite).sum(-2)]
    d = np.where(both, d, 0)
    pairs = [abs(d).sum(-2), (d**2).sum(-2), (zero[..., 1:] * zero[..., :-1]).sum(-2), both.sum(-2)]
    step_sums = np.where(recorded[..., None, :], np.stack(steps, -2), np.nan)
    transition_sums = np.where((recorded[..., 1:] & recorded[..., :-1])[..., None, :], np.stack(pairs, -2), np.nan)
    arrays = {"samples": x.astype("f4"), "step_sums": step_sums, "transition_sums": transition_sums}
    return replace(shard, streams=shard.streams | {"latent": replace(latent, arrays=latent.arrays | arrays)})


@pytest.mark.parametrize(
    ("view", "option"),
    [
        ("l2c", "trace with --kinds k,v,a,f"),
        ("smoothcache", "trace with --kinds k,v,a,f"),
        ("magcache", "trace without --no-stack"),
        ("teacache", "trace without --no-stack"),
        ("delta-dit", "trace without --no-stack"),
    ],
)
def test_what_was_not_recorded_is_refused_in_a_line_with_its_option(
    trace_folder: Path, tmp_path: Path, view: str, option: str
) -> None:
    result = run("figures", trace_folder, "--view", view, "-o", tmp_path / "out")
    assert result.exit_code == 4
    assert result.stderr.count("\n") == 1 and result.stderr.rstrip().endswith(option)
    assert not (tmp_path / "out").exists()


def test_cosines_of_a_trace_without_samples_or_products_are_refused(
    tmp_path: Path, shard: Callable[..., Shard]
) -> None:
    path = one_of(tmp_path / "a", shard(positions=0))
    result = run("figures", path, "--view", "ditfastattn", "-o", tmp_path / "out")
    assert result.exit_code == 4 and result.stderr.rstrip().endswith("trace with --step-pairs all --halves")


def test_attention_that_was_not_recorded_is_refused(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    whole = shard(0)
    streams = {name: replace(stream, kinds=("k", "v", "q")) for name, stream in whole.streams.items()}
    path = one_of(tmp_path / "a", replace(whole, streams=streams))
    for view in FROM_ATTENTION:
        with open_trace(path) as trace, pytest.raises(IncompleteError, match="--kinds k,v,a"):
            VIEWS[view].measure(trace)


def test_one_step_is_refused(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    path = one_of(tmp_path / "a", shard(steps=1))
    for view in ("tgate", "pab"):
        with open_trace(path) as trace, pytest.raises(IncompleteError, match="--steps 2"):
            VIEWS[view].measure(trace)


def test_a_view_is_written_as_pdf_and_png_and_replaced_by_force_alone(trace_folder: Path, tmp_path: Path) -> None:
    command = ("figures", trace_folder, "--view", "pab", "-o", tmp_path)
    assert run(*command).exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("hand-made-*")) == ["hand-made-pab.pdf", "hand-made-pab.png"]
    again = run(*command)
    assert again.exit_code == 1 and "--force" in again.stderr


def test_a_figure_says_what_was_computed_and_how_the_paper_differs(trace_folder: Path) -> None:
    with open_trace(trace_folder) as trace:
        view = VIEWS["tgate"].measure(trace)
    figure = VIEWS["tgate"].draw(view, "some title")
    words = " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")
    for told in ("some title", "arXiv 2404.02747", "mean of 3 prompts", "cross-attention", "where T-GATE shades"):
        assert told in words


@pytest.mark.parametrize("view", FROM_ATTENTION)
@pytest.mark.parametrize("values", ["equal", "nan"])
def test_views_of_equal_values_and_of_none_are_drawn(
    tmp_path: Path, shard: Callable[..., Shard], view: str, values: str
) -> None:
    """Nothing changes: differences are 0, cosines 1. Nothing is finite: no value anywhere, and an empty picture."""
    fill = {"equal": lambda x: np.where(np.isnan(x), x, 2.0), "nan": lambda x: x * np.nan}[values]
    path = one_of(tmp_path / "a", with_samples(shard(0), fill))
    with open_trace(path) as trace:
        ds = VIEWS[view].measure(trace)
    for name, array in ds.data_vars.items():
        if values == "nan":
            assert array.isnull().all()
        else:
            np.testing.assert_allclose(array, 1 if str(name).endswith("cosine") else 0, atol=1e-12)
    VIEWS[view].draw(ds, "").draw_without_rendering()


def test_every_quantity_has_a_unit_and_a_formula(trace_folder: Path) -> None:
    with open_trace(trace_folder) as trace:
        for view in FROM_ATTENTION:
            for array in VIEWS[view].measure(trace).data_vars.values():
                assert {"units", "formula"} <= set(array.attrs)


def test_every_view_can_be_measured_and_drawn_by_its_name() -> None:
    for view in VIEWS.values():
        assert callable(view.measure) and callable(view.draw)

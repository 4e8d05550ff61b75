import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import xarray as xr
from dit_analyzer.show.figures import COLOURS, heatmap, redundancy, save
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text


def view_of(prompts: int = 3, types: tuple[str, ...] = ("joint", "joint", "single"), num_steps: int = 6) -> xr.Dataset:
    """What `paper_view` returns, with numbers from a fixed seed."""
    shape = (prompts, 3, len(types), num_steps - 1)
    l1 = np.exp(np.random.default_rng(2411).normal(size=shape))
    coordinates = {
        "prompt": range(prompts),
        "kind": list("kva"),
        "layer": range(len(types)),
        "transition": range(num_steps - 1),
        "layer_name": ("layer", [f"blocks.{layer}.attn" for layer in range(len(types))]),
        "layer_type": ("layer", list(types)),
    }
    return xr.Dataset({"l1": (("prompt", "kind", "layer", "transition"), l1)}, coordinates, {"num_steps": num_steps})


def words(figure: Figure) -> str:
    """All that is written on a figure."""
    figure.draw_without_rendering()
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def notes(panel: Axes) -> list[str]:
    """What is written inside a panel."""
    return [text.get_text() for text in panel.texts if text.get_text()]


def run(program: str, **environment: str) -> None:
    """Run a program in a process of its own, which can import what this one can."""
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | environment)


def images(figure: Figure) -> list[np.ma.MaskedArray]:
    """The images of a heat map."""
    return [image.get_array() for panel in figure.axes for image in panel.images]


@pytest.mark.parametrize("layers", [1, 2, 5, 16, 28, 57, 60])
def test_each_layer_has_a_panel_and_no_row_is_wider_than_eight(layers):
    figure = redundancy(view_of(types=("self",) * layers, prompts=1), "")
    grid = figure.axes[0].get_gridspec()
    assert len(figure.axes) == layers
    assert grid.ncols <= 8
    assert 0 <= grid.nrows * grid.ncols - layers < grid.ncols


@pytest.mark.parametrize("layers, rows, columns", [(57, 3, 19), (42, 3, 15), (1, 1, 19)])
def test_a_number_of_columns_can_be_told(layers, rows, columns):
    figure = redundancy(view_of(types=("self",) * layers, prompts=1), "", columns=columns)
    grid = figure.axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == (rows, min(columns, layers))
    assert figure.get_figwidth() < 20


@pytest.mark.parametrize("draw", [redundancy, heatmap])
def test_a_figure_from_samples_says_so_within_its_width(draw):
    view = view_of().assign_attrs(source="sample")
    figure = draw(view, "")
    assert "from the sampled values alone" in words(figure).replace("\n", " ")
    assert "sampled" not in words(draw(view.assign_attrs(source="exact"), ""))
    caption = figure.findobj(lambda artist: isinstance(artist, Text) and "counted down" in artist.get_text())[0]
    assert caption.get_window_extent().width < figure.bbox.width


def test_steps_are_counted_down_as_in_the_paper():
    figure = redundancy(view_of(num_steps=28), "")
    panel = figure.axes[0]
    assert panel.lines[0].get_xdata().tolist() == list(range(26, -1, -1))
    assert panel.get_xticks().tolist() == [0, 13, 26]
    assert panel.xaxis_inverted()
    assert "counted down as in the paper" in words(figure)


def test_lines_are_the_means_over_prompts_in_the_colours_of_the_paper():
    view = view_of()
    panel = redundancy(view, "").axes[1]
    assert [line.get_color() for line in panel.lines] == ["mediumpurple", "darkorange", "cornflowerblue"]
    for line, mean in zip(panel.lines, view["l1"].mean("prompt").isel(layer=1), strict=True):
        np.testing.assert_allclose(line.get_ydata(), mean)


def test_bands_run_from_the_5th_to_the_95th_percentile():
    view = view_of(prompts=9)
    band = redundancy(view, "").axes[0].collections[2].get_paths()[0].get_extents()
    values = view["l1"].isel(kind=2, layer=0)
    assert band.y0 == pytest.approx(values.quantile(0.05, "prompt").min().item())
    assert band.y1 == pytest.approx(values.quantile(0.95, "prompt").max().item())


def test_panels_share_one_log_axis_that_holds_all_curves():
    figure = redundancy(view_of(prompts=9), "")
    assert {panel.get_yscale() for panel in figure.axes} == {"log"}
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    low, high = figure.axes[0].get_ylim()
    assert all(low < y < high for panel in figure.axes for line in panel.lines for y in line.get_ydata())


def test_panels_are_named_by_number_and_type_of_their_layer():
    view = view_of().isel(layer=[0, 2])
    assert [panel.get_title() for panel in redundancy(view, "").axes] == ["0 · joint", "2 · single"]


def test_what_a_log_axis_cannot_show_is_left_out():
    view = view_of()
    view["l1"][:, 0, 0, 1] = 0
    view["l1"][0, 0, 0, 2] = np.nan
    view["l1"][0, 0, 0, 3] = np.inf
    figure = redundancy(view, "")
    assert np.isnan(figure.axes[0].lines[0].get_ydata()).tolist() == [False, True, True, True, False]
    assert np.ma.getmaskarray(images(heatmap(view, ""))[0])[0].tolist() == [False, True, True, True, False]
    assert notes(figure.axes[0]) == []


def test_a_point_between_gaps_is_marked():
    view = view_of()
    view["l1"][:, 0, 0, [1, 3]] = np.nan
    line = redundancy(view, "").axes[0].lines[0]
    assert line.get_markevery().tolist() == [True, False, True, False, True]


def test_kinds_that_never_change_are_named_in_their_panel():
    view = view_of()
    view["l1"][:, :2, 1] = 0
    view["l1"][:, 2, 2] = np.nan
    assert [notes(panel) for panel in redundancy(view, "").axes] == [[], ["K, V constant"], ["A without a value"]]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_view_with_nothing_to_draw_gives_figures(value, tmp_path):
    view = view_of()
    view["l1"][:] = value
    save(redundancy(view, ""), tmp_path / "redundancy")
    save(heatmap(view, ""), tmp_path / "heatmap")


def test_one_prompt_one_layer_and_one_transition_are_enough(tmp_path):
    view = view_of(prompts=1, types=("self",), num_steps=2)
    figure = redundancy(view, "")
    assert [line.get_xdata().tolist() for line in figure.axes[0].lines] == [[0]] * 3
    assert [line.get_markevery().tolist() for line in figure.axes[0].lines] == [[True]] * 3
    assert "percentile" not in words(figure)
    save(figure, tmp_path / "redundancy")
    save(heatmap(view, ""), tmp_path / "heatmap")


def test_a_kind_that_was_not_recorded_is_left_out():
    view = view_of().sel(kind=["a", "k"])
    assert [line.get_color() for line in redundancy(view, "").axes[0].lines] == [COLOURS["k"], COLOURS["a"]]
    assert len(images(heatmap(view, ""))) == 2


def test_the_heat_map_shows_layers_by_steps_on_one_log_colour_scale():
    view = view_of()
    figure = heatmap(view, "")
    *panels, bar = figure.axes
    norms = {panel.images[0].norm for panel in panels}
    assert [panel.get_title() for panel in panels] == ["K", "V", "A"]
    assert len(norms) == 1 and isinstance(norms.pop(), LogNorm)
    assert bar.get_ylabel() == "mean |Δ| (L1)"
    means = view["l1"].mean("prompt").transpose("kind", "layer", "transition")
    for image, mean in zip(images(figure), means, strict=True):
        np.testing.assert_allclose(image, mean)


def test_the_heat_map_counts_down_too():
    figure = heatmap(view_of(num_steps=28), "")
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (left, right) == (26.5, -0.5) == figure.axes[0].get_xlim()
    assert bottom > top
    assert "counted down as in the paper" in words(figure)


def test_the_heat_map_numbers_layers_in_the_order_of_the_view():
    view = view_of(types=("spatial", "temporal") * 2).isel(layer=[0, 2, 1, 3])
    figure = heatmap(view, "")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "2", "1", "3"]
    assert notes(figure.axes[2]) == ["spatial", "temporal"]
    assert [text.get_position()[1] for text in figure.axes[2].texts] == [0.5, 2.5]
    assert 1.5 in [line.get_ydata()[0] for line in figure.axes[0].lines]


def test_layers_of_one_type_are_not_parted():
    panel = heatmap(view_of(types=("self",) * 3), "").axes[2]
    assert not panel.lines and not panel.texts


def test_cells_without_a_value_are_grey_and_said_to_be():
    view = view_of()
    assert "grey" not in words(heatmap(view, ""))
    view["l1"][:, 0, 0, 0] = np.nan
    figure = heatmap(view, "")
    assert figure.axes[0].get_facecolor() == to_rgba("lightgrey")
    assert "grey: no change, or no value" in words(figure)


@pytest.mark.parametrize("draw", [redundancy, heatmap])
def test_names_from_a_trace_are_not_read_as_formulas(draw, tmp_path):
    view = view_of(types=("$\\frac$", "a_b^c$", "$x$"))
    figure = draw(view, "$\\nonsense{ costs 5$")
    save(figure, tmp_path / "figure")
    assert "$\\nonsense{ costs 5$" in words(figure)
    assert not any(text.get_parse_math() for text in figure.findobj(Text) if "$" in text.get_text())


@pytest.mark.parametrize("draw", [redundancy, heatmap])
def test_drawing_and_saving_leave_no_global_setting_behind(draw, tmp_path):
    before = dict(matplotlib.rcParams)
    save(draw(view_of(), ""), tmp_path / "figure")
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_not_loaded():
    run("import sys, dit_analyzer.show.figures; sys.exit('matplotlib.pyplot' in sys.modules)")


@pytest.mark.parametrize("draw", [redundancy, heatmap])
def test_saving_twice_gives_the_same_bytes(draw, tmp_path):
    figure = draw(view_of(), "change of K, V and A")
    first = [path.read_bytes() for path in save(figure, tmp_path / "once")]
    assert [path.read_bytes() for path in save(figure, tmp_path / "again")] == first
    assert [path.read_bytes() for path in save(draw(view_of(), "change of K, V and A"), tmp_path / "anew")] == first


def test_another_process_writes_the_same_bytes(tmp_path):
    for seed in ("1", "2"):
        run(
            "from pathlib import Path; from test_figures import heatmap, redundancy, save, view_of;"
            f"save(redundancy(view_of(), 'change'), Path({str(tmp_path / seed)!r}, 'redundancy'));"
            f"save(heatmap(view_of(), 'change'), Path({str(tmp_path / seed)!r}, 'heatmap'))",
            PYTHONHASHSEED=seed,
        )
    for name in ("redundancy.pdf", "redundancy.png", "heatmap.pdf", "heatmap.png"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_saving_writes_pdf_and_png_beside_each_other(tmp_path):
    stem = tmp_path / "new folder" / "flux.1-dev"
    pdf, png = save(redundancy(view_of(), ""), stem)
    assert (pdf.name, png.name) == ("flux.1-dev.pdf", "flux.1-dev.png")
    assert pdf.read_bytes().startswith(b"%PDF")
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("ending", ["pdf", "png"])
def test_saving_replaces_nothing_without_force(ending, tmp_path):
    there = tmp_path / f"figure.{ending}"
    there.write_text("mine")
    figure = redundancy(view_of(), "")
    with pytest.raises(FileExistsError) as error:
        save(figure, tmp_path / "figure")
    assert str(error.value) == f"{there}: exists already; add --force to replace it"
    assert there.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [there]
    save(figure, tmp_path / "figure", force=True)
    assert there.read_bytes() != b"mine"

"""The report in a real browser: Debian's Chromium, without a window and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from dit_analyzer.cli import main
from dit_formats.reader import Trace
from dit_formats.schema import Shard

pytestmark = pytest.mark.browser

READY = "document.documentElement.dataset.ready > 0"
LAYER_AXIS = {"samples": 3, "step_sums": 3, "transition_sums": 3, "recorded": 2}
FEW_SECONDS = 20_000
"""Milliseconds after which something will not happen any more."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    assert path, "no chromium; apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, tmp_path: Path, traced: Callable[..., Trace]) -> Iterator[Callable[..., Any]]:
    """Opens the report of some traces; in the end nothing may have been said or asked for."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def show(*traces: Trace, width: int = 1280, **settings: Any) -> Any:
        traces = traces or (traced(4, num_steps=9),)
        file = tmp_path / "report.html"
        assert CliRunner().invoke(main, ["report", *(str(one.path) for one in traces), "-o", str(file)]).exit_code == 0
        size = {"width": width, "height": 900}
        context = chromium.new_context(offline=True, viewport=size, accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(file.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]


def three_layers(one: Shard) -> Shard:
    """The same, with its self-attention layer three times."""
    streams = {}
    for name, stream in one.streams.items():
        if stream.sites:
            streams[name] = stream
            continue
        arrays = {key: np.take(array, [0, 0, 0], LAYER_AXIS.get(key, 1)) for key, array in stream.arrays.items()}
        streams[name] = replace(stream, arrays=arrays)
    layers = tuple(replace(one.layers[0], name=f"blocks.{place}") for place in range(3))
    return replace(one, layers=layers, streams=streams)


def ready(page: Any) -> Any:
    page.wait_for_function(READY, timeout=FEW_SECONDS)
    return page


def test_it_opens_offline_and_says_nothing(opened: Callable[..., Any]) -> None:
    page = ready(opened())
    assert page.locator("#t0-map .heatmaplayer image").count() == 3
    assert not page.locator("#t0 .still").is_visible()


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(opened: Callable[..., Any], width: int) -> None:
    page = ready(opened(width=width))
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_click_on_the_map_shows_the_curve_of_that_layer(
    opened: Callable[..., Any], traced: Callable[..., Trace]
) -> None:
    page = ready(opened(traced(4, three_layers)))
    assert page.locator("#t0-curve .gtitle").text_content() == "layer 0 · self"
    box = page.locator("#t0-map .nsewdrag[data-subplot=xy]").bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] * 5 / 6)
    page.wait_for_function("document.getElementById('t0-layer').value === '2'", timeout=FEW_SECONDS)
    assert page.locator("#t0-curve .gtitle").text_content().startswith("layer 2")
    assert page.text_content("#t0-said").startswith("layer 2, ")
    page.select_option("#t0-layer", "1")
    assert page.text_content("#t0-said").startswith("layer 1, ")


def test_the_slider_shows_another_plan_with_its_command(opened: Callable[..., Any]) -> None:
    page = ready(opened())
    before = page.text_content("#t0-command"), page.text_content("#t0-plan")
    assert before[0].endswith("--reuse 50%")
    page.locator("#t0-slider").focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.text_content("#t0-command").endswith("--reuse 70%")
    assert page.text_content("#t0-plan") != before[1]
    told = int(page.text_content("#t0-plan").split(" of ")[0])
    assert page.locator("#t0-strip .on").count() == told
    assert page.get_attribute("#t0-slider", "aria-valuetext") == page.text_content("#t0-plan")


def test_the_table_is_sorted_by_a_click_and_saved_as_csv(opened: Callable[..., Any]) -> None:
    page = ready(opened())
    head = page.locator("#t0-by-step th").nth(1)
    head.locator("button").click()
    column = page.locator("#t0-by-step tbody tr td:nth-child(2)").all_text_contents()
    assert column == [str(step) for step in range(8)] and head.get_attribute("aria-sort") == "ascending"
    with page.expect_download() as saved:
        page.locator("[data-table=t0-by-step]").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0].startswith("step,the paper's,timestep,sigma,relative L1") and len(lines) == 9


def test_without_a_script_tables_and_pictures_are_there(opened: Callable[..., Any]) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator("#t0 .still").is_visible() and page.locator("#t0 .plans table").is_visible()
    assert page.locator("#t0 .live").first.is_hidden()


def test_a_page_of_two_draws_the_second_when_it_is_scrolled_to(
    opened: Callable[..., Any], traced: Callable[..., Trace]
) -> None:
    page = ready(opened(traced(4), traced(4, num_steps=7), color_scheme="dark"))
    page.locator("#t1-map").scroll_into_view_if_needed()
    page.wait_for_selector("#t1-map .heatmaplayer image", timeout=FEW_SECONDS, state="attached")
    assert page.locator("#comparison table").is_visible()


def test_a_page_without_maps_still_moves_its_slider(opened: Callable[..., Any], traced: Callable[..., Trace]) -> None:
    def others(one: Shard) -> Shard:
        streams = {n: s if s.sites else replace(s, kinds=("q", "o", "f")) for n, s in one.streams.items()}
        return replace(one, streams=streams)

    page = opened(traced(4, others, num_steps=9))
    page.wait_for_selector("#t0-strip .on", timeout=FEW_SECONDS)
    assert page.text_content("#t0-command").endswith("--reuse 50%")


def test_names_of_layers_stay_text_in_what_is_shown_on_a_cell(
    opened: Callable[..., Any], traced: Callable[..., Trace]
) -> None:
    name = '<a href="https://example.org">x</a> &amp; <b>y</b>'

    def hostile(one: Shard) -> Shard:
        return replace(one, layers=(replace(one.layers[0], name=name), *one.layers[1:]))

    page = ready(opened(traced(3, hostile)))
    box = page.locator("#t0-map .nsewdrag[data-subplot=xy]").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
    page.wait_for_selector("#t0-map .hoverlayer text", state="attached", timeout=FEW_SECONDS)
    assert name in page.locator("#t0-map .hoverlayer").text_content()
    assert page.locator("#t0-map .hoverlayer a").count() == 0

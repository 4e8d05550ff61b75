"""The report: one page that asks for nothing, trusts no text of a trace, and says what it leaves out."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_analyzer.plans.asked import Asked, plan_of, planner_of
from dit_analyzer.report import drawing
from dit_analyzer.report.plans import plans_of
from dit_formats.reader import Trace
from dit_formats.schema import Prompt, Shard
from dit_formats.writer import write_shard
from matplotlib import colormaps
from matplotlib.image import imread

HOSTILE = "</script><script>alert(1)</script> <b>bold</b> \"'& <!-- =cmd()"


class Page(HTMLParser):
    """What stands in a page: its elements, its text by element, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "image", "input", "path", "line"):
            self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def numbers(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[0])


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def reported(tmp_path: Path, *traces: Trace | Path, name: str = "report.html") -> Page:
    """The page of these traces."""
    paths = [one.path if isinstance(one, Trace) else one for one in traces]
    result = run("report", *paths, "-o", tmp_path / name)
    assert result.exit_code == 0, result.output
    return Page((tmp_path / name).read_text())


@pytest.fixture
def hostile(traced: Callable[..., Trace]) -> Trace:
    """Texts and names that want to be more than text."""

    def change(one: Shard) -> Shard:
        prompt = one.prompts[0]
        layers = (replace(one.layers[0], name=HOSTILE), *one.layers[1:])
        return replace(one, prompts=(Prompt(prompt.index, HOSTILE + str(prompt.index), 42),), layers=layers)

    return traced(4, change, model=f"model {HOSTILE}")


def test_nothing_in_the_page_leads_out_but_a_link_that_is_read(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    page = reported(tmp_path, traced(4))
    addresses = [
        (tag, value)
        for tag, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "style")
    ]
    outside = [
        (tag, value) for tag, value in addresses if not (value or "").startswith(("#", "data:image/png;base64,"))
    ]
    assert outside == [("a", "https://arxiv.org/abs/2411.13588")]
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    text = (tmp_path / "report.html").read_text()
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_the_policy_lets_run_the_two_scripts_and_nothing_else(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    page = reported(tmp_path, traced(4))
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in str(policy).split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    hashes = [hashlib.sha256(script.encode()).digest() for script in page.scripts[1:]]
    assert rules["script-src"] == " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in hashes)
    assert len(page.scripts) == 3 and not any(name.startswith("on") for _, a in page.elements for name in a)


def test_texts_of_a_trace_stay_text(tmp_path: Path, hostile: Trace) -> None:
    page = reported(tmp_path, hostile)
    assert HOSTILE + "0" in page.text and "model " + HOSTILE in page.text
    assert "b" not in [tag for tag, _ in page.elements]
    assert len(page.scripts) == 3 and "<" not in page.scripts[0]
    assert page.numbers[0]["layers"][0]["name"] == HOSTILE
    assert "alert(1)" not in page.scripts[1] + page.scripts[2]


def test_the_order_is_status_answers_maps_panels_tables_plans_provenance(
    tmp_path: Path, traced: Callable[..., Trace]
) -> None:
    page = reported(tmp_path, traced(4))
    places = [str(attributes.get("id")) for tag, attributes in page.elements if tag in ("h2", "h1", "section")]
    wanted = ["t0-name", "t0-maps", "t0-panels", "t0-variation", "t0-shapes", "t0-ranking", "t0-plans", "provenance"]
    assert [place for place in places if place in wanted] == wanted
    for title in ("Change point", "Prompt effect", "Most redundant", "Cache plan"):
        assert title in page.text


def test_a_whole_trace_raises_no_alarm_and_a_lacking_one_says_what(
    tmp_path: Path, traced: Callable[..., Trace]
) -> None:
    def alarms(page: Page) -> bool:
        return any(attributes.get("role") == "alert" for _, attributes in page.elements)

    assert not alarms(reported(tmp_path, traced(1), name="one.html"))

    def asked(one: Shard) -> Shard:
        return replace(one, run=replace(one.run, provenance={"num_prompts": 9}))

    page = reported(tmp_path, traced(2, asked, model="tiny:flux"), name="lacking.html")
    assert alarms(page)
    assert "Random weights" in page.text and "2 of 9 prompts" in page.text


def test_a_layer_that_never_recorded_is_named(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    def silent(one: Shard) -> Shard:
        for stream in one.streams.values():
            if not stream.sites:
                stream.arrays["recorded"][:, :, 1] = 0
        return one

    assert "1 layer never recorded anything: transformer.blocks.0.attn2" in reported(tmp_path, traced(2, silent)).text


def test_one_prompt_gives_a_page_that_says_what_it_leaves_out(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    page = reported(tmp_path, traced(1))
    assert "a coefficient of variation needs two prompts or more" in page.text
    assert "low" not in page.numbers[0]["numbers"] and "cv" not in page.numbers[0]["numbers"]


def test_one_step_is_refused_and_nothing_written(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    result = run("report", traced(2, num_steps=1).path, "-o", tmp_path / "report.html")
    assert result.exit_code == 4 and "has one step, so nothing to compare" in result.stderr
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("steps", [2, 3])
def test_few_steps_give_a_page(tmp_path: Path, traced: Callable[..., Trace], steps: int) -> None:
    page = reported(tmp_path, traced(3, num_steps=steps))
    assert len(page.numbers[0]["steps"]) == steps - 1


def test_statistics_alone_give_a_page_and_are_named(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    folder = tmp_path / "stats.trace"
    folder.mkdir()
    for index in range(3):
        write_shard(folder, shard(index, positions=0))
    assert "statistics only, no archive of samples" in reported(tmp_path, folder).text
    refused = run("report", folder, "--source", "sample", "-o", tmp_path / "sample.html")
    assert refused.exit_code == 4 and not (tmp_path / "sample.html").exists()


def test_without_a_stack_the_page_is_whole(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    page = reported(tmp_path, traced(4, stack=False))
    plans = page.numbers[0]["plans"]
    assert isinstance(plans, str) or len(plans["rows"]) == 41
    assert "Cache plan" in page.text


def test_what_does_not_change_is_told_apart_from_numbers(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    def still(one: Shard) -> Shard:
        sums = one.streams["latent"].arrays["transition_sums"]
        sums[:, :, :, 0, :2] = 0
        return one

    page = reported(tmp_path, traced(3, still))
    assert "K, V, A constant" in page.text and "NaN" not in page.scripts[0]


def test_values_that_are_not_finite_give_a_page(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    def broken(one: Shard) -> Shard:
        one.streams["latent"].arrays["transition_sums"][:, :, :, 0, :2] = np.nan
        return one

    page = reported(tmp_path, traced(3, broken))
    assert "NaN" not in page.scripts[0] and "Too few layers and steps have a value" in page.text


def test_without_k_v_and_a_the_page_has_no_maps_and_says_so(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    def others(one: Shard) -> Shard:
        streams = {
            name: stream if stream.sites else replace(stream, kinds=("q", "o", "f")[: len(stream.kinds)])
            for name, stream in one.streams.items()
        }
        return replace(one, streams=streams)

    page = reported(tmp_path, traced(3, others))
    assert page.numbers[0]["kinds"] == []
    assert "none of K, V and A was recorded" in page.text
    assert not {"t0-map", "t0-small"} & {attributes.get("id") for _, attributes in page.elements}


def test_samples_as_the_source_are_told_with_how_far_they_stray(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    trace = traced(3)
    result = run("report", trace.path, "--source", "sample", "-o", tmp_path / "sample.html")
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "sample.html").read_text())
    assert "From the sampled values alone" in page.text and "Samples against exact values" in page.text


def test_the_page_is_named_after_the_trace_where_no_name_is_given(
    tmp_path: Path, traced: Callable[..., Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = traced(2)
    monkeypatch.chdir(tmp_path)
    assert run("report", trace.path).exit_code == 0
    assert (tmp_path / f"{trace.path.stem}.html").exists()


def test_the_same_traces_give_the_same_bytes(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    trace = traced(4)
    reported(tmp_path, trace, name="one.html")
    reported(tmp_path, trace, name="other.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "other.html").read_bytes()


def test_a_report_is_not_replaced_unless_by_force(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    file, trace = tmp_path / "report.html", traced(2)
    file.write_text("mine")
    result = run("report", trace.path, "-o", file)
    assert result.exit_code != 0 and str(file) in result.stderr and "--force" in result.stderr
    assert file.read_text() == "mine"
    done = run("report", trace.path, "-o", file, "--force")
    assert done.exit_code == 0 and file.read_text().startswith("<!DOCTYPE html>")
    assert done.stderr.startswith("next: ")


def test_each_plan_is_the_one_that_its_command_makes(traced: Callable[..., Trace]) -> None:
    trace = traced(5, num_steps=9)
    told = plans_of(trace, "a path/it's.trace")
    planner = planner_of(trace, Asked())
    for row in told["rows"]:
        program, command, path, option, reuse = shlex.split(row["command"])
        assert (program, command, path, option) == ("dit-analyze", "plan", "a path/it's.trace", "--reuse")
        made = plan_of(planner, Asked(reuse=float(reuse.removesuffix("%")) / 100))
        assert "".join(str(int(one)) for one in made.rows[0].compute) == row["mask"]
    default = plan_of(planner, Asked())
    assert told["rows"][told["default"]]["steps"] == int(default.steps_mask.sum())


def test_several_traces_are_compared_and_one_is_not(tmp_path: Path, traced: Callable[..., Trace]) -> None:
    one, other = traced(4), traced(4, num_steps=7)
    page = reported(tmp_path, one, other)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {"t0", "t1", "comparison"} <= ids and len(page.numbers) == 2
    alone = reported(tmp_path, one, name="alone.html")
    assert "comparison" not in {attributes.get("id") for _, attributes in alone.elements}


@pytest.mark.parametrize("size, off", [(1, 1 / 73), (2, 1 / 18000)])
def test_numbers_come_back_from_their_bytes(size: int, off: float) -> None:
    values = np.array([[0.001, 0.3, np.nan], [0.0, 1.0, 0.02]])
    told = drawing.packed(values, size)
    codes = np.frombuffer(base64.b64decode(told["values"]), f"<u{size}").reshape(values.shape)
    assert codes[0, 2] == codes[1, 0] == 0
    back = told["low"] * np.exp((codes - 1.0) / told["steps"] * told["span"])
    there = codes > 0
    np.testing.assert_allclose(back[there], values[there], rtol=off)


def test_a_picture_has_a_pixel_for_each_cell_and_grey_for_none() -> None:
    values = np.array([[0.1, np.nan, 10.0], [0.0, 1.0, 0.1]])
    address = drawing.picture(values, 0.1, 10.0)
    pixels = imread(io.BytesIO(base64.b64decode(address.removeprefix("data:image/png;base64,"))), format="png")
    scale = colormaps["viridis"]
    wanted = [scale(0.0)[:3], (0.6, 0.6, 0.6), scale(1.0)[:3]], [(0.6, 0.6, 0.6), scale(32 / 63)[:3], scale(0.0)[:3]]
    np.testing.assert_allclose(pixels[..., :3], wanted, atol=0.003)


def test_a_line_breaks_where_there_is_no_value_and_a_point_alone_is_a_dot() -> None:
    scale = drawing.Scale(4, 0.1, 10.0)
    path = drawing.line(np.array([1.0, 2.0, np.nan, 5.0]), scale)
    assert path.count("M") == 2 and path.endswith("h0")
    assert drawing.line(np.full(4, np.nan), scale) == ""
    assert drawing.band(np.full(4, 1.0), np.full(4, 2.0), scale).endswith("z")


@pytest.mark.parametrize("low, high", [(0.1, 0.1), (1e-9, 1e3), (0.0321, 0.0333), (2.0, 30.0)])
def test_ticks_are_round_and_few(low: float, high: float) -> None:
    ticks = drawing.log_ticks(low, high)
    assert 1 <= len(ticks) <= 4 and all(low <= tick <= high for tick in ticks)


def test_the_bundle_is_the_one_that_its_readme_names() -> None:
    vendor = files("dit_analyzer.report").joinpath("vendor")
    content = vendor.joinpath("plotly-cartesian.min.js").read_bytes()
    assert hashlib.sha256(content).hexdigest() in vendor.joinpath("README.md").read_text()
    assert "MIT" in vendor.joinpath("LICENSE").read_text()
    assert not re.search(rb"<script[^>]*src|@import", content)

"""All that is written from a folder of traces."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.cli import main
from dit_analyzer.measures.distance import distances
from dit_analyzer.measures.paper import paper_view
from dit_analyzer.pages import PAGES, facts_pages, index_pages
from dit_analyzer.pages.paper import figure_name
from dit_analyzer.study import Output, Study, open_study, write_study
from dit_formats.errors import IncompleteError
from dit_formats.reader import open_trace
from dit_formats.schema import Layer, Shard
from dit_formats.study import Study as Plan
from dit_formats.study import StudyRun
from dit_formats.study import write_study as write_plan
from dit_formats.writer import write_shard

EULER = "FlowMatchEulerDiscreteScheduler"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path, shard: Callable[..., Shard]) -> Path:
    """A study of two traces: FLUX as the paper runs it, two prompts, and another model, one of two prompts."""
    folder = tmp_path / "study"
    for name, model, steps, prompts in (("flux", "flux.1-dev", 28, 2), ("mine", "mine", 4, 1)):
        (folder / f"{name}.trace").mkdir(parents=True)
        scheduler = {"class": EULER, "config": {"use_dynamic_shifting": model == "flux.1-dev", "shift": 3.0}}
        for index in range(prompts):
            one = shard(index, steps=steps, model=model, scheduler=scheduler)
            provenance = {"num_prompts": 2, "parameters": 11_901_408_320}
            write_shard(folder / f"{name}.trace", replace(one, run=replace(one.run, provenance=provenance)))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def records(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_study_writes_tables_figures_and_facts_and_twice_the_same(folder: Path, tmp_path: Path) -> None:
    results = [run("study", folder, "-o", tmp_path / name) for name in ("once", "again")]
    assert [result.exit_code for result in results] == [0, 0]
    once = files(tmp_path / "once")
    assert once == files(tmp_path / "again")
    tables = {f"table-{number}.{ending}" for number in (1, 2) for ending in ("md", "tex", "csv")}
    drawn = {f"figure-{name}.{ending}" for name in ("02-flux", "S1-mine") for ending in ("pdf", "png")}
    drawn |= {
        f"{name}.{ending}"
        for name in ("changes-flux", "changes-mine", "depth", "stability-models", "stability-models-noise")
        for ending in ("pdf", "png")
    }
    found = {
        f"{name}.{ending}"
        for name in ("changes", "stability", "depth", "claims", "variation")
        for ending in ("md", "csv")
    }
    assert set(once) == tables | drawn | found | {"shapes.csv", "facts.md", "index.md"}
    assert "mine: 1 of 2 prompts" in results[0].stderr
    assert f"next: read {tmp_path / 'once' / 'index.md'}" in results[0].stderr


def test_nothing_is_replaced_without_force(folder: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "index.md"
    mine.parent.mkdir()
    mine.write_text("mine")
    refused = run("study", folder, "-o", mine.parent)
    assert refused.exit_code == 1
    assert f"dit-analyze: {mine}: exists already; add --force to replace it\n" in refused.stderr
    assert files(mine.parent) == {"index.md": b"mine"}
    assert list(write_study(open_study(folder), mine.parent, (index_pages,), force=True)) == [mine]
    assert "flux.1-dev" in mine.read_text()


def test_a_study_from_samples_says_so_everywhere(folder: Path) -> None:
    study = open_study(folder, source="sample")
    names = [name for pages in PAGES for output in pages(study) for name in output.names]
    assert "sampling.csv" in names
    assert "from the sampled values alone; `sampling.csv`" in page(study, index_pages)
    assert study.view(study.members[0]).attrs["source"] == "sample"


def test_the_index_names_traces_figures_and_what_is_missing(folder: Path) -> None:
    text = page(open_study(folder), index_pages)
    dynamic = "FlowMatchEulerDiscrete, dynamic shift"
    assert f"| 2 | flux | flux.1-dev | default | 28 | {dynamic} | 2 | figure-02-flux.pdf |" in text
    assert "| 1 of 2 prompts | figure-S1-mine.pdf |" in text
    assert "- Figure 9: flux.1-dev at 56 steps" in text
    assert "Figure 2:" not in text


def page(study: Study, pages: Callable[[Study], Iterator[Output]]) -> str:
    (output,) = pages(study)
    (content,) = output.make()
    return content.decode()


def test_planned_runs_that_are_not_there_are_named(folder: Path) -> None:
    names = ("mine", "later", "flux")
    write_plan(folder, Plan("p", "P", tuple(StudyRun(n, 4, None, (0,), 1, f"{n}.trace", "default") for n in names)))
    study = open_study(folder)
    assert [one.name for one in study.members] == ["mine", "flux"]
    assert "Planned, and not traced yet:\n\n- later.trace" in page(study, index_pages)


def test_a_plan_that_is_not_understood_is_told_and_passed_over(folder: Path) -> None:
    (folder / "study.json").write_text("{")
    study = open_study(folder)
    assert [one.name for one in study.members] == ["flux", "mine"]
    assert "study.json: not understood" in study.note


def test_facts_are_counted_in_the_traces_and_computed(folder: Path) -> None:
    text = page(open_study(folder), facts_pages)
    assert "| flux.1-dev | 57 | 57 | 1 (1 self, 1 cross) | 12 B | 11.9 B | 11.9 B |" in text
    assert "flux.1-dev: the trace here has 1 layer, not 57." in text
    assert "cogvideox-5b has 42 attention layers, not 30." in text and "exp(1.15) = 3.158" in text
    assert "max abs. d sigma = 0.0128, at step 21" in text
    assert "| 28 | 16 | 10 | 0.8504 |" in text and "| 56 | 34 | 20 | 0.8504 |" in text
    assert "26 then join two equal levels; 34 levels become 8" in text


def test_schedulers_of_the_study_are_compared_at_equal_steps(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    for name, shift, sigmas in (("a", 1.0, np.linspace(1, 0.2, 5)), ("b", 3.0, np.linspace(1, 0.4, 5))):
        (tmp_path / f"{name}.trace").mkdir()
        one = shard(0, model="mine", scheduler={"class": EULER, "config": {"shift": shift}})
        write_shard(tmp_path / f"{name}.trace", replace(one, sigmas=sigmas))
    text = page(open_study(tmp_path), facts_pages)
    assert "| b | a | FlowMatchEulerDiscrete, shift 3; FlowMatchEulerDiscrete, shift 1 | 0.2000 | 4 |" in text


def test_a_view_is_what_the_paper_averages(folder: Path) -> None:
    study = open_study(folder)
    with open_trace(folder / "flux.trace") as trace:
        expected = paper_view(distances(trace))["l1"]
    np.testing.assert_array_equal(study.view(study.members[0])["l1"], expected)


def test_figures_of_the_paper_are_numbered_with_two_digits(folder: Path) -> None:
    assert [figure_name(one) for one in open_study(folder).members] == ["figure-02-flux", "figure-S1-mine"]


def test_a_further_page_is_written_with_the_others(folder: Path, tmp_path: Path) -> None:
    def claims(study: Study) -> Iterator[Output]:
        yield Output(("claims.md",), lambda: [f"{len(study.members)} traces".encode()])

    written = list(write_study(open_study(folder), tmp_path / "out", (facts_pages, claims)))
    assert [path.name for path in written] == ["facts.md", "claims.md"]
    assert written[1].read_text() == "2 traces"
    assert claims not in PAGES


@pytest.mark.parametrize("source, settings, why", [
    ("exact", {"steps": 1}, "has one step"),
    ("sample", {"positions": 0}, "holds statistics only"),
])  # fmt: skip
def test_a_trace_that_cannot_be_drawn_is_refused_before_anything_is_written(
    tmp_path: Path, folder: Path, shard: Callable[..., Shard], source: str, settings: dict[str, int], why: str
) -> None:
    (folder / "poor.trace").mkdir()
    write_shard(folder / "poor.trace", shard(0, **settings))
    result = run("study", folder, "-o", tmp_path / "out", "--source", source)
    assert result.exit_code == 4
    assert why in result.stderr and "poor.trace" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_trace_without_self_attention_is_refused(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    one = shard(0)
    (tmp_path / "a.trace").mkdir()
    cross = tuple(Layer(layer.name, "cross", layer.heads) for layer in one.layers)
    write_shard(tmp_path / "a.trace", replace(one, layers=cross))
    study = open_study(tmp_path)
    with pytest.raises(IncompleteError, match="no self-attention layer"):
        study.view(study.members[0])


def test_tables_are_written_of_the_traces_that_are_named(folder: Path, tmp_path: Path) -> None:
    result = run("tables", folder / "mine.trace", folder / "flux.trace", "-o", tmp_path / "new" / "tables")
    assert result.exit_code == 0
    one, two = records(tmp_path / "new" / "tables" / "table-1.csv")
    assert (one["model"], one["parameters"], one["steps"], one["prompts"]) == ("flux.1-dev", "11901408320", "28", "2")
    assert (two["model"], two["prompts"], two["note"]) == ("mine", "1", "mine: 1 of 2 prompts")
    again = run("tables", folder / "mine.trace", "-o", tmp_path / "new" / "tables")
    assert again.exit_code == 1 and "--force" in again.stderr


def test_samples_say_how_far_they_are_from_the_exact_statistics(folder: Path, tmp_path: Path) -> None:
    """Whole tensors were sampled here, so they are not off at all."""
    result = run("tables", folder / "flux.trace", "-o", tmp_path / "out", "--source", "sample")
    assert "flux: K L1 from samples deviates by median 0.00%, largest 0.00%" in result.stdout
    assert "flux: A CV from samples deviates by median 0.00%" in result.stdout
    rows = records(tmp_path / "out" / "tables-sampling.csv")
    assert [(row["kind"], row["quantity"]) for row in rows] == [(k, q) for k in "kva" for q in ("l1", "cv", "change")]
    assert all(float(row["largest"]) < 1e-6 for row in rows if row["quantity"] != "change")
    assert "sampled values alone" in (tmp_path / "out" / "table-2.md").read_text()


def test_figures_and_tables_from_samples_go_into_one_folder(trace_folder: Path, tmp_path: Path) -> None:
    results = [run(name, trace_folder, "-o", tmp_path / "out", "--source", "sample") for name in ("figures", "tables")]
    assert [result.exit_code for result in results] == [0, 0]
    assert {"figures-sampling.csv", "tables-sampling.csv"} < set(files(tmp_path / "out"))

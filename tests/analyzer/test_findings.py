"""Pages of stability, depth and variation, on made-up studies and where there is little or nothing to say."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import dit_analyzer
import numpy as np
import pytest
import xarray as xr
from dit_analyzer.measures.unpaired import unpaired
from dit_analyzer.members import Member
from dit_analyzer.pages.findings import depth_pages, stability_pages, variation_pages
from dit_analyzer.study import Study
from zoo.curves import run, shifted

ONE = Member(
    Path("a"), "a", "one", 12, ("", "{}"), {"joint": 5}, 10, 10, 1, None, True, "exact", shifted(12), figure="S1"
)


def study(*runs: tuple[Member, xr.Dataset]) -> Study:
    members = [replace(one, path=Path(str(place)), name=f"run-{place}") for place, (one, _) in enumerate(runs)]
    return Study(members, _measured={}, _views={(m.path, "exact"): view for m, (_, view) in zip(members, runs)})


def made(**settings: object) -> xr.Dataset:
    return run(noise=0.05, kinds="kva", **settings)


def written(pages: object, of: Study) -> dict[str, bytes]:
    return {name: content for output in pages(of) for name, content in zip(output.names, output.make(), strict=True)}


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def of_runs() -> Study:
    less = replace(ONE, num_steps=6, role="steps")
    other = replace(ONE, role="scheduler")
    both = replace(ONE, num_steps=6, role="steps+scheduler")
    return study(
        (ONE, made()),
        (less, made(sigmas=shifted(6), draw=1)),
        (other, made(sigmas=shifted(12, 3), draw=2)),
        (both, made(sigmas=shifted(6, 3), draw=3)),
        (replace(ONE, model="two"), made(first=100, draw=4)),
    )


def test_every_run_is_set_against_the_first_of_its_model_and_models_against_each_other() -> None:
    made_ = written(stability_pages, of_runs())
    table = rows(made_["stability.csv"])
    pairs = {(row["set_apart"], row["one"], row["other"]) for row in table}
    assert pairs == {
        ("between", "run-0", "run-4"),
        ("steps", "run-0", "run-1"),
        ("scheduler", "run-0", "run-2"),
        ("steps+scheduler", "run-0", "run-3"),
    }
    first = {row["set_apart"]: row["axis"] for row in table if row["headline"] == "True"}
    assert first == {"between": "step", "steps": "step", "scheduler": "noise", "steps+scheduler": "noise"}
    names = {f"stability-{name}.{end}" for name in ("models", "models-noise", "run-0") for end in ("pdf", "png")}
    assert set(made_) == names | {"stability.md", "stability.csv"}


def test_numbers_are_those_of_stability_and_of_unpaired_where_prompts_differ() -> None:
    of = of_runs()
    table = rows(written(stability_pages, of)["stability.csv"])
    one, less, *_, two = of.views(of.members)
    for row in table:
        if row["set_apart"] in ("steps", "between") and row["kind"] == "v":
            measure, other = (dit_analyzer.stability, less) if row["set_apart"] == "steps" else (unpaired, two)
            found = measure(one, other, row["axis"]).sel(kind="v")
            assert [float(row[name]) for name in ("s", "d_high")] == pytest.approx(
                [found["s"].item(), found["d_high"].item()]
            )
            assert row["verdict"] == found["verdict"].item()


def test_a_study_of_one_trace_says_that_there_is_nothing_to_compare() -> None:
    made_ = written(stability_pages, study((ONE, made())))
    assert set(made_) == {"stability.md", "stability.csv"} and rows(made_["stability.csv"]) == []
    page = made_["stability.md"].decode()
    assert "No two models to compare." in page and "No model here was traced with another scheduler." in page
    assert (
        b"No model here was traced with another step count." in written(depth_pages, study((ONE, made())))["depth.md"]
    )


def test_what_cannot_be_compared_is_a_line_that_says_why_and_no_figure() -> None:
    short, two = replace(ONE, num_steps=2, role="steps"), replace(ONE, model="two", num_steps=2)
    of = study((ONE, made()), (short, made(sigmas=shifted(2))), (two, made(sigmas=shifted(2))))
    made_ = written(stability_pages, of)
    assert set(made_) == {"stability.md", "stability.csv"}
    assert "run-0 and run-1: a curve needs two transitions or more" in made_["stability.md"].decode()
    assert all(row["s"] == "" and "two transitions" in row["note"] for row in rows(made_["stability.csv"]))
    assert "Not compared:" in written(depth_pages, of)["depth.md"].decode()


def test_without_noise_levels_steps_are_compared_and_noise_is_not() -> None:
    bare = made().drop_vars(["sigma", "sigma_after"])
    of = study((ONE, bare), (replace(ONE, role="scheduler"), bare.assign(l1=bare["l1"] * 2)))
    made_ = written(stability_pages, of)
    assert {row["axis"]: row["headline"] for row in rows(made_["stability.csv"])} == {"step": "True", "noise": "False"}
    assert "the noise axis needs the sigma of every step" in made_["stability.md"].decode()
    assert "stability-run-0.png" in made_


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_curves_without_a_value_give_dashes(value: float) -> None:
    empty = made().map(lambda array: xr.full_like(array, value))
    of = study((ONE, empty), (replace(ONE, role="steps"), made()), (replace(ONE, model="two"), empty))
    for pages in (stability_pages, depth_pages, variation_pages):
        text = next(content for name, content in written(pages, of).items() if name.endswith(".md")).decode()
        assert "nan" not in text.split("| --- |")[-1].lower() and "–" in text


@pytest.mark.parametrize(("prompts", "layers"), [(1, 5), (2, 1)])
def test_few_prompts_and_one_layer_are_pages_without_intervals(prompts: int, layers: int) -> None:
    few = replace(ONE, prompts=prompts)
    of = study(
        (few, made(prompts=prompts, layers=layers)), (replace(few, role="steps"), made(prompts=prompts, layers=layers))
    )
    depth = written(depth_pages, of)
    assert {"depth.md", "depth.csv", "depth.png", "depth.pdf"} == set(depth)
    assert all(row["low"] == "" for row in rows(depth["depth.csv"]))
    assert all(row["verdict"] == "undecided" for row in rows(written(stability_pages, of)["stability.csv"]))
    page = written(variation_pages, of)["variation.md"].decode()
    assert ("needs two prompts or more" in page) == (prompts == 1)


def test_depth_holds_trends_contrasts_and_ratios_of_roughness() -> None:
    of = of_runs()
    table = rows(written(depth_pages, of)["depth.csv"])
    trend = dit_analyzer.depth_trend(of.view(of.members[0])).sel(kind="a", quantity="rel_l1")
    rough = dit_analyzer.roughness(*of.views(of.members[:2])).sel(kind="k")
    found = {(row["trace"], row["what"], row["of"], row["quantity"]): row for row in table}
    assert float(found["run-0", "output / input", "a", "rel_l1"]["log_factor"]) == pytest.approx(trend["slope"].item())
    ratio = found["run-1 over run-0", "roughness at matched noise", "k", "l1"]
    assert float(ratio["log_factor"]) == pytest.approx(np.log(rough["ratio"].item()))
    assert {row["what"] for row in table} >= {"one kind / another", "roughness"}


def test_variation_names_cells_that_are_left_out() -> None:
    view = made()
    view["l1"][3, 1, 2, 4] = 0
    made_ = written(variation_pages, study((ONE, view)))
    assert "run-0: 1 cell. layer 2, v: transitions 4" in made_["variation.md"].decode()
    (k, v, a) = rows(made_["variation.csv"])
    assert (k["cells_left_out"], v["cells_left_out"], a["cells_left_out"]) == ("0", "1", "0")
    whole = dit_analyzer.variation(view).sel(kind="v")
    assert float(v["cv"]) == pytest.approx(whole["cv"].item()) and float(v["cv_high"]) > float(v["cv"])

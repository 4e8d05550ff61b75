"""dit-analyze plan as people use it, and as hurried people misuse it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.cli import EXPORTS, main
from dit_formats.plan import read_plan
from dit_formats.reader import Trace
from dit_formats.schema import Layer, Shard
from matplotlib import image

TOLD: dict[str, Any] = {
    "dtype": "float32",
    "pipeline": "PixArtAlphaPipeline",
    "transformers": {"transformer": {"class": "PixArtTransformer2DModel", "weights": "00ff"}},
}


def named(one: Shard) -> Shard:
    layers = (
        Layer("transformer.transformer_blocks.0.attn1", "self", 3),
        Layer("transformer.transformer_blocks.0.attn2", "cross", 3),
    )
    return replace(one, layers=layers)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *(str(a) for a in arguments)])


def refused(code: int, *arguments: object) -> str:
    """The one line that the command says."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("dit-analyze: ")
    return line


@pytest.fixture
def trace(traced: Callable[..., Trace], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A trace of six prompts, in a folder of its own."""
    with traced(6, named, num_steps=10, **TOLD) as made:
        monkeypatch.chdir(made.path.parent)
        made.path.rename("out.trace")
        yield Path("out.trace")


def files(folder: Path = Path(".")) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".trace")


def test_a_plan_is_written_told_and_names_the_next_command(trace: Path) -> None:
    result = run(trace, "--budget", 4)
    assert result.exit_code == 0
    first, drawn, *rest = result.stdout.splitlines()
    assert first.startswith("hand-made, 10 steps, FlowMatchEulerDiscreteScheduler; elsewhere the network's prediction")
    assert drawn.startswith("computed  #") and drawn.endswith("4 of 10") and drawn.count("#") == 4
    assert rest[0].startswith("computed share 40.0%, longest run left out")
    assert result.stderr == "next: dit-trace replay out.plan.json\n"
    assert files() == ["out.plan.json"]
    assert read_plan(Path("out.plan.json")).rows[0].compute.count(True) == 4


@pytest.mark.parametrize("option", [("--reuse", "40%"), ("--reuse", "0.4"), ("--error", "5%"), ("--budget", "6"), ()])
def test_programs_get_what_the_file_says(trace: Path, option: tuple[str, ...]) -> None:
    result = run(trace, *option, "--json")
    told, plan = json.loads(result.stdout), read_plan(Path("out.plan.json"))
    assert told["plan"] == "out.plan.json" and told["computed_share"] == plan.computed_share
    assert told["compute"] == {"all": "".join(str(int(c)) for c in plan.rows[0].compute)}
    assert {name: told[name] for name in plan.predicted} == plan.predicted
    asked = plan.made["asked"]
    assert asked.get("reuse") == (0.4 if option[:1] == ("--reuse",) else None)


def test_a_plan_that_leaves_nothing_out_has_no_error_and_no_riddle(trace: Path) -> None:
    assert "predicted error 0.00%, for nothing is left out" in run(trace, "--reuse", "0").stdout


def test_rows_of_types_and_layers_are_shown_by_name(trace: Path) -> None:
    assert "self   #" in run(trace, "--per", "type").stdout
    assert "transformer.transformer_blocks.0.attn1  #" in run(trace, "--per", "layer", "--force").stdout


def test_nothing_is_replaced_without_force(trace: Path) -> None:
    assert run(trace).exit_code == 0
    before = Path("out.plan.json").read_bytes()
    assert refused(1, trace, "--budget", 2).endswith("out.plan.json: exists already; add --force to replace it")
    assert Path("out.plan.json").read_bytes() == before
    assert run(trace, "--budget", 2, "--force").exit_code == 0
    assert Path("out.plan.json").read_bytes() != before


def test_nothing_is_written_where_one_export_exists(trace: Path) -> None:
    Path("p.diffusers.json").write_text("mine")
    told = refused(1, trace, "-o", "p.json", "--to", "cache-dit", "--to", "diffusers")
    assert "p.diffusers.json: exists already" in told
    assert files() == ["p.diffusers.json"] and Path("p.diffusers.json").read_text() == "mine"


def test_nothing_is_written_where_an_export_is_refused(trace: Path) -> None:
    told = refused(3, trace, "-o", "p.json", "--to", "cache-dit", "--to", "sglang")
    assert "sglang takes bfloat16 only" in told
    assert files() == []


def test_nothing_is_written_where_coefficients_are_refused(trace: Path) -> None:
    result = run(trace, "-o", "p.json", "--to", "cache-dit", "--to", next(x for x in EXPORTS if "teacache" in x))
    assert result.exit_code != 0 and result.stdout == "" and len(result.stderr.splitlines()) == 1
    assert files() == []


def test_several_exports_lie_beside_the_plan_and_say_what_is_lost(trace: Path) -> None:
    result = run(trace, "-o", "deep/p.json", "--to", "cache-dit", "--to", "diffusers", "--to", "cache-dit")
    assert result.exit_code == 0
    assert files(Path("deep")) == ["p.cache-dit.yaml", "p.diffusers.json", "p.json"]
    assert "deep/p.diffusers.json: diffusers computes 50.0%" in result.stdout
    assert "deep/p.cache-dit.yaml: cache-dit computes 100.0%\n  lost: the plan computes 50.0%" in result.stdout
    told = json.loads(run(trace, "-o", "deep/p.json", "--to", "diffusers", "--force", "--json").stdout)
    export = told["exports"]["diffusers"]
    assert export["file"] == "deep/p.diffusers.json" and export["ran_here"] and isinstance(export["lost"], list)


def test_targets_that_predict_nothing_get_a_plan_that_reuses(trace: Path) -> None:
    run(trace, "--to", "diffusers")
    assert read_plan(Path("out.plan.json")).predictor == "reuse"
    run(trace, "--force")
    assert read_plan(Path("out.plan.json")).predictor == "linear"


def test_a_plan_that_leaves_nothing_out_has_no_export(trace: Path) -> None:
    told = refused(3, trace, "--reuse", "0", "--to", "diffusers")
    assert "computes every layer in every step: there is nothing to export" in told
    assert files() == []


def test_chosen_noise_levels_are_a_run_of_so_many_steps(trace: Path) -> None:
    assert "only the marked steps are made" in run(trace, "--sigmas", 4).stdout
    assert read_plan(Path("out.plan.json")).granularity == "grid"
    assert "nothing to cache; dit-trace replay runs it" in refused(
        3, trace, "--sigmas", 4, "--to", "diffusers", "--force"
    )


# Curves ----------------------------------------------------------------------------


def test_a_curve_is_printed_and_writes_nothing_unless_told_where(trace: Path) -> None:
    result = run(trace, "--curve")
    head, *rows, last = result.stdout.splitlines()
    assert head.split() == ["computed", "predicted", "error", "95", "%", "interval", "steps"]
    assert last.startswith(f"41 plans, {len(rows)} of them distinct") and len(rows) == 9
    assert result.stderr == "next: dit-analyze plan out.trace --curve -o curve\n" and files() == []


def test_a_curve_s_folder_holds_plans_table_and_figure(trace: Path) -> None:
    result = run(trace, "--curve", "-o", "new/curve")
    names = [f"plan-{place:02d}.json" for place in range(1, 42)]
    assert set(files(Path("new/curve"))) >= {*names, "curve.csv", "curve.png"}
    assert result.stderr.endswith("next: dit-trace replay new/curve/plan-*.json --alone\n")
    with open("new/curve/curve.csv") as file:
        rows = list(csv.DictReader(file))
    plans = [read_plan(Path("new/curve") / name) for name in names]
    assert [float(row["computed_share"]) for row in rows] == [plan.computed_share for plan in plans]
    assert [float(row["error"]) for row in rows] == [plan.predicted["error"] for plan in plans]
    assert np.ptp(image.imread("new/curve/curve.png")[..., :3]) > 0.5


def test_a_curve_replaces_nothing_of_a_folder_without_force(trace: Path) -> None:
    Path("curve").mkdir()
    Path("curve/plan-07.json").write_text("mine")
    assert "curve/plan-07.json: exists already" in refused(1, trace, "--curve", "-o", "curve")
    assert files(Path("curve")) == ["plan-07.json"]
    assert run(trace, "--curve", "-o", "curve", "--force").exit_code == 0
    assert len(files(Path("curve"))) >= 43


def test_a_curve_is_json_for_programs(trace: Path) -> None:
    rows = json.loads(run(trace, "--curve", "--json", "-o", "curve").stdout)["curve"]
    assert len(rows) == 41 and {"computed_share", "steps", "error", "low", "high", "compute"} <= set(rows[0])


# What a hurried user gets wrong ------------------------------------------------------


@pytest.mark.parametrize("share", ["140%", "1.4", "-1", "100%", "1", "half", "nan", "40 %%", "inf", ""])
@pytest.mark.parametrize("option", ["--reuse", "--error"])
def test_a_share_that_is_none_is_refused(trace: Path, option: str, share: str) -> None:
    assert "is no share; give 0% to 99%" in refused(2, trace, option, share)
    assert files() == []


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--budget", "4", "--reuse", "40%"], 2, "give one of them"),
        (["--curve", "--budget", "4"], 2, "give one of them"),
        (["--curve", "--to", "diffusers"], 2, "no exports; give --to with the plan that you choose"),
        (["--sigmas", "4", "--per", "layer"], 2, "no --per, no --predictor"),
        (["--per", "layer", "--signal", "prediction"], 2, "planned by their outputs"),
        (["--budget", "0"], 2, "--budget"),
        (["--budget", "40"], 1, "--budget 40: the run has 10 steps; give 1 to that many"),
        (["--sigmas", "40"], 1, "--sigmas 40: the run has 10 steps; give 1 to that many"),
        (["--sigmas", "11"], 1, "11: the run has 10 steps"),
        (["--steps", "50"], 1, "it supports 5 to 20; trace the model with --steps 50"),
        (["--compute", "0,10"], 3, "--compute 10: the run has steps 0 to 9"),
        (["--compute", "all"], 2, "give numbers of steps, as 0,11"),
        (["--to", "tensorrt"], 2, "tensorrt"),
        (["-o", "plan.txt"], 2, "a plan is a file whose name ends in .json"),
        (["-o", "."], 2, "a plan is a file whose name ends in .json"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(trace: Path, options: list[str], code: int, told: str) -> None:
    assert told in refused(code, trace, *options)
    assert files() == []


@pytest.mark.parametrize(("path", "code"), [("nothing.trace", 2), (".", 3), ("plan.json", 3)])
def test_what_is_no_trace_is_refused(trace: Path, path: str, code: int) -> None:
    Path("plan.json").write_text("{}")
    refused(code, path)
    assert files() == ["plan.json"]


def test_a_plan_of_the_folder_one_stands_in_has_its_name(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace)
    assert run(".").stderr == "next: dit-trace replay out.plan.json\n"
    assert run("../out.trace", "--force").exit_code == 0  # the plan does not disturb its trace


def test_a_file_where_the_curve_s_folder_should_be_is_refused(trace: Path) -> None:
    Path("curve").write_text("mine")
    result = run(trace, "--curve", "-o", "curve")
    assert result.exit_code == 1 and "curve" in result.stderr.splitlines()[-1]
    assert Path("curve").read_text() == "mine" and files() == ["curve"]

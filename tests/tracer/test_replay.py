"""dit-trace replay as people use it: bundled models, few steps, and what a hurried user gets wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from dit_analyzer.plans.asked import Asked, plan_of, planner_of
from dit_formats.plan import LAYERS, Plan, Row, read_plan, write_plan
from dit_formats.reader import open_trace
from dit_tracer.cli import main
from dit_tracer.models.catalog import BUNDLED
from dit_tracer.replay.quality import BEST, Made, compared, mean_of, ratio_of
from matplotlib import image

STEPS = 6
PLANNED = 3


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def replay(*arguments: object) -> dict[str, Any]:
    result = run("replay", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(code: int, *arguments: object) -> str:
    """The one line that the command says."""
    result = run("replay", *arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("dit-trace: ")
    return line


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with plans for digits-flux: of steps, of layers, of noise levels, and one that computes everything."""
    home = tmp_path_factory.mktemp("replay")
    trace = home / "out.trace"
    assert run("run", "digits-flux", "-n", PLANNED, "--steps", STEPS, "-o", trace, "-q").exit_code == 0
    asked = {
        "steps": Asked(budget=3, predictor="reuse"),
        "fewer": Asked(budget=2, predictor="reuse"),
        "linear": Asked(budget=4, predictor="linear"),
        "layers": Asked(reuse=0.4, granularity="layer"),
        "grid": Asked(budget=3, granularity="grid"),
        "all": Asked(budget=STEPS),
    }
    with open_trace(trace) as opened:
        for name, one in asked.items():
            write_plan(home / f"{name}.json", plan_of(planner_of(opened, one), one))
    return home


def changed(home: Path, tmp_path: Path, name: str = "steps", **changes: Any) -> Path:
    """A plan's file with something else in its request."""
    plan = read_plan(home / f"{name}.json")
    write_plan(tmp_path / "plan.json", replace(plan, request=replace(plan.request, **changes)))
    return tmp_path / "plan.json"


def by_name(told: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["schedule"]: one for one in told["schedules"]}


@pytest.fixture(scope="module")
def told(home: Path) -> dict[str, Any]:
    return replay(home / "steps.json", "-n", 2, "-o", home / "found")


def test_programs_get_every_schedule_with_share_speed_and_errors(told: dict[str, Any]) -> None:
    assert (told["model"], told["steps"], told["engine"]) == ("digits-flux", STEPS, "dit-trace")
    found = by_name(told)
    assert found["uncached"]["error"]["value"] == 0 and found["uncached"]["psnr"]["value"] == BEST
    plan = found["plan"]
    assert plan["computed_share"] == 0.5 and sum(plan["mask"]) == 3 and plan["predicted"]["error"] > 0
    for one in found.values():
        assert all(
            one[name].keys() == {"value", "low", "high"} for name in ("speed", "error", "psnr", "ssim", "seconds")
        )
        assert all(len(values) == 2 for values in one["prompts"].values())
    assert 0 < plan["error"]["low"] < plan["error"]["value"] < plan["error"]["high"]


def test_prompts_that_planning_saw_are_not_used(told: dict[str, Any]) -> None:
    captions = BUNDLED["digits-flux"].captions(PLANNED + 2)
    assert told["prompts"] == captions[PLANNED:]


def test_others_spend_as_much_or_the_reason_is_told(told: dict[str, Any]) -> None:
    found = by_name(told)
    for name in ("fewer steps", "uniform, reused", "uniform, linear"):
        assert found[name]["computed_share"] == 0.5
    assert set(told["not_run"]) >= {"L2C", "DiTFastAttn", "T-GATE"}
    assert "no cross-attention" in told["not_run"]["T-GATE"] and "trained for each model" in told["not_run"]["L2C"]
    names = {"fewer steps", "uniform, reused", "uniform, linear", "cache-dit's mask", "MagCache", "PAB", "T-GATE",
             "Delta-DiT", "L2C", "DiTFastAttn"}  # fmt: skip
    assert set(found) | set(told["not_run"]) == names | {"uncached", "plan"}
    assert {found[name]["times_ours"] is None for name in found if name != "plan"} == {False}


def test_fewer_steps_of_an_euler_solver_are_uniform_reuse(told: dict[str, Any]) -> None:
    found = by_name(told)
    assert found["fewer steps"]["note"] == "3 steps instead of 6"
    one, other = (found[name]["prompts"]["error"] for name in ("fewer steps", "uniform, reused"))
    assert one == pytest.approx(other, rel=1e-3)


def test_a_folder_holds_numbers_and_pictures(home: Path, told: dict[str, Any]) -> None:
    folder = home / "found"
    assert sorted(path.name for path in folder.iterdir()) == ["quality.png", "replay.json", "samples.png"]
    assert json.loads((folder / "replay.json").read_text()) == told
    for name in ("quality.png", "samples.png"):
        picture = image.imread(folder / name)
        assert np.ptp(picture[..., :3]) > 0.5 and min(picture.shape[:2]) > 300


def test_nothing_is_replaced_without_force(home: Path, tmp_path: Path) -> None:
    for name in ("replay.json", "quality.png", "samples.png"):
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        line = refused(1, home / "steps.json", "-n", 1, "-o", folder)
        assert f"{name}: exists already; give another folder, or --force to replace it" in line
        assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_text() == "mine"
    replay(home / "steps.json", "-n", 1, "--alone", "-o", folder, "--force")
    assert len(list(folder.iterdir())) == 3


def test_a_file_where_the_folder_should_be_is_refused_before_anything_runs(home: Path) -> None:
    assert refused(1, home / "steps.json", "-o", home / "fewer.json").endswith("fewer.json: a file; -o names a folder")
    assert "a file" in refused(1, home / "steps.json", "-o", home / "fewer.json", "--force")


@pytest.mark.parametrize("options", [(), ("--transfer",)])
def test_plans_of_other_numbers_of_steps_are_not_run_together(
    home: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    plan = read_plan(home / "steps.json")
    five = {"num_steps": 5, "timesteps": plan.request.timesteps[:5], "sigmas": plan.request.sigmas[:5]}
    row = replace(plan.rows[0], compute=plan.rows[0].compute[:5])
    shorter = replace(plan, request=replace(plan.request, **five), levels=plan.levels[:5], rows=(row,))
    write_plan(tmp_path / "shorter.json", shorter)
    line = refused(1, home / "steps.json", tmp_path / "shorter.json", "-n", 1, "--alone", *options)
    assert "shorter.json: of 5 steps, and" in line and line.endswith("steps.json of 6; replay them apart")


def test_a_scheduler_that_makes_other_steps_is_refused_also_transferred(home: Path) -> None:
    options = ("--scheduler", "HeunDiscreteScheduler", "--transfer")
    line = refused(1, home / "steps.json", "digits-pixart", "-n", 1, "--alone", *options)
    assert "the plan is of 6 steps, and this scheduler makes 11" in line


def test_stopped_it_does_not_say_that_it_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dit_tracer.replay.command.compare", stopped)
    line = refused(130, home / "steps.json", "-n", 1, "--alone")
    assert line == "dit-trace: stopped; a replay keeps nothing until its end"


def test_a_table_tells_what_came_of_it(home: Path) -> None:
    assert "nan" not in run("replay", home / "all.json", home / "steps.json", "-n", 1, "--alone").stdout
    result = run("replay", home / "steps.json", "-n", 2, "--alone")
    first, head, uncached, plan = result.stdout.splitlines()[:4]
    assert first == "digits-flux, 6 steps, 2 prompts"
    assert head.split()[:3] == ["schedule", "computed", "speed"] and uncached.split()[:2] == ["uncached", "100.0%"]
    assert plan.split()[:2] == ["plan", "50.0%"]
    assert result.stderr.endswith(f"next: dit-trace replay {home / 'steps.json'} -n 32 -o replay\n")


def test_one_prompt_has_no_interval(home: Path) -> None:
    plan = by_name(replay(home / "steps.json", "-n", 1, "--alone"))["plan"]
    assert plan["error"]["value"] > 0 and plan["error"]["low"] is None and plan["error"]["high"] is None


def test_several_plans_are_told_by_name_and_ranked(home: Path) -> None:
    files = [home / f"{name}.json" for name in ("steps", "fewer", "linear", "all")]
    told = replay(*files, "-n", 2, "--alone")
    found = by_name(told)
    assert list(found) == ["uncached", "steps", "fewer", "linear", "all"]
    assert found["all"]["error"]["value"] == 0 and found["all"]["computed_share"] == 1
    assert found["fewer"]["computed_share"] == pytest.approx(1 / 3)
    assert told["spearman"]["plans"] == 3  # the one that leaves nothing out says nothing
    assert any("Spearman" in line for line in told["findings"])


def test_a_plan_of_layers_computes_its_share_of_evaluations(home: Path) -> None:
    plan = read_plan(home / "layers.json")
    found = by_name(replay(home / "layers.json", "-n", 1, "--alone"))["plan"]
    feed_forward = [name for name in plan.types if plan.types[name] == "ff"]
    assert not feed_forward and 0.6 < found["computed_share"] < 1 and found["error"]["value"] > 0


def test_chosen_noise_levels_are_run_as_fewer_steps(home: Path) -> None:
    found = by_name(replay(home / "grid.json", "-n", 1, "--alone"))["plan"]
    assert found["computed_share"] == 0.5 and found["note"] == "3 of 6 noise levels"


def test_prompts_of_one_s_own_are_used_and_those_seen_are_told(home: Path, tmp_path: Path) -> None:
    seen = BUNDLED["digits-flux"].captions(1)[0]
    (tmp_path / "prompts.txt").write_text(f"{seen}\na red three at the top on a light background\n")
    result = run("replay", home / "steps.json", "-p", tmp_path / "prompts.txt", "--alone", "--json")
    assert json.loads(result.stdout)["prompts"][0] == seen
    assert "1 prompt of 2 planning has seen: no independent test" in result.stderr


def test_arguments_that_come_with_prompts_are_the_plan_s_or_refused(home: Path, tmp_path: Path) -> None:
    line = {"prompt": "a red three at the top on a light background"}
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(line | {"height": 16}))
    assert replay(home / "steps.json", "-p", path, "--alone")["prompts"] == [line["prompt"]]
    path.write_text(json.dumps(line | {"height": 8}))
    assert "height: 16 in the plan, 8 with the prompts" in refused(1, home / "steps.json", "-p", path, "--alone")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": {"transformer": "0000"}}, "weights: {'transformer': '0000'} in the plan"),
        ({"pipeline": "PixArtAlphaPipeline"}, "pipeline: PixArtAlphaPipeline in the plan, FluxPipeline now"),
        ({"dtype": "bfloat16"}, "dtype: bfloat16 in the plan, float32 now"),
        ({"scheduler": "DDIMScheduler"}, "scheduler: DDIMScheduler in the plan"),
        ({"scheduler_sha256": "0" * 64}, "scheduler: configured in another way"),
        ({"call": {"num_inference_steps": 9}}, "steps: 6 in the plan, 9 now"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(
    home: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    line = refused(1, changed(home, tmp_path, **changes), "-n", 1, "--alone")
    assert told in line and "--transfer" in line


def test_another_model_is_refused_unless_transferred(home: Path) -> None:
    told = refused(1, home / "steps.json", "digits-pixart", "-n", 1, "--alone")
    assert "pipeline: FluxPipeline in the plan, PixArtAlphaPipeline now" in told and "weights" in told
    found = replay(home / "steps.json", "digits-pixart", "-n", 1, "--alone", "--transfer")
    assert found["model"] == "digits-pixart" and by_name(found)["plan"]["computed_share"] == 0.5


def test_layers_of_another_model_cannot_be_transferred(home: Path) -> None:
    told = refused(3, home / "layers.json", "digits-pixart", "-n", 1, "--alone", "--transfer")
    assert "layers that the model does not have: transformer.transformer_blocks.0.attn and" in told


def test_another_engine_runs_the_plan(home: Path) -> None:
    told = replay(home / "steps.json", "-n", 1, "--alone", "--engine", "diffusers")
    plan = by_name(told)["plan"]
    assert told["engine"] == "diffusers" and plan["note"] == "by diffusers" and plan["computed_share"] == 0.5


def test_an_engine_cannot_run_a_choice_of_noise_levels(home: Path) -> None:
    told = refused(3, home / "grid.json", "-n", 1, "--alone", "--engine", "diffusers")
    assert "noise levels leaves nothing to cache" in told


def test_an_unknown_engine_is_wrong_usage(home: Path) -> None:
    assert "tensorrt" in refused(2, home / "steps.json", "--engine", "tensorrt")


def test_a_plan_of_a_model_that_has_no_name_asks_for_one(home: Path, tmp_path: Path) -> None:
    path = changed(home, tmp_path, model="")
    assert f"give its folder or repository too: dit-trace replay {path} MODEL" in refused(2, path)
    assert by_name(replay(path, "digits-flux", "-n", 1, "--alone"))["plan"]["computed_share"] == 0.5


def test_a_plan_that_has_seen_all_prompts_asks_for_others(home: Path, tmp_path: Path) -> None:
    plan = read_plan(home / "steps.json")
    from dit_formats.plan import text_hash

    every = [text_hash(text) for text in BUNDLED["digits-flux"].captions(20)]
    write_plan(tmp_path / "plan.json", replace(plan, made=plan.made | {"seen": every}))
    told = replay(tmp_path / "plan.json", "-n", 1, "--alone")
    assert told["prompts"] == BUNDLED["digits-flux"].captions(21)[20:]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ([], 2, "PLAN"),
        (["digits-flux"], 2, "give plans, which end in .json, and at most one model"),
        (["steps.json", "digits-flux", "digits-pixart"], 2, "at most one model"),
        (["nothing.json"], 2, "no such plan; dit-analyze plan TRACE writes one"),
        (["broken.json"], 3, "not JSON"),
        (["steps.json", "digits-fluks"], 2, "unknown model 'digits-fluks'"),
        (["steps.json", "-n", "0"], 2, "-n"),
        (["steps.json", "-p", "nothing.txt"], 2, "nothing.txt"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    home: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, told: str
) -> None:
    monkeypatch.chdir(home)
    Path("broken.json").write_text("{")
    assert told in refused(code, *arguments)


def test_a_model_of_few_steps_is_told_not_to_be_cached(tmp_path: Path) -> None:
    """digits-flux in two steps: the one step that may be left out costs a fifth of the latents."""
    trace = tmp_path / "two.trace"
    run("run", "digits-flux", "-n", 3, "--steps", 2, "-o", trace, "-q")
    with open_trace(trace) as opened:
        plan = plan_of(planner_of(opened, Asked()), Asked())
    assert plan.predicted["verdict"] == "do not cache" and plan.predicted["cheapest_step"] > 0.1
    write_plan(tmp_path / "plan.json", plan)
    told = replay(tmp_path / "plan.json", "-n", 2)
    assert "verdict of the plan: do not cache; leaving out the one cheapest of 2 steps" in told["findings"][0]
    assert by_name(told)["plan"]["error"]["value"] > 0.05


# Measures --------------------------------------------------------------------------


def made(seed: int, size: int = 16) -> Made:
    rng = np.random.default_rng(seed)
    return Made(rng.normal(size=(1, 4, size)), rng.random((1, size, size, 3)), 1.0)


def test_a_generation_equals_itself() -> None:
    found = compared(made(0), made(0))
    assert (found["error"], found["psnr"], found["ssim"]) == (0, BEST, pytest.approx(1))


def test_errors_are_relative_to_the_uncached_generation() -> None:
    one, other = made(0), made(1)
    found = compared(other, one)
    assert found["error"] == pytest.approx(np.abs(other.latents - one.latents).sum() / np.abs(one.latents).sum())
    assert found["psnr"] == pytest.approx(-10 * np.log10(((one.pictures - other.pictures) ** 2).mean()))
    doubled = [Made(2 * x.latents, x.pictures, 1.0) for x in (other, one)]
    assert compared(*doubled)["error"] == pytest.approx(found["error"])


@pytest.mark.parametrize("size", [4, 6, 7])
def test_small_pictures_are_compared_in_small_windows(size: int) -> None:
    assert compared(made(0, size), made(0, size))["ssim"] == pytest.approx(1)


def test_means_of_errors_are_geometric_and_cover_their_truth() -> None:
    found = mean_of([0.01, 0.1, 1.0], "error")
    assert found.value == pytest.approx(0.1) and found.low < 0.1 < found.high
    assert found.low * found.high == pytest.approx(0.01)
    assert mean_of([1.0, 3.0], "psnr").value == 2
    assert mean_of([0.0, 0.2], "error").value == pytest.approx(0.1)  # what has no logarithm


def test_a_ratio_is_taken_prompt_by_prompt() -> None:
    assert ratio_of([2.0, 0.2], [1.0, 0.1]).value == pytest.approx(2)
    assert ratio_of([2.0, 0.2], [1.0, 0.1]).low == pytest.approx(2)
    assert np.isnan(ratio_of([0.0], [0.0]).value)


def test_rows_of_a_plan_by_hand_are_replayed(home: Path, tmp_path: Path) -> None:
    """Somebody may write a plan with nothing but its mask: no prediction, no prompts."""
    plan: Plan = read_plan(home / "layers.json")
    name = next(iter(plan.types))
    row = Row("mine", (name,), (True, False, True, False, True, False))
    mine = replace(plan, granularity=LAYERS, rows=(row,), types={name: plan.types[name]}, made={}, predicted={})
    write_plan(tmp_path / "plan.json", mine)
    told = replay(tmp_path / "plan.json", "-n", 1)
    assert by_name(told)["plan"]["error"]["value"] > 0 and "no ratios" in told["not_run"]["MagCache"]

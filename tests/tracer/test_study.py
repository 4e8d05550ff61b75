"""Studies: what their files may say, what they expand to, and many runs under one command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dit_formats import open_trace
from dit_formats.study import read_study as read_plan
from dit_tracer import orders
from dit_tracer.cli import main
from dit_tracer.models import schedulers
from dit_tracer.models.catalog import BUNDLED, SEVEN
from dit_tracer.rates import Rates
from dit_tracer.sharing import Outcome
from dit_tracer.study import StudyError, embedded, expand, read_study

SMALL = """
models = ["tiny:flux.1-dev"]
prompts = 1
steps = [2, 3]
schedulers = ["own", "sd3"]
kinds = ["k", "f"]
sample = 16
"""

NAMES = ["tiny-flux.1-dev-2.trace", "tiny-flux.1-dev-3.trace", "tiny-flux.1-dev-2-sd3.trace"]


def study(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["study", *map(str, arguments)])


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def folders(name: str, **further: object) -> list[str]:
    return [planned.run.folder.removesuffix(".trace") for planned in expand(read_study(name), **further)]


def test_paper_is_the_seven_and_its_two_ablations() -> None:
    runs = [planned.run for planned in expand(read_study("paper"))]
    assert [run.model for run in runs if run.role == "default"] == list(SEVEN)
    assert all(run.steps == SEVEN[run.model].paper["steps"] for run in runs if run.role == "default")
    assert {run.model: run.prompts for run in runs} == dict.fromkeys(SEVEN, 1000) | {"mochi-1-preview": 100}
    others = [(run.folder, run.role) for run in runs if run.role != "default"]
    assert others == [
        ("flux.1-dev-14.trace", "steps"),
        ("flux.1-dev-56.trace", "steps"),
        ("flux.1-dev-28-sd3.trace", "scheduler"),
    ]
    seeds = {run.model: run.seeds[0] for run in runs}
    assert seeds == {name: model.paper["seed"] or 42 for name, model in SEVEN.items()}


def test_digits_is_the_bundled_models_at_three_step_counts_and_with_two_schedulers() -> None:
    runs = [planned.run for planned in expand(read_study("digits"))]
    assert {run.model for run in runs} == set(BUNDLED) and len(runs) == 12
    for model in BUNDLED:
        assert {run.steps for run in runs if run.model == model} == {14, 28, 56}
        assert sum(run.model == model and run.role == "scheduler" for run in runs) == 1
    assert {run.prompts for run in runs} == {32}


@pytest.mark.parametrize("name", embedded())
def test_embedded_study_records_what_the_views_need_and_names_what_there_is(name: str) -> None:
    for planned in expand(read_study(name)):
        assert {"k", "v", "a", "o", "f"} <= set(planned.settings.kinds) and planned.settings.stack
        assert planned.model.name in SEVEN | BUNDLED
        if planned.scheduler:
            schedulers.find(planned.scheduler)


def test_models_can_be_chosen_and_prompts_limited() -> None:
    assert folders("paper", chosen=["sd3", "pixart-alpha"]) == ["pixart-alpha-20", "sd3-28"]
    assert [planned.run.prompts for planned in expand(read_study("paper"), ["sd3"], 5)] == [5]
    with pytest.raises(LookupError, match="--models sd9: not in the study paper; it has flux.1-dev"):
        folders("paper", chosen=["sd9"])


def test_product_is_everything_with_everything(small: Path) -> None:
    small.write_text(SMALL + "product = true\n")
    runs = expand(read_study(str(small)))
    assert [planned.run.role for planned in runs] == ["default", "steps", "scheduler", "steps+scheduler"]
    assert runs[-1].run.folder == "tiny-flux.1-dev-3-sd3.trace"


def test_models_say_things_of_their_own(small: Path) -> None:
    small.write_text('models = ["sd3", "open-sora"]\nseeds = [1, 2]\n[override.sd3]\nsteps = [7]\nseeds = [3]\n')
    one, other = expand(read_study(str(small)))
    assert (one.run.steps, one.run.seeds, other.run.steps, other.run.seeds) == (7, (3,), 30, (1, 2))


MISTAKES = {
    "unknown key": ("step = [3]", "step: unknown; did you mean steps?"),
    "unknown key of a model": ('[override."tiny:sd3"]\nname = "x"', 'override."tiny:sd3".name: unknown'),
    "type": ("steps = 3", "steps: 3; give a list of whole numbers from 1"),
    "type in a list": ('steps = [3, "4"]', "steps: [3, '4']; give a list of whole numbers from 1"),
    "switch for a number": ("prompts = true", "prompts: True; give a whole number from 1"),
    "none": ("steps = []", "steps: []; give a list"),
    "twice": ("seeds = [1, 1]", "seeds: [1, 1]; give each once"),
    "kind": ('kinds = ["k", "x"]', "kinds: ['k', 'x']; give a list of some of k, v, q, a, o, f"),
    "dtype": ('dtype = "int8"', "dtype: 'int8'; give float32, float16 or bfloat16"),
    "another model": ("[override.sd3]\nsteps = [3]", 'override."sd3": not among the models, which are tiny:sd3'),
    "no table": ("override = 3", "override: 3; give tables, one a model"),
    "what options set": (
        "pipeline_kwargs = {generator = 3}",
        "pipeline_kwargs: {'generator': 3}; give a table",
    ),
    "pairs": ("step_pairs = [[3, 1]]", "step_pairs: [[3, 1]]; give pairs of steps, earlier first"),
    "two samples": ("stats_only = true\nsample = 3", "stats_only: no values are kept"),
    "not TOML": ("steps = ", "not TOML"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_in_a_file_is_one_line_that_names_file_and_key(name: str, tmp_path: Path) -> None:
    text, told = MISTAKES[name]
    path = tmp_path / "mine.toml"
    path.write_text(f'models = ["tiny:sd3"]\n{text}\n')
    result = study(path, "-o", tmp_path / "out")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert f"{path}: {told}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_no_models_or_unknown_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for text, told in (("steps = [1]", "models: missing"), ('models = ["sd9"]', "models: unknown model 'sd9'")):
        path.write_text(text)
        with pytest.raises(StudyError, match=told):
            read_study(str(path))


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('models = ["stabilityai/stable-diffusion-3-medium-diffusers", "sd3"]')
    with pytest.raises(StudyError, match="sd3, 28 steps and sd3, 28 steps would both be sd3-28.trace"):
        expand(read_study(str(path)))


COMMANDS = {
    "no such study": (["papers"], 2, "papers: no such study; give digits or paper, or a TOML file"),
    "no prompts": (["paper"], 2, "flux.1-dev has no built-in prompts; give some with -p"),
    "missing prompts": (["paper", "-p", "captions_val2014.json"], 2, "captions_val2014.json: no such prompt file"),
    "weights of another": (["digits", "--weights", "sd3=/x"], 2, "--weights sd3=/x: give MODEL=FOLDER"),
    "a trace": (["digits", "-o", "old.trace"], 1, "old.trace: is a trace, and a study is a folder of several"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_mistake_is_one_line_and_writes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.trace").mkdir()
    Path("old.trace/000000-0.h5").touch()
    words, code, told = COMMANDS[name]
    result = study(*words)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1)
    assert told in result.stderr
    assert os.listdir() == ["old.trace"] and os.listdir("old.trace") == ["000000-0.h5"]


def test_unknown_scheduler_is_told_before_anything_runs(small: Path, tmp_path: Path) -> None:
    small.write_text(SMALL.replace("sd3", "EulerScheduler"))
    result = study(small, "-o", tmp_path / "out")
    assert result.exit_code == 2 and f"{small}: schedulers: unknown scheduler 'EulerScheduler'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_study_runs_goes_on_and_grows(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.study"
    first = study(small, "-o", out)
    assert first.exit_code == 0, first.stderr
    assert first.stdout.endswith(f"{out}: 3 of 3 runs complete\n")
    assert f"next: dit-analyze study {out} -o {tmp_path / 'out'}-results" in first.stderr
    plan = read_plan(out)
    assert sorted(os.listdir(out)) == sorted([*NAMES, "study.json"])
    assert [(run.folder, run.steps, run.scheduler, run.role, run.prompts) for run in plan.runs] == [
        (NAMES[0], 2, None, "default", 1),
        (NAMES[1], 3, None, "steps", 1),
        (NAMES[2], 2, "sd3", "scheduler", 1),
    ]
    with open_trace(out / NAMES[2]) as trace:
        assert trace.run.settings["scheduler"]["config"]["shift"] == 3.0
        assert trace.run.settings["recorded"]["kinds"] == ["k", "f"]
    again = study(small, "-o", out)
    assert again.stdout.splitlines()[0] == f"{out / NAMES[0]}: complete, 1 prompt"
    small.write_text(SMALL.replace("prompts = 1", "prompts = 2"))
    more = json.loads(study(small, "-o", out, "--json", "-q").stdout)
    assert [(run["traced"], run["present"], run["complete"]) for run in more["runs"]] == [(1, 1, True)] * 3
    assert {run.prompts for run in read_plan(out).runs} == {2}


def test_changed_study_is_refused_with_what_differs(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small.write_text(SMALL.replace('"own", "sd3"', '"own"'))
    assert study(small, "-o", out, "-q", "-p", "one").exit_code == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    small.write_text(small.read_text().replace("[2, 3]", "[2, 4]"))
    for further in ([], ["--dry-run"]):
        result = study(small, "-o", out, *further, "-p", "one")
        assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
        assert f"{out}: holds another study (models.tiny:flux.1-dev.steps: [2,3] there, [2,4] now)" in result.stderr
    small.write_text(small.read_text().replace("[2, 4]", "[2, 3]"))
    assert "prompts: " in study(small, "-o", out, "-p", "two").stderr
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_dry_run_says_what_the_runs_themselves_would_say(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = json.loads(study(small, "-o", out, "--dry-run", "--json").stdout)
    options = ["tiny:flux.1-dev", "-n", "1", "--kinds", "k,f", "--sample", "16", "--dry-run", "--json"]
    for run, further in zip(told["runs"], (["--steps", "2"], ["--steps", "3"], ["--steps", "2", "--scheduler", "sd3"])):
        alone = CliRunner().invoke(main, ["run", *options, *further, "-o", run["trace"]])
        assert run["bytes"] == json.loads(alone.stdout)["bytes"] and run["bytes"]["file"] > 0
    assert told["bytes_to_write"] == sum(run["bytes"]["file"] for run in told["runs"])
    assert told["seconds"] is None
    assert told["command"] == f"dit-trace study {small} -o {out} --json"
    shown = study(small, "-o", out, "--dry-run").stdout
    assert NAMES[0] in shown and "not known" in shown and f"dit-trace study {small} -o {out}" in shown
    assert not out.exists()


def test_time_is_that_of_the_traces_that_are_there(tmp_path: Path) -> None:
    run = expand(read_study("paper"), ["sd3"])[0].run
    trace = tmp_path / run.folder
    trace.mkdir()
    for place, seconds in enumerate((0, 56, 112, 10**6)):
        path = trace / f"{place:06}-0.h5"
        path.touch()
        os.utime(path, (seconds, seconds))
    assert Rates(tmp_path, [run]).of("sd3", bundled=False).a_step == 2.0
    assert Rates(tmp_path, [run]).of("sd3.5", bundled=False) is None
    assert Rates(tmp_path / "none", [run]).of("sd3", bundled=True) is None


def test_captions_are_taken_by_image(small: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions_val2014.json"
    notes = [(3, 20, "late"), (1, 20, "a dog"), (2, 10, "a cat"), (4, 10, "another cat"), (5, 30, "a bus")]
    annotations = [{"id": one, "image_id": image, "caption": text} for one, image, text in notes]
    captions.write_text(json.dumps({"images": [{"id": 20}, {"id": 10}, {"id": 30}], "annotations": annotations}))
    small.write_text('models = ["tiny:flux.1-dev"]\nprompts = 2\nsteps = [2]\nsample = 16\n')
    assert study(small, "-o", tmp_path / "out", "-p", captions, "-q").exit_code == 0
    with open_trace(tmp_path / "out" / NAMES[0]) as trace:
        assert [prompt.text for prompt in trace.prompts] == ["a dog", "a cat"]


def test_study_goes_on_after_a_failed_run(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / NAMES[0]).mkdir(parents=True)
    (out / NAMES[0] / "photo.png").touch()
    result = study(small, "-o", out, "-q")
    assert result.exit_code == 1
    assert f"{out}: 2 of 3 runs complete, 1 with failures" in result.stdout
    assert f"dit-trace: {out / NAMES[0]}: a folder with other things in it (photo.png)" in result.stderr
    assert f"dit-trace: failed: {NAMES[0]}; the same command tries again" in result.stderr
    (out / NAMES[0] / "photo.png").unlink()
    assert study(small, "-o", out, "-q").exit_code == 0


def test_bug_in_a_run_is_shown_whole_and_the_others_run(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = orders.loading.load
    calls = iter([KeyError("weights"), None, None])

    def broken(*arguments: object, **options: object) -> object:
        if error := next(calls):
            raise error
        return load(*arguments, **options)

    monkeypatch.setattr(orders.loading, "load", broken)
    result = study(small, "-o", tmp_path / "out", "-q")
    assert result.exit_code == 1 and "Traceback" in result.stderr
    assert "2 of 3 runs complete" in result.stdout


def test_signal_stops_the_study_and_not_only_its_run(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second run, whose predecessor had ended well."""
    run, begun = orders.Order.run, []

    def signalled(self: orders.Order, *arguments: object) -> Outcome:
        begun.append(self)
        if len(begun) == 2:
            signal.raise_signal(signal.SIGTERM)
        return run(self, *arguments)

    monkeypatch.setattr(orders.Order, "run", signalled)
    result = study(small, "-o", tmp_path / "out")
    assert (result.exit_code, len(begun)) == (75, 2)
    assert f"{tmp_path / 'out'}: 1 of 3 runs complete" in result.stdout
    assert "stopped by SIGTERM; every finished prompt is kept, and the same command goes on from there" in result.stderr
    monkeypatch.undo()
    assert study(small, "-o", tmp_path / "out", "-q").exit_code == 0


def test_time_limit_ends_the_study(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(*_: object) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(orders.Order, "run", endless)
    result = study(small, "-o", tmp_path / "out", "-q", "--time-limit", "2s", "--json")
    assert result.exit_code == 75
    told = json.loads(result.stdout)
    assert (told["stopped"], told["planned"], told["complete"], len(told["runs"])) == ("the time limit", 3, 0, 1)


def test_what_cannot_be_foretold_is_told_and_the_rest_is_shown(small: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / NAMES[1]).mkdir(parents=True)
    (tmp_path / "out" / NAMES[1] / "photo.png").touch()
    result = study(small, "-o", tmp_path / "out", "--dry-run")
    assert result.exit_code == 1 and "photo.png" in result.stderr
    assert NAMES[2] in result.stdout


@pytest.mark.slow
def test_processes_share_the_runs_and_none_ends_the_others_with_its_failure(small: Path, tmp_path: Path) -> None:
    small.write_text(SMALL.replace("prompts = 1", "prompts = 6"))
    out = tmp_path / "out"
    (out / NAMES[0]).mkdir(parents=True)
    (out / NAMES[0] / "photo.png").touch()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]
    code = "import sys; from dit_tracer.cli import main; sys.exit(main())"
    done = subprocess.run([*launcher, "-c", code, "study", small, "-o", out], capture_output=True, text=True)
    assert done.returncode == 1  # what torchrun itself says, whatever its processes said
    assert done.stdout.count(f"{out}: 2 of 3 runs complete, 1 with failures") == 1
    assert done.stderr.count("photo.png") == 1
    for name in NAMES[1:]:
        with open_trace(out / name) as trace:
            assert len(trace.prompts) == 6
    assert sorted(os.listdir(out)) == sorted([*NAMES, "study.json"])

"""dit-trace as people use it, and as hurried people misuse it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dit_formats import open_trace
from dit_tracer.cli import main
from dit_tracer.models.catalog import BUNDLED, SEVEN, TWINS, Model
from dit_tracer.orders import _announce, _changed


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("model", BUNDLED)
def test_bundled_model_is_traced_with_its_own_captions(model: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.trace"
    result = run("run", model, "-n", 2, "--steps", 3, "-o", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{path}: 2 prompts traced\n"
    assert f"next: dit-analyze summary {path}" in result.stderr
    with open_trace(path) as trace:
        assert [prompt.text for prompt in trace.prompts] == list(BUNDLED[model].captions(2))
        assert (trace.num_steps, trace.num_asked, trace.run.settings["model"]) == (3, 2, model)
        assert {prompt.seed for prompt in trace.prompts} == {42}
        guided = BUNDLED[model].call[BUNDLED[model].guidance] > 1
        assert trace.branches("latent") == (("cond", "uncond") if guided else ("cond",))


def test_same_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    first = run("run", "digits-flux", "-n", 1, "--steps", 2, "-o", path)
    before = {name: (path / name).read_bytes() for name in os.listdir(path)}
    second = run("run", "digits-flux", "-n", 3, "--steps", 2, "-o", path, "--json")
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert json.loads(second.stdout) == {"trace": str(path), "traced": 2, "present": 1, "failures": []}
    assert {name: (path / name).read_bytes() for name in before} == before


def test_trace_does_not_depend_on_where_it_was_interrupted(tmp_path: Path) -> None:
    for name, counts in (("one", [2]), ("two", [1, 2])):
        for count in counts:
            assert run("run", "digits-flux", "-n", count, "--steps", 3, "-o", tmp_path / name).exit_code == 0
    with open_trace(tmp_path / "one") as one, open_trace(tmp_path / "two") as two:
        assert (one.samples("latent", 1) == two.samples("latent", 1)).all()


def test_options_reach_the_pipeline(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    arguments = ["--guidance-scale", 2, "--pipeline-kwargs", '{"width": 32}', "--sample", 0, "-p", "a red seven"]
    assert run("run", "digits-flux", "--steps", 2, "-o", path, *arguments).exit_code == 0
    with open_trace(path) as trace:
        assert trace.branches("latent") == ("cond", "uncond")
        assert trace.run.settings["call"]["width"] == 32
        assert trace.geometry("latent", "num_tokens").max() == 128
        assert trace.samples("latent", 0).size == 0


def test_other_settings_on_the_same_output_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    run("run", "digits-flux", "-n", 1, "--steps", 2, "-o", path)
    before = sorted(os.listdir(path))
    for further in (["-p", "a blue one"], []):
        result = run("run", "digits-flux", "-n", 1, "--steps", 2, "--guidance-scale", 5, "-o", path, *further)
        assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
        assert "call.true_cfg_scale: 1.0 in the trace, 5.0 now" in result.stderr
        assert sorted(os.listdir(path)) == before


MISTAKES = {
    "unknown model": (["run", "flux.9"], 2, "unknown model 'flux.9'; known are digits-pixart"),
    "folder without a pipeline": (["run", "."], 2, "model_index.json"),
    "missing prompts": (["run", "digits-flux", "-p", "none.txt"], 2, "none.txt: no such prompt file"),
    "empty prompts": (["run", "digits-flux", "-p", "empty.txt"], 1, "empty.txt: holds no prompts"),
    "output is a file": (["run", "digits-flux", "-o", "empty.txt"], 1, "empty.txt: is a file"),
    "output is another folder": (["run", "digits-flux", "-o", "photos"], 1, "photos: a folder with other things"),
    "text of another ending": (["run", "digits-flux", "-p", "prompts.tsv"], 1, "prompts.tsv: not a file of prompts"),
    "unknown device": (["run", "digits-flux", "--device", "toaster"], 1, "cannot be loaded on toaster"),
    "seed too large": (["run", "digits-flux", "--seed", str(2**70)], 2, "--seed"),
    "several images": (
        ["run", "digits-flux", "--pipeline-kwargs", '{"num_images_per_prompt": 2}'],
        2,
        "num_images_per_prompt: give 1",
    ),
    "what an option sets": (["run", "digits-flux", "--pipeline-kwargs", '{"num_inference_steps": 3}'], 2, "--steps"),
    "not JSON": (["run", "digits-flux", "--pipeline-kwargs", "{x}"], 2, "not JSON"),
    "no model": (["run"], 2, "Missing argument 'MODEL'"),
    "no steps": (["run", "digits-flux", "--steps", "0"], 2, "--steps"),
    "unknown command": (["trace", "digits-flux"], 2, "No such command 'trace'"),
    "wrong argument of the pipeline": (
        ["run", "digits-flux", "--pipeline-kwargs", '{"hight": 16}', "-o", "new.trace"],
        2,
        "hight",
    ),
    "unknown twin": (["run", "tiny:sd9"], 2, "unknown twin 'tiny:sd9'; known are tiny:flux.1-dev"),
    "no prompts for a published model": (["run", "sd3"], 2, "sd3 has no built-in prompts; give some with -p"),
    "revision of a folder": (["run", "digits-flux", "--revision", "v1"], 1, "--revision is for repositories"),
    "unknown offloading": (["run", "digits-flux", "--cpu-offload", "disk"], 2, "--cpu-offload"),
    "seeds": (["run", "digits-flux", "--seeds", "9-0"], 2, "--seeds '9-0': give numbers or ranges, as 0,1,5 or 0-9"),
    "seeds of words": (["run", "digits-flux", "--seeds", "one"], 2, "--seeds 'one'"),
    "endless seeds": (["run", "digits-flux", "--seeds", "0-9999999999"], 2, "--seeds"),
    "unknown kind": (["run", "digits-flux", "--kinds", "k,x"], 2, "--kinds 'k,x': give some of q,k,v,o,a,f"),
    "kind twice": (["run", "digits-flux", "--kinds", "k,k"], 2, "each once"),
    "step pairs": (["run", "digits-flux", "--step-pairs", "3"], 2, "--step-pairs '3': give pairs of steps"),
    "step pair backwards": (["run", "digits-flux", "--step-pairs", "3:1"], 2, "earlier first, as 0:10,5:25, or all"),
    "step beyond the last": (
        ["run", "digits-flux", "--steps", "4", "--step-pairs", "0:4"],
        2,
        "names step 4, and there are steps 0 to 3",
    ),
    "unknown scheduler": (
        ["run", "digits-flux", "--scheduler", "FlowMatchEuler"],
        2,
        "unknown scheduler 'FlowMatchEuler': give a class of diffusers, flux.1-dev or sd3, a scheduler_config.json",
    ),
    "scheduler that is none": (["run", "digits-flux", "--scheduler", "FluxPipeline"], 2, "unknown scheduler"),
    "missing scheduler file": (["run", "digits-flux", "--scheduler", "none.json"], 2, "none.json: no such file"),
    "scheduler file of something else": (["run", "digits-flux", "--scheduler", "list.json"], 2, "names no _class_name"),
    "folder without a scheduler": (["run", "digits-flux", "--scheduler", "photos"], 2, "scheduler_config.json"),
    "scheduler for another prediction": (
        ["run", "digits-pixart", "--scheduler", "sd3"],
        2,
        "whose model predicts v_prediction, and this",
    ),
    "scheduler without sigmas": (
        ["run", "digits-flux", "--scheduler", "FlowMatchHeunDiscreteScheduler"],
        2,
        "does not fit FluxPipeline, which hands it sigmas, mu, and it takes none",
    ),
    "argument of a prompt that is none": (
        ["run", "digits-flux", "-p", "unknown.jsonl"],
        2,
        "FluxPipeline has no argument 'style'; it has prompt",
    ),
    "argument of a prompt that is an option": (
        ["run", "digits-flux", "-p", "steps.jsonl"],
        2,
        "a line of prompts may not set num_inference_steps",
    ),
    "sizes that differ": (
        ["run", "digits-flux", "-p", "sizes.jsonl"],
        2,
        "prompts differ in height (16 and 32), which must be one",
    ),
    "size of prompts and of an option": (
        ["run", "digits-flux", "-p", "size.jsonl", "--pipeline-kwargs", '{"height": 32}'],
        2,
        "height is 32 in an option and 16 in the prompts; give one",
    ),
    "one prompt twice": (["run", "digits-flux", "-p", "twice.jsonl"], 2, "'a' with seed 42 comes twice"),
    "seed of a prompt": (["run", "digits-flux", "-p", "seed.jsonl"], 2, "gives the seed -1"),
    "missing picture": (
        ["run", "digits-flux", "-p", "picture.jsonl"],
        2,
        "picture.jsonl: line 1: no.png: no such picture",
    ),
}

LINES = {
    "unknown": [{"prompt": "a", "style": "b"}],
    "steps": [{"prompt": "a", "num_inference_steps": 3}],
    "size": [{"prompt": "a", "height": 16}],
    "sizes": [{"prompt": "a", "height": 16}, {"prompt": "b", "height": 32}],
    "twice": [{"prompt": "a", "negative_prompt": "b"}, {"prompt": "a", "negative_prompt": "c"}],
    "seed": [{"prompt": "a", "seed": -1}],
    "picture": [{"prompt": "a", "image": "no.png"}],
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "prompts.tsv").write_text("a\tb")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    (tmp_path / "list.json").write_text("[]")
    for stem, lines in LINES.items():
        (tmp_path / f"{stem}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    before = sorted(os.listdir())
    arguments, code, said = MISTAKES[name]
    result = run(*arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.stderr
    assert said in result.stderr and result.stderr.startswith("dit-trace: ")
    assert sorted(os.listdir()) == before


def test_prompt_that_the_pipeline_refuses_leaves_a_note(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    kwargs = '{"max_sequence_length": 9999}'
    result = run("run", "digits-flux", "--steps", 2, "-n", 3, "-o", path, "--pipeline-kwargs", kwargs)
    assert result.exit_code == 1
    assert "failed: `max_sequence_length` cannot be greater" in result.stderr
    (note,) = path.iterdir()
    assert note.suffix == ".failed" and "ValueError" in note.read_text()
    assert run("run", "digits-flux", "--steps", 2, "-n", 1, "-o", path).exit_code == 0
    assert [file.suffix for file in path.iterdir()] == [".h5"], "the note goes when the prompt is traced"


def test_twin_runs_with_nothing_else_and_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("run", "tiny:sd3", "--steps", 2, "-n", 1)
    assert (result.exit_code, result.stdout) == (0, "tiny-sd3-2s.trace: 1 prompt traced\n")
    warning = "tiny:sd3 has RANDOM WEIGHTS: good for trying options, its numbers mean nothing"
    assert result.stderr.splitlines()[0] == warning


def test_flux_runs_with_the_scheduler_of_sd3(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    result = run("run", "tiny:flux.1-dev", "--scheduler", "sd3", "--steps", 4, "-n", 1, "-o", path)
    assert result.exit_code == 0, result.stderr
    with open_trace(path) as trace:
        assert trace.run.settings["scheduler"]["config"]["shift"] == 3.0
        assert not trace.run.settings["scheduler"]["config"]["use_dynamic_shifting"]
        # FLUX hands over sigmas from 1 to 1/steps; the shift s turns each into s x / (1 + (s - 1) x)
        expected = [3 * x / (1 + 2 * x) for x in (1.0, 0.75, 0.5, 0.25)]
        assert list(trace.sigmas)[:4] == pytest.approx(expected, rel=1e-6)


def test_every_prompt_is_traced_with_every_seed(tmp_path: Path) -> None:
    path = tmp_path / "out.trace"
    (tmp_path / "p.txt").write_text("one\ntwo\nthree\n")
    command = ["run", "digits-flux", "-p", tmp_path / "p.txt", "--steps", 2, "--seeds", "7,0-1", "-o", path]
    assert run(*command, "-n", 1).exit_code == 0
    result = run(*command, "-n", 2, "--json")
    assert json.loads(result.stdout) == {"trace": str(path), "traced": 3, "present": 3, "failures": []}
    with open_trace(path) as trace:
        keys = [(prompt.text, prompt.seed) for prompt in trace.prompts]
    assert keys == [(text, seed) for text in ("one", "two") for seed in (7, 0, 1)]


def test_what_is_recorded_follows_the_options(tmp_path: Path) -> None:
    options = ["--kinds", "v,q", "--no-stack", "--halves", "--step-pairs", "1:2,0:2", "-n", 1, "--steps", 3]
    assert run("run", "digits-pixart", *options, "-o", tmp_path / "out.trace").exit_code == 0
    with open_trace(tmp_path / "out.trace") as trace:
        settings = trace.run.settings
    assert settings["recorded"]["kinds"] == ["q", "v"]
    assert (settings["recorded"]["stack"], settings["recorded"]["halves"]) == (False, True)
    assert settings["recorded"]["step_pairs"] == [[0, 2], [1, 2]]


def test_all_step_pairs_are_those_of_the_scheduler(tmp_path: Path) -> None:
    """Heun makes two evaluations of every step but the last."""
    options = ["--step-pairs", "all", "--steps", 2, "-n", 1, "--scheduler", "FlowMatchHeunDiscreteScheduler"]
    assert run("run", "tiny:sd3", *options, "-o", tmp_path / "out.trace").exit_code == 0
    with open_trace(tmp_path / "out.trace") as trace:
        assert trace.num_steps == 3
        assert trace.run.settings["recorded"]["step_pairs"] == [[0, 1], [0, 2], [1, 2]]


def test_paper_and_model_card_are_told_apart() -> None:
    """What the command itself sets is neither's."""
    flux = SEVEN["flux.1-dev"]
    assert announced(flux, set()) == (
        "flux.1-dev: as in the paper: steps 28, dtype float16; the model card says steps 50, dtype bfloat16\n"
    )
    assert announced(flux, _changed(flux.call, flux, steps=9)) == (
        "flux.1-dev: as in the paper: dtype float16; the model card says dtype bfloat16\n"
    )
    video = SEVEN["cogvideox-5b"]
    assert "frames" not in announced(video, _changed(video.call | {"num_frames": 49}, video))
    assert announced(SEVEN["sd3"], set()) == ""


def announced(model: Model, changed: set[str]) -> str:
    with CliRunner().isolation() as (_, stderr, *_):
        _announce(model, changed)
        return stderr.getvalue().decode()


def test_models_are_listed_in_groups() -> None:
    names = [*BUNDLED, *SEVEN, *TWINS]
    lines = run("models").stdout.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == names
    assert len({line.index(line.split()[1]) for line in lines if line.startswith("  ")}) == 1, "aligned"
    listed = json.loads(run("models", "--json").stdout)
    assert [one["name"] for one in listed] == names
    assert {one["group"] for one in listed} == {"bundled", "published", "twins"}

"""dit-trace as people use it, and as hurried people misuse it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from dit_formats import open_trace
from dit_tracer.cli import main
from dit_tracer.models.catalog import MODELS


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize("model", MODELS)
def test_bundled_model_is_traced_with_its_own_captions(model: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.trace"
    result = run("run", model, "-n", 2, "--steps", 3, "-o", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{path}: 2 prompts traced\n"
    assert f"next: dit-analyze summary {path}" in result.stderr
    with open_trace(path) as trace:
        assert [prompt.text for prompt in trace.prompts] == list(MODELS[model].captions(2))
        assert (trace.num_steps, trace.num_asked, trace.run.settings["model"]) == (3, 2, model)
        assert {prompt.seed for prompt in trace.prompts} == {42}
        assert trace.branches("latent") == (("cond", "uncond") if model == "digits-pixart" else ("cond",))


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
    "output is a file": (["run", "digits-flux", "-o", "empty.txt"], 1, "empty.txt: exists and is not a trace"),
    "output is another folder": (["run", "digits-flux", "-o", "photos"], 1, "photos: a folder with other things"),
    "text of another ending": (["run", "digits-flux", "-p", "prompts.tsv"], 1, "prompts.tsv: not a file of prompts"),
    "unknown device": (["run", "digits-flux", "--device", "toaster"], 1, "cannot be loaded on toaster"),
    "seed too large": (["run", "digits-flux", "--seed", str(2**70)], 2, "--seed"),
    "several images": (
        ["run", "digits-flux", "--pipeline-kwargs", '{"num_images_per_prompt": 2}'], 2, "num_images_per_prompt: give 1",
    ),
    "what an option sets": (["run", "digits-flux", "--pipeline-kwargs", '{"num_inference_steps": 3}'], 2, "--steps"),
    "not JSON": (["run", "digits-flux", "--pipeline-kwargs", "{x}"], 2, "not JSON"),
    "no model": (["run"], 2, "Missing argument 'MODEL'"),
    "no steps": (["run", "digits-flux", "--steps", "0"], 2, "--steps"),
    "unknown command": (["trace", "digits-flux"], 2, "No such command 'trace'"),
    "wrong argument of the pipeline": (
        ["run", "digits-flux", "--pipeline-kwargs", '{"hight": 16}', "-o", "new.trace"], 2, "hight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_one_line_and_changes_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "prompts.tsv").write_text("a\tb")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    arguments, code, said = MISTAKES[name]
    result = run(*arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (code, 1), result.stderr
    assert said in result.stderr and result.stderr.startswith("dit-trace: ")
    assert sorted(os.listdir()) == ["empty.txt", "photos", "prompts.tsv"]


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


def test_models_are_listed() -> None:
    assert [line.split()[0] for line in run("models").stdout.splitlines() if line] == list(MODELS)
    assert [one["name"] for one in json.loads(run("models", "--json").stdout)] == list(MODELS)

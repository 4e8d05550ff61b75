"""Text encoders run once for all prompts and go; every number stays what it was."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from dit_formats import open_trace, schema
from dit_formats.prompts import Request
from dit_tracer import runs
from dit_tracer.encoders import encode_once
from dit_tracer.models import loading, tiny
from dit_tracer.models.catalog import BUNDLED, find
from dit_tracer.playback import Shelf, digest
from dit_tracer.recording.settings import Sample, What, networks_now
from dit_tracer.work import Task, Work, plan

TASKS = [Task("a red bus", 1), Task("an old photograph of a fox in the snow", 2)]

MODELS = [*(f"tiny:{name}" for name in tiny.TWINS if tiny.available(name)), *BUNDLED]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(name: str) -> Any:
    return loading.load(find(name), device="cpu")


def latents(pipeline: Any, name: str, task: Task, **further: Any) -> torch.Tensor:
    call = find(name).call | {"num_inference_steps": 2, "output_type": "latent"} | further
    return pipeline(task.text, generator=torch.Generator().manual_seed(task.seed), **call)[0]


def trace(pipeline: Any, path: Path, tasks: list[Task], name: str = "tiny:sd3", **further: Any) -> runs.Outcome:
    call = find(name).call | {"num_inference_steps": 2}
    settings = {"model": name, "sample": Sample(64, 16), "what": What(), "quiet": True}
    return runs.run(lambda: pipeline, Work(tasks), path, call=call, **settings | further)


def encoders(pipeline: Any) -> dict[str, Any]:
    return {n: p for n, p in pipeline.components.items() if n.startswith("text_encoder") and p is not None}


def content(path: Path) -> dict[Any, np.ndarray]:
    """All numbers of a trace."""
    with open_trace(path) as opened:
        found = {"steps": np.stack([opened.timesteps, opened.sigmas])}
        for stream in (*opened.streams, schema.STACK):
            for prompt in range(len(opened.prompts)):
                found[stream, prompt] = opened.samples(stream, prompt)
            found[stream, "steps"] = opened.step_sums(stream)
            found[stream, "transitions"] = opened.transition_sums(stream)
            for name in ("recorded", "token", "channel", "weight", "num_tokens", "num_channels"):
                found[stream, name] = opened.geometry(stream, name)
        return found


def same(one: Path, other: Path) -> bool:
    mine, its = content(one), content(other)
    return mine.keys() == its.keys() and all(np.array_equal(mine[k], its[k], equal_nan=True) for k in mine)


@pytest.mark.parametrize("name", MODELS)
def test_encoders_go_and_latents_and_traces_stay_equal_to_the_bit(name: str, tmp_path: Path) -> None:
    pipeline = build(name)
    wanted = [latents(pipeline, name, task) for task in TASKS]
    assert trace(pipeline, tmp_path / "with", TASKS, name).traced == 2
    there = [weakref.ref(part) for part in encoders(pipeline).values()]
    weights = [weakref.ref(weight) for part in encoders(pipeline).values() for weight in part.parameters()]
    assert there
    assert trace(pipeline, tmp_path / "without", TASKS, name, release=True).traced == 2
    assert not any(one() is not None for one in (*there, *weights))
    assert same(tmp_path / "with", tmp_path / "without")
    for task, one in zip(TASKS, wanted):
        assert torch.equal(latents(pipeline, name, task), one)


def test_each_distinct_input_is_encoded_once() -> None:
    """Two seeds of one text and one negative prompt: three inputs, and the first two once more to try it out."""
    pipeline, calls = build("tiny:pixart-alpha"), []
    pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    tasks = [Task("a", 1), Task("a", 2), Task("b", 1)]
    assert encode_once(pipeline, tasks, find("tiny:pixart-alpha").call)
    assert len(calls) == 3 + 2


def test_only_what_is_read_is_kept() -> None:
    """A language model gives the states of all its layers; Qwen-Image reads the last one."""
    pipeline = build("tiny:qwen-image")
    assert encode_once(pipeline, TASKS, find("tiny:qwen-image").call)
    assert len(pipeline.text_encoder._read) == 1


def test_settings_are_those_of_the_encoders_that_went() -> None:
    pipeline = build("tiny:sd3")
    networks = {"transformer": pipeline.transformer}
    before = networks_now(pipeline, networks)
    assert encode_once(pipeline, TASKS, find("tiny:sd3").call)
    assert networks_now(pipeline, networks) == before
    assert before["parts"]["text_encoder_3"]["class"] == "T5EncoderModel"


def test_run_goes_on_whether_encoders_went_or_not(tmp_path: Path) -> None:
    for count, release in ((1, True), (2, True), (3, False)):
        tasks = [Task(f"prompt {n}", 0) for n in range(count)]
        outcome = trace(build("tiny:sd3"), tmp_path / "t", tasks, release=release)
        assert (outcome.traced, outcome.present) == (1, count - 1)
    assert trace(build("tiny:sd3"), tmp_path / "whole", tasks).traced == 3
    assert same(tmp_path / "t", tmp_path / "whole")


def test_negative_prompts_of_each_prompt_are_encoded(tmp_path: Path) -> None:
    lines = [Request("a", {"negative_prompt": "snow"}), Request("a", {"negative_prompt": "a bus", "seed": 1})]
    work, call = plan(lines, [0]), find("tiny:sd3").call | {"num_inference_steps": 2}
    settings = {"model": "sd3", "call": call, "sample": Sample(64, 16), "what": What(), "quiet": True}
    for release in (False, True):
        load = partial(build, "tiny:sd3")
        assert runs.run(load, work, tmp_path / str(release), release=release, **settings).traced == 2
    assert same(tmp_path / "False", tmp_path / "True")


class Embedding(diffusers.PixArtAlphaPipeline):
    """Adds a word's embedding to what the encoder gives."""

    def encode_prompt(self, *args: Any, **kwargs: Any) -> Any:
        positive, *others = super().encode_prompt(*args, **kwargs)
        return positive + self.text_encoder.get_input_embeddings().weight[5], *others


def test_pipeline_that_looks_into_its_encoder_keeps_it() -> None:
    name = "tiny:pixart-alpha"
    pipeline = Embedding(**build(name).components)
    pipeline.set_progress_bar_config(disable=True)
    there, wanted = encoders(pipeline), latents(pipeline, name, TASKS[0])
    assert not encode_once(pipeline, TASKS, find(name).call)
    assert encoders(pipeline) == there
    assert torch.equal(latents(pipeline, name, TASKS[0]), wanted)


def test_encoder_whose_results_depend_on_more_than_its_input_is_kept() -> None:
    name = "tiny:pixart-alpha"
    pipeline = build(name)

    def count(encoder: Any, args: Any, output: Any) -> Any:
        encoder.calls = getattr(encoder, "calls", 0) + 1
        output.last_hidden_state.mul_(encoder.calls)

    pipeline.text_encoder.register_forward_hook(count)
    there = encoders(pipeline)
    assert not encode_once(pipeline, TASKS, find(name).call)
    assert encoders(pipeline) == there


def test_encoders_that_others_move_or_that_draw_at_random_are_left_alone() -> None:
    offloaded = loading.load(find("tiny:sd3"), device="cpu", cpu_offload="group")
    training = build("tiny:sd3")
    training.text_encoder_2.train()
    for pipeline in (offloaded, training):
        there = encoders(pipeline)
        assert not encode_once(pipeline, TASKS, find("tiny:sd3").call)
        assert encoders(pipeline) == there


def test_pipeline_of_classes_has_nothing_to_encode() -> None:
    transformer = diffusers.DiTTransformer2DModel(2, 16, 4, 8, num_layers=1, sample_size=8, num_embeds_ada_norm=5)
    pipeline = diffusers.DiTPipeline(transformer, None, diffusers.DDIMScheduler())
    assert not encode_once(pipeline, [Task("1", 0)], {})


def test_other_prompt_than_those_encoded_is_an_error_that_names_the_encoder() -> None:
    pipeline = build("tiny:pixart-alpha")
    assert encode_once(pipeline, TASKS, find("tiny:pixart-alpha").call)
    with pytest.raises(RuntimeError, match=r"text_encoder was let go .* --cpu-offload group keeps it"):
        latents(pipeline, "tiny:pixart-alpha", Task("another", 0))


def test_processes_that_help_each_other_keep_their_encoders() -> None:
    """What another process was to trace is encoded when its turn comes."""
    name, other = "tiny:pixart-alpha", Task("another", 0)
    pipeline = build(name)
    wanted = latents(pipeline, name, other)
    assert encode_once(pipeline, TASKS, find(name).call, others=True)
    assert torch.equal(latents(pipeline, name, other), wanted)


def test_prompt_that_cannot_be_encoded_fails_alone(tmp_path: Path) -> None:
    pipeline, seen = build("tiny:pixart-alpha"), set()

    def fail(encoder: Any, args: Any, output: Any) -> None:
        seen.add(digest(args[0]))
        if len(seen) == 3:
            raise RuntimeError("out of memory")

    pipeline.text_encoder.register_forward_hook(fail)
    tasks = [*TASKS, Task("a third", 3)]  # with the negative prompt it is the second of them that fails
    outcome = trace(pipeline, tmp_path / "t", tasks, "tiny:pixart-alpha", release=True)
    assert outcome.traced == 2
    assert "text_encoder cannot encode this prompt: RuntimeError: out of memory" in outcome.failures[0]


def test_torchs_own_randomness_is_left_as_it_was() -> None:
    pipeline = build("tiny:latte-1")
    state = torch.random.get_rng_state()
    assert encode_once(pipeline, TASKS, find("tiny:latte-1").call)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_shelf_gives_back_what_was_put_there(dtype: torch.dtype) -> None:
    shelf = Shelf()
    tensors = [torch.randn(shape).mul(3).to(dtype) for shape in ((), (0, 3), (2, 3, 4))]
    tensors += [tensors[2].transpose(0, 1), tensors[2][:, :2]]
    kept = [shelf.put(tensor) for tensor in tensors]
    for tensor, one in zip(tensors, kept):
        found = shelf.get(one)
        assert torch.equal(found, tensor)
        assert (found.dtype, found.stride()) == (tensor.dtype, tensor.stride())

"""What a pipeline is called with: as much of what we give as it knows, refused early where it cannot be."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.utils import load_image
from PIL import Image

from dit_tracer.work import Task, Work

OURS = {"self", "prompt", "class_labels", "generator", "num_inference_steps", "output_type", "return_dict"}
"""Arguments of a pipeline that a run gives itself."""


def generate(pipeline: Any, task: Task, call: dict[str, Any]) -> None:
    """Call the pipeline for one prompt, with as much of what we give as it knows."""
    ours = {"generator": torch.Generator("cpu").manual_seed(task.seed), "output_type": "latent"}
    known = parameters(pipeline)
    if "generator" not in known:
        torch.manual_seed(task.seed)
    given = call | opened(pipeline, task.arguments) | {name: v for name, v in ours.items() if name in known}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        pipeline(**subject(pipeline, task.text), **given)


def parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    return dict(list(inspect.signature(type(pipeline).__call__).parameters.items())[1:])


def subject(pipeline: Any, text: str) -> dict[str, Any]:
    """The argument that says what to draw: a prompt, or the number (or name) of a class."""
    known = parameters(pipeline)
    if "prompt" in known:
        return {"prompt": text}
    if "class_labels" not in known:
        raise LookupError(
            f"{type(pipeline).__name__} takes neither prompt nor class_labels; call it yourself under dit_tracer.record"
        )
    if text.strip().isdecimal():
        return {"class_labels": [int(text)]}
    try:
        return {"class_labels": pipeline.get_label_ids([text])}
    except (AttributeError, ValueError):
        raise LookupError(
            f"{type(pipeline).__name__} draws classes, not texts; {text!r} is none, give its number"
        ) from None


def varying(pipeline: Any, work: Work) -> tuple[str, ...]:
    """Names of the arguments that prompts may differ in within a trace, beside the prompt itself."""
    return (*work.varies, *(() if "prompt" in parameters(pipeline) else ("class_labels",)))


def check(pipeline: Any, call: dict[str, Any], work: Work) -> None:
    """Refuse now what calling the pipeline would be refused for, after the first prompt or the hundredth."""
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if call.get(name, 1) != 1:
            raise LookupError(f"{name}: give 1; several images of a prompt are runs with other seeds")
    kind, known = type(pipeline).__name__, parameters(pipeline)
    for name in [*call, *work.varies]:
        if name not in known:
            raise LookupError(f"{kind} has no argument {name!r}; it has {', '.join(known)}")
    for name in work.varies + tuple(work.shared):
        if name in OURS:
            raise LookupError(f"a line of prompts may not set {name}; the options of dit-trace run do")
    for task in work.tasks:
        _needs(kind, known, {*subject(pipeline, task.text), *call, *task.arguments, *OURS})
        for picture in _pictures(pipeline, task.arguments).values():
            _check_picture(picture)


def _needs(kind: str, known: dict[str, inspect.Parameter], given: Iterable[str]) -> None:
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            if parameter.name not in given:
                raise LookupError(
                    f"{kind} needs {parameter.name}; give it with --pipeline-kwargs, or with each prompt in a .jsonl"
                )


def _pictures(pipeline: Any, arguments: dict[str, Any]) -> dict[str, str]:
    """Arguments that are names of files where the pipeline takes a picture."""
    known = parameters(pipeline)
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, str) and ("Image" in str(known[name].annotation) or "image" in name)
    }


def _check_picture(path: str) -> None:
    try:
        with Image.open(path):
            pass
    except OSError as error:
        reason = error.strerror.lower() if error.strerror else "it cannot be read as one"
        raise LookupError(f"{path}: no picture ({reason}); give the path of a .png or .jpg file") from None


def opened(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments with pictures in place of their names."""
    try:
        return arguments | {name: load_image(path) for name, path in _pictures(pipeline, arguments).items()}
    except OSError as error:
        raise ValueError(f"a picture of this prompt is damaged ({error})") from error

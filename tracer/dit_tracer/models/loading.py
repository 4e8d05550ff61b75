"""Turns a model of the catalog into a pipeline that can be called. Nothing is unpickled, no code of a model is run."""

from __future__ import annotations

import logging
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import torch
import transformers
from diffusers.utils import dynamic_modules_utils
from huggingface_hub import errors as hub

from dit_tracer.models.catalog import TINY, Model

OFFLOADS = ("model", "sequential", "group")
"""Ways to keep weights on the host while they are not needed, from fast to frugal; `group` works on CPUs too."""

OPEN_SORA = "OpenSoraPipeline"
"""The one pipeline that is not of diffusers."""


class LoadError(Exception):
    """A model that could not be loaded; the message says why."""

    exit_code = 1


def load(
    model: Model,
    dtype: str | None = None,
    device: str | None = None,
    local: int = 0,
    *,
    revision: str | None = None,
    cpu_offload: str | None = None,
) -> Any:
    """The pipeline of a model, silent, on `device` (a GPU if there is one), in `dtype` (float32 on a CPU).

    Args:
        local: Which of the processes on this machine this is; each takes a GPU of its own.
        revision: Branch, tag or commit of a Hugging Face repository.
        cpu_offload: One of `OFFLOADS`.

    Raises:
        LoadError: It cannot be read, or not be put on that device; the message says what to do.
    """
    device = device or _own_device(local)
    dtype = dtype or ("float32" if device == "cpu" else model.dtype or "bfloat16")
    _refuse_impossible(model, device, revision, cpu_offload)
    hush()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype is the name that all versions know
            pipeline = _read(model, getattr(torch, dtype), revision)
        pipeline.set_progress_bar_config(disable=True)
        _place(pipeline, device, cpu_offload)
        return pipeline
    except Exception as error:  # the libraries raise whatever they met
        advice = hub_advice(error, model.source, revision) or _contents_advice(error)
        if advice:
            raise LoadError(f"{model.name}: {advice}{_further_repository(model)}") from error
        reason = " ".join(str(error).split())[:200]
        raise LoadError(f"{model.name}: cannot be loaded on {device}: {type(error).__name__}: {reason}") from error


def _own_device(local: int) -> str:
    """The GPU for this process of the machine; a launcher may also have left but one to be seen."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{local % torch.cuda.device_count()}" if local else "cuda"


def hub_advice(error: BaseException, repo: str, revision: str | None = None) -> str | None:
    """What is wrong with a repository and what to do, if that is why `error` was raised; else None."""
    causes = list(_causes(error))

    def met(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    # A gated repository is also one not found, and whatever happens on the way also leaves files not found.
    if met(hub.GatedRepoError):
        page = f"https://huggingface.co/{repo}"
        return f"the repository {repo} is gated: accept its licence at {page}, then run `hf auth login`"
    if met(hub.RevisionNotFoundError):
        return f"the repository {repo} has no revision {revision!r}; give a branch, a tag or a commit of it"
    if met(hub.RepositoryNotFoundError):
        return f"there is no repository {repo}, or it is private: check the name, or run `hf auth login`"
    if met(hub.LocalEntryNotFoundError, ConnectionError, TimeoutError, socket.gaierror) or _unresolved(causes):
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else "huggingface.co cannot be reached"
        return (
            f"the repository {repo} is not on this machine, and {why}; run `{command}` where there is a network "
            "and the same cache, or give the folder of a copy with --weights"
        )
    return None


def _further_repository(model: Model) -> str:
    """Open-Sora is the one of the seven whose weights are in two places; an error may be about either."""
    if model.pipeline != OPEN_SORA:
        return ""
    from dit_tracer.models.opensora_pipeline import TEXT_ENCODER

    return f"; its text encoder comes from {TEXT_ENCODER}, and is needed too"


def _unresolved(causes: list[BaseException]) -> bool:
    """Whether a revision could not be looked up for want of a network; versions of huggingface_hub differ in that."""
    kind = getattr(hub, "RevisionResolutionError", None)
    return kind is not None and any(isinstance(cause, kind) for cause in causes)


def _contents_advice(error: BaseException) -> str | None:
    """What to do about files that could be read only by unpickling them, or by running code that comes with them."""
    text = " ".join(str(cause) for cause in _causes(error))
    if "trust_remote_code" in text:
        return "it comes with Python code of its own, which is never run; load it yourself and use dit_tracer.record"
    if re.search(r"no file named \S+\.safetensors|necessary `safetensors` weights|use_safetensors", text):
        return (
            "some of its weights are not there as .safetensors, and others are never unpickled; convert them with "
            "save_pretrained(..., safe_serialization=True), or give a repository or folder that has them"
        )
    return None


def _refuse_impossible(model: Model, device: str, revision: str | None, cpu_offload: str | None) -> None:
    if revision and (model.random_weights or Path(model.source).is_dir()):
        raise LoadError(f"{model.name}: --revision is for repositories of Hugging Face, and this is none; leave it out")
    if cpu_offload == "group" and not hasattr(diffusers.DiffusionPipeline, "enable_group_offload"):
        raise LoadError(f"--cpu-offload group needs diffusers 0.36 or newer; this is {diffusers.__version__}")
    if cpu_offload in ("model", "sequential") and device == "cpu":
        raise LoadError(
            f"--cpu-offload {cpu_offload} moves weights to a GPU when they are needed, and runs on none here; leave it "
            "out, or give --cpu-offload group, which works on CPUs too"
        )


def _read(model: Model, dtype: torch.dtype, revision: str | None) -> Any:
    if model.random_weights:
        from dit_tracer.models import tiny

        return tiny.build(model.name.removeprefix(TINY)).to(dtype=dtype)
    if model.pipeline == OPEN_SORA:
        from dit_tracer.models.opensora import OpenSoraPipeline

        beside = {"text_encoder": model.source} if (Path(model.source) / "text_encoder").is_dir() else {}
        return OpenSoraPipeline.from_checkpoint(model.source, revision=revision, torch_dtype=dtype, **beside)
    with _no_code():
        return diffusers.DiffusionPipeline.from_pretrained(
            model.source, revision=revision, torch_dtype=dtype, use_safetensors=True, trust_remote_code=False
        )


@contextmanager
def _no_code() -> Iterator[None]:
    """Before 0.38, diffusers runs code that lies in a folder whatever `trust_remote_code` says."""
    original = dynamic_modules_utils.get_cached_module_file

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("a module of the model's own, and trust_remote_code is False")

    dynamic_modules_utils.get_cached_module_file = refuse
    try:
        yield
    finally:
        dynamic_modules_utils.get_cached_module_file = original


def _place(pipeline: Any, device: str, cpu_offload: str | None) -> None:
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # for all that takes the current one
    if cpu_offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif cpu_offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif cpu_offload == "group":
        # Leaf by leaf: groups of blocks would miss weights that a model keeps beside its blocks.
        pipeline.enable_group_offload(torch.device(device), offload_type="leaf_level", use_stream=device != "cpu")
    else:
        pipeline.to(device)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that led to it, each once."""
    waiting, seen = [error], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]


def hush() -> None:
    """No bars and no advice of the libraries between ours; what they log as an error, they raise as well."""
    for library in (diffusers, transformers, huggingface_hub):
        library.utils.logging.set_verbosity(logging.CRITICAL)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()

"""Turns a model of the catalog into a pipeline that can be called."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import torch
import transformers

from dit_tracer.models.catalog import Model


class LoadError(Exception):
    """A model that could not be loaded; the message says why."""

    exit_code = 1


def load(model: Model, dtype: str | None = None, device: str | None = None) -> Any:
    """The pipeline of a model, silent, on `device` (a GPU if there is one), in `dtype` (float32 on a CPU).

    Raises:
        LoadError: It cannot be read, or not be put on that device.
    """
    _hush()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch_dtype is the name that all versions know
            pipeline = diffusers.DiffusionPipeline.from_pretrained(model.source, torch_dtype=getattr(torch, dtype))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(device)
    except Exception as error:  # the libraries raise whatever they met
        reason = " ".join(str(error).split())[:200]
        raise LoadError(f"{model.name}: cannot be loaded on {device}: {type(error).__name__}: {reason}") from error


def _hush() -> None:
    """No bars and no advice of the libraries between ours."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()

"""Turns a model of the catalog into a pipeline that can be called."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers

from dit_tracer.models.catalog import Model


def load(model: Model, dtype: str | None = None, device: str | None = None) -> Any:
    """The pipeline of a model, silent, on `device` (a GPU if there is one), in `dtype` (float32 on a CPU)."""
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(model.source, torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)

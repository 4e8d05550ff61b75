"""What the arguments of a pipeline's call say: which of them are settings of the trace, and how long texts may be."""

from __future__ import annotations

import hashlib
import inspect
from typing import Any

import numpy as np
import torch

from dit_tracer.recording.settings import as_json
from dit_tracer.recording.sites import family_of

LEFT_OUT = ("prompt", "output_type", "return_dict", "callback", "generator")
"""Arguments of a call that are no settings, by what their names begin with."""

MAX_TEXT = 4096
"""A tokenizer that claims to take more tokens than this does not say how many a prompt may have."""


def arguments(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call by name, defaults included."""
    bound = inspect.signature(type(pipeline).__call__).bind_partial(pipeline, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def call_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call that are plain values, but for the prompt and the output."""
    kept = {}
    for name, value in given.items():
        if not name.startswith(LEFT_OUT) and "embeds" not in name:
            if isinstance(value, dict):  # of a dictionary, what is plain in it
                value = {key: one for key, one in value.items() if _is_plain(one)}
            if isinstance(value, dict) or _is_plain(value):
                kept[name] = value
    return as_json(kept)


def own_arguments(given: dict[str, Any], varies: tuple[str, ...] = ()) -> dict[str, Any]:
    """Arguments that belong to one prompt alone: those that may vary, and what is no plain value, as a hash."""
    found = {}
    for name, value in given.items():
        if name in varies:
            found[name] = value if _is_plain(value) else _digest(value)
        elif not name.startswith((*LEFT_OUT, "self")) and not _is_plain(value) and not isinstance(value, dict):
            found[name] = _digest(value)
    return as_json({name: value for name, value in found.items() if value is not None})


def _digest(value: Any) -> str | list[Any] | None:
    """A short hash of a tensor, an array or a picture; of a list, those of its elements; None of anything else."""
    if isinstance(value, (list, tuple)):
        return [_digest(one) for one in value]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float()
    elif not isinstance(value, np.ndarray) and not hasattr(value, "tobytes"):
        return None
    content = np.asarray(value).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def longest_text(pipeline: Any, networks: dict[str, Any], given: dict[str, Any]) -> int:
    """Tokens that the text of a prompt may have.

    It is what the call says, else what the family does, else what the pipeline's tokenizers are made for. Where the
    call brings embeddings, it is their length.
    """
    if given.get("prompt") is None:
        embeds = (value for name, value in given.items() if "embeds" in name and isinstance(value, torch.Tensor))
        return max((value.shape[1] for value in embeds if value.ndim == 3), default=0)
    if isinstance(given.get("max_sequence_length"), int):
        return given["max_sequence_length"]
    tokenizers = [part for name, part in getattr(pipeline, "components", {}).items() if "tokenizer" in name]
    lengths = [getattr(tokenizer, "model_max_length", 0) for tokenizer in tokenizers]
    known = max(family_of(network).text_tokens for network in networks.values())
    return known or max((length for length in lengths if length <= MAX_TEXT), default=0)


def images_of(given: dict[str, Any], one_each: bool = False) -> int:
    """How many images a call makes.

    Args:
        one_each: Whether the pipeline makes one of a prompt, whatever it is asked for.
    """
    names = ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt")
    each = next((given[name] for name in names if isinstance(given.get(name), int)), 1)
    several = given.get("prompt_embeds") if given.get("prompt") is None else None
    several = given.get("class_labels", several)
    return (1 if one_each else each) * (len(several) if hasattr(several, "__len__") else 1)


def is_unguided(given: dict[str, Any]) -> bool:
    """Whether the call says that there is no guidance."""
    scale = given.get("true_cfg_scale", given.get("guidance_scale"))
    return isinstance(scale, (int, float)) and scale <= 1


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))

"""What the arguments of a pipeline's call say: which of them are settings of the trace, and how long texts may be."""

from __future__ import annotations

import inspect
from typing import Any

from dit_tracer.recording.settings import as_json
from dit_tracer.recording.sites import family_of

MAX_TEXT = 4096
"""A tokenizer that claims to take more tokens than this does not say how many a prompt may have."""


def arguments(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call by name, defaults included."""
    bound = inspect.signature(type(pipeline).__call__).bind_partial(pipeline, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def call_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call that are plain values, but for the prompt and the output."""
    left_out = ("prompt", "output_type", "return_dict", "callback", "generator")
    kept = {
        name: value
        for name, value in given.items()
        if not name.startswith(left_out) and "embeds" not in name and _is_plain(value)
    }
    return as_json(kept)


def longest_text(pipeline: Any, networks: dict[str, Any], given: dict[str, Any]) -> int:
    """Tokens that the text of a prompt may have; 0 where the call brings embeddings of its own.

    It is what the call says, else what the family does, else what the pipeline's tokenizers are made for.
    """
    if given.get("prompt") is None:
        return 0
    if isinstance(given.get("max_sequence_length"), int):
        return given["max_sequence_length"]
    tokenizers = [part for name, part in getattr(pipeline, "components", {}).items() if "tokenizer" in name]
    lengths = [getattr(tokenizer, "model_max_length", 0) for tokenizer in tokenizers]
    known = max(family_of(network).text_tokens for network in networks.values())
    return known or max((length for length in lengths if length <= MAX_TEXT), default=0)


def unguided_images(given: dict[str, Any]) -> int:
    """How many images a call without guidance makes; 0 if it has guidance, or does not say."""
    images = given.get("num_images_per_prompt", given.get("num_videos_per_prompt"))
    scale = given.get("true_cfg_scale", given.get("guidance_scale"))
    unguided = isinstance(scale, (int, float)) and scale <= 1 and isinstance(images, int)
    return images if unguided else 0


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))

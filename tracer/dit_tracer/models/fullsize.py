"""The seven at full size without their weights: on the meta device tensors have shapes and no numbers.

The transformer configurations beside this file (`configs/NAME.json`) hold what the published checkpoints say, less
version numbers and switches of training and kernels; PixArt's is published as a `Transformer2DModel`, which diffusers
loads as the class named here. From them come layer counts, shapes and parameter counts, on any machine:

    transformer = meta_transformers("flux.1-dev")["transformer"]
    with on_meta():
        transformer(**probe("flux.1-dev"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.fx.experimental import _config

from dit_tracer.models.catalog import SEVEN, Model

CONFIGS = Path(__file__).parent / "configs"

CLIP_TOKENS = 77
"""Text tokens that SD3 takes from its two CLIPs, before those of T5."""


def meta_transformers(name: str) -> dict[str, torch.nn.Module]:
    """The transformer of one of the seven on the meta device, by the name that the pipeline gives it.

    Raises:
        LookupError: The model is not one of the seven.
    """
    settings = config(name)
    made = _transformer_class(settings["_class_name"])
    with torch.device("meta"):
        return {"transformer": made.from_config(settings).eval()}


def config(name: str) -> dict[str, Any]:
    """The configuration of the transformer of one of the seven, as published."""
    _one_of_the_seven(name)
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def parameters(module: torch.nn.Module) -> int:
    """How many numbers are learned."""
    return sum(weight.numel() for weight in module.parameters())


def probe(name: str, call: dict[str, Any] | None = None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of one forward of `meta_transformers(name)["transformer"]`, as its pipeline makes them.

    With guidance in one batch, the batch holds both halves.

    Args:
        call: Sizes, frames, text length and guidance, where they are not those of the catalog.
    """
    model = _one_of_the_seven(name)
    call = model.call | (call or {})
    with torch.device("meta"):
        given = _PROBES[name](config(name), call)
    if call[model.guidance] <= 1:
        given = _one_half(given)
    return given | {name: given[name].to(dtype) for name in _OF_MODEL if name in given}


_OF_MODEL = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
"""Arguments that have the precision of the model."""


def _one_half(given: Any) -> Any:
    """The arguments without the second half of the batch."""
    if isinstance(given, dict):
        return {name: _one_half(value) for name, value in given.items()}
    return given[:1] if isinstance(given, torch.Tensor) and len(given) == 2 else given


@contextmanager
def on_meta() -> Iterator[None]:
    """What a forward on the meta device needs: tensors that it makes itself are there too, and every text token counts.

    The rest is for Mochi, which looks up which text tokens are no padding (nobody can know that of a tensor without
    numbers) and asks for autocast, which torch refuses on this device.
    """
    autocast = torch.autocast

    def no_meta_autocast(device_type: str, *arguments: Any, **named: Any) -> AbstractContextManager:
        return nullcontext() if device_type == "meta" else autocast(device_type, *arguments, **named)

    torch.autocast = no_meta_autocast
    try:
        with torch.no_grad(), torch.device("meta"), _config.patch(meta_nonzero_assume_all_nonzero=True):
            yield
    finally:
        torch.autocast = autocast


def _one_of_the_seven(name: str) -> Model:
    if name not in SEVEN:
        raise LookupError(f"{name}: no configuration at full size; there is one of {', '.join(SEVEN)}")
    return SEVEN[name]


def _transformer_class(name: str) -> type:
    if name == "STDiT3":
        from dit_tracer.models.opensora import STDiT3

        return STDiT3
    return getattr(diffusers, name)


def _flux(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    tokens = (call["height"] // 16) * (call["width"] // 16)
    text = call["max_sequence_length"]
    return {
        "hidden_states": torch.empty(1, tokens, config["in_channels"]),
        "timestep": torch.empty(1),
        "guidance": torch.empty(1),
        "pooled_projections": torch.empty(1, config["pooled_projection_dim"]),
        "encoder_hidden_states": torch.empty(1, text, config["joint_attention_dim"]),
        "txt_ids": torch.empty(text, 3),
        "img_ids": torch.empty(tokens, 3),
    }


def _pixart(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    text = call["max_sequence_length"]
    return {
        "hidden_states": torch.empty(2, config["in_channels"], call["height"] // 8, call["width"] // 8),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, text, config["caption_channels"]),
        "encoder_attention_mask": torch.empty(2, text),
        "added_cond_kwargs": {"resolution": torch.empty(2, 2), "aspect_ratio": torch.empty(2, 1)},
    }


def _sd3(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    text = CLIP_TOKENS + call["max_sequence_length"]
    return {
        "hidden_states": torch.empty(2, config["in_channels"], call["height"] // 8, call["width"] // 8),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, text, config["joint_attention_dim"]),
        "pooled_projections": torch.empty(2, config["pooled_projection_dim"]),
    }


def _cogvideox(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    frames = (call["num_frames"] - 1) // 4 + 1
    rows, columns = call["height"] // 8, call["width"] // 8
    grid = rows // config["patch_size"], columns // config["patch_size"]
    rotation = get_3d_rotary_pos_embed(
        config["attention_head_dim"], ((0, 0), grid), grid, frames, device=torch.device("meta")
    )
    return {
        "hidden_states": torch.empty(2, frames, config["in_channels"], rows, columns),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, call["max_sequence_length"], config["text_embed_dim"]),
        "image_rotary_emb": rotation,
    }


def _opensora(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    from dit_tracer.models.opensora_pipeline import latent_size

    size = latent_size(call["num_frames"], call["height"], call["width"])
    text = call["max_sequence_length"]
    return {
        "hidden_states": torch.empty(2, config["in_channels"], *size),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, text, config["caption_channels"]),
        "encoder_attention_mask": torch.empty(2, text),
        "fps": call["fps"],
        "height": call["height"],
        "width": call["width"],
    }


def _latte(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    size = call["video_length"], call["height"] // 8, call["width"] // 8
    return {
        "hidden_states": torch.empty(2, config["in_channels"], *size),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, 120, config["caption_channels"]),  # the longest that the pipeline gives
        "enable_temporal_attentions": True,
    }


def _mochi(config: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    size = (call["num_frames"] - 1) // 6 + 1, call["height"] // 8, call["width"] // 8
    text = call["max_sequence_length"]
    return {
        "hidden_states": torch.empty(2, config["in_channels"], *size),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, text, config["text_embed_dim"]),
        "encoder_attention_mask": torch.empty(2, text, dtype=torch.bool),
    }


_PROBES: dict[str, Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]] = {
    "flux.1-dev": _flux,
    "pixart-alpha": _pixart,
    "sd3": _sd3,
    "cogvideox-5b": _cogvideox,
    "open-sora": _opensora,
    "latte-1": _latte,
    "mochi-1-preview": _mochi,
}

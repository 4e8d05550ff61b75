"""Pipelines with random weights and prompts that are encoded already: what the benchmarks run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from dit_tracer.models.fullsize import CLIP_TOKENS, config
from dit_tracer.models.loading import hush

PARTS = ("vae", "tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Case:
    """A generation to time.

    Args:
        settings: Of the transformer; those of the published checkpoint `model`, changed by `smaller`.
        text: Shapes of what the text encoders would give, by argument; negative ones are made where `guided`.
    """

    name: str
    device: str
    pipeline: str
    scheduler: str
    steps: int
    call: dict[str, Any]
    text: dict[str, tuple[int, ...]]
    model: str
    guided: bool = True
    smaller: dict[str, Any] = field(default_factory=dict)
    scheduler_settings: dict[str, Any] = field(default_factory=dict)


_PIXART = ("PixArtAlphaPipeline", "DPMSolverMultistepScheduler")
_PIXART_TEXT = {"prompt_embeds": (1, 120, 4096), "prompt_attention_mask": (1, 120)}
_BINS = {"use_resolution_binning": False, "clean_caption": False, "prompt": None, "negative_prompt": None}
_SMALL = {"num_layers": 12, "num_attention_heads": 8, "attention_head_dim": 64, "cross_attention_dim": 512}
_SQUARE = {"height": 1024, "width": 1024}

CASES = (
    Case("pixart-12x512", "cpu", *_PIXART, 20, {"height": 384, "width": 384, "guidance_scale": 4.5} | _BINS,
         _PIXART_TEXT, "pixart-alpha", smaller=_SMALL | {"sample_size": 48}),
    Case("flux.1-dev", "cuda", "FluxPipeline", "FlowMatchEulerDiscreteScheduler", 28, _SQUARE | {"guidance_scale": 3.5},
         {"prompt_embeds": (1, 512, 4096), "pooled_prompt_embeds": (1, 768)}, "flux.1-dev", guided=False,
         scheduler_settings={"use_dynamic_shifting": True, "shift": 3.0}),
    Case("pixart-alpha", "cuda", *_PIXART, 20, _SQUARE | {"guidance_scale": 4.5} | _BINS, _PIXART_TEXT, "pixart-alpha"),
    Case("sd3", "cuda", "StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler", 28,
         _SQUARE | {"guidance_scale": 7.0},
         {"prompt_embeds": (1, CLIP_TOKENS + 256, 4096), "pooled_prompt_embeds": (1, 2048)}, "sd3",
         scheduler_settings={"shift": 3.0}),
    Case("cogvideox-5b", "cuda", "CogVideoXPipeline", "CogVideoXDDIMScheduler", 50,
         {"height": 480, "width": 720, "num_frames": 9, "guidance_scale": 6.0}, {"prompt_embeds": (1, 226, 4096)},
         "cogvideox-5b"),
    Case("latte-1", "cuda", "LattePipeline", "DDIMScheduler", 50,
         {"height": 512, "width": 512, "video_length": 16, "guidance_scale": 7.5, "clean_caption": False,
          "negative_prompt": None}, {"prompt_embeds": (1, 120, 4096)}, "latte-1"),
    Case("mochi-1-preview", "cuda", "MochiPipeline", "FlowMatchEulerDiscreteScheduler", 64,
         {"height": 480, "width": 848, "num_frames": 19, "guidance_scale": 4.5},
         {"prompt_embeds": (1, 256, 4096), "prompt_attention_mask": (1, 256)}, "mochi-1-preview"),
)  # fmt: skip
"""One small model for a CPU; the others at full size, sizes and steps as in the paper, videos shorter."""

TINY = {
    "flux.1-dev": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2},
    "sd3": {"num_layers": 2, "num_attention_heads": 2, "caption_projection_dim": 128, "pos_embed_max_size": 192},
    "cogvideox-5b": {"num_layers": 2, "num_attention_heads": 2},
    "pixart-alpha": {"num_layers": 2, "num_attention_heads": 2, "cross_attention_dim": 144},
    "latte-1": {"num_layers": 2, "num_attention_heads": 2, "cross_attention_dim": 144},
    "mochi-1-preview": {"num_layers": 2, "num_attention_heads": 2, "pooled_projection_dim": 64},
}
"""What makes a case small enough to see that the script runs."""

TINY_CALL = {"height": 128, "width": 128, "num_frames": 7}


def build(case: Case, device: str, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The pipeline of a case, and the arguments to call it with."""
    hush()
    settings = config(case.model) | case.smaller
    torch.manual_seed(0)
    with _default(dtype), torch.device(device):
        transformer = getattr(diffusers, settings["_class_name"]).from_config(settings).eval()
    made = getattr(diffusers, case.pipeline)
    parts = {name: None for name in PARTS if name in made._get_signature_types()}
    scheduler = getattr(diffusers, case.scheduler)(**case.scheduler_settings)
    pipeline = made(transformer=transformer, scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    text = {}
    for name, shape in case.text.items():
        for prefix in ("", "negative_") if case.guided else ("",):
            value = torch.ones(shape, device=device, dtype=torch.bool if "mochi" in case.model else torch.long)
            text[prefix + name] = value if "mask" in name else torch.randn(shape, device=device, dtype=dtype)
    return pipeline, case.call | text | {"num_inference_steps": case.steps, "output_type": "latent"}


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Weights are made in this type at once; in float32 first, FLUX would need 48 GB."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)

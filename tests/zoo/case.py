"""What a test knows of one transformer class: how to build it tiny, how it is called, how its layers are labelled.

Everything here was established by reading the class and its pipeline, not by asking the recorder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expected:
    """The right label of one attention layer.

    Args:
        type: `self`, `spatial`, `temporal`, `cross`, `joint` (text and latent tokens come in apart and are attended
            together), `single` (they come in as one sequence) or `linear` (no softmax).
        kv: Tokens of K and V by stream, for one element of the batch (folded axes, such as frames, counted in), in the
            order in which the layer lines the streams up.
        a: Tokens of the module's output by stream, likewise.
    """

    type: str
    kv: dict[str, int]
    a: dict[str, int]


@dataclass(frozen=True)
class Case:
    """One transformer class of diffusers in miniature.

    Args:
        transformer: Class name.
        config: Its arguments: one to three blocks, a few channels.
        inputs: Arguments of its forward for a batch of so many elements; different texts, the same latents in each.
        layers: Expected label by pattern over module paths (fnmatch); the first that fits counts. Attention modules
            that no pattern fits are no denoising layers (text refiners, poolers), and must not be recorded.
        guidance: How its text-to-image or -video pipeline runs both halves: `batched`, `sequential`, or `none`.
        branches: The halves in the order of the batch, or of the calls.
        contexts: Whether the pipeline names its calls with `cache_context`.
        pipeline: The pipeline class that was read for this; empty if there is none.
        first_call: Whether, of several attention calls in a layer, the first is its own, not the last.
    """

    transformer: str
    config: dict[str, Any]
    inputs: Callable[[int], dict[str, Any]]
    layers: dict[str, Expected]
    guidance: str = "batched"
    branches: tuple[str, ...] = ("uncond", "cond")
    contexts: bool = False
    pipeline: str = ""
    note: str = ""
    first_call: bool = False

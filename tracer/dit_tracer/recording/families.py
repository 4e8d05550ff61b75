"""What cannot be seen from outside: one row for each class of transformer that needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

IGNORED = (
    "*refiner_blocks.*", "context_refiner.*", "*text_fusion*", "*text_transformer_blocks*", "*face_adapter*",
    "*pooler*", "*embedder*", "*connector*", "image_proj.*", "encoder_hid_proj.*",
)  # fmt: skip
"""Attention modules, by path, that prepare a text or a reference and are no layers of the denoising stack."""


Parts = tuple[tuple[str, int], ...]
"""Streams and their tokens, in the order in which they line up."""


@dataclass(frozen=True)
class Family:
    """What a transformer class does not show by running; patterns are over module paths within it, the first that fits
    counts.

    Args:
        types: Layer types by pattern, where token numbers alone would tell another one.
        text_first: Whether text tokens come before latent tokens where both are attended together; None to find out.
        parts: For layers of type `single`, how their tokens line up, from the arguments of the network's call and the
            number of tokens.
        streams: By pattern, whose tokens K and V are, and whose the output is, where not text and latent.
        further: Stream of further calls of cross-attention within a module.
        attention: Attention modules, by pattern, that are not of diffusers' own classes.
        ignored: Attention modules, by pattern, that are no layers of the denoising stack.
        halves: Guidance branches in the order of the batch, by their number, where not (uncond, cond).
        calls: Guidance branches in the order of the transformer's calls in a step.
        kinds: What is recorded by default beside K, V and A.
        tokens_first: Whether states between blocks are (token, batch, channel).
        text_tokens: Most tokens of a text, where the pipeline's call does not say.
        one_image: Whether a call makes one image of a prompt, whatever it is asked for.
        channel_axis: Of the network's input and output, where it cannot be told by its length.
    """

    types: dict[str, str] = field(default_factory=dict)
    text_first: bool | None = None
    parts: Callable[[dict[str, Any], int], Parts] | None = None
    streams: dict[str, tuple[str, str]] = field(default_factory=dict)
    further: str = ""
    attention: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    halves: tuple[tuple[str, ...], ...] = ()
    calls: tuple[str, ...] = ("cond", "uncond")
    kinds: tuple[str, ...] = ()
    tokens_first: bool = False
    text_tokens: int = 0
    one_image: bool = False
    channel_axis: int | None = None

    def type(self, path: str) -> str | None:
        return _first(self.types, path)

    def streams_of(self, path: str) -> tuple[str, str] | None:
        return _first(self.streams, path)


def _text(count: Callable[[dict[str, Any]], int], first: bool = True) -> Callable[[dict[str, Any], int], Parts]:
    """Text tokens as `count` tells, before or after the latent ones."""

    def parts(given: dict[str, Any], tokens: int) -> Parts:
        text = count(given)
        both = (("text", text), ("latent", tokens - text))
        return both if first else both[::-1]

    return parts


def _length(name: str = "encoder_hidden_states", further: int = 0) -> Callable[[dict[str, Any]], int]:
    """Tokens of an argument (batch, token, ...), and how many the network adds."""
    return lambda given: given[name].shape[1] + further


def _one(lengths: Any) -> int:
    """The length that all elements of a batch have."""
    found = set(lengths.tolist())
    if len(found) != 1:
        raise ValueError(f"texts of {sorted(found)} tokens in one batch cannot be parted; trace one image at a time")
    return found.pop()


def _minimax(given: dict[str, Any], tokens: int) -> Parts:
    text, audio = (given[f"{name}_indices"].numel() for name in ("text", "audio"))
    return ("text", text), ("audio", audio), ("latent", tokens - text - audio)


COND_FIRST = (("cond", "uncond"),)

FAMILIES = {
    "AceStepTransformer1DModel": Family(halves=COND_FIRST),
    "AnyFlowTransformer3DModel": Family(channel_axis=2),
    "CogVideoXTransformer3DModel": Family(one_image=True, channel_axis=2),
    "CosmosTransformer3DModel": Family(further="image"),
    "DiTTransformer2DModel": Family(halves=COND_FIRST),
    "ErnieImageTransformer2DModel": Family(
        types={"layers.*": "single"}, parts=_text(_length("text_bth"), first=False), tokens_first=True
    ),
    "BriaFibo2Transformer2DModel": Family(ignored=("perceiver.*",)),
    "Flux3Transformer2DModel": Family(
        types={"single_transformer_blocks.*": "single"},
        parts=_text(_length()),
        ignored=("mode_blocks.image_cond.*", "txt_mode_blocks.*"),
    ),
    "Ideogram4Transformer2DModel": Family(
        types={"layers.*": "single"}, parts=_text(lambda given: _one((given["indicator"] != 2).sum(-1)))
    ),
    "Kandinsky5Transformer3DModel": Family(channel_axis=-1),
    "Kandinsky6Transformer3DModel": Family(
        streams={
            "*.audio_dec_block.self_attention": ("audio", "audio"),
            "*.audio_dec_block.cross_attention": ("text", "audio"),
            "*.va_cross_attention": ("audio", "latent"),
            "*.av_cross_attention": ("latent", "audio"),
        },
    ),
    "Krea2Transformer2DModel": Family(types={"transformer_blocks.*": "single"}, parts=_text(_length())),
    "LTX2VideoTransformer3DModel": Family(
        types={"*.attn1": "self", "*.audio_attn1": "self", "*attn*": "cross"},
        streams={
            "*.audio_attn1": ("audio", "audio"),
            "*.audio_attn2": ("text", "audio"),
            "*.audio_to_video_attn": ("audio", "latent"),
            "*.video_to_audio_attn": ("latent", "audio"),
        },
    ),
    "LatteTransformer3DModel": Family(
        types={"transformer_blocks.*.attn1": "spatial", "temporal_*": "temporal"}, text_tokens=120
    ),
    "Lumina2Transformer2DModel": Family(
        types={"noise_refiner.*": "self", "layers.*": "single"},
        parts=_text(lambda given: _one(given["encoder_attention_mask"].sum(-1))),
    ),
    "LuminaNextDiT2DModel": Family(halves=COND_FIRST),
    "MiniMaxH3Transformer3DModel": Family(types={"transformer_blocks.*": "single"}, parts=_minimax),
    "MochiTransformer3DModel": Family(text_first=False, kinds=("o",)),
    "OmniGenTransformer2DModel": Family(
        types={"layers.*": "single"},
        parts=_text(_length("input_ids", 1)),
        halves=(*COND_FIRST, ("cond", "image", "uncond")),
    ),
    "PriorTransformer": Family(types={"transformer_blocks.*": "single"}, parts=_text(_length(further=2))),
    "QwenImage21Transformer2DModel": Family(types={"transformer_blocks.*": "single"}, parts=_text(_length())),
    "STDiT3": Family(
        types={"spatial_blocks.*.attn": "spatial", "temporal_blocks.*.attn": "temporal"},
        halves=COND_FIRST,
    ),
    "SanaTransformer2DModel": Family(types={"*.attn1": "linear"}),
    "SanaVideoTransformer3DModel": Family(types={"*.attn1": "linear"}),
    "SanaWMTransformer3DModel": Family(ignored=("blocks.*.attn", "blocks.*.attn.*")),
    "SanaWMLTX2RefinerTransformer3DModel": Family(types={"*.attn1": "self"}, ignored=("*audio*",)),
    "WanAnimate2Transformer3DModel": Family(further="image"),
    "ZImageTransformer2DModel": Family(
        types={"noise_refiner.*": "self", "layers.*": "single"},
        parts=_text(lambda given: max(-(-len(text) // 32) * 32 for text in given["cap_feats"]), first=False),
        halves=COND_FIRST,
    ),
}

PLAIN = Family()


def fits(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a module path fits one of the patterns."""
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def _first(table: dict[str, Any], path: str) -> Any:
    return next((value for pattern, value in table.items() if fnmatchcase(path, pattern)), None)

"""K, V and A of the paper's seven models by its definitions (arXiv 2411.13588), from weights and formulas alone.

Everything is computed in float64 from what an attention module was given and the weights it holds: projections, norms,
rotary embeddings and softmax are written out here. Knows nothing of the recorder, and calls no attention function.

Arrays of heads are (batch, head, token, channel). Of each layer there are `k`, `v` and `a`; `ek`, `ev` and `ea` where
the paper's recorder kept text apart; and, under names that say what they are, quantities that it did not take, which
must give other numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]
Measured = dict[str, Array]
Given = dict[str, Any]


class Reference(NamedTuple):
    """One family.

    Args:
        layers: Paths of the attention modules within the transformer, in the paper's order.
        measure: What the paper takes, from network, module and what the module was given.
        guided: Whether the batch has two halves, which the paper measured together.
    """

    layers: tuple[str, ...]
    measure: Callable[[nn.Module, nn.Module, Given], Measured]
    guided: bool = True


# Formulas ----------------------------------------------------------------------


def float64(values: torch.Tensor) -> Array:
    return values.detach().double().numpy()


def linear(layer: nn.Module, x: Array) -> Array:
    y = x @ float64(layer.weight).T
    return y if layer.bias is None else y + float64(layer.bias)


def rms_norm(norm: nn.Module, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + norm.eps) * float64(norm.weight)


def layer_norm(norm: nn.Module, x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
    return scaled * float64(norm.weight) + float64(norm.bias)


def heads(x: Array, number: int) -> Array:
    """(batch, token, channel) by head."""
    return x.reshape(*x.shape[:2], number, -1).swapaxes(1, 2)


def merged(x: Array) -> Array:
    """All heads side by side, (batch, token, channel)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def angles(positions: Array, widths: tuple[int, ...]) -> Array:
    """Angles of a rotary embedding, (token, pair): each axis of `positions` (token, axis) turns so many channels."""
    speeds = [10000.0 ** -(np.arange(0, width, 2) / width) for width in widths]
    return np.concatenate([positions[:, axis, None] * speed for axis, speed in enumerate(speeds)], axis=1)


def turned(x: Array, by: Array) -> Array:
    """The channel pairs (0, 1), (2, 3), ... turned by angles (token, pair) or (head, token, pair)."""
    first, second = x[..., 0::2], x[..., 1::2]
    cosine, sine = np.cos(by), np.sin(by)
    return np.stack([first * cosine - second * sine, first * sine + second * cosine], axis=-1).reshape(x.shape)


def grid(*axes: Array) -> Array:
    """Positions of all places of a grid, (token, axis), the last axis being the fastest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes))


def attended(query: Array, key: Array, value: Array, exists: Array | None = None) -> Array:
    """What attention gives, (batch, token, channel); `exists` (batch, key) tells which keys may be looked at."""
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    if exists is not None:
        scores = np.where(exists[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return merged(weights / weights.sum(-1, keepdims=True) @ value)


def projected(module: nn.Module, x: Array, names: tuple[str, str, str] = ("to_q", "to_k", "to_v")) -> list[Array]:
    """Q, K and V by head, before norms and rotary embedding."""
    return [heads(linear(getattr(module, name), x), module.heads) for name in names]


ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")


def both(one: Array, other: Array) -> Array:
    """Two streams, one after the other along the tokens."""
    return np.concatenate([one, other], axis=2)


# The seven ---------------------------------------------------------------------


def flux(network: nn.Module, module: nn.Module, given: Given) -> Measured:
    """Text stands at the origin, image tokens at their row and column."""
    hidden = float64(given["hidden_states"])
    image, widths = grid(np.zeros(1), np.arange(8.0), np.arange(8.0)), network.config.axes_dims_rope
    if given.get("encoder_hidden_states") is None:
        text = np.zeros((hidden.shape[1] - len(image), 3))
        return _flux_single(module, hidden, len(text), angles(np.concatenate([text, image]), widths))
    return _flux_double(module, hidden, float64(given["encoder_hidden_states"]), angles(image, widths))


def _flux_double(module: nn.Module, hidden: Array, encoder: Array, by: Array) -> Measured:
    """The image's K after norm and rotary embedding, its A after the projection."""
    query, key, value = projected(module, hidden)
    text_query, text_key, text_value = projected(module, encoder, ADDED)
    normed, text_normed = rms_norm(module.norm_k, key), rms_norm(module.norm_added_k, text_key)
    rotated = turned(normed, by)
    queries = both(rms_norm(module.norm_added_q, text_query), turned(rms_norm(module.norm_q, query), by))
    out = attended(queries, both(text_normed, rotated), both(text_value, value))
    text, image = np.split(out, [encoder.shape[1]], axis=1)
    return {
        "k": rotated,
        "v": value,
        "a": linear(module.to_out[0], image),
        "ek": text_normed,
        "ev": text_value,
        "ea": linear(module.to_add_out, text),
        "k before its norm": key,
        "k before its rotation": normed,
        "k with text": both(text_normed, rotated),
        "a before its projection": image,
    }


def _flux_single(module: nn.Module, hidden: Array, text: int, by: Array) -> Measured:
    """Text and image as one tensor; the heads' output, which the module itself does not project."""
    query, key, value = projected(module, hidden)
    normed = rms_norm(module.norm_k, key)
    rotated = turned(normed, by)
    out = attended(turned(rms_norm(module.norm_q, query), by), rotated, value)
    return {
        "k": rotated,
        "v": value,
        "a": out,
        "k before its norm": key,
        "k before its rotation": normed,
        "k without text": rotated[:, :, text:],
        "v without text": value[:, :, text:],
        "a without text": out[:, text:],
    }


def plain(network: nn.Module, module: nn.Module, given: Given) -> Measured:
    """PixArt and Latte: self-attention without norm or rotary embedding, A after the projection."""
    query, key, value = projected(module, float64(given["hidden_states"]))
    out = attended(query, key, value)
    return {"k": key, "v": value, "a": linear(module.to_out[0], out), "a before its projection": out}


def sd3(network: nn.Module, module: nn.Module, given: Given) -> Measured:
    """Image alone, after the projection; the last block has no projection for text."""
    hidden, encoder = (float64(given[name]) for name in ("hidden_states", "encoder_hidden_states"))
    query, key, value = projected(module, hidden)
    text_query, text_key, text_value = projected(module, encoder, ADDED)
    out = attended(both(query, text_query), both(key, text_key), both(value, text_value))
    image, text = np.split(out, [hidden.shape[1]], axis=1)
    last = module is network.transformer_blocks[-1].attn
    return {
        "k": key,
        "v": value,
        "a": linear(module.to_out[0], image),
        "ek": text_key,
        "ev": text_value,
        "ea": text if last else linear(module.to_add_out, text),
        "k with text": both(key, text_key),
        "v with text": both(value, text_value),
        "a before its projection": image,
    }


def cogvideox(network: nn.Module, module: nn.Module, given: Given) -> Measured:
    """One projection for text and video; K after its norm and, of video alone, the rotary embedding."""
    hidden, encoder = (float64(given[name]) for name in ("hidden_states", "encoder_hidden_states"))
    query, key, value = projected(module, np.concatenate([encoder, hidden], axis=1))
    width, text = query.shape[-1], encoder.shape[1]
    by = angles(grid(np.arange(3.0), np.arange(4.0), np.arange(4.0)), (width // 4, width // 8 * 3, width // 8 * 3))
    by = np.concatenate([np.zeros((text, width // 2)), by])
    normed = layer_norm(module.norm_k, key)
    rotated = turned(normed, by)
    out = linear(module.to_out[0], inside := attended(turned(layer_norm(module.norm_q, query), by), rotated, value))
    return {
        "k": rotated[:, :, text:],
        "v": value[:, :, text:],
        "a": out[:, text:],
        "ek": rotated[:, :, :text],
        "ev": value[:, :, :text],
        "ea": out[:, :text],
        "k before its norm": key[:, :, text:],
        "k before its rotation": normed[:, :, text:],
        "k with text": rotated,
        "a before its projection": inside[:, text:],
    }


def open_sora(network: nn.Module, module: nn.Module, given: Given) -> Measured:
    """K after its norm and, in temporal blocks, the rotary embedding over frames; A after the projection."""
    query, key, value = np.split(linear(module.qkv, float64(given["hidden_states"])), 3, axis=-1)
    query, key, value = (heads(part, module.heads) for part in (query, key, value))
    normed = entering = rms_norm(module.k_norm, key)
    query = rms_norm(module.q_norm, query)
    further = {}
    if any(module is block.attn for block in network.temporal_blocks):
        by = angles(np.arange(key.shape[2])[:, None], key.shape[-1:])
        query, entering = turned(query, by), turned(normed, by)
        further = {"k before its rotation": normed}
    out = attended(query, entering, value)
    measured = {"k": entering, "v": value, "a": linear(module.proj, out)}
    return measured | further | {"k before its norm": key, "a before its projection": out}


def mochi(network: nn.Module, module: nn.Module, given: Given) -> Measured:
    """The video's K after norm and learned rotary embedding; A before the projection.

    Padding is not attended to. It is left out of the text here, where the paper counted it.
    """
    query, key, value = projected(module, float64(given["hidden_states"]))
    text_query, text_key, text_value = projected(module, float64(given["encoder_hidden_states"]), ADDED)
    sides = 48 * (np.arange(4) - 1.5)  # centres of 4 x 4 places on a square of the area of 192 x 192
    by = np.einsum("na,ahp->hnp", grid(np.arange(2.0), sides, sides), float64(network.pos_frequencies))
    normed = rms_norm(module.norm_k, key)
    rotated = turned(normed, by)
    queries = both(turned(rms_norm(module.norm_q, query), by), rms_norm(module.norm_added_q, text_query))
    text_normed = rms_norm(module.norm_added_k, text_key)
    keys = both(rotated, text_normed)
    words = given["attention_mask"].bool().numpy()
    exists = np.concatenate([np.ones((len(words), key.shape[2]), bool), words], axis=1)
    out, text_out = np.split(attended(queries, keys, both(value, text_value), exists), [key.shape[2]], axis=1)
    return {
        "k": rotated,
        "v": value,
        "a": out,
        "ek": text_normed.swapaxes(1, 2)[words],
        "ev": text_value.swapaxes(1, 2)[words],
        "ea": text_out[words],
        "ek with padding": text_normed,
        "ev with padding": text_value,
        "k before its norm": key,
        "k before its rotation": normed,
        "k with text": keys,
        "a after its projection": linear(module.to_out[0], out),
    }


def _numbered(pattern: str, number: int) -> tuple[str, ...]:
    return tuple(pattern.format(place) for place in range(number))


REFERENCES = {
    "flux.1-dev": Reference(
        _numbered("transformer_blocks.{}.attn", 2) + _numbered("single_transformer_blocks.{}.attn", 3),
        flux,
        guided=False,
    ),
    "pixart-alpha": Reference(_numbered("transformer_blocks.{}.attn1", 2), plain),
    "sd3": Reference(_numbered("transformer_blocks.{}.attn", 3), sd3),
    "cogvideox-5b": Reference(_numbered("transformer_blocks.{}.attn1", 2), cogvideox),
    "open-sora": Reference(_numbered("spatial_blocks.{}.attn", 2) + _numbered("temporal_blocks.{}.attn", 2), open_sora),
    "latte-1": Reference(
        _numbered("transformer_blocks.{}.attn1", 2) + _numbered("temporal_transformer_blocks.{}.attn1", 2), plain
    ),
    "mochi-1-preview": Reference(_numbered("transformer_blocks.{}.attn1", 3), mochi),
}
"""The seven as their twins have them."""


@contextmanager
def measuring(reference: Reference, network: nn.Module) -> Iterator[list[list[Measured]]]:
    """Within the block, gathers what every call of every layer gives: (layer, call), layers in the paper's order."""
    modules = [network.get_submodule(path) for path in reference.layers]
    seen: list[list[Measured]] = [[] for _ in modules]
    places = {module: place for place, module in enumerate(modules)}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: Given) -> None:
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        seen[places[module]].append(reference.measure(network, module, dict(zip(names, args)) | kwargs))

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

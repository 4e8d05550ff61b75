"""The caches of diffusers at work, by a file of one of the targets `diffusers...` or by their own arguments."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from dit_tracer.engines.before import EngineError, as_before, contexts_reach_all
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import find_networks


@contextmanager
def diffusers(pipeline: Any, text: str, *, fresh: bool = True) -> Iterator[None]:
    """A cache of diffusers, as this content of a file of one of the targets `diffusers...` says.

    Args:
        fresh: Whether what is kept is cleared before each generation; pipelines themselves do so only where the network
            has `enable_cache`.

    Raises:
        EngineError: The installed diffusers does not have it, or the file is for another network.
    """
    content = json.loads(text)
    network = network_of(pipeline, content.get("transformer"))
    with as_before(pipeline), ExitStack() as undo:
        try:
            CACHES[content["engine"]](pipeline, network, content, undo)
            clearing = _cleared_before(network)
        except ImportError as error:
            raise EngineError(f"the installed diffusers has no {content['engine']} ({error}); it needs 0.42") from None
        contexts_reach_all(network)
        if fresh:
            undo.enter_context(around(type(pipeline), "__call__", pipeline, clearing))
        yield


def network_of(pipeline: Any, transformer: str | None) -> nn.Module:
    """The pipeline's network of this class, or its first one.

    Raises:
        EngineError: It has none.
    """
    networks = find_networks(pipeline).values()
    for network in networks:
        if transformer in (None, type(network).__name__):
            return network
    found = ", ".join(type(network).__name__ for network in networks)
    raise EngineError(f"the file is for {transformer}, and {type(pipeline).__name__} has {found}")


def _mag_cache(pipeline: Any, network: nn.Module, content: dict[str, Any], undo: ExitStack) -> None:
    from diffusers import MagCacheConfig
    from diffusers.hooks import apply_mag_cache

    apply_mag_cache(network, MagCacheConfig(**content["config"]))


def _broadcast(pipeline: Any, network: nn.Module, content: dict[str, Any], undo: ExitStack) -> None:
    from diffusers import PyramidAttentionBroadcastConfig
    from diffusers.hooks import apply_pyramid_attention_broadcast

    if "config" in content:  # as people write it, with windows in timesteps
        if not hasattr(pipeline, "current_timestep"):
            raise EngineError(f"{type(pipeline).__name__} has no current_timestep, which the windows are compared with")
        config = PyramidAttentionBroadcastConfig(
            **content["config"], current_timestep_callback=lambda: pipeline.current_timestep
        )
        return apply_pyramid_attention_broadcast(network, config)
    calls, step = itertools.count(), [0]

    def called(*_: Any) -> None:
        step[0] = next(calls) % content["num_steps"]

    def generate(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls = itertools.count()
        return call(*args, **kwargs)

    undo.callback(network.register_forward_pre_hook(called).remove)
    undo.enter_context(around(type(pipeline), "__call__", pipeline, generate))
    for group in content["groups"]:
        config = PyramidAttentionBroadcastConfig(**_ranges(group), current_timestep_callback=lambda: step[0])
        apply_pyramid_attention_broadcast(network, config)


def _ranges(group: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a group of layers, of either kind: which of them a layer is, diffusers decides by its class."""
    first, last = group["steps"]
    said = {
        "block_skip_range": group["range"],
        "timestep_skip_range": (first - 1, last + 1),
        "block_identifiers": tuple(group["identifiers"]),
    }
    return {f"{kind}_attention_{name}": value for kind in ("spatial", "cross") for name, value in said.items()}


def _taylorseer(pipeline: Any, network: nn.Module, content: dict[str, Any], undo: ExitStack) -> None:
    from diffusers import TaylorSeerCacheConfig
    from diffusers.hooks import apply_taylorseer_cache

    for group in content["groups"]:
        config = TaylorSeerCacheConfig(**group, taylor_factors_dtype=getattr(torch, content.get("dtype", "bfloat16")))
        apply_taylorseer_cache(network, config)


def _first_block(pipeline: Any, network: nn.Module, content: dict[str, Any], undo: ExitStack) -> None:
    from diffusers import FirstBlockCacheConfig
    from diffusers.hooks import apply_first_block_cache

    apply_first_block_cache(network, FirstBlockCacheConfig(**content["config"]))


CACHES: dict[str, Callable[[Any, nn.Module, dict[str, Any], ExitStack], None]] = {
    "first_block_cache": _first_block,
    "mag_cache": _mag_cache,
    "pyramid_attention_broadcast": _broadcast,
    "taylorseer": _taylorseer,
}
"""By the name of the engine in the file."""


def _cleared_before(network: nn.Module) -> Callable[..., Any]:
    """For `around` a pipeline's call: nothing is left of an earlier generation, and calls of the network have a name
    where the pipeline gives none, for some hooks insist on one."""
    from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

    def generate(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks()
        contexts_reach_all(network)
        _set_cache_context(network, CacheContext("inference"))
        return call(*args, **kwargs)

    return generate

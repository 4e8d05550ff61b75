"""Other engines put to work on a pipeline by an exported file, and undone when the block ends."""

from __future__ import annotations

import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import find_networks


class EngineError(Exception):
    """An engine that is not there, or refuses a file or a pipeline; the message says which."""

    exit_code = 1


NEEDS = 'this needs {}, which is not installed; pip install "ditscope[trace,replay]"'


@contextmanager
def cache_dit(pipeline: Any, text: str, *, fresh: bool = True) -> Iterator[None]:
    """cache-dit, as this content of its YAML file says; it clears what it keeps before each generation by itself.

    Raises:
        EngineError: It is not installed, or refuses the file or the pipeline.
    """
    try:
        import cache_dit as engine
    except ModuleNotFoundError as error:
        raise EngineError(NEEDS.format(error.name)) from None
    configs = _cache_dit_configs(engine, text)
    with _quiet(), _as_before(pipeline):
        try:
            engine.enable_cache(pipeline, **{name: value for name, value in configs.items() if value is not None})
        except (ValueError, AssertionError, TypeError) as error:
            raise EngineError(f"cache-dit refuses {type(pipeline).__name__}: {error}") from None
        try:
            yield
        finally:
            engine.disable_cache(pipeline)


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
    network = _network_of(pipeline, content.get("transformer"))
    with _as_before(pipeline), ExitStack() as undo:
        try:
            CACHES[content["engine"]](pipeline, network, content, undo)
            clearing = _cleared_before(network)
        except ImportError as error:
            raise EngineError(f"the installed diffusers has no {content['engine']} ({error}); it needs 0.42") from None
        _contexts_reach_all(network)
        if fresh:
            undo.enter_context(around(type(pipeline), "__call__", pipeline, clearing))
        yield


@contextmanager
def smoothcache(pipeline: Any, text: str, *, fresh: bool = True) -> Iterator[None]:
    """SmoothCache with this schedule, or one for each list of blocks.

    Args:
        fresh: Whether it counts steps anew in each generation; it does not by itself.

    Raises:
        EngineError: It is not installed, or the schedule has lists that the network has not.
    """
    try:
        with redirect_stdout(StringIO()):  # it complains about parts of itself that nobody asked for
            from SmoothCache import SmoothCacheHelper, smooth_cache_helper
    except ModuleNotFoundError as error:
        raise EngineError(f"this needs {error.name}, which is not installed; pip install dit-smoothcache") from None
    smooth_cache_helper.print = lambda *_: None  # it reports every call
    helpers = [SmoothCacheHelper(*wrapped) for wrapped in _wrapped(pipeline, json.loads(text))]

    def generate(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for helper in helpers if fresh else ():
            helper.reset_state()
        return call(*args, **kwargs)

    with _as_before(pipeline), around(type(pipeline), "__call__", pipeline, generate):
        for helper in helpers:
            helper.enable()
        yield


ENGINES: dict[str, Callable[..., AbstractContextManager[None]]] = {
    "cache-dit": cache_dit,
    "diffusers": diffusers,
    "diffusers-pab": diffusers,
    "diffusers-taylorseer": diffusers,
    "smoothcache": smoothcache,
}
"""By name of the target."""


def _cache_dit_configs(engine: Any, text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _quiet():
        file = Path(folder) / "plan.yaml"
        file.write_text(text)
        try:
            return engine.load_configs(str(file))
        except Exception as error:  # of its parsers too, and it raises plain ones
            raise EngineError(f"cache-dit refuses the file: {error}") from None


def _network_of(pipeline: Any, transformer: str | None) -> nn.Module:
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

    undo.callback(network.register_forward_pre_hook(called).remove)
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
        _contexts_reach_all(network)
        _set_cache_context(network, CacheContext("inference"))
        return call(*args, **kwargs)

    return generate


def _wrapped(pipeline: Any, schedules: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """What a helper of SmoothCache is made from: blocks, their classes, one part of them, its schedule.

    Only blocks that have the part: SD3's last one has None for it, on which SmoothCache fails.
    """
    network = next(iter(find_networks(pipeline).values()))
    lists = {name: blocks for name, blocks in network.named_children() if isinstance(blocks, nn.ModuleList)}
    if all(isinstance(steps, list) for steps in schedules.values()):  # SmoothCache's own form, for any list
        schedules = dict.fromkeys(lists, schedules)
    for name, schedule in schedules.items():
        if name not in lists:
            raise EngineError(f"the schedule is for {name}, and {type(network).__name__} has {', '.join(lists)}")
        for part in sorted({key.partition("-")[0] for key in schedule}):
            having = {str(i): block for i, block in enumerate(lists[name]) if getattr(block, part, None) is not None}
            yield nn.ModuleDict(having), list({type(block) for block in having.values()}), [part], schedule


def _contexts_reach_all(network: nn.Module) -> None:
    """Let the names of guidance branches reach hooks that were set after a generation, as `enable_cache` does."""
    for module in network.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook._child_registries_cache = None


@contextmanager
def _as_before(pipeline: Any) -> Iterator[None]:
    """Give the networks' modules back what they were called through, and the order of their children: cache-dit puts
    the lists of blocks that it replaced for a call behind the others, and who goes by order then goes wrong."""
    modules = [module for network in find_networks(pipeline).values() for module in network.modules()]
    before = [(module, dict(vars(module)), dict(module._modules), _hooks(module)) for module in modules]
    try:
        yield
    finally:
        for module, attributes, children, hooks in before:
            for name in _hooks(module) - hooks if "_diffusers_hook" in attributes else ():
                module._diffusers_hook.remove_hook(name, recurse=False)
            for name in vars(module).keys() - attributes.keys():
                del vars(module)[name]
            vars(module).update(attributes)
            module._modules.clear()
            module._modules.update(children)
        for network in find_networks(pipeline).values():
            _contexts_reach_all(network)


def _hooks(module: nn.Module) -> set[str]:
    """Names of diffusers' hooks on a module."""
    return set(module._diffusers_hook.hooks) if hasattr(module, "_diffusers_hook") else set()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hush what cache-dit reports of itself on the standard output, where results stand."""
    names = [name for name in logging.root.manager.loggerDict if name.lower().startswith("cache_dit")]
    loggers = [logging.getLogger(name) for name in names]
    with ExitStack() as undo:
        for one in loggers:
            undo.callback(one.setLevel, one.level)
            one.setLevel(logging.ERROR)
        yield

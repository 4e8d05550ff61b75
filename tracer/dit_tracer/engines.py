"""Other engines put to work on a pipeline by an exported file, and undone when the block ends."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dit_formats.plan import PlanError
from torch import nn

from dit_tracer.recording.sites import find_networks

NEEDS = 'this needs {}, which is not installed; pip install "ditscope[trace,replay]"'


@contextmanager
def cache_dit(pipeline: Any, text: str) -> Iterator[None]:
    """cache-dit, as this content of its YAML file says.

    Raises:
        PlanError: It is not installed, or refuses the file or the pipeline.
    """
    try:
        import cache_dit as engine
    except ModuleNotFoundError as error:
        raise PlanError(NEEDS.format(error.name)) from None
    configs = _cache_dit_configs(engine, text)
    with _quiet("CACHE_DIT"), _as_before(pipeline):
        try:
            engine.enable_cache(pipeline, **{name: value for name, value in configs.items() if value is not None})
        except (ValueError, AssertionError, TypeError) as error:
            raise PlanError(f"cache-dit refuses {type(pipeline).__name__}: {error}") from None
        try:
            yield
        finally:
            engine.disable_cache(pipeline)


@contextmanager
def diffusers(pipeline: Any, text: str) -> Iterator[None]:
    """A cache of diffusers, as this content of a file of the targets `diffusers...` says.

    Raises:
        PlanError: The installed diffusers does not have it, or the file is for another network.
    """
    content = json.loads(text)
    network = _network_of(pipeline, content["transformer"])
    engines: dict[str, Callable[..., None]] = {"mag_cache": _mag_cache}
    with _as_before(pipeline):
        engines[content["engine"]](network, content)
        yield


ENGINES: dict[str, Callable[[Any, str], AbstractContextManager[None]]] = {
    "cache-dit": cache_dit,
    "diffusers": diffusers,
}
"""By name of the target."""


def _cache_dit_configs(engine: Any, text: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, _quiet("CACHE_DIT"):
        file = Path(folder) / "plan.yaml"
        file.write_text(text)
        try:
            return engine.load_configs(str(file))
        except Exception as error:  # of its parsers too, and it raises plain ones
            raise PlanError(f"cache-dit refuses the file: {error}") from None


def _network_of(pipeline: Any, transformer: str) -> nn.Module:
    """The pipeline's network of this class.

    Raises:
        PlanError: It has none.
    """
    networks = find_networks(pipeline).values()
    for network in networks:
        if type(network).__name__ == transformer:
            return network
    found = ", ".join(type(network).__name__ for network in networks)
    raise PlanError(f"the file is for {transformer}, and {type(pipeline).__name__} has {found}")


def _mag_cache(network: nn.Module, content: dict[str, Any]) -> None:
    try:
        from diffusers import MagCacheConfig
        from diffusers.hooks import apply_mag_cache
    except ImportError:
        raise PlanError(NEEDS.format("a diffusers with MagCache (0.37 or newer)")) from None
    apply_mag_cache(network, MagCacheConfig(**content["config"]))
    _contexts_reach_all(network)


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
def _quiet(logger: str) -> Iterator[None]:
    """Hush what an engine says about itself."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith(logger)]
    with ExitStack() as undo:
        for one in loggers:
            undo.callback(one.setLevel, one.level)
            one.setLevel(logging.ERROR)
        yield

"""What engines have in common: they may be missing or refuse, and all that they touched is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dit_tracer.recording.sites import find_networks


class EngineError(Exception):
    """An engine that is not there, or refuses a file or a pipeline; the message says which."""

    exit_code = 1


@contextmanager
def as_before(pipeline: Any) -> Iterator[None]:
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
            contexts_reach_all(network)


def _hooks(module: nn.Module) -> set[str]:
    """Names of diffusers' hooks on a module."""
    return set(module._diffusers_hook.hooks) if hasattr(module, "_diffusers_hook") else set()


def contexts_reach_all(network: nn.Module) -> None:
    """Let the names of guidance branches reach hooks that were set after a generation, as `enable_cache` does."""
    for module in network.modules():
        if hasattr(module, "_diffusers_hook"):
            module._diffusers_hook._child_registries_cache = None

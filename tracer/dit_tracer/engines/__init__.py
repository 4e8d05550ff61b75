"""Other engines put to work on a pipeline by an exported file, and undone when the block ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from dit_tracer.engines.before import EngineError
from dit_tracer.engines.cachedit import cache_dit
from dit_tracer.engines.hooks import diffusers
from dit_tracer.engines.smooth import smoothcache

__all__ = ["ENGINES", "EngineError", "cache_dit", "diffusers", "smoothcache"]

ENGINES: dict[str, Callable[..., AbstractContextManager[None]]] = {
    "cache-dit": cache_dit,
    "diffusers": diffusers,
    "diffusers-pab": diffusers,
    "diffusers-taylorseer": diffusers,
    "smoothcache": smoothcache,
}
"""By name of the target: from a pipeline and the content of its file."""

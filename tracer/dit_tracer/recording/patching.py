"""Replaces a method of a class for a while, and puts the original back whatever happens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def around(owner: Any, name: str, instance: object, watch: Callable[..., Any]) -> Iterator[None]:
    """Within the block, `instance.name(...)` runs `watch(original, ...)`, original being the bound method.

    The class is patched, not the instance: a deep copy of the instance would carry the patch along and call back into
    its model. The signature is kept, because pipelines look at that of `scheduler.step` to decide what to pass.
    """
    missing = object()
    own = vars(owner).get(name, missing)
    original = getattr(owner, name)

    @functools.wraps(original)
    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not instance:
            return original(self, *args, **kwargs)
        return watch(functools.partial(original, self), *args, **kwargs)

    setattr(owner, name, patched)
    try:
        yield
    finally:
        if own is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

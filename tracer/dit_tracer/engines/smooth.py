"""SmoothCache at work by a schedule."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

from torch import nn

from dit_tracer.engines.before import EngineError, as_before
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import find_networks


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

    with as_before(pipeline), around(type(pipeline), "__call__", pipeline, generate):
        for helper in helpers:
            helper.enable()
        yield


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

"""Counts what of a denoising network is really computed, whatever engine skips the rest of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from dit_tracer.recording.backend import eager, intercepted, native
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import Site, find_attention, find_feed_forward, find_networks


class Counted:
    """What was computed since counting began.

    Engines skip a layer by answering in its place, so that its hooks run all the same. A layer counts as evaluated when
    a module inside it ran.

    Args:
        attention: Calls of scaled dot-product attention in layers of the denoising networks; one for each evaluation
            of a layer that attends without it, as linear attention does.
        feed_forward: Evaluations of feed-forward networks beside attention layers.
        by_step: Calls of attention, by step.
        by_layer: Evaluations by step of each layer that ran; layers of attention and of type `ff`.
        attention_layers: Those of them that attend.
    """

    def __init__(self) -> None:
        self.attention = 0
        self.feed_forward = 0
        self.by_step: list[int] = []
        self.by_layer: dict[str, list[int]] = {}
        self.attention_layers: list[str] = []
        self._step, self._called = 0, False
        self._open: list[_Visit] = []
        self._calls: defaultdict[int, int] = defaultdict(int)
        self._visits: dict[str, defaultdict[int, int]] = {}

    def computed(self, layer: str) -> list[bool]:
        """Whether a layer was evaluated, by step."""
        return [count > 0 for count in self.by_layer.get(layer, [0] * len(self.by_step))]

    def _enter(self, site: Site) -> None:
        self._open.append(_Visit(site))

    def _leave(self) -> None:
        visit = self._open.pop()
        if visit.evaluated and visit.site.type != "ff":
            self._calls[self._step] += visit.calls or 1

    def _works(self, site: Site) -> None:
        visit = self._open[-1] if self._open else None
        if visit is not None and visit.site is site and not visit.evaluated:
            visit.evaluated = True
            self._visits.setdefault(site.name, defaultdict(int))[self._step] += 1

    def _attended(self) -> None:
        """A call of attention; those of text encoders are in no layer."""
        if self._open:
            self._open[-1].calls += 1

    def _network_called(self) -> None:
        self._called = True

    def _stepped(self) -> None:
        """The scheduler made a step; one that asks twice what comes of one prediction made one."""
        self._step += self._called
        self._called = False

    def _close(self, layers: list[Site]) -> None:
        """Lay out by step what was counted."""
        steps = range(self._step)
        self.by_step = [self._calls[step] for step in steps]
        self.by_layer = {
            site.name: [self._visits[site.name][step] for step in steps] for site in layers if site.name in self._visits
        }
        self.attention = sum(self.by_step)
        self.attention_layers = [site.name for site in layers if site.type != "ff" and site.name in self.by_layer]
        self.feed_forward = sum(sum(self.by_layer.get(site.name, ())) for site in layers if site.type == "ff")


class _Visit:
    """One call of a layer: whether anything inside it ran, and how often it attended."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.evaluated = False
        self.calls = 0


@contextmanager
def counting(pipeline: Any) -> Iterator[Counted]:
    """Count within the block, whose numbers are there when it has ended; the pipeline is left as it was.

    Example:
        with counting(pipeline) as counted:
            pipeline("a fox")
        counted.attention, counted.by_step
    """
    networks = find_networks(pipeline)
    attention = find_attention(networks)
    layers = attention + find_feed_forward(networks, attention)
    counted = Counted()
    with ExitStack() as undo:
        undo.enter_context(eager())
        undo.enter_context(native(site.module for site in attention))
        undo.enter_context(intercepted(lambda *_: counted._attended()))
        undo.enter_context(around(type(pipeline.scheduler), "step", pipeline.scheduler, _after(counted._stepped)))
        for network in networks.values():
            undo.callback(network.register_forward_pre_hook(lambda *_: counted._network_called()).remove)
        for site in layers:
            for hook in _watched(counted, site):
                undo.callback(hook.remove)
        try:
            yield counted
        finally:
            counted._close(layers)


def _watched(counted: Counted, site: Site) -> Iterator[Any]:
    """Hooks that open and close a visit of a layer, and one on each module inside it that does the work."""
    yield site.module.register_forward_pre_hook(lambda *_: counted._enter(site))
    yield site.module.register_forward_hook(lambda *_: counted._leave(), always_call=True)
    for module in site.module.modules():
        if module is not site.module and not any(True for _ in module.children()):
            yield module.register_forward_pre_hook(lambda *_: counted._works(site))


def _after(act: Callable[[], None]) -> Callable[..., Any]:
    """For `around`: runs the original, then acts."""

    def watch(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        act()
        return result

    return watch

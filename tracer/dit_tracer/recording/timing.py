"""Times one generation that nobody records: seconds of a step, and in it of every layer and of what it is made of.

Hooks mark the time before and after a module. On a GPU a mark is an event in its queue, read when all is done, so that
nothing waits; the CPU's clock would tell how fast kernels are launched.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from dit_formats.schema import TIMED, Timing
from torch import nn

from dit_tracer.recording.patching import around
from dit_tracer.recording.settings import What
from dit_tracer.recording.sites import Site, find_attention, find_feed_forward, find_networks

PROJECTIONS = {
    "q": ("to_q", "q_proj", "q_linear", "add_q_proj"),
    "k": ("to_k", "k_proj", "add_k_proj"),
    "v": ("to_v", "v_proj", "add_v_proj"),
}
NORMS = {
    "q": ("norm_q", "q_norm", "norm_added_q"),
    "k": ("norm_k", "k_norm", "norm_added_k"),
    "v": ("norm_v", "v_norm", "norm_added_v"),
}
"""Names of the parts of an attention module that make Q, K and V, where each has its own."""


class _Warm(BaseException):
    """A first step is done. No `Exception`, for pipelines may catch those."""


def timed(pipeline: Any, generate: Callable[[], Any], what: What) -> Timing:
    """How long a generation takes, the second after a step to warm up.

    Args:
        generate: Makes the generation; called twice, and stopped early the first time.
        what: What is recorded of the others. With kind `f`, feed-forward networks are layers; else their time is told
            with the attention layer before them in the same block.

    Raises:
        LookupError: The device is neither a CPU nor a CUDA GPU, or no step was made.
    """
    networks = find_networks(pipeline)
    device = getattr(pipeline, "_execution_device", None) or next(next(iter(networks.values())).parameters()).device
    if device.type not in ("cpu", "cuda"):
        raise LookupError(f"--time knows the clocks of CPUs and CUDA GPUs, and this is {device.type}; leave it out")
    sites = find_attention(networks, what.attention)
    apart = "f" in what.kinds_for(networks)
    stopwatch = Stopwatch(pipeline, networks, sites, find_feed_forward(networks, sites), apart, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            with around(type(pipeline.scheduler), "step", pipeline.scheduler, _one_step):
                generate()
        except _Warm:
            pass
        with stopwatch:
            generate()
    return stopwatch.timing()


def _one_step(step: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    step(*args, **kwargs)
    raise _Warm


class Stopwatch:
    """Within a `with` block, times the steps of a pipeline and the modules of its networks.

    A step is what `Clock` takes for one: it ends when the pipeline has called its scheduler, if it called a network
    before; the next begins there, and the first with the first call of a network.
    """

    def __init__(
        self,
        pipeline: Any,
        networks: dict[str, nn.Module],
        attention: list[Site],
        feed_forward: list[Site],
        apart: bool,
        device: torch.device,
    ) -> None:
        self._scheduler = pipeline.scheduler
        self._networks, self._attention, self._feed_forward = networks, attention, feed_forward
        self._apart = apart
        self._device, self._cuda = device, device.type == "cuda"
        self._ends: list[Any] = []
        self._called = False
        self._layers: list[str] = []
        self._latest: dict[str, str] = {}
        self._open: list[Any] = []
        self._spans: dict[tuple[str, str], list[tuple[int, Any, Any]]] = defaultdict(list)

    def __enter__(self) -> Stopwatch:
        with ExitStack() as undo:
            undo.enter_context(around(type(self._scheduler), "step", self._scheduler, self._on_step))
            for network in self._networks.values():
                undo.callback(network.register_forward_pre_hook(self._on_network).remove)
            for site in self._attention:
                self._watch(undo, site.module, partial(self._after_layer, site.name, "a"))
                for part, kind in _parts(site.module):
                    self._watch(undo, part, partial(self._after, site.name, kind))
            for site in self._feed_forward:
                self._watch(undo, site.module, partial(self._after_feed_forward, site.name))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def timing(self) -> Timing:
        """Seconds of every step, and of every layer the median over the steps in which it ran."""
        if len(self._ends) < 2:
            raise LookupError("--time saw no step of the scheduler; leave it out")
        if self._cuda:
            torch.cuda.synchronize(self._device)
        steps = np.array([self._seconds(*pair) for pair in zip(self._ends, self._ends[1:])])
        layers = {kind: np.array([self._median(name, kind) for name in self._layers]) for kind in TIMED}
        return Timing({kind: found for kind, found in layers.items() if not np.isnan(found).all()}, steps)

    def _median(self, layer: str, kind: str) -> float:
        by_step: dict[int, float] = defaultdict(float)
        for step, start, end in self._spans.get((layer, kind), ()):
            by_step[step] += self._seconds(start, end)
        return float(np.median(list(by_step.values()))) if by_step else float("nan")

    def _seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self._cuda else end - start

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    # Hooks -------------------------------------------------------------------

    def _watch(self, undo: ExitStack, module: nn.Module, after: Callable[..., None]) -> None:
        undo.callback(module.register_forward_pre_hook(self._before).remove)
        undo.callback(module.register_forward_hook(after).remove)

    def _on_network(self, network: nn.Module, args: Any) -> None:
        self._called = True
        if not self._ends:
            self._ends.append(self._mark())

    def _on_step(self, step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        if self._called:
            self._ends.append(self._mark())
        self._called = False
        return result

    def _before(self, module: nn.Module, args: Any) -> None:
        self._open.append(self._mark())

    def _after(self, layer: str, kind: str, module: nn.Module, args: Any, output: Any) -> None:
        self._spans[layer, kind].append((len(self._ends), self._open.pop(), self._mark()))

    def _after_layer(self, layer: str, kind: str, *hooked: Any) -> None:
        self._after(layer, kind, *hooked)
        self._latest[layer.rpartition(".")[0]] = layer
        if layer not in self._layers:
            self._layers.append(layer)

    def _after_feed_forward(self, name: str, *hooked: Any) -> None:
        if self._apart:
            self._after_layer(name, "f", *hooked)
            return
        block = name.rpartition(".")[0]
        if block in self._latest:
            self._after(self._latest[block], "f", *hooked)
        else:
            self._open.pop()  # it comes before all attention


def _parts(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """The projections and norms of an attention module, with the kind that each is for; none if they are fused."""
    found = {} if getattr(module, "fused_projections", False) else dict(module.named_children())
    return [
        (found[name], kind)
        for kind, names in PROJECTIONS.items()
        if any(name in found for name in names)
        for name in (*names, *NORMS[kind])
        if isinstance(found.get(name), nn.Module)
    ]

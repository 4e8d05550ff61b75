"""Leaves out what a plan leaves out: the networks of a pipeline as wholes, or single layers.

In place of a module's `forward` stands a function that computes, or gives what was computed last, or predicts from the
last two. Guidance branches that the pipeline computes in calls of their own are kept apart. All is undone on exit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from dit_formats.plan import GRID, LINEAR, STEPS, Plan, PlanError
from torch import nn

from dit_tracer.recording.clock import Clock
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import Site, find_attention, find_feed_forward, find_networks
from dit_tracer.replay.kept import Kept, replaced, shapes


class Caching:
    """Within a `with` block, a pipeline's generations follow a plan, each from its start.

    Raises:
        PlanError: The plan names layers that the pipeline does not have.
    """

    def __init__(self, pipeline: Any, plan: Plan) -> None:
        self._plan = plan
        self._pipeline, self._networks = pipeline, find_networks(pipeline)
        self._clock = Clock(pipeline, self._networks)
        self._masks = self._modules()
        self._kept: dict[tuple[Any, ...], Kept] = {}
        self._calls: dict[tuple[Any, ...], int] = {}
        self.computed = 0
        self.left_out = 0

    def __enter__(self) -> Caching:
        with ExitStack() as undo:
            undo.enter_context(self._clock)
            undo.enter_context(around(type(self._pipeline), "__call__", self._pipeline, self._generate))
            for module, mask in self._masks.items():
                if not all(mask):
                    undo.callback(replaced(module, self._wrapped(module, mask)))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()
        self._kept.clear()

    def _generate(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.reset()
        return call(*args, **kwargs)

    def reset(self) -> None:
        """Back to the first step of a new generation, with nothing kept."""
        self._clock.reset()
        self._kept.clear()
        self._calls.clear()

    def _modules(self) -> dict[nn.Module, tuple[bool, ...]]:
        """The modules that may be left out, and when they are computed."""
        if self._plan.granularity == STEPS:
            return dict.fromkeys(self._networks.values(), self._plan.rows[0].compute)
        if self._plan.granularity == GRID:
            raise PlanError("a choice of noise levels leaves out no layers; it takes a run of fewer steps")
        sites = sites_of(self._networks)
        missing = [name for name in self._plan.types if name not in sites]
        if missing:
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise PlanError(f"the plan leaves out layers that the model does not have: {missing[0]}{more}")
        return {sites[name].module: self._plan.of_layer(name) for name in self._plan.types}

    def _wrapped(self, module: nn.Module, mask: tuple[bool, ...]) -> Callable[..., Any]:
        forward, linear = module.forward, self._plan.predictor == LINEAR

        @functools.wraps(forward)
        def cached(*args: Any, **kwargs: Any) -> Any:
            step = min(self._clock.step, len(mask) - 1)
            key = module, self._clock.network, self._clock.branches
            place = self._calls[key, step] = self._calls.get((key, step), -1) + 1
            kept = self._kept.setdefault((*key, place), Kept())
            like = shapes((args, kwargs))
            if not mask[step] and kept.fits(like):
                self.left_out += 1
                return kept.at(self._plan.levels[step], linear)
            self.computed += 1
            output = forward(*args, **kwargs)
            kept.keep(self._plan.levels[step], output, like)
            return output

        return cached


def sites_of(networks: dict[str, nn.Module]) -> dict[str, Site]:
    """Attention layers and the feed-forward networks beside them, by name."""
    attention = find_attention(networks)
    return {site.name: site for site in (*attention, *find_feed_forward(networks, attention))}

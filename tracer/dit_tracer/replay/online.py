"""Follows a policy: what a network is given at a step decides whether the network is computed in it.

The first call of a network in a step decides; its further calls there, of other guidance halves, follow. Of halves that
it holds, the largest change counts. `model_input` is known before the network runs. For `modulated` it runs until its
first attention layer is entered, and is left there by an exception where the step is reused; what comes before that,
which is embeddings and in some networks blocks that refine the text, runs in every step. All is undone on exit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from dit_formats.plan import LINEAR, PlanError
from dit_formats.policy import MODULATED, Policy, rule_of
from torch import Tensor, nn

from dit_tracer.recording.clock import Clock
from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import Site, family_of, find_attention, find_blocks, find_networks
from dit_tracer.replay.kept import Kept, replaced, shapes


class _Leave(BaseException):
    """Leaves a network whose output is known already; no Exception, so that no network takes it for an error."""


@dataclass
class _Call:
    """A call of a network that is under way.

    Args:
        fits: Whether there is something that may stand in for its output.
    """

    network: nn.Module
    step: int
    fits: bool
    decided: bool = False


class Online:
    """Within a `with` block, a pipeline's generations follow a policy, each from its start.

    Raises:
        PlanError: A network has no stack of blocks, so that no layer's input can decide.
    """

    def __init__(self, pipeline: Any, policy: Policy) -> None:
        self._policy = policy
        self._pipeline, self._networks = pipeline, find_networks(pipeline)
        self._clock = Clock(pipeline, self._networks)
        self._entrances = self._first_layers() if policy.signal == MODULATED else {}
        self._kept: dict[tuple[Any, ...], Kept] = {}
        self._calls: dict[tuple[Any, ...], int] = {}
        self._forget()

    @property
    def computed_share(self) -> float:
        """Of the steps of this generation so far."""
        return sum(self.mask) / max(len(self.mask), 1)

    def __enter__(self) -> Online:
        with ExitStack() as undo:
            undo.enter_context(self._clock)
            undo.enter_context(around(type(self._pipeline), "__call__", self._pipeline, self._generate))
            for network in self._networks.values():
                undo.callback(replaced(network, self._wrapped(network)))
            for module in self._entrances:  # before other hooks, which would see a layer begin that never ends
                hook = module.register_forward_pre_hook(self._on_layer, with_kwargs=True, prepend=True)
                undo.callback(hook.remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing of a generation is held any longer; what was decided in the last one can still be read."""
        self._undo.close()
        self._kept.clear()
        self._before = None, ()

    def _generate(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.reset()
        return call(*args, **kwargs)

    def reset(self) -> None:
        """Back to the first step of a new generation, with nothing kept."""
        self._clock.reset()
        self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self._calls.clear()
        self._rule = rule_of(self._policy)
        self._before: tuple[nn.Module | None, tuple[Tensor, ...]] = None, ()
        self._at_work: _Call | None = None
        self.mask: list[bool] = []
        """Whether each step of this generation was computed, so far."""
        self.changes: list[float] = []
        """What each step was decided by; NaN where there was nothing to compare with."""

    def _first_layers(self) -> dict[nn.Module, Site]:
        """The attention layers of every network's first block, of which the one that is entered first decides."""
        sites = find_attention(self._networks)
        found = {}
        for name, network in self._networks.items():
            blocks = find_blocks(network, sites)
            if not blocks:
                raise PlanError(f"{name} has no stack of blocks, so nothing is modulated; use model_input")
            inside = set(blocks[0].modules())
            found |= {site.module: site for site in sites if site.module in inside}
        return found

    def _wrapped(self, network: nn.Module) -> Callable[..., Any]:
        forward, linear = network.forward, self._policy.predictor == LINEAR

        @functools.wraps(forward)
        def decided(*args: Any, **kwargs: Any) -> Any:
            step = self._clock.step
            level = self._policy.levels[min(step, len(self._policy.levels) - 1)]
            key = network, self._clock.branches
            place = self._calls[key, step] = self._calls.get((key, step), -1) + 1
            kept, like = self._kept.setdefault((*key, place), Kept()), shapes((args, kwargs))
            call = self._at_work = _Call(network, step, kept.fits(like))
            try:
                if self._policy.signal != MODULATED:
                    self._decide(call, self._clock.latents)
                output = forward(*args, **kwargs)
            except _Leave:
                return kept.at(level, linear)
            finally:
                self._at_work = None
            kept.keep(level, output, like)
            return output

        return decided

    def _on_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = self._at_work
        if call is None or call.decided:
            return
        hidden = kwargs.get("hidden_states", next((v for v in args if isinstance(v, Tensor)), None))
        if hidden is None:
            raise PlanError(f"{self._entrances[module].name} was given no tensor of tokens; use model_input")
        self._decide(call, self._latent(self._entrances[module], hidden))

    def _latent(self, site: Site, hidden: Tensor) -> Tensor:
        """The latent tokens of what a layer was given, as far as the network's row tells where they stand."""
        told = site.family.type(site.path) == "single" and hidden.ndim == 3
        start = 0
        for stream, length in (told and self._clock.parts(family_of(self._at_work.network), hidden.shape[1])) or ():
            if stream == "latent":
                return hidden.narrow(1, start, length)
            start += length
        return hidden

    def _decide(self, call: _Call, signal: Any) -> None:
        """Settle whether the step is computed, if this is its first call; leave the network if it need not run.

        Raises:
            _Leave: It need not.
        """
        call.decided = True
        if call.step >= len(self.mask):
            now = _halves(signal, len(self._clock.branches))
            network, before = self._before
            known = call.fits and network is call.network
            self.changes.append(largest_change(before, now) if known else float("nan"))
            self.mask.append(self._rule.computes(call.step, self.changes[-1]))
            self._before = call.network, now
        if call.fits and not self.mask[call.step]:
            raise _Leave


def largest_change(before: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> float:
    """The largest of mean |now - before| / mean |before| over pairs of tensors; NaN where they cannot be compared."""
    if len(before) != len(now) or any(one.shape != other.shape for one, other in zip(before, now)):
        return float("nan")
    found = [_change(one, other) for one, other in zip(before, now)]
    return float(torch.stack(found).max()) if found else float("nan")


def _change(before: Tensor, now: Tensor) -> Tensor:
    before, now = before.float(), now.float()
    return (now - before).abs().mean() / before.abs().mean()


def _halves(signal: Any, parts: int) -> tuple[Tensor, ...]:
    """A copy of the signal by guidance half, which stand along the batch; a batch may be a list of its elements."""
    whole = list(signal) if isinstance(signal, (list, tuple)) else list(signal.chunk(parts))
    return tuple(part.detach().clone() for part in whole)

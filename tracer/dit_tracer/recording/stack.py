"""Picks up what passes through a network as a whole: the states between its blocks, its input and its prediction.

These are what other caching methods calibrate on: TeaCache the first block's modulated input, MagCache the residual of
the whole stack, FBCache the state after the first block, Delta-DiT states at block boundaries, EasyCache input and
prediction. Of blocks that carry text along, the latent tokens alone are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from dit_tracer.recording.capture import ENCODER, Capture
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.sites import Site, UnsupportedError, family_of, find_blocks, module_tree

SITES = ("model_input", "input", "modulated", "first", "middle", "last", "residual", "prediction")


class Stack:
    """Within a `with` block, hands the states of every call of a network to `sink`, by the name of the place.

    Args:
        boundaries: Paths of further blocks whose output is recorded, under their path.
    """

    def __init__(
        self,
        networks: dict[str, nn.Module],
        capture: Capture,
        clock: Clock,
        sink: Callable[[str, Tensor], None],
        boundaries: tuple[str, ...] = (),
    ) -> None:
        self._networks = list(networks.values())
        self._capture = capture
        self._clock = clock
        self._sink = sink
        self._blocks = {n: find_blocks(n, capture.sites) for n in self._networks}
        self._boundaries = _named(networks, self._blocks, boundaries)
        self._paths = {module: path for n in self._networks for path, module in n.named_modules()}

    def __enter__(self) -> Stack:
        self._capture.on_layer = self._on_layer
        with ExitStack() as undo:
            undo.callback(setattr, self._capture, "on_layer", None)
            for network, blocks in self._blocks.items():
                undo.callback(network.register_forward_pre_hook(self._on_call).remove)
                for block in blocks:
                    undo.callback(block.register_forward_pre_hook(self._on_block, with_kwargs=True).remove)
                    undo.callback(block.register_forward_hook(self._after_block).remove)
                undo.callback(network.register_forward_hook(self._after_call).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _on_call(self, network: nn.Module, args: tuple[Any, ...]) -> None:
        self._network = network
        self._started = self._finished = 0
        self._first: Tensor | None = None
        self._modulated = False
        self._last_output: tuple[Any, ...] = ()
        self._place = 0
        self._emit_whole("model_input", self._clock.latents, "in_channels")

    def _on_block(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A state between two blocks is taken where the next block gets it: there it is known by its place."""
        hidden = self._batch_first(_hidden(args, kwargs))
        if self._started == 0:
            self._first = hidden.detach().clone()  # nothing tells yet which of its tokens are latent
        else:
            self._place = next((i for i, part in enumerate(self._last_output) if part is hidden), self._place)
            self._emit(hidden)
        self._started += 1

    def _after_block(self, block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._finished += 1
        self._last_output = tuple(output) if isinstance(output, (tuple, list)) else (output,)
        if family_of(self._network).tokens_first:
            self._last_output = tuple(map(self._batch_first, self._last_output))
        self._last_block = block

    def _on_layer(self, site: Site, hidden: Tensor) -> None:
        if self._started == 1 and not self._modulated and self._first is not None:
            self._modulated = True
            self._sink("input", self._latent(self._first))
            self._sink("modulated", self._latent(hidden))

    def _batch_first(self, state: Any) -> Any:
        turned = family_of(self._network).tokens_first and isinstance(state, Tensor)
        return state.transpose(0, 1) if turned else state

    def _emit(self, hidden: Tensor) -> None:
        """The state after as many blocks as are done."""
        blocks = self._blocks[self._network]
        places = {"first": 1, "middle": max(len(blocks) // 2, 1)}
        names = [name for name, place in places.items() if place == self._finished]
        for name in (*names, *filter(None, [self._boundaries.get(self._last_block)])):
            self._sink(name, self._latent(hidden))

    def _after_call(self, network: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._finished and self._finished == len(self._blocks[network]):
            last = self._latent(self._last_state())
            if self._finished == 1:
                self._emit(self._last_state())
            elif self._last_block in self._boundaries:
                self._sink(self._boundaries[self._last_block], last)
            self._sink("last", last)
            self._after_stack(self._latent(self._first), last)
        prediction = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
        self._emit_whole("prediction", prediction, "out_channels")

    def _after_stack(self, first: Tensor, last: Tensor) -> None:
        """What the stack added; a last block that works over time (Latte) has frames and places the other way round."""
        first, last = (state.unflatten(0, (self._clock.batch, -1)) for state in (first, last))
        if first.shape[1] > 1 and "temporal" in self._paths[self._last_block]:
            last = last.transpose(1, 2)
        if first.shape == last.shape:
            self._sink("residual", (last - first.to(last.device)).flatten(0, 1))  # blocks may stand on several GPUs

    def _emit_whole(self, name: str, value: Any, channels: str) -> None:
        """A network's input or prediction; elements of a batch with different sizes are left out."""
        whole = _stacked(value)
        if whole is not None:
            width = getattr(getattr(self._network, "config", None), channels, None)
            self._sink(name, _as_tokens(whole, width, family_of(self._network).channel_axis))

    def _last_state(self) -> Tensor:
        """The latent tokens among what the last block returned."""
        tensors = [part for part in self._last_output if isinstance(part, Tensor) and part.ndim == 3]
        latent = self._capture.tokens(0).latent
        fitting = [part for part in tensors if part.shape[1] == latent]
        if len(fitting) == 1 or len(tensors) == 1:
            return (fitting or tensors)[0]
        return self._last_output[self._place]

    def _latent(self, hidden: Tensor) -> Tensor:
        """The latent tokens of a state that may hold text too, (batch, token, channel)."""
        hidden = hidden.flatten(2) if hidden.ndim > 3 else hidden
        tokens = self._capture.tokens(hidden.shape[1])
        return hidden.narrow(1, tokens.start, tokens.latent) if hidden.shape[1] == tokens.total else hidden


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The state that a block was given."""
    if "hidden_states" in kwargs:
        return kwargs["hidden_states"]
    tensors = [v for v in (*args, *(kwargs[k] for k in kwargs if k not in ENCODER)) if isinstance(v, Tensor)]
    return tensors[0]


def _as_tokens(tensor: Tensor, width: int | None, axis: int | None) -> Tensor:
    """A network's input or output, with `width` channels along `axis`, as (batch, token, channel)."""
    if tensor.ndim <= 3:
        return tensor if tensor.ndim == 3 else tensor.reshape(len(tensor), -1, 1)
    if axis is None:
        axis = next((place for place in (1, 2, -1) if tensor.shape[place] == width), 1)
    return tensor.movedim(axis, -1).flatten(1, -2)


def _stacked(value: Any) -> Tensor | None:
    """A batch that may come as a list of its elements (Z-Image)."""
    if isinstance(value, Tensor):
        return value
    parts = [_stacked(one) for one in value]
    alike = all(part is not None and part.shape == parts[0].shape for part in parts)
    return torch.stack(parts) if parts and alike else None


def _named(
    networks: dict[str, nn.Module], blocks: dict[nn.Module, list[nn.Module]], asked: tuple[str, ...]
) -> dict[nn.Module, str]:
    """The blocks asked for, by their path."""
    found = {}
    for path in asked:
        named = [module for network in networks.values() for p, module in network.named_modules() if p == path]
        stacks = [block for some in blocks.values() for block in some]
        if not named or any(all(module is not block for block in stacks) for module in named):
            trees = "\n".join(f"{name}:\n{module_tree(network)}" for name, network in networks.items())
            raise UnsupportedError(f"{path}: no block of the denoising stack; the modules are:\n{trees}")
        found |= dict.fromkeys(named, path)
    return found

"""Plays back what a text encoder gave: a stand-in for it, and a file for its results."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dit_tracer.recording.settings import part_now

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


@dataclass(frozen=True)
class Kept:
    """A tensor on the shelf."""

    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Shelf:
    """Tensors in a nameless temporary file: it takes no memory, and goes with the process however that ends."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()
        self._end = 0

    def put(self, tensor: Tensor) -> Kept:
        kept = Kept(self._end, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        self._file.seek(self._end)
        self._end += self._file.write(content)
        return kept

    def get(self, kept: Kept) -> Tensor:
        """The tensor as it was: on its device, laid out in memory as before."""
        content = bytearray(kept.shape.numel() * kept.dtype.itemsize)
        self._file.seek(kept.offset)
        self._file.readinto(content)
        values = torch.frombuffer(content, dtype=kept.dtype).view(kept.shape) if content else torch.empty(kept.shape)
        return torch.empty_strided(kept.shape, kept.stride, dtype=kept.dtype, device=kept.device).copy_(values)


class StandIn(nn.Module):
    """Stands in a pipeline's text encoder's place: computes each distinct input once, and plays the result back.

    Args:
        read: Which of the tensors that the encoder returns are ever read, by their place in a flat list of what it
            returns. The others (the states of all its layers, say) are kept in name only.
    """

    def __init__(self, name: str, encoder: nn.Module, read: set[int], shelf: Shelf) -> None:
        super().__init__()
        self.eval()
        for key, value in vars(encoder).items():
            if isinstance(value, PLAIN) and not key.startswith("_"):
                setattr(self, key, value)
        self.config, self.dtype, self.device = encoder.config, encoder.dtype, encoder.device
        self.stands_for = part_now(encoder)
        self._name, self._read, self._shelf = name, read, shelf
        self._encoder: tuple[nn.Module, ...] = (encoder,)  # in a tuple, for it is no part of this module
        self._away = False
        self._known: dict[bytes, Any] = {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        key = digest((args, kwargs))
        if key not in self._known:
            self._known[key] = self._computed(args, kwargs)
        return self._played(self._known[key])

    def release(self) -> None:
        """Let the encoder go; from now on only what is known is played back."""
        self._encoder = ()

    def put_away(self) -> None:
        """Move the encoder to the host, from where it is fetched for an input that is not known."""
        self._away = self.device.type != "cpu"
        try:
            self._move("cpu")
        except ValueError:  # some quantised weights cannot be moved
            self._away = False

    def _computed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._encoder:
            shapes = [tuple(value.shape) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            raise RuntimeError(
                f"{self._name} was let go when all prompts were encoded, and is asked for something else now (tensors "
                f"{shapes}); --cpu-offload group keeps it"
            )
        self._move(self.device)
        try:
            output = self._encoder[0](*args, **kwargs)
        except Exception as error:
            return f"{self._name} cannot encode this prompt: {type(error).__name__}: {error}"
        finally:
            self._move("cpu")
        leaves, form = tree_flatten(output)
        shelved = {id(leaf): self._shelf.put(leaf) for n, leaf in enumerate(leaves) if n in self._read}
        return [shelved.get(id(leaf)) or _in_name(leaf) for leaf in leaves], form

    def _played(self, stored: Any) -> Any:
        if isinstance(stored, str):
            raise RuntimeError(stored)
        leaves, form = stored
        found = {id(leaf): self._shelf.get(leaf) for leaf in leaves if isinstance(leaf, Kept)}
        return tree_unflatten([found.get(id(leaf), leaf) for leaf in leaves], form)

    def _move(self, device: torch.device | str) -> None:
        if self._away:
            self._encoder[0].to(device)


def _in_name(leaf: Any) -> Any:
    """What nothing reads: tensors without content, which give an error should they be read after all."""
    if isinstance(leaf, Tensor):
        return leaf.to("meta")
    return leaf if isinstance(leaf, PLAIN) else None


def digest(value: Any) -> bytes:
    """A hash of tensors and plain values in lists and dictionaries.

    Raises:
        TypeError: There is something else in it.
    """
    found = hashlib.sha256()
    _feed(found, value)
    return found.digest()


def _feed(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(content.flatten().view(torch.uint8).numpy())
    elif isinstance(value, (list, tuple, Mapping)):
        parts = list(value.items()) if isinstance(value, Mapping) else list(value)
        found.update(f"{len(parts)} parts".encode())
        for part in parts:
            _feed(found, part)
    elif isinstance(value, PLAIN):
        found.update(f"{value!r};".encode())
    else:
        raise TypeError(f"a text encoder was given {type(value).__name__}, which is no plain value")

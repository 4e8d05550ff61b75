"""What stands in for an output that is not computed, and how a module's own forward is replaced and put back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass
class Kept:
    """What a module returned in its last two computed calls, the later one last."""

    levels: list[float] = field(default_factory=list)
    leaves: list[list[Any]] = field(default_factory=list)
    form: Any = None
    like: tuple[Any, ...] = ()

    def keep(self, level: float, output: Any, like: tuple[Any, ...]) -> None:
        """Keep the output of a call whose arguments have these shapes."""
        self.like = like
        leaves, self.form = tree_flatten(output)
        self.levels, self.leaves = [*self.levels[-1:], level], [*self.leaves[-1:], leaves]

    def at(self, level: float, linear: bool) -> Any:
        """What stands in for the output at a level that is not computed."""
        if not linear or len(self.levels) < 2:
            return tree_unflatten(self.leaves[-1], self.form)
        (before, last), ahead = self.levels, level - self.levels[1]
        pairs = zip(*self.leaves)
        return tree_unflatten([_predicted(old, new, ahead / (last - before)) for old, new in pairs], self.form)

    def fits(self, like: tuple[Any, ...]) -> bool:
        """Whether there is something, from a call whose arguments had these shapes."""
        return bool(self.leaves) and self.like == like


def _predicted(old: Any, new: Any, ahead: float) -> Any:
    """The line through two values, prolonged; computed in float32 where their type is narrower."""
    if not isinstance(new, Tensor) or not new.is_floating_point() or old.shape != new.shape:
        return new
    wide = torch.promote_types(new.dtype, torch.float32)
    return torch.lerp(old.to(wide), new.to(wide), 1 + ahead).to(new.dtype)


def replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Put a function in place of a module's own forward; gives what undoes it."""
    own = vars(module).get("forward")
    module.forward = forward

    def undo() -> None:
        if own is None:
            del module.forward
        else:
            module.forward = own

    return undo


def shapes(value: Any) -> tuple[Any, ...]:
    """Shapes of the tensors among a call's arguments: what was kept of others may not stand in."""
    leaves, _ = tree_flatten(value)
    return tuple(leaf.shape for leaf in leaves if isinstance(leaf, Tensor))

"""Finds the networks of a pipeline that denoise, and the places in them that can be recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from torch import nn

from dit_tracer.recording.families import FAMILIES, IGNORED, PLAIN, Family, fits

ATTENTION = (Attention, MochiAttention, AttentionModuleMixin)
"""What diffusers itself takes for an attention layer (its hooks/_common.py)."""

FEED_FORWARD = ("ff", "ff_context", "ffn", "mlp", "feed_forward", "img_mlp", "txt_mlp", "ff_i", "ff_t", "audio_ff")
"""Names that diffusers' blocks give their feed-forward networks."""


class UnsupportedError(ValueError):
    """A model that cannot be recorded; the message says why."""

    exit_code = 1


class NonFiniteError(RuntimeError):
    """A generation whose predictions are not finite; there is nothing to measure in it."""


OVERFLOW = "another --dtype may help (float16 overflows where bfloat16 does not)"


@dataclass(eq=False)
class Site:
    """One layer: an attention module, or a feed-forward network of type `ff`. Its type is known once it has run."""

    name: str
    path: str
    family: Family
    module: nn.Module
    type: str = ""
    text_first: bool | None = None

    @property
    def heads(self) -> int:
        return 0 if self.type == "ff" else int(getattr(self.module, "heads", 0) or getattr(self.module, "num_heads", 0))


def find_networks(pipeline: Any) -> dict[str, nn.Module]:
    """The denoising networks of a pipeline, by the name of the component; compiled ones as they were before."""
    components = getattr(pipeline, "components", None) or vars(pipeline)
    found = {
        name: getattr(part, "_orig_mod", part)
        for name, part in components.items()
        if isinstance(part, nn.Module) and _denoises(name)
    }
    if not found:
        parts = ", ".join(name for name, part in components.items() if isinstance(part, nn.Module)) or "no networks"
        raise UnsupportedError(
            f"{type(pipeline).__name__} has no component named transformer or unet (it has {parts}); "
            "dit-trace records diffusion transformers"
        )
    return found


def _denoises(name: str) -> bool:
    """Whether a component of this name is a denoising network: `transformer`, `transformer_2`, `unet`, ..."""
    return ("transformer" in name and "text" not in name) or name in ("unet", "prior")


def family_of(network: nn.Module) -> Family:
    """The row of a network's class, or of the nearest class that it was made from."""
    return next((FAMILIES[c.__name__] for c in type(network).__mro__ if c.__name__ in FAMILIES), PLAIN)


def find_attention(networks: dict[str, nn.Module], patterns: tuple[str, ...] = ()) -> list[Site]:
    """The attention modules of the denoising stacks: those that fit `patterns`, or else those of diffusers' classes.

    Raises:
        UnsupportedError: There are none; the message shows the modules there are.
    """
    sites = []
    for name, network in networks.items():
        family = family_of(network)
        for path, module in _modules(network):
            if patterns:
                chosen = fits(path, patterns) or fits(f"{name}.{path}", patterns)
            else:
                chosen = isinstance(module, ATTENTION) or fits(path, family.attention)
                chosen = chosen and not fits(path, (*family.ignored, *IGNORED))
            if chosen and path:
                sites.append(Site(f"{name}.{path}", path, family, module, family.type(path) or ""))
    idle = [p for p in patterns if not any(fits(s.path, (p,)) or fits(s.name, (p,)) for s in sites)]
    if not sites or idle:
        trees = "\n".join(f"{name} ({type(n).__name__}):\n{module_tree(n)}" for name, n in networks.items())
        asked = f"no module fits {', '.join(idle)}" if idle else "no attention modules of diffusers' classes"
        raise UnsupportedError(
            f"{asked}; name yours with attention=['blocks.*.attn'] (--attention 'blocks.*.attn'). The modules are:\n"
            + trees
        )
    return sites


def _modules(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a network by path; those that torch.compile has wrapped, by the path they had before."""
    for path, module in network.named_modules():
        if not hasattr(module, "_orig_mod"):
            yield path.replace("._orig_mod", ""), module


def find_aside(network: nn.Module) -> list[nn.Module]:
    """Modules that prepare a text or a reference: what attends in them is no layer."""
    patterns = (*family_of(network).ignored, *IGNORED)
    return [module for path, module in _modules(network) if fits(path, patterns)]


def find_feed_forward(networks: dict[str, nn.Module], attention: list[Site]) -> list[Site]:
    """The feed-forward networks that stand beside recorded attention modules."""
    blocks = {site.name.rpartition(".")[0] for site in attention}
    return [
        Site(f"{name}.{path}", path, family_of(network), module, "ff")
        for name, network in networks.items()
        for path, module in _modules(network)
        if path.rpartition(".")[2] in FEED_FORWARD and f"{name}.{path}".rpartition(".")[0] in blocks
    ]


def find_blocks(network: nn.Module, attention: list[Site]) -> list[nn.Module]:
    """The blocks of the denoising stack: the lists of a network in which every block holds a recorded layer.

    A U-Net has none: its states change their size on the way.
    """
    inside = {id(site.module) for site in attention}
    lists = [module for name, module in network.named_children() if _is_stack(name, module)]
    whole = [blocks for blocks in lists if all(any(id(m) in inside for m in block.modules()) for block in blocks)]
    return [block for blocks in whole for block in blocks] if not hasattr(network, "down_blocks") else []


def _is_stack(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) > 0 and "refiner" not in name and "vace" not in name


def module_tree(network: nn.Module, most: int = 40) -> str:
    """The modules of a network by path and class, equal blocks in one line: `blocks.0-27.attn (Attention)`."""
    lines = [f"  {path} ({name})" for path, name in _collapsed(network)]
    more = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)


def _collapsed(module: nn.Module, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    children = [(name, type(child).__name__, child) for name, child in module.named_children()]
    for kind, run in groupby(children, key=lambda c: (c[1], c[0].isdigit(), repr(c[2]) if c[0].isdigit() else c[0])):
        same = list(run)
        first, *rest = [name for name, _, _ in same]
        path = f"{prefix}{first}-{rest[-1]}" if rest else f"{prefix}{first}"
        yield path, kind[0]
        if depth < 3:
            yield from _collapsed(same[0][2], f"{path}.", depth + 1)

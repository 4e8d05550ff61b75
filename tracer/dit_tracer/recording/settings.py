"""Says how a generation was made: what must be equal within a trace, and what may differ."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from dit_formats.schema import KINDS

from dit_tracer.recording.history import HELD, PREVIOUS
from dit_tracer.recording.sampling import MIX, RULE
from dit_tracer.recording.sites import family_of

ALL_KINDS = ("q", "k", "v", "o", "a", "f")

PLAIN = (torch.Tensor, torch.nn.Parameter)

PACKAGES = ("ditscope", "torch", "diffusers", "transformers", "numpy", "h5py")


@dataclass(frozen=True)
class Sample:
    """How many values of an activation are kept, per stream, and the seed of their positions.

    Args:
        pilot: A hash of how a pilot allotted the positions to channels; empty where all channels have as many.
    """

    latent: int = 4096
    text: int = 1024
    seed: int = 0
    pilot: str = ""

    def size(self, stream: str) -> int:
        return self.text if stream == "text" else self.latent

    def as_settings(self) -> dict[str, Any]:
        rule = {"rule": MIX, "pilot": self.pilot} if self.pilot else {"rule": RULE}
        return rule | {"latent": self.latent, "text": self.text, "seed": self.seed}


@dataclass(frozen=True)
class What:
    """What is recorded.

    Args:
        kinds: Of q, k, v, o (heads before the output projection), a, f (feed-forward output); by default k, v, a, and
            for Mochi also o, which is what the paper took for its A.
        stack: Whether to record the states between the blocks, and the network's input and prediction.
        boundaries: Further blocks, by path, whose output is recorded with the stack.
        halves: Whether to record the dot product of the two guidance branches.
        step_pairs: Pairs of steps of which to record the dot product.
        attention: Patterns over module paths, for networks whose attention modules are not of diffusers' classes.
        previous: Where the step before is kept for exact changes: `device`; `host`, in pinned memory; or `subset`, for
            changes over a part of the elements (`history.HELD` of each activation) where memory allows no more.
    """

    kinds: tuple[str, ...] | None = None
    stack: bool = True
    boundaries: tuple[str, ...] = ()
    halves: bool = False
    step_pairs: tuple[tuple[int, int], ...] = ()
    attention: tuple[str, ...] = ()
    previous: str = "device"

    def __post_init__(self) -> None:
        if isinstance(self.kinds, str):
            object.__setattr__(self, "kinds", tuple(self.kinds.split(",")))
        for name in ("attention", "boundaries"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        unknown = set(self.kinds or ()) - set(ALL_KINDS)
        if unknown:
            raise ValueError(f"kinds {', '.join(sorted(unknown))}: unknown; there are {', '.join(ALL_KINDS)}")
        if self.previous not in PREVIOUS:
            raise ValueError(f"previous {self.previous!r}: give one of {', '.join(PREVIOUS)}")
        if self.previous == "subset" and self.halves:
            raise ValueError("products of the halves need whole activations; keep the step before on device or host")
        object.__setattr__(self, "step_pairs", tuple(tuple(sorted(pair)) for pair in self.step_pairs))
        for first, second in self.step_pairs:
            if first < 0 or first == second:
                raise ValueError(f"step pair {first}:{second}: give two different steps, counted from 0")

    def kinds_for(self, networks: dict[str, Any]) -> tuple[str, ...]:
        """The kinds to record of these networks, in a fixed order."""
        further = {kind for network in networks.values() for kind in family_of(network).kinds}
        asked = set(self.kinds or {*KINDS, *further})
        return tuple(kind for kind in ALL_KINDS if kind in asked)

    def as_settings(self, kinds: tuple[str, ...]) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("stack", "boundaries", "halves", "step_pairs", "attention")}
        part = {"transitions": f"subset of {HELD}"} if self.previous == "subset" else {}
        return as_json(named | {"kinds": kinds} | part)


def describe(pipeline: Any, transformers: dict[str, Any], model: str, sample: Sample) -> dict[str, Any]:
    """What decides the numbers of a trace, but for the arguments of the call."""
    return {
        "model": model,
        "pipeline": type(pipeline).__name__,
        **networks_now(pipeline, transformers),
        "guider": guider_of(pipeline),
        "scheduler": {"class": type(pipeline.scheduler).__name__, "config": _plain(pipeline.scheduler.config)},
        "attention": "native",
        "sample": sample.as_settings(),
    }


def _parts(pipeline: Any, networks: dict[str, Any]) -> dict[str, Any]:
    """The other networks of a pipeline that decide its numbers: not what only decodes or judges a finished picture."""
    encodes = "image" in inspect.signature(type(pipeline).__call__).parameters
    return {
        name: part_now(part)
        for name, part in sorted(getattr(pipeline, "components", {}).items())
        if isinstance(part, torch.nn.Module) and name not in networks and name != "safety_checker"
        if encodes or not name.startswith(("vae", "vocoder", "audio_vae"))
    }


def part_now(part: Any) -> dict[str, Any]:
    """What a part is at this moment; of one that stands for another, what that other was."""
    part = getattr(part, "_orig_mod", part)
    stands_for = vars(part).get("stands_for")
    return stands_for or {
        "class": type(part).__name__,
        "dtype": str(getattr(part, "dtype", None)).removeprefix("torch."),
        "weights": fingerprint(part),
    }


def networks_now(pipeline: Any, networks: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline's networks, their weights and their precision are at this moment."""
    return {
        "transformers": {
            name: {"class": type(part).__name__, "config": _config(part), "weights": fingerprint(part)}
            for name, part in networks.items()
        },
        "parts": _parts(pipeline, networks),
        "dtype": "+".join(dict.fromkeys(str(_dtype(part)).removeprefix("torch.") for part in networks.values())),
    }


def comparable(found: dict[str, Any], asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both settings without what one of them does not know: parts that are not there, weights that are elsewhere."""
    pair = json.loads(json.dumps([found, asked]))
    for name in ("parts", "guider"):
        if any(name not in one for one in (found, asked)):
            for one in pair:
                one.pop(name, None)
    for group in ("parts", "transformers"):
        old, new = (one.get(group) for one in pair)
        if isinstance(old, dict) and isinstance(new, dict):
            for name in {*old, *new} if group == "parts" else ():
                if name not in old or name not in new:
                    old.pop(name, None), new.pop(name, None)
            for name in {*old} & {*new}:
                if None in (old[name].get("weights"), new[name].get("weights")):
                    old[name].pop("weights", None), new[name].pop("weights", None)
    return pair[0], pair[1]


def guider_of(pipeline: Any) -> dict[str, Any] | None:
    guider = getattr(pipeline, "guider", None)
    return None if guider is None else {"class": type(guider).__name__, "config": _config(guider)}


def fingerprint(module: Any) -> str | None:
    """A hash of a few numbers of every weight: two trainings of one architecture are two models.

    None where the weights are elsewhere just now, as sequential offloading and group offloading to disk keep them.
    """
    weights = [weight for weight in module.state_dict().values() if isinstance(weight, torch.Tensor)]
    if any(weight.is_meta for weight in weights) or _on_disk(module):
        return None
    found = hashlib.sha256(_values([_some_values(weight) for weight in weights]))
    found.update("".join((*adapter_scales(module), *_quantised(weights))).encode())
    return found.hexdigest()[:16]


def _on_disk(module: Any) -> bool:
    """Whether weights are in files of group offloading; their tensors then hold whatever the memory held."""
    registries = (getattr(part, "_diffusers_hook", None) for part in module.modules())
    hooks = (registry.get_hook("group_offloading") for registry in registries if registry is not None)
    return any(hook is not None and hook.group.offload_to_disk_path for hook in hooks)


def adapter_scales(module: Any) -> Iterator[str]:
    """How strongly adapters act (LoRA, IP-Adapter), which is in no weight."""
    for part in module.modules():
        if isinstance(vars(part).get("scaling"), dict) and not getattr(part, "disable_adapters", False):
            yield repr([(name, part.scaling.get(name)) for name in part.active_adapters])
        elif "IPAdapter" in type(part).__name__:
            yield repr(vars(part).get("scale"))


def _quantised(weights: list[Any]) -> list[str]:
    """How weights are stored that are no plain tensors; one quantisation may compute in several ways."""
    return sorted({type(weight).__name__ for weight in weights if type(weight) not in PLAIN})


def _some_values(weight: torch.Tensor) -> torch.Tensor:
    """Eight values of a weight or fewer; of a quantised one, of what it stands for."""
    plain = weight.detach() if weight.requires_grad else weight
    if type(plain) not in PLAIN and hasattr(plain, "dequantize"):
        plain = plain.dequantize()
    stride = max(1, plain.numel() // 8)
    if not plain.is_contiguous():
        return plain.flatten()[::stride][:8]
    return plain.as_strided((min(8, -(-plain.numel() // stride)),), (stride,))


def _values(few: list[torch.Tensor]) -> bytes:
    """Values of all these tensors in float64, one after the other.

    They are gathered where they are, because a GPU is waited for at every transfer, and a network has 2000 weights.
    """
    groups: dict[Any, list[int]] = {}
    for place, values in enumerate(few):
        groups.setdefault((values.device, values.dtype), []).append(place)
    found = [b""] * len(few)
    for places in groups.values():
        together, end = torch.cat([few[place] for place in places]).double().cpu().numpy().tobytes(), 0
        for place in places:
            start, end = end, end + 8 * len(few[place])
            found[place] = together[start:end]
    return b"".join(found)


def _config(part: Any) -> dict[str, Any]:
    """Configuration of a network; one that is no model of diffusers need not have any."""
    return _plain(getattr(part, "config", {}))


def _dtype(part: Any) -> torch.dtype:
    return getattr(part, "dtype", None) or next(part.parameters()).dtype


def provenance(num_prompts: int | None, device: str, parameters: int | None = None) -> dict[str, Any]:
    """What made a shard."""
    return {
        "device": device,
        "versions": {name: _version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "num_prompts": num_prompts,
        "parameters": parameters,
    }


def count_parameters(networks: dict[str, Any]) -> int | None:
    """How many parameters the transformers have together; None where tensors do not tell: quantised, or on disk."""
    weights = [weight for network in networks.values() for weight in network.parameters()]
    if _quantised(weights) or any(map(_on_disk, networks.values())):
        return None
    return sum(weight.numel() for weight in weights)


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers configuration without private entries, as JSON would give it back."""
    return as_json({key: value for key, value in dict(config).items() if not key.startswith("_")})


def as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file: tuples are lists, and infinity, which JSON does not know, is a word."""
    return json.loads(json.dumps(values, default=str), parse_constant=str)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

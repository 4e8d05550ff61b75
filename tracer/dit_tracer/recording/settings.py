"""Says how a generation was made: what must be equal within a trace, and what may differ."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from dit_formats.schema import KINDS

from dit_tracer.recording.sampling import RULE

PACKAGES = ("ditscope", "torch", "diffusers", "transformers", "numpy", "h5py")


@dataclass(frozen=True)
class Sample:
    """How many values of an activation are kept, per stream, and the seed of their positions."""

    latent: int = 4096
    text: int = 1024
    seed: int = 0

    def size(self, stream: str) -> int:
        return self.latent if stream == "latent" else self.text


def describe(pipeline: Any, transformers: dict[str, Any], model: str, sample: Sample) -> dict[str, Any]:
    """What decides the numbers of a trace, but for the arguments of the call."""
    return {
        "model": model,
        "pipeline": type(pipeline).__name__,
        "transformers": {
            name: {"class": type(part).__name__, "config": _plain(part.config), "weights": fingerprint(part)}
            for name, part in transformers.items()
        },
        "scheduler": {"class": type(pipeline.scheduler).__name__, "config": _plain(pipeline.scheduler.config)},
        "dtype": str(next(iter(transformers.values())).dtype).removeprefix("torch."),
        "attention": "native",
        "kinds": list(KINDS),
        "sample": {"rule": RULE, "latent": sample.latent, "text": sample.text, "seed": sample.seed},
    }


def fingerprint(module: Any) -> str | None:
    """A hash of a few numbers of every weight: two trainings of one architecture are two models.

    None where the weights are elsewhere just now, as sequential offloading keeps them.
    """
    weights = list(module.state_dict().values())
    if any(weight.is_meta for weight in weights):
        return None
    few = [weight.detach().flatten()[:: max(1, weight.numel() // 8)][:8].double() for weight in weights]
    return hashlib.sha256(torch.cat(few).cpu().numpy().tobytes()).hexdigest()[:16]


def call_settings(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call that are plain values, defaults included, but for the prompt and the output."""
    bound = inspect.signature(generate).bind(*args, **kwargs)
    bound.apply_defaults()
    left_out = ("prompt", "output_type", "return_dict", "callback", "generator")
    kept = {
        name: value
        for name, value in bound.arguments.items()
        if not name.startswith(left_out) and "embeds" not in name and _is_plain(value)
    }
    return _as_json(kept)


def provenance(num_prompts: int | None, device: str) -> dict[str, Any]:
    """What made a shard."""
    return {
        "device": device,
        "versions": {name: _version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "num_prompts": num_prompts,
    }


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers configuration without private entries, as JSON would give it back."""
    return _as_json({key: value for key, value in dict(config).items() if not key.startswith("_")})


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they come back from a file: tuples are lists, and infinity, which JSON does not know, is a word."""
    return json.loads(json.dumps(values, default=str), parse_constant=str)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

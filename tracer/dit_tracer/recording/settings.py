"""Says how a generation was made: what must be equal within a trace, and what may differ."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
            name: {"class": type(part).__name__, "config": _plain(part.config)} for name, part in transformers.items()
        },
        "scheduler": {"class": type(pipeline.scheduler).__name__, "config": _plain(pipeline.scheduler.config)},
        "dtype": str(next(iter(transformers.values())).dtype).removeprefix("torch."),
        "attention": "native",
        "kinds": list(KINDS),
        "sample": {"rule": RULE, "latent": sample.latent, "text": sample.text, "seed": sample.seed},
    }


def call_settings(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call that are plain values, defaults included, but for the prompt and the output."""
    bound = inspect.signature(generate).bind(*args, **kwargs)
    bound.apply_defaults()
    left_out = ("prompt", "output_type", "return_dict", "callback", "generator")
    return {
        name: value
        for name, value in bound.arguments.items()
        if not name.startswith(left_out) and "embeds" not in name and _is_plain(value)
    }


def provenance(num_prompts: int | None) -> dict[str, Any]:
    """What made a shard."""
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "num_prompts": num_prompts,
    }


def _plain(config: Any) -> dict[str, Any]:
    """A diffusers configuration without private entries, as JSON would give it back."""
    public = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return json.loads(json.dumps(public, default=str), parse_constant=str)  # JSON knows no infinity


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None

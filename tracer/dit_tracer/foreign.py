"""Recognises the configuration of a cache, this project's own or another tool's, and what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGEST = 1 << 24
"""Bytes that a configuration may have."""

MOST_STEPS = 1000

CACHES = ("first_block_cache", "mag_cache", "pyramid_attention_broadcast", "taylorseer")
"""Caches of diffusers that `dit_tracer.engines` can put to work."""

KNOWN = (
    "cache-dit YAML or JSON, arguments of diffusers' MagCacheConfig, TaylorSeerCacheConfig, FirstBlockCacheConfig or "
    "PyramidAttentionBroadcastConfig as JSON, SmoothCache JSON, an SGLang DPCache schedule, or a plan of dit-analyze"
)


class ConfigError(Exception):
    """A file that is no configuration which is known; the message says which are."""

    exit_code = 1


@dataclass(frozen=True)
class Config:
    """A configuration of a cache.

    Args:
        kind: What it is, as a reader would name it.
        engine: Name of the engine that runs it; empty for what is only read.
        text: What that engine is given.
        data: What the file says.
        num_steps: Steps of the run that it is for; None if it does not say.
        mask: Whether a step is to be computed, where it says so by steps.
        adaptive: Whether a threshold on what the network computes decides.
    """

    kind: str
    engine: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    mask: tuple[bool, ...] | None = None
    adaptive: bool = False


def read(file: Path) -> Config:
    """The configuration in a file.

    Raises:
        FileNotFoundError: There is none.
        ConfigError: It is none that is known.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; give {KNOWN}")
    if file.stat().st_size > LARGEST:
        raise ConfigError(f"{file}: larger than any configuration ({file.stat().st_size} bytes); give {KNOWN}")
    try:
        text = file.read_text(encoding="utf-8")
        config = recognised(text, _parsed(text))
        steps = config.num_steps
        if steps is not None and (type(steps) is not int or not 1 <= steps <= MOST_STEPS):
            raise ValueError(f"it is for {steps!r} steps")
        return config
    except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
        raise ConfigError(f"{file}: not recognised ({' '.join(str(error).split())[:200]}); give {KNOWN}") from None


def _parsed(text: str) -> dict[str, Any]:
    """A mapping in JSON or, where PyYAML is installed, as it is with cache-dit, in YAML."""
    try:
        data = json.loads(text)
    except ValueError as problem:
        try:
            import yaml
        except ModuleNotFoundError:
            raise ValueError(f"no JSON: {problem}; YAML needs cache-dit, pip install cache-dit") from None
        try:
            data = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"neither JSON nor YAML: {error}") from None
    if not isinstance(data, dict) or not data or not all(isinstance(name, str) for name in data):
        raise ValueError("it holds no names with values")
    return data


def recognised(text: str, data: dict[str, Any]) -> Config:
    """What this content of a file is.

    Raises:
        ValueError: None that is known.
    """
    for fits, make in KINDS:
        if fits(data):
            return make(text, data)
    raise ValueError(f"it holds {', '.join(list(data)[:6])}")


def _plan(text: str, data: dict[str, Any]) -> Config:
    from dit_formats.plan import GRID, PlanError, from_data

    try:
        plan = from_data(data)
    except PlanError as error:
        raise ValueError(f"a damaged plan: {error}") from None
    if plan.granularity == GRID:
        raise ValueError("a choice of noise levels, which caches nothing; dit-trace replay runs it")
    return Config("plan of dit-analyze", "", text, data, plan.request.num_steps, tuple(map(bool, plan.steps_mask)))


def _sglang(text: str, data: dict[str, Any]) -> Config:
    steps = int(data["request"]["num_inference_steps"])
    full = set(data["full_steps"])
    return Config("SGLang DPCache schedule", "", text, data, steps, tuple(step in full for step in range(steps)))


def _diffusers(text: str, data: dict[str, Any]) -> Config:
    steps, mask = data.get("num_steps"), None
    if data["engine"] not in CACHES:
        raise ValueError(f"diffusers has no {data['engine']!r} here, but {', '.join(CACHES)}")
    if data["engine"] == "mag_cache" and data["config"].get("mag_ratios") and data["config"].get("threshold") == 0.5:
        mask = tuple(abs(ratio - 1) > 0.5 for ratio in data["config"]["mag_ratios"])  # as the target writes them
    return Config(f"diffusers {data['engine']}", "diffusers", text, data, steps, mask)


def _arguments(
    engine: str, wrap: Callable[[dict[str, Any]], dict[str, Any]]
) -> Callable[[str, dict[str, Any]], Config]:
    """For the arguments of one of diffusers' configurations, written down by somebody."""

    def make(text: str, data: dict[str, Any]) -> Config:
        content = {"engine": engine} | wrap(data)
        steps = data.get("num_inference_steps")
        adaptive = engine == "first_block_cache"
        return Config(f"diffusers {engine}", "diffusers", json.dumps(content), content, steps, adaptive=adaptive)

    return make


def _cache_dit(text: str, data: dict[str, Any]) -> Config:
    config = data.get("cache_config", data)
    mask = config.get("steps_computation_mask")
    static = config.get("steps_computation_policy") == "static" and isinstance(mask, list)
    said = tuple(step == 1 for step in mask) if static else None
    return Config("cache-dit", "cache-dit", text, config, config.get("num_inference_steps"), said, not static)


def _smoothcache(text: str, data: dict[str, Any]) -> Config:
    schedules = [data] if _is_schedule(data) else list(data.values())
    lengths = {len(steps) for schedule in schedules for steps in schedule.values()}
    return Config("SmoothCache", "smoothcache", text, data, max(lengths))


def _is_schedule(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and bool(data)
        and all(isinstance(steps, list) and steps and set(map(repr, steps)) <= {"0", "1"} for steps in data.values())
    )


def _has(*names: str) -> Callable[[dict[str, Any]], bool]:
    return lambda data: any(name in data for name in names)


KINDS: tuple[tuple[Callable[[dict[str, Any]], bool], Callable[[str, dict[str, Any]], Config]], ...] = (
    (lambda data: data.get("format") == "dit-plan", _plan),
    (lambda data: data.get("format") == "dit-diffusers", _diffusers),
    (lambda data: str(data.get("schema", "")).startswith("sglang-dpcache"), _sglang),
    (_has("cache_config", "Fn_compute_blocks", "residual_diff_threshold", "steps_computation_mask"), _cache_dit),
    (_has("mag_ratios", "retention_ratio"), _arguments("mag_cache", lambda data: {"config": data})),
    (
        lambda data: (
            isinstance(data.get("config"), dict) and "mag_ratios" in data["config"]
        ),  # as dit-analyze writes it
        lambda text, data: recognised(text, data["config"]),
    ),
    (_has("cache_interval", "cache_identifiers"), _arguments("taylorseer", lambda data: {"groups": [data]})),
    (
        _has(*(f"{kind}_attention_block_skip_range" for kind in ("spatial", "temporal", "cross"))),
        _arguments("pyramid_attention_broadcast", lambda data: {"config": data}),
    ),
    (lambda data: set(data) == {"threshold"}, _arguments("first_block_cache", lambda data: {"config": data})),
    (lambda data: _is_schedule(data) or all(map(_is_schedule, data.values())), _smoothcache),
)
"""What a file is, by the first test that it passes."""

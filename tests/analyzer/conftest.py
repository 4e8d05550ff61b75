"""Traces with states of a network, made by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dit_formats.reader import Trace, open_trace
from dit_formats.schema import STACK, Shard, StreamData
from dit_formats.writer import write_shard

SITES = ("model_input", "input", "modulated", "first", "middle", "last", "residual", "prediction")
TOKENS, CHANNELS = 4, 3

FLOW = {"class": "FlowMatchEulerDiscreteScheduler", "config": {}}
CALL = {"guidance_scale": 3.0, "num_inference_steps": 5}


def with_states(shard: Shard, states: np.ndarray | None = None, sites: tuple[str, ...] = SITES) -> Shard:
    """The shard with a stack, of states (branch, site, element, step); by default a wave with noise of its index."""
    steps = len(shard.timesteps)
    if states is None:
        rng = np.random.default_rng(shard.prompts[0].index)
        still = rng.normal(size=(2, len(sites), TOKENS * CHANNELS, 1))
        states = still + np.cos(np.arange(steps) * 1.7) * 0.2 + rng.normal(size=(*still.shape[:3], steps)) * 0.05
    x = np.asarray(states, float)[None, :, None]
    d = np.diff(x)
    norms = np.linalg.norm(x.reshape(*x.shape[:4], TOKENS, CHANNELS, steps), axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = norms[..., 1:] / norms[..., :-1]
    count = np.full((*x.shape[:4], steps), float(TOKENS * CHANNELS))
    sums = [abs(x).sum(-2), (x**2).sum(-2), abs(x).max(-2), count, count * 0]
    changes = [abs(d).sum(-2), (d**2).sum(-2), (x[..., 1:] * x[..., :-1]).sum(-2), count[..., 1:]]
    token, channel = np.divmod(np.arange(TOKENS * CHANNELS), CHANNELS)
    cell = np.ones((1, len(sites), 1), "i8")
    arrays = {
        "samples": x.astype("f4"),
        "step_sums": np.stack(sums, -2),
        "transition_sums": np.stack([*changes, ratio.mean(-2), ratio.std(-2)], -2),
        "recorded": np.ones((2, 1, len(sites), steps), "u1"),
        "token": cell * token,
        "channel": cell * channel,
        "weight": cell / len(token) * np.ones(len(token)),
        "num_tokens": cell[..., 0] * TOKENS,
        "num_channels": cell[..., 0] * CHANNELS,
    }
    stack = StreamData(("cond", "uncond"), ("x",), "float32", arrays, sites)
    return replace(shard, streams=shard.streams | {STACK: stack})


@pytest.fixture
def states() -> Callable[..., Shard]:
    return with_states


@pytest.fixture
def traced(tmp_path: Path, shard: Callable[..., Shard], states: Callable[..., Shard]) -> Callable[..., Trace]:
    """Writes and opens a trace of made-up shards, each changed in some way, with states where they are asked for."""

    def made(
        prompts: int = 1,
        change: Callable[[Shard], Shard] = lambda one: one,
        stack: bool = True,
        num_steps: int = 5,
        **settings: Any,
    ) -> Trace:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}.trace"
        folder.mkdir()
        for index in range(prompts):
            one = shard(index, steps=num_steps, **{"scheduler": FLOW, "call": CALL} | settings)
            write_shard(folder, change(states(one) if stack else one))
        return open_trace(folder)

    return made

"""What tests of several rooms build on: a small trace made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dit_formats import schema
from dit_formats.schema import Layer, Prompt, Run, Shard, StreamData
from dit_formats.writer import write_shard

STEPS, LAYERS, POSITIONS = 5, 2, 12


def make_shard(
    index: int = 0, text: str | None = None, steps: int = STEPS, positions: int = POSITIONS, **settings: object
) -> Shard:
    """A shard whose whole tensors (4 tokens, 3 channels) are sampled, with the sums that belong to them.

    Two branches, both streams; layer 1 is cross-attention: no K and V of latent, no A of text.
    """
    rng = np.random.default_rng(index)
    streams = {name: _stream(rng, name, steps, positions) for name in ("latent", "text")}
    layers = Layer("transformer.blocks.0.attn1", "self", 3), Layer("transformer.blocks.0.attn2", "cross", 3)
    return Shard(
        Run({"model": "hand-made", "scheduler": {"class": "EulerScheduler"}, **settings}, {"num_prompts": 1}),
        (Prompt(index, f"prompt {index}" if text is None else text, 42),),
        layers,
        np.linspace(999, 0, steps),
        np.linspace(1, 0.1, steps),
        streams,
    )


def _stream(rng: np.random.Generator, name: str, steps: int, positions: int) -> StreamData:
    x = rng.normal(size=(1, 2, 3, LAYERS, 12, steps)).astype("f4")
    recorded = np.zeros((2, 3, LAYERS, steps), "u1")
    recorded[:, :, 0] = name == "latent"
    recorded[:, :2, 1], recorded[:, 2, 1] = name == "text", name == "latent"
    x = np.where(recorded[None, :, :, :, None], x, np.nan).astype("f4")
    d = np.diff(x.astype("f8"), axis=-1)
    pairs = x[..., 1:].astype("f8") * x[..., :-1]
    x8 = x.astype("f8")
    count = np.where(np.isnan(x8).any(-2), np.nan, 12.0)
    step_sums = np.stack([abs(x8).sum(-2), (x8**2).sum(-2), abs(x8).max(-2), count, count * 0], axis=-2)
    transition_sums = np.stack([abs(d).sum(-2), (d**2).sum(-2), pairs.sum(-2), count[..., 1:]], axis=-2)
    token, channel = np.divmod(np.arange(positions), 3)
    cell = np.ones((3, LAYERS, 1), "i8")
    arrays = {
        "samples": x[..., :positions, :],
        "step_sums": step_sums,
        "transition_sums": transition_sums,
        "recorded": recorded,
        "token": cell * token,
        "channel": cell * channel,
        "weight": cell / max(positions, 1) * np.ones(positions),
        "num_tokens": cell[..., 0] * 4,
        "num_channels": cell[..., 0] * 3,
    }
    return StreamData(("cond", "uncond"), schema.KINDS, "float32", arrays)


@pytest.fixture
def shard() -> Callable[..., Shard]:
    return make_shard


@pytest.fixture
def trace_folder(tmp_path: Path) -> Path:
    """A trace of three prompts."""
    folder = tmp_path / "hand-made.trace"
    folder.mkdir()
    for index in range(3):
        write_shard(folder, make_shard(index))
    return folder

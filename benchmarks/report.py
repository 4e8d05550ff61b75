"""How large the report of the paper's seven models is, and how long it takes, from made-up numbers of their full size.

    python benchmarks/report.py [--prompts 8] [--json]

Traces hold statistics and a small stack, which is what a report needs; layers, steps and kinds are as many as the
published configurations have.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from dit_analyzer.members import members_of
from dit_analyzer.printed import CONFIGURED, PAPER
from dit_analyzer.report.page import page
from dit_analyzer.study import Study
from dit_formats.schema import STACK, Layer, Prompt, Run, Shard, StreamData
from dit_formats.writer import write_shard

KINDS = ("k", "v", "a")
SITES = ("model_input", "input", "modulated", "first", "middle", "last", "residual", "prediction")
ELEMENTS = 12


def shard(model: str, index: int) -> Shard:
    """A prompt of a model of full size whose curves wander."""
    rng = np.random.default_rng([index, list(PAPER).index(model)])
    layers, steps = CONFIGURED[model][0], PAPER[model].steps
    settings = {"model": model, "scheduler": {"class": "FlowMatchEulerDiscreteScheduler", "config": {}}}
    return Shard(
        Run(settings | {"call": {"num_inference_steps": steps}}, {"num_prompts": 1}),
        (Prompt(index, f"a picture of thing {index}, in some detail and good light", 42),),
        tuple(Layer(f"transformer.transformer_blocks.{n}.attn1", "self", 24) for n in range(layers)),
        np.linspace(1000, 1, steps),
        np.linspace(1, 0.01, steps),
        {"latent": _latent(rng, layers, steps), STACK: _stack(rng, steps)},
    )


def _latent(rng: np.random.Generator, layers: int, steps: int) -> StreamData:
    l1 = np.exp(rng.normal(size=(1, 1, len(KINDS), layers, steps - 1)).cumsum(-1) / 6 - 3)
    ones = np.ones((1, 1, len(KINDS), layers, steps))
    step_sums = np.stack([ones, ones, ones, ones, 0 * ones], -2) * 1000
    transition_sums = np.stack([l1 * 1000, l1**2 * 2000, ones[..., 1:], ones[..., 1:] * 1000], -2)
    cell = np.ones((len(KINDS), layers), "i8")
    return StreamData(("cond",), KINDS, "float32", _arrays(step_sums, transition_sums, cell, 0))


def _stack(rng: np.random.Generator, steps: int) -> StreamData:
    x = rng.normal(size=(1, 1, 1, len(SITES), ELEMENTS, 1)) + np.cos(np.arange(steps) / 5)
    x += rng.normal(size=x.shape) / 20
    d = np.diff(x)
    count = np.full((*x.shape[:4], steps), float(ELEMENTS))
    step_sums = np.stack([abs(x).sum(-2), (x**2).sum(-2), abs(x).max(-2), count, 0 * count], -2)
    ratio = np.sqrt((x[..., 1:] ** 2).sum(-2) / (x[..., :-1] ** 2).sum(-2))
    products = (x[..., 1:] * x[..., :-1]).sum(-2)
    changes = [abs(d).sum(-2), (d**2).sum(-2), products, count[..., 1:], ratio, 0 * ratio]
    arrays = _arrays(step_sums, np.stack(changes, -2), np.ones((1, len(SITES)), "i8"), ELEMENTS)
    return StreamData(("cond",), ("x",), "float32", arrays | {"samples": x.astype("f4")}, SITES)


def _arrays(step_sums: np.ndarray, transition_sums: np.ndarray, cell: np.ndarray, stored: int) -> dict[str, np.ndarray]:
    places = cell[..., None] * np.arange(stored)
    steps = step_sums.shape[-1]
    return {
        "samples": np.zeros((1, 1, *cell.shape, stored, steps), "f4"),
        "step_sums": step_sums,
        "transition_sums": transition_sums,
        "recorded": np.ones((1, *cell.shape, steps), "u1"),
        "token": places,
        "channel": places * 0,
        "weight": np.full(places.shape, 1 / max(stored, 1)),
        "num_tokens": cell * max(stored, 1),
        "num_channels": cell,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-o", type=Path, help="keep the report of all seven here")
    asked = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{model}.trace" for model in PAPER]
        for path, model in zip(paths, PAPER):
            path.mkdir()
            for index in range(asked.prompts):
                write_shard(path, shard(model, index))
        for name, some in [*((path.stem, [path]) for path in paths), ("all seven", paths)]:
            start = time.perf_counter()
            text = page(Study(members_of(some)))
            rows.append({"traces": name, "seconds": time.perf_counter() - start, "megabytes": len(text.encode()) / 1e6})
        if asked.o:
            asked.o.write_text(text)
    if asked.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['traces']:<20} {row['seconds']:6.1f} s  {row['megabytes']:5.2f} MB")


if __name__ == "__main__":
    main()

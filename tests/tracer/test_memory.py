"""A run of many prompts takes no more memory than a run of a few."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import psutil
from dit_tracer import runs
from dit_tracer.models import loading
from dit_tracer.models.catalog import find
from dit_tracer.recording.settings import Sample, What
from dit_tracer.work import Task, Work


def test_memory_stays_within_20_mb_from_prompt_20_to_prompt_200(tmp_path: Path) -> None:
    model, process, seen = find("tiny:pixart-alpha"), psutil.Process(), []
    pipeline = loading.load(model, device="cpu")

    def look(network: Any, args: Any) -> None:
        """At the first call for every prompt, of two."""
        seen.append(0)
        if len(seen) in (2 * 20 + 1, 2 * 200):
            gc.collect()
            seen[-1] = process.memory_info().rss

    pipeline.transformer.register_forward_pre_hook(look)
    work = Work([Task(f"a red bus, number {n}", 1) for n in range(200)])
    settings = {"model": model.name, "call": model.call | {"num_inference_steps": 2}, "quiet": True, "release": True}
    outcome = runs.run(lambda: pipeline, work, tmp_path / "t", sample=Sample(), what=What(), **settings)
    assert outcome.traced == 200
    after_20, after_200 = filter(None, seen)
    assert after_200 - after_20 < 20 << 20

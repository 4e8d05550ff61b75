"""What tracing costs: time of generations alone, traced, traced without samples, and under a naive recorder.

    python benchmarks/overhead.py                   every case that this machine has the device for
    python benchmarks/overhead.py --json            rows with model, device, ratio, naive_ratio and more
    python benchmarks/overhead.py flux.1-dev --repeat 5

The four take turns, so that a machine that grows slower does so for all. A time is that of a few generations until
everything is written, and the latents are ready; a ratio is the median of the ratios within a turn. The naive recorder
is what people write themselves: it keeps the tensors of the step before, and asks for the mean change of each at once.

`limit` is the time in which this machine could read what has to be read once, every activation and the one of the step
before, at the bandwidth that copying a large tensor showed in the same run.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import diffusers
import torch
from cases import CASES, TINY, TINY_CALL, Case, build
from dit_tracer.recording.backend import intercepted
from dit_tracer.recording.capture import Capture
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.recorder import Recorder
from dit_tracer.recording.settings import Sample, What
from dit_tracer.recording.sites import find_attention, find_networks

MODES = ("alone", "traced", "statistics only", "naive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of cases; all by default")
    parser.add_argument("--repeat", type=int, default=5, help="turns [5]")
    parser.add_argument("--prompts", type=int, default=2, help="generations in a turn [2]")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--tiny", action="store_true", help="shrink all cases, on the CPU, to try the script")
    parser.add_argument("--json", action="store_true", help="print rows for programs")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    rows = []
    for case in CASES:
        if not asked.models or case.name in asked.models:
            rows.append(measure(_tiny(case) if asked.tiny else case, asked.repeat, asked.prompts))
            print(f"{case.name}: done", file=sys.stderr, flush=True)
    print(json.dumps(rows, indent=1) if asked.json else table(rows))


def measure(case: Case, repeat: int, prompts: int) -> dict[str, Any]:
    """The row of one case; empty where its device is missing."""
    row: dict[str, Any] = {"model": case.name, "device": case.device, "ratio": None, "naive_ratio": None}
    if case.device == "cuda" and not torch.cuda.is_available():
        return row | {"note": "not measured: no GPU"}
    dtype = torch.float32 if case.device == "cpu" else torch.bfloat16
    pipeline, call = build(case, case.device, dtype)
    folder = Path(tempfile.mkdtemp())
    try:
        modes = _modes(pipeline, call, folder, prompts)
        for run in modes.values():
            run()  # warms up
        turns = [{name: _timed(run, case.device) for name, run in modes.items()} for _ in range(repeat)]
    finally:
        shutil.rmtree(folder)
    ratios = {name: [turn[name] / turn["alone"] for turn in turns] for name in MODES[1:]}
    medians = {name: statistics.median(turn[name] for turn in turns) for name in MODES}
    per_step, bandwidth = bytes_of_a_step(pipeline, call), copy_bandwidth(case.device)
    limit = prompts * (2 * case.steps - 1) * per_step / bandwidth
    overhead = medians["traced"] - medians["alone"]
    return {
        "model": case.name,
        "device": _device_name(case.device),
        "ratio": statistics.median(ratios["traced"]),
        "ratio_range": [min(ratios["traced"]), max(ratios["traced"])],
        "stats_only_ratio": statistics.median(ratios["statistics only"]),
        "stats_only_range": [min(ratios["statistics only"]), max(ratios["statistics only"])],
        "naive_ratio": statistics.median(ratios["naive"]),
        "naive_range": [min(ratios["naive"]), max(ratios["naive"])],
        "seconds": medians["alone"] / prompts,
        "gigabytes_of_a_step": per_step / 1e9,
        "bandwidth_gb_s": bandwidth / 1e9,
        "limit_seconds": limit / prompts,
        "overhead_seconds": overhead / prompts,
        "times_limit": overhead / limit,
        "steps": case.steps,
        "dtype": str(dtype).removeprefix("torch."),
        "repeat": repeat,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "date": date.today().isoformat(),
    }


def _modes(pipeline: Any, call: dict[str, Any], folder: Path, prompts: int) -> dict[str, Callable[[], None]]:
    def generate() -> None:
        pipeline(**call, generator=torch.Generator("cpu").manual_seed(0))

    def recorded(sample: Sample) -> Callable[[], None]:
        recorder = Recorder(pipeline, folder / f"{sample.latent}.trace", "case", sample, None, what=What())
        done = iter(range(10**6))

        def run() -> None:
            with recorder:
                for _ in range(prompts):
                    with recorder.prompt(f"prompt {next(done)}"):
                        generate()

        return run

    def plain(context: AbstractContextManager[Any]) -> Callable[[], None]:
        def run() -> None:
            with context:
                for _ in range(prompts):
                    generate()

        return run

    runs = plain(nullcontext()), recorded(Sample()), recorded(Sample(0, 0)), plain(Naive(pipeline))
    return dict(zip(MODES, runs))


class Naive:
    """Keeps K, V and A of the step before, and asks for the mean absolute change of each."""

    def __init__(self, pipeline: Any) -> None:
        self._modules = [site.module for site in find_attention(find_networks(pipeline))]

    def __enter__(self) -> None:
        self._previous: dict[Any, torch.Tensor] = {}
        self.changes: list[float] = []
        self._module: Any = None
        self._hooks = [module.register_forward_pre_hook(self._enter) for module in self._modules]
        self._hooks += [module.register_forward_hook(self._leave) for module in self._modules]
        self._attention = intercepted(self._attend)
        self._attention.__enter__()

    def __exit__(self, *error: object) -> None:
        self._attention.__exit__(None, None, None)
        for hook in self._hooks:
            hook.remove()

    def _enter(self, module: Any, args: Any) -> None:
        self._module = module

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, output: torch.Tensor) -> None:
        self._compare("k", key)
        self._compare("v", value)

    def _leave(self, module: Any, args: Any, output: Any) -> None:
        for place, part in enumerate(output if isinstance(output, tuple) else (output,)):
            if part is not None:
                self._compare(f"a{place}", part)

    def _compare(self, kind: str, tensor: torch.Tensor) -> None:
        before = self._previous.get((self._module, kind))
        if before is not None and before.shape == tensor.shape:
            self.changes.append((tensor - before).abs().mean().item())
        self._previous[self._module, kind] = tensor


def bytes_of_a_step(pipeline: Any, call: dict[str, Any]) -> int:
    """Bytes of all K, V and A of one step."""
    found: dict[Any, int] = {}

    def sink(layer: str, stream: str, kind: str, tensor: torch.Tensor, lengths: Any) -> None:
        if clock.step == 0:
            found[layer, stream, kind, clock.branches] = tensor.nbytes

    networks = find_networks(pipeline)
    clock = Clock(pipeline, networks)
    with clock, Capture(networks, clock, sink):
        pipeline(**call | {"num_inference_steps": 2}, generator=torch.Generator("cpu").manual_seed(0))
    return sum(found.values())


def copy_bandwidth(device: str) -> float:
    """Bytes a second that a copy of a large tensor reads and writes, the best of ten."""
    source = torch.ones(1 << 28, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_timed(lambda: target.copy_(source), device) for _ in range(10))


def _timed(run: Callable[[], Any], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.processor() or platform.machine()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _tiny(case: Case) -> Case:
    call = {name: TINY_CALL.get(name, value) for name, value in case.call.items()}
    return replace(case, device="cpu", steps=3, call=call, smaller=case.smaller or TINY[case.model])


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    lines = [
        "| model | device | alone | traced | statistics only | naive | bytes of a step | times the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["ratio"] is None:
            lines.append(f"| {row['model']} | {row['device']} | | | | | | {row['note']} |")
            continue
        cells = [f"{row[f'{name}ratio']:.3f} ({_span(row[span])})" for name, span in
                 (("", "ratio_range"), ("stats_only_", "stats_only_range"), ("naive_", "naive_range"))]  # fmt: skip
        lines.append(
            f"| {row['model']} | {row['device']} | {row['seconds']:.2f} s | {' | '.join(cells)} "
            f"| {row['gigabytes_of_a_step']:.2f} GB | {row['times_limit']:.1f} |"
        )
    return "\n".join(lines)


def _span(ends: list[float]) -> str:
    return f"{ends[0]:.3f} to {ends[1]:.3f}"


if __name__ == "__main__":
    main()

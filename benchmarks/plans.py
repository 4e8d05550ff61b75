"""What plans are worth on the bundled models: every number of docs/plans.md.

    dit-trace study digits -o digits
    python benchmarks/plans.py digits --json all.json
    python benchmarks/plans.py digits --tables others --skip 32      # on prompts that no choice was made on

Plans are made from the study's traces and run on prompts that no trace has. Tables: attempts at the cost, half of the
evaluations computed; the best against what others do with as much; ranks of predicted and measured errors along the
curve; chosen noise levels; and plans carried over to another model, scheduler or number of steps, or made from one
prompt. Errors are relative L1 of the final latents, geometric means over prompts with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from dit_analyzer.plans.asked import Asked, plan_of, planner_of
from dit_formats.plan import GRID, LAYERS, LINEAR, REUSE, TYPES, Plan
from dit_formats.reader import Trace, open_trace
from dit_tracer.models import schedulers
from dit_tracer.models.catalog import find
from dit_tracer.models.loading import load
from dit_tracer.replay import report
from dit_tracer.replay.comparing import Outcome, compare
from dit_tracer.replay.schedules import Schedule, baselines, of_plan
from dit_tracer.work import Task
from matplotlib.figure import Figure

MODELS = ("digits-flux", "digits-pixart", "digits-latte")
STEPS, HALF = 28, 14
FEW = 8
"""Prompts on which plans by layers are ranked, which are slow."""
SCHEDULERS = {"sd3": "digits-flux-28-sd3", "karras": "{}-28-karras"}

ATTEMPTS = {
    "outputs, reused": Asked(budget=HALF, signal="outputs", predictor=REUSE),
    "outputs, reused, minimax": Asked(budget=HALF, signal="outputs", predictor=REUSE, aim="minimax"),
    "outputs, linear": Asked(budget=HALF, signal="outputs", predictor=LINEAR),
    "prediction, reused": Asked(budget=HALF, signal="prediction", predictor=REUSE),
    "prediction, linear, all errors alike": Asked(budget=HALF, undone=0.0),
    "prediction, linear": Asked(budget=HALF),
    "prediction, linear, minimax": Asked(budget=HALF, aim="minimax"),
    "prediction, linear, change points": Asked(budget=HALF, change_points=True),
    "by type, reused": Asked(budget=HALF, granularity=TYPES),
    "by layer, reused": Asked(budget=HALF, granularity=LAYERS),
    "by layer, linear": Asked(budget=HALF, granularity=LAYERS, predictor=LINEAR),
    "noise levels": Asked(budget=HALF, granularity=GRID),
}
BEST = "prediction, linear"


@dataclass
class Bench:
    """One model, loaded, with prompts that no trace has seen."""

    folder: Path
    name: str
    prompts: int
    skipped: int = 0

    def __post_init__(self) -> None:
        self.model = find(self.name)
        self.pipeline = load(self.model, device="cpu")
        self.own = self.pipeline.scheduler
        with self.trace() as trace:
            seen = len(trace.prompts) + self.skipped
        assert self.model.captions is not None
        self.tasks = [Task(text, 42) for text in self.model.captions(seen + self.prompts)[seen:]]

    def trace(self, tail: str = "28") -> Trace:
        return open_trace(self.folder / f"{self.name}-{tail}.trace")

    def plan(self, asked: Asked, tail: str = "28") -> Plan:
        with self.trace(tail) as trace:
            return plan_of(planner_of(trace, asked), asked)

    def run(self, schedules: Sequence[Schedule], steps: int = STEPS, prompts: int | None = None) -> list[Outcome]:
        """Outcomes of these alone."""
        call = self.model.call | {"num_inference_steps": steps}
        return compare(self.pipeline, self.tasks[:prompts], call, schedules)[1:]


def attempts(bench: Bench) -> Iterator[dict[str, Any]]:
    """Every attempt at the cost, half of the evaluations computed, best last."""
    plans = {name: bench.plan(asked) for name, asked in ATTEMPTS.items()}
    outcomes = bench.run([of_plan(name, plan) for name, plan in plans.items()])
    for one in outcomes:
        assert one.schedule.plan is not None
        yield row(one) | {"predicted": one.schedule.plan.predicted["error"]}


def others(bench: Bench) -> Iterator[dict[str, Any]]:
    """The best attempt, and what others do with as much."""
    plan = bench.plan(ATTEMPTS[BEST])
    made, reasons = baselines(plan, bench.pipeline)
    outcomes = bench.run([of_plan("plan", plan), *made])
    for one in outcomes:
        against = one.against(outcomes[0])
        yield row(one) | {"times_ours": against.value, "times_low": against.low, "times_high": against.high}
    for name, why in reasons.items():
        yield {"schedule": name, "not_run": why}


def ranks(bench: Bench) -> Iterator[dict[str, Any]]:
    """Rank correlation over the 41 plans of a curve."""
    for name, asked in {"by steps": Asked(), "by layers": Asked(granularity=LAYERS)}.items():
        with bench.trace() as trace:
            plans = planner_of(trace, asked).curve()
        distinct = list({plan.mask.tobytes(): plan for plan in plans if not plan.mask.all()}.values())
        prompts = min(bench.prompts, FEW) if asked.granularity == LAYERS else bench.prompts
        outcomes = bench.run([of_plan(f"{plan.computed_share:.3f}", plan) for plan in distinct], prompts=prompts)
        found = report.rank_of(outcomes)
        assert found is not None
        points = [point(one) for one in outcomes]
        yield {"curve": name, "prompts": prompts, "spearman": found[0], "plans": found[1], "points": points}


def transfers(bench: Bench) -> Iterator[dict[str, Any]]:
    """Plans made elsewhere, and what they lose against the plan made here."""
    best = ATTEMPTS[BEST]
    own = bench.plan(best)
    foreign = {f"of {name}": Bench.plan(_Elsewhere(bench.folder, name), best) for name in MODELS if name != bench.name}
    foreign |= {f"of {tail}": bench.plan(best, tail) for tail in _tails(bench)}
    foreign["of one prompt"] = of_one_prompt(bench, best)
    carried = [of_plan(name, borrowed(plan, own)) for name, plan in foreign.items()]
    outcomes = bench.run([of_plan("own", own), *carried])
    for one in outcomes:
        against = one.against(outcomes[0])
        yield row(one) | {"times_own": against.value, "times_low": against.low, "times_high": against.high}


def other_steps(bench: Bench) -> Iterator[dict[str, Any]]:
    """A plan carried to half and twice the steps, against the plan of a trace with so many."""
    for steps in (14, 56):
        asked = replace(ATTEMPTS[BEST], budget=steps // 2)
        carried, own = bench.plan(replace(asked, steps=steps)), bench.plan(asked, str(steps))
        outcomes = bench.run([of_plan("own", own), of_plan("carried over", carried)], steps)
        for one in outcomes:
            against = one.against(outcomes[0])
            told = {"times_own": against.value, "times_low": against.low, "times_high": against.high}
            yield {"steps": steps} | row(one) | told


def other_schedulers(bench: Bench) -> Iterator[dict[str, Any]]:
    """With the study's other scheduler: the plan of its own trace, and that of the model's default."""
    tail = _tails(bench)[0]
    best, choice = ATTEMPTS[BEST], tail.removeprefix("28-")
    spec = choice if choice == "sd3" else str(Path(__file__).parents[1] / "tracer/dit_tracer/studies/karras.json")
    own = bench.plan(best, tail)
    schedulers.replace(bench.pipeline, spec, STEPS)
    try:
        outcomes = bench.run([of_plan("own", own), of_plan("of the default", borrowed(bench.plan(best), own))])
    finally:
        bench.pipeline.register_modules(scheduler=bench.own)
    for one in outcomes:
        against = one.against(outcomes[0])
        told = {"times_own": against.value, "times_low": against.low, "times_high": against.high}
        yield {"scheduler": choice} | row(one) | told


def borrowed(plan: Plan, own: Plan) -> Plan:
    """The steps of one plan in another's run."""
    return replace(own, rows=(replace(own.rows[0], compute=plan.rows[0].compute),), predicted=plan.predicted)


class _Elsewhere(Bench):
    """Another model's traces, without the model."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name


def of_one_prompt(bench: Bench, asked: Asked) -> Plan:
    """The plan that a trace of the first prompt alone gives."""
    with TemporaryDirectory() as folder:
        shard = bench.trace().rows[0][0].path
        (Path(folder) / shard.name).symlink_to(shard.absolute())
        with open_trace(folder) as trace:
            return plan_of(planner_of(trace, asked), asked)


def _tails(bench: Bench) -> list[str]:
    return ["28-sd3" if bench.name == "digits-flux" else "28-karras"]


def row(one: Outcome) -> dict[str, Any]:
    error, speed = one.mean("error"), one.speed
    return {
        "schedule": one.schedule.name,
        "note": one.schedule.note,
        "computed": one.share,
        "error": error.value,
        "low": error.low,
        "high": error.high,
        "psnr": one.mean("psnr").value,
        "ssim": one.mean("ssim").value,
        "speed": speed.value,
        "mask": "".join(str(int(step)) for step in one.schedule.mask),
    }


def point(one: Outcome) -> dict[str, float]:
    assert one.schedule.plan is not None
    return {"computed": one.share, "predicted": one.schedule.plan.predicted["error"], "error": one.mean("error").value}


TABLES = {
    "attempts": attempts,
    "others": others,
    "ranks": ranks,
    "transfers": transfers,
    "steps": other_steps,
    "schedulers": other_schedulers,
}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Rows as Markdown."""
    names = [name for name in dict.fromkeys(key for one in rows for key in one) if name not in ("points", "note")]
    yield f"| {' | '.join(names)} |"
    yield "|" + "---|" * len(names)
    for one in rows:
        yield f"| {' | '.join(shown(one.get(name, '')) for name in names)} |"


def draw(found: dict[str, Any], path: Path) -> None:
    """Measured against predicted errors of the plans by steps, and both against the computed share."""
    figure = Figure((8.2, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (name, tables) in enumerate(found.items()):
        points = next((one["points"] for one in tables.get("ranks", ()) if one["curve"] == "by steps"), [])
        if not points:
            continue
        computed, predicted, measured = (
            np.array([p[key] for p in points]) for key in ("computed", "predicted", "error")
        )
        left.plot(predicted, measured, "o", markersize=4, color=f"C{place}", label=name)
        right.plot(computed, measured, "o-", markersize=4, color=f"C{place}", label=f"{name}, measured")
        right.plot(computed, predicted, "--", linewidth=1, color=f"C{place}")
    ends = [1e-4, 1]
    left.plot(ends, ends, color="grey", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="predicted on held-out prompts", ylabel="measured on 32 other prompts")
    right.set(yscale="log", xlabel="computed share of evaluations", ylabel="relative L1 of final latents")
    right.plot([], [], "--", linewidth=1, color="grey", label="predicted")
    right.invert_xaxis()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=Path("digits"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--skip", type=int, default=0, help="prompts left out, that choices were made on")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    parser.add_argument("--draw", type=Path, nargs="+", metavar=("PNG", "JSON"), help="only draw what was written")
    options = parser.parse_args()
    if options.draw:
        picture, *files = options.draw
        return draw({k: v for file in files for k, v in json.loads(file.read_text()).items()}, picture)
    torch.set_grad_enabled(False)
    found: dict[str, Any] = {}
    for name in options.models.split(","):
        bench = Bench(options.study, name, options.prompts, options.skip)
        for title in options.tables.split(","):
            rows = list(TABLES[title](bench))
            found.setdefault(name, {})[title] = rows
            print(f"\n{name}, {title}, {options.prompts} prompts\n")
            for line in table(rows):
                print(line)
            sys.stdout.flush()
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

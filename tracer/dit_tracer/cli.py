"""The command dit-trace. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dit_formats.console import Program, plural

from dit_tracer.itinerary import KEPT, in_words
from dit_tracer.itinerary import as_json as outcome_as_json

if TYPE_CHECKING:
    from dit_tracer.forecast import Forecast
    from dit_tracer.models.catalog import Model
    from dit_tracer.ranks import Rank
    from dit_tracer.sharing import Outcome
    from dit_tracer.stopping import Stopping

LAST_SEED = 2**63 - 1
KINDS = ("q", "k", "v", "o", "a", "f")
TITLES = (
    "Trained, and bundled with ditscope:",
    "Published checkpoints, run as in the paper (arXiv 2411.13588):",
    "Twins, with random weights, for trying options and testing; their numbers mean nothing:",
)

REPLAY_NEEDS = 'a replay needs {}, which is not installed; pip install "ditscope[trace,replay]"'
NEEDS = 'tracing needs torch and diffusers, and {} is not installed; pip install "ditscope[trace]"'


@click.group(cls=Program, name="dit-trace", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ditscope")
def main() -> None:
    """Record what the attention layers of a diffusion transformer compute, step by step.

    Example: dit-trace run digits-pixart -n 16 -o out.trace
    """


main.interrupted = (f"stopped; {KEPT}", 75)


def _stoppable(command: Callable[..., int]) -> Callable[..., int]:
    """The command as one of several processes, which signals and the option --time-limit end early."""

    @functools.wraps(command)
    def run(*, time_limit: float | None, **options: Any) -> int:
        from dit_tracer import ranks
        from dit_tracer.stopping import RESUMABLE, Stopped, Stopping

        rank = ranks.find()
        farewell = f"dit-trace: {main.interrupted[0]}" if rank.leads else ""
        try:
            with Stopping(time_limit, farewell, ends=main.alone) as stopping, ranks.one_voice(rank):
                return command(**options, rank=rank, stopping=stopping)
        except Stopped as stopped:
            if rank.leads:
                click.echo(f"dit-trace: stopped by {stopped}; {KEPT}", err=True)
            return RESUMABLE

    return run


class _Remembering(click.Command):
    """A command that keeps the words it was called with."""

    def parse_args(self, context: click.Context, words: list[str]) -> list[str]:
        context.meta["words"] = list(words)
        return super().parse_args(context, words)


@main.command(cls=_Remembering)
@click.argument("model")
@click.option("-p", "--prompts", help="A text, or a .txt, .csv, COCO .json or .jsonl file; a line of the "
              "last may add arguments of the pipeline.  [default: built in]")  # fmt: skip
@click.option("-n", "--limit", type=click.IntRange(min=1), help="The first N prompts.  [default: all; 16 if built in]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: MODEL-STEPSs.trace]")
@click.option("--steps", type=click.IntRange(min=1), help="Diffusion steps.  [default: the model's]")
@click.option("--scheduler", help="Another scheduler: a class of diffusers, a model whose it is (sd3), a JSON file, a "
              "folder or a repository.  [default: the model's]")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, LAST_SEED),
              help="Seed of the noise, the same for every prompt.  [default: 42]")  # fmt: skip
@click.option("--seeds", help="Every prompt with each of these seeds: 0,1,5 or 0-9.  [default: the one of --seed]")
@click.option("--guidance-scale", type=float, help="Strength of guidance; 1 for none.  [default: the model's]")
@click.option("--pipeline-kwargs", default="{}", help="Further arguments of the pipeline, as JSON.")
@click.option("--weights", metavar="FOLDER|REPO", help="Load MODEL's weights from there.  [default: its repository]")
@click.option("--revision", help="Branch, tag or commit of the model's repository.  [default: main]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]),
              help="[default: the model's, or bfloat16; float32 on CPUs]")  # fmt: skip
@click.option("--device", help="Where to run, as torch names it.  [default: cuda if there is one, else cpu]")
@click.option("--cpu-offload", type=click.Choice(["model", "sequential", "group"]),
              help="Keep weights on the host until they are needed.  [default: on the device]")  # fmt: skip
@click.option("--kinds", help="What of each layer: k, v, q, a (output), o (heads before the output projection), "
              "f (feed-forward output).  [default: k,v,a; o too for mochi]")  # fmt: skip
@click.option("--attention", multiple=True, metavar="PATTERN",
              help="Attention layers of an unknown transformer, as 'blocks.*.attn'; may be repeated.")  # fmt: skip
@click.option("--no-stack", is_flag=True, help="Leave out what enters and leaves the blocks as a whole.")
@click.option("--boundary", multiple=True, metavar="BLOCK",
              help="Also what leaves this block, as transformer_blocks.9; may be repeated.")  # fmt: skip
@click.option("--halves", is_flag=True, help="Also dot products between the halves of guidance.")
@click.option("--step-pairs", metavar="PAIRS", help="Also dot products between these steps: 0:10,5:25, or all.")
@click.option("--sample", type=click.IntRange(min=0), help="Values kept of each activation, a quarter of that for "
              "text.  [default: 4096; with --pilot 1024]")  # fmt: skip
@click.option("--stats-only", is_flag=True, help="Keep exact statistics and no values: no archive, but small.")
@click.option("--pilot", is_flag=True,
              help="Keep more values of the channels that change most, as one more generation shows: the same error "
              "with fewer values.")  # fmt: skip
@click.option("--previous", type=click.Choice(["device", "host", "subset"]),
              help="Where to keep the step before, which exact changes need; subset keeps 2^18 values of each "
              "activation, and changes are estimates.  [default: the first that memory allows]")  # fmt: skip
@click.option("--ignore-disk", is_flag=True, help="Start even if the disk seems too small.")
@click.option("--dry-run", is_flag=True, help="Say what would be recorded, and how large it would be; write nothing.")
@click.option("--time", is_flag=True, help="First time one more generation, so that plans can speak in milliseconds.")
@click.option("--time-limit", metavar="TIME", callback=lambda _, __, text: _seconds(text),
              help="Stop in time, exit code 75: 3h50m, 90s.  [default: none]")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_stoppable
def run(
    model: str,
    prompts: str | None,
    limit: int | None,
    output: Path | None,
    steps: int | None,
    scheduler: str | None,
    seed: int | None,
    seeds: str | None,
    guidance_scale: float | None,
    pipeline_kwargs: str,
    weights: str | None,
    revision: str | None,
    dtype: str | None,
    device: str | None,
    cpu_offload: str | None,
    kinds: str | None,
    attention: tuple[str, ...],
    no_stack: bool,
    boundary: tuple[str, ...],
    halves: bool,
    step_pairs: str | None,
    sample: int | None,
    stats_only: bool,
    pilot: bool,
    previous: str | None,
    ignore_disk: bool,
    dry_run: bool,
    time: bool,
    quiet: bool,
    as_json: bool,
    rank: Rank,
    stopping: Stopping,
) -> int:
    """Trace MODEL over many prompts. Run the same command again to go on where it stopped.

    MODEL is a name that `dit-trace models` lists, `tiny:NAME` for its miniature with random weights, a Hugging Face
    repository (owner/name), or a folder with a diffusers pipeline. Processes that torchrun, accelerate launch or srun
    starts with one command share the prompts.

    Example: dit-trace run digits-pixart -n 16 -o out.trace
    """
    from dit_tracer.models.catalog import find
    from dit_tracer.work import requests_of

    found = find(model)
    if weights and found.random_weights:
        raise click.UsageError(f"{found.name} has random weights and loads none; leave out --weights")
    if weights:
        found = replace(found, source=weights)
    requests = requests_of(found, prompts, limit)
    if seed is not None and seeds is not None:
        raise click.UsageError("--seed and --seeds: give one of them")
    numbers = [42 if seed is None else seed] if seeds is None else _seeds(seeds)
    further = _arguments(pipeline_kwargs)
    chosen, pairs = _kinds(kinds), _step_pairs(step_pairs)
    _refuse_two_samples(sample, stats_only, pilot)
    try:
        from dit_tracer.orders import Order, values_kept
    except ModuleNotFoundError as error:
        raise click.ClickException(NEEDS.format(error.name)) from None

    order = Order(
        found,
        requests,
        output or Path(_file_name(found.name, steps or found.steps, scheduler)),
        seeds=numbers,
        limit=limit,
        steps=steps,
        scheduler=scheduler,
        arguments=({} if guidance_scale is None else {found.guidance: guidance_scale}) | further,
        revision=revision,
        dtype=dtype,
        device=device,
        cpu_offload=cpu_offload,
        kinds=chosen,
        attention=attention,
        stack=not no_stack,
        boundaries=boundary,
        halves=halves,
        step_pairs=pairs,
        values=values_kept(sample, stats_only, pilot),
        pilot=pilot,
        previous=previous,
        ignore_disk=ignore_disk,
        time=time,
    )
    if dry_run:
        return _foretell(order.forecast(), as_json)
    return _report(order.output, order.run(rank, stopping, quiet), as_json, rank)


@main.command(cls=_Remembering)
@click.argument("study", default="digits", metavar="[NAME|FILE.toml]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the traces.  [default: NAME.study]")
@click.option("--models", help="Only these of the study's models, as flux.1-dev,sd3; the others may follow.")
@click.option("-p", "--prompts", help="As of dit-trace run; for paper captions_val2014.json of COCO.  [default: the "
              "study's, or built in]")  # fmt: skip
@click.option("-n", "--limit", type=click.IntRange(min=1), help="At most the first N prompts of each run; more may "
              "follow.  [default: the study's]")  # fmt: skip
@click.option("--weights", multiple=True, metavar="MODEL=FOLDER|REPO",
              help="Load this model's weights from there; may be repeated.  [default: its repository]")  # fmt: skip
@click.option("--device", help="Where to run, as torch names it.  [default: cuda if there is one, else cpu]")
@click.option("--cpu-offload", type=click.Choice(["model", "sequential", "group"]),
              help="Keep weights on the host until they are needed.  [default: on the device]")  # fmt: skip
@click.option("--ignore-disk", is_flag=True, help="Start runs even if the disk seems too small.")
@click.option("--dry-run", is_flag=True, help="Show the runs, their size and, where known, their time; write nothing.")
@click.option("--time-limit", metavar="TIME", callback=lambda _, __, text: _seconds(text),
              help="Stop in time, exit code 75: 3h50m, 90s.  [default: none]")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_stoppable
def study(
    study: str,
    output: Path | None,
    models: str | None,
    prompts: str | None,
    limit: int | None,
    weights: tuple[str, ...],
    device: str | None,
    cpu_offload: str | None,
    ignore_disk: bool,
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    rank: Rank,
    stopping: Stopping,
) -> int:
    """Trace many runs: models, steps, schedulers, seeds. Run the same command again to go on where it stopped.

    digits runs the three bundled models, paper the seven of arXiv 2411.13588; a TOML file describes any other. Each run
    is a trace of its own in FOLDER, and study.json there says what was planned. Processes share the work as those of
    dit-trace run do.

    Example: dit-trace study digits -n 2 -o digits.study
    """
    from dit_formats.prompts import read_requests
    from dit_formats.study import joined, write_study

    from dit_tracer import itinerary
    from dit_tracer.study import expand, read_study

    found = read_study(study)
    chosen = None if models is None else [name.strip() for name in models.split(",")]
    runs = expand(found, chosen, limit)
    source = prompts or (found.prompts_file and found.beside(found.prompts_file))
    requests = read_requests(source) if source else None
    places = _weights(weights, {planned.model.name: planned.model for planned in runs})
    try:
        from dit_tracer import tour
    except ModuleNotFoundError as error:
        raise click.ClickException(NEEDS.format(error.name)) from None

    folder = output or Path(f"{found.name}.study")
    tour.refuse_trace(folder)
    machine = {"device": device, "cpu_offload": cpu_offload, "ignore_disk": ignore_disk}
    stops = tour.stops(found, runs, folder, requests, places, **machine)
    planned = tour.plan(found, stops, requests)
    if dry_run:
        joined(folder, planned)
        return itinerary.foretell(
            folder, planned, list(tour.foretold(found, stops, folder)), _command("study"), as_json
        )
    write_study(folder, planned)
    telling = itinerary.Telling(folder, rank, as_json, len(stops))
    with tour.together(folder, rank, stopping, lambda: telling.code):
        for visit in tour.visits(stops, rank, stopping, quiet):
            telling.tell(visit)
    telling.sum_up(stopping.reason)
    return telling.code


@main.command()
@click.argument("plans", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PLAN... [MODEL]")
@click.option("-p", "--prompts", help="As of dit-trace run.  [default: built-in ones that planning has not seen]")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="The first N prompts.  [default: all; 8 if built in]")
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Folder for replay.json, quality.png and samples.png.  [default: none]")  # fmt: skip
@click.option("--engine", type=click.Choice(["cache-dit", "diffusers", "diffusers-pab", "diffusers-taylorseer",
                                             "smoothcache"]),
              help="Run the plan by another engine.  [default: by our own hook]")  # fmt: skip
@click.option("--alone", is_flag=True, help="Leave out what other methods would do with as much computation.")
@click.option("--transfer", is_flag=True, help="Run a plan where it was not made for: another model or scheduler.")
@click.option("--scheduler", help="As of dit-trace run.  [default: the model's]")
@click.option("--seed", type=click.IntRange(0, LAST_SEED), default=42, show_default=True, help="Seed of the noise.")
@click.option("--lpips", is_flag=True, help="Also LPIPS, where the package and its weights are on this machine.")
@click.option("--weights", metavar="FOLDER|REPO", help="Load MODEL's weights from there.  [default: its repository]")
@click.option("--revision", help="Branch, tag or commit of the model's repository.  [default: the plan's]")
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: the model's]")
@click.option("--device", help="Where to run, as torch names it.  [default: cuda if there is one, else cpu]")
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def replay(plans: tuple[Path, ...], weights: str | None, **options: Any) -> int:
    """Run each PLAN for real: speed and error against the uncached MODEL, and against fewer steps and other methods.

    A policy, which decides while it runs, is replayed beside the static plan that computes as many steps.
    The other methods spend as much computation as the first plan. Errors are relative L1 of the final latents, PSNR and
    SSIM, means over prompts with 95 % intervals.

    Example: dit-trace replay plan.json -n 16 -o replay
    """
    from dit_formats.policy import read_either

    from dit_tracer.models.catalog import find

    files = [path for path in plans if path.suffix == ".json"]
    others = [str(path) for path in plans if path.suffix != ".json"]
    if not files or len(others) > 1:
        raise click.UsageError("give plans, which end in .json, and at most one model")
    name = others[0] if others else read_either(files[0]).request.model
    try:
        model = find(name)
    except LookupError as error:
        if others:
            raise
        more = f"give its folder or repository too: dit-trace replay {files[0]} MODEL"
        raise LookupError(f"{files[0]}: the plan is of {name!r}, which is no name to load it by; {more}") from error
    model = replace(model, source=weights) if weights else model
    try:
        import skimage  # noqa: F401  # before a model is loaded

        from dit_tracer.replay.command import Ask
        from dit_tracer.replay.command import replay as run_for_real
    except ModuleNotFoundError as error:
        raise click.ClickException(REPLAY_NEEDS.format(error.name)) from None
    try:
        return run_for_real(Ask(files, model, **options))
    except KeyboardInterrupt:  # unlike what traces, this keeps nothing
        click.echo("dit-trace: stopped; a replay keeps nothing until its end", err=True)
        return 130


@main.command()
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def models(model: str | None, as_json: bool) -> None:
    """List the models that are known by name, or the layers of MODEL.

    Example: dit-trace models sd3
    """
    if model is not None:
        try:
            from dit_tracer.models.table import show
        except ModuleNotFoundError as error:
            raise click.ClickException(NEEDS.format(error.name)) from None
        return show(model, as_json)
    from dit_tracer.models.catalog import BUNDLED, SEVEN, TWINS

    groups = {"bundled": BUNDLED, "published": SEVEN, "twins": TWINS}
    if as_json:
        lines = [
            {"name": m.name, "group": group, "steps": m.steps, "about": m.about, "repo": m.repo, "gated": m.gated}
            for group, members in groups.items()
            for m in members.values()
        ]
        click.echo(json.dumps(lines))
        return
    width = max(len(name) for members in groups.values() for name in members)
    for (group, members), title in zip(groups.items(), TITLES):
        click.echo(f"{'' if group == 'bundled' else chr(10)}{title}")
        for known in members.values():
            click.echo(f"  {known.name:{width}}  {_about(known)}")
    click.echo(f"\nnext: dit-trace run {next(iter(BUNDLED))}", err=True)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("model")
@click.option("--steps", type=click.IntRange(min=1), help="Diffusion steps.  [default: FILE's, or the model's]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def lint(file: Path, model: str, steps: int | None, as_json: bool) -> int:
    """Say how much of attention a cache's configuration would really skip, and which traps it steps into.

    FILE is cache-dit's YAML, a JSON file of arguments for one of diffusers' caches, a schedule of SmoothCache or
    SGLang, a plan, or an export of one. It is run on a miniature of MODEL with random weights, on the CPU; plans and
    SGLang's schedules are only read. Exit code 1 if it skips nothing or fails.

    Example: dit-trace lint plan.cache-dit.yaml tiny:pixart-alpha
    """
    try:
        from dit_tracer.lint import lint as examine
    except ModuleNotFoundError as error:
        raise click.ClickException(NEEDS.format(error.name)) from None
    verdict = examine(file, model, steps)
    if as_json:
        click.echo(verdict.as_json())
    else:
        for line in verdict.lines():
            click.echo(line)
    return verdict.exit_code


def _about(model: Model) -> str:
    """One line of the list, without what the title of its group says."""
    from dit_tracer.models.catalog import RANDOM

    about = model.about.removeprefix("bundled; ").removesuffix(f"; {RANDOM}")
    return f"{about} ({model.repo}{', gated' if model.gated else ''})" if model.repo else about


def _weights(given: tuple[str, ...], models: dict[str, Model]) -> dict[str, str]:
    """Where to load weights from, by model."""
    found = dict(one.partition("=")[::2] for one in given)
    for name, source in found.items():
        if name not in models or not source:
            raise click.UsageError(f"--weights {name}={source}: give MODEL=FOLDER; models are {', '.join(models)}")
        if models[name].random_weights:
            raise click.UsageError(f"{name} has random weights and loads none; leave out --weights")
    return found


def _seconds(text: str | None) -> float | None:
    from dit_tracer.stopping import seconds

    try:
        return None if text is None else seconds(text)
    except ValueError as error:
        raise click.UsageError(f"--time-limit {error}") from None


def _seeds(text: str) -> list[int]:
    """The seeds that `0,1,5` or `0-9` means, each once."""
    seeds: dict[int, None] = {}
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,19})(?:-(\d{1,19}))?\s*", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last <= LAST_SEED or last - first >= 10**6:
            raise click.UsageError(f"--seeds {text!r}: give numbers or ranges, as 0,1,5 or 0-9")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def _kinds(text: str | None) -> tuple[str, ...] | None:
    """The kinds asked for; None for those of the model's family."""
    if text is None:
        return None
    kinds = [kind.strip() for kind in text.split(",")]
    if len(set(kinds)) < len(kinds) or not set(kinds) <= set(KINDS):
        raise click.UsageError(f"--kinds {text!r}: give some of {','.join(KINDS)}, each once")
    return tuple(kinds)


def _step_pairs(text: str | None) -> tuple[tuple[int, int], ...] | None:
    """The pairs of steps asked for; None for all that there will be."""
    if text is None:
        return ()
    if text.strip() == "all":
        return None
    pairs = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,6}):(\d{1,6})\s*", part)
        if not found or int(found[1]) >= int(found[2]):
            raise click.UsageError(f"--step-pairs {text!r}: give pairs of steps, earlier first, as 0:10,5:25, or all")
        pairs.append((int(found[1]), int(found[2])))
    return tuple(sorted(set(pairs)))


def _refuse_two_samples(sample: int | None, stats_only: bool, pilot: bool) -> None:
    if stats_only and sample:
        raise click.UsageError(f"--stats-only keeps no values, and --sample {sample} asks for some; give one of them")
    if pilot and (stats_only or sample == 0):
        raise click.UsageError("--pilot decides which values are kept, and none are to be; leave it out")


def _file_name(model: str, steps: int, scheduler: str | None) -> str:
    """Name of the trace if none is given; without signs that file systems dislike."""
    other = f"-{Path(scheduler).stem}" if scheduler else ""
    return re.sub(r"[^\w.-]+", "-", f"{model}{other}-{steps}s.trace")


def _arguments(text: str) -> dict[str, Any]:
    from dit_tracer.work import SET_BY_OPTIONS

    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--pipeline-kwargs is not JSON ({error}); write '{{\"height\": 512}}'") from None
    if not isinstance(arguments, dict):
        raise click.UsageError("--pipeline-kwargs is not a JSON object; write '{\"height\": 512}'")
    for name in SET_BY_OPTIONS:
        if name in arguments:
            raise click.UsageError(f"--pipeline-kwargs may not set {name}; the options -p, --seed and --steps do")
    return arguments


def _command(name: str) -> str:
    """The command that does what was only tried."""
    words = [word for word in click.get_current_context().meta["words"] if word != "--dry-run"]
    return f"dit-trace {name} {shlex.join(words)}".rstrip()


def _foretell(forecast: Forecast, as_json: bool) -> int:
    command = _command("run")
    if as_json:
        click.echo(json.dumps(forecast.as_json() | {"command": command}))
        return 0
    for line in forecast.lines():
        click.echo(line)
    click.echo(f"\n{command}")
    return 0


def _report(output: Path, outcome: Outcome, as_json: bool, rank: Rank) -> int:
    if as_json:
        process = {"process": rank.rank} if rank.count > 1 else {}
        click.echo(json.dumps(outcome_as_json(output, outcome) | process))
    else:
        click.echo(in_words(output, outcome, rank))
    for failure in outcome.failures:
        click.echo(f"dit-trace: {failure}", err=True)
    if outcome.untried:
        click.echo(f"dit-trace: {plural(outcome.untried, 'prompt')} not tried: they would fail likewise", err=True)
    if rank.leads and outcome.stopped:
        click.echo(f"dit-trace: stopped by {outcome.stopped}; {KEPT}", err=True)
    elif rank.leads and not as_json and outcome.traced + outcome.present:
        click.echo(f"next: dit-analyze summary {shlex.quote(str(output))}", err=True)
    return 75 if outcome.stopped else 1 if outcome.failures else 0


if __name__ == "__main__":
    main()

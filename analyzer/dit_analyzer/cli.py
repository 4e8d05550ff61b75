"""The command dit-analyze. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from dit_formats.console import Program, harmless, plural
from dit_formats.targets import TARGETS

from dit_analyzer.plans.coefficients import COEFFICIENT_TARGETS
from dit_analyzer.results import ABOUT, DISTANCES, PAPER, RESULTS, VARIATION
from dit_analyzer.views import VIEWS

TRACES = click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
SOURCE = click.option("--source", type=click.Choice(["exact", "sample"]), default="exact", show_default=True,
                      help="Take the exact statistics, or the sampled values alone.")  # fmt: skip
DASK = click.option("--dask", metavar="ADDRESS",
                    help="Read on a Dask cluster: tcp://host:8786, or the scheduler's file. Its workers must see the "
                         "traces at the same paths. Default: processes of this machine.")  # fmt: skip


class _Share(click.ParamType):
    """A share, as 40% or 0.4."""

    name = "share"

    def convert(self, value: Any, parameter: Any, context: Any) -> float:
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share < 1:
            self.fail(f"{text!r} is no share; give 0% to 99%, or a number from 0 up to 1", parameter, context)
        return share


SHARE = _Share()
EXPORTS = [*TARGETS, *COEFFICIENT_TARGETS]

QUANTITIES = {"l1": "L1", "cv": "CV", "change": "probability of a change"}
"""What is compared between samples and exact statistics."""


AS_PUBLISHED = click.option("--as-published", is_flag=True,
                            help="Write also what the paper's scripts compute, beside the correct values.")  # fmt: skip


@click.group(cls=Program, name="dit-analyze", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ditscope")
def main() -> None:
    """Show where a diffusion transformer repeats itself, from the traces that dit-trace wrote.

    Example: dit-analyze summary out.trace
    """


@main.command()
@TRACES
@SOURCE
@DASK
@click.option("--json", "as_json", is_flag=True, help="Print numbers for programs.")
def summary(traces: tuple[Path, ...], source: str, dask: str | None, as_json: bool) -> None:
    """Print what TRACES hold and how much K, V and A change from step to step.

    Example: dit-analyze summary out.trace
    """
    from dit_formats.reader import open_trace

    from dit_analyzer.show import tables

    summaries = []
    for path in traces:
        with open_trace(path) as trace:
            summaries.append(tables.summarise(trace, source, dask))
    if as_json:
        click.echo(json.dumps([tables.as_json(one) for one in summaries]))
        return
    for one in summaries:
        tables.show(one)
    click.echo(f"next: dit-analyze figures {shlex.join(map(str, traces))} -o figures", err=True)


@main.command()
@TRACES
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the figures.")
@click.option("--view", "views", type=click.Choice(list(VIEWS)), multiple=True,
              help="Draw what an earlier paper plotted instead; may be repeated.")  # fmt: skip
@SOURCE
@DASK
@click.option("--force", is_flag=True, help="Replace figures that are there already.")
def figures(
    traces: tuple[Path, ...], output: Path, views: tuple[str, ...], source: str, dask: str | None, force: bool
) -> None:
    """Draw TRACES as the paper does: a panel for each layer, and a heat map of layers and steps; PDF and PNG.

    With --view, what Learning-to-Cache, T-GATE, PAB, DiTFastAttn, SmoothCache, MagCache or TeaCache plotted, or what
    Delta-DiT reuses, if the trace has it; else the option of dit-trace that records it is named.

    Example: dit-analyze figures out.trace --view teacache -o figures
    """
    from dit_analyzer.measures.views.sampling import sentence
    from dit_analyzer.members import members_of, name_of
    from dit_analyzer.pages.paper import drawing_pages, sampling_pages, view_deviations, view_pages
    from dit_analyzer.study import Study

    if views and dask:
        raise click.UsageError("--view reads the trace here; leave out --dask")
    if len({name_of(path) for path in traces}) < len(traces):
        raise click.UsageError("two of the traces have the same name; draw them into two folders")
    study = Study(members_of(traces, {path.name: "" for path in traces}), source, dask)
    drawings = (drawing_pages, partial(sampling_pages, name="figures-sampling.csv"))
    _write(study, output, (partial(view_pages, views=views),) if views else drawings, force, compared=not views)
    for one, view in itertools.product(study.members, views):
        for row in view_deviations(study, one, view):
            click.echo(f"{harmless(one.name)}: {view} {sentence(row)}")
    click.echo(f"next: look at {output}, or dit-analyze summary {shlex.join(map(str, traces))}", err=True)


@main.command()
@TRACES
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the tables.")
@SOURCE
@DASK
@AS_PUBLISHED
@click.option("--force", is_flag=True, help="Replace tables that are there already.")
def tables(
    traces: tuple[Path, ...], output: Path, source: str, dask: str | None, as_published: bool, force: bool
) -> None:
    """Write the paper's Tables 1 and 2 for TRACES: their settings, and how much prompts differ; .md, .tex and .csv.

    Example: dit-analyze tables flux.trace sd3.trace -o tables
    """
    from dit_analyzer.members import members_of
    from dit_analyzer.pages.paper import sampling_pages, whole_table_pages
    from dit_analyzer.pages.published import published_pages
    from dit_analyzer.study import Study

    study = Study(members_of(traces), source, dask)
    pages = whole_table_pages, partial(sampling_pages, name="tables-sampling.csv")
    _write(study, output, (*pages, *([published_pages] if as_published else [])), force)
    click.echo(f"next: look at {output}, or dit-analyze figures {shlex.join(map(str, traces))} -o {output}", err=True)


@main.command()
@TRACES
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: TRACE.html]")
@SOURCE
@DASK
@click.option("--force", is_flag=True, help="Replace the file if it is there already.")
def report(traces: tuple[Path, ...], output: Path | None, source: str, dask: str | None, force: bool) -> None:
    """Write one HTML file that shows TRACES: what changes where, how far prompts differ, and 41 cache plans.

    It opens offline in any browser, prints, and can be sent on; nothing in it is asked for from elsewhere.

    Example: dit-analyze report out.trace -o report.html
    """
    from dit_analyzer.members import members_of
    from dit_analyzer.report.page import write_report
    from dit_analyzer.study import Study

    file = output or Path(f"{_stem(traces)}.html")
    click.echo(write_report(lambda: Study(members_of(traces), source, dask), file, force=force))
    click.echo(f"next: open {file} in a browser, or dit-analyze plan {shlex.quote(str(traces[0]))}", err=True)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for all that is written.")
@SOURCE
@DASK
@AS_PUBLISHED
@click.option("--force", is_flag=True, help="Replace files that are there already.")
def study(folder: Path, output: Path, source: str, dask: str | None, as_published: bool, force: bool) -> None:
    """Write the paper's tables and figures from all traces in FOLDER, and a verdict on each of its claims.

    Figures that the paper has keep its numbers; others are S1, S2 and so on. index.md says which trace gave which, and
    what the pages hold: claims, variation over prompts, change points, stability, depth, and what needs no weights.

    Example: dit-analyze study digits -o digits-study
    """
    from dit_analyzer.pages import PAGES
    from dit_analyzer.pages.published import published_pages
    from dit_analyzer.study import open_study

    found = open_study(folder, source=source, dask=dask)
    if found.note:
        click.echo(f"dit-analyze: {harmless(found.note)}", err=True)
    for name in found.planned:
        click.echo(f"{harmless(name)}: planned, and not traced yet", err=True)
    for one in found.members:
        if one.incomplete:
            click.echo(f"{harmless(one.name)}: {one.incomplete}; run its dit-trace command for the rest", err=True)
    _write(found, output, (*PAGES, published_pages) if as_published else PAGES, force)
    click.echo(f"next: read {output / 'index.md'}", err=True)


@main.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True,
              help="File to write: .csv, .json or .nc (netCDF 3).")  # fmt: skip
@click.option("--what", type=click.Choice(list(RESULTS)), multiple=True, default=(DISTANCES, PAPER), show_default=True,
              help=f"Result to write; may be repeated. {ABOUT}")  # fmt: skip
@SOURCE
@DASK
@click.option("--force", is_flag=True, help="Replace files that are there already.")
def export(trace: Path, output: Path, what: tuple[str, ...], source: str, dask: str | None, force: bool) -> None:
    """Write results of TRACE for other programs: the first named into FILE, others beside it (FILE-paper).

    A row, or cell, for each place of the dimensions that the values have; in CSV and JSON, values of fewer dimensions
    have files of their own (FILE-kind-layer). netCDF is version 3, which scipy writes: nothing in it is compressed.

    Example: dit-analyze export out.trace -o out.csv --what changes
    """
    from dit_formats.reader import open_trace

    from dit_analyzer.exports import export as write
    from dit_analyzer.exports import refuse
    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.sampled import left_out_positions
    from dit_analyzer.results import measured

    names = tuple(dict.fromkeys(what))
    refuse(output, names, force=force)
    with open_trace(trace) as opened:
        ds = distances(opened, source=source, dask=dask)
        positions = source == "sample" and VARIATION in names
        without = left_out_positions(opened, dask=dask) if positions else None
    for path in write(measured(ds, names, str(trace), without), output, force=force):
        click.echo(path)
    click.echo(f"next: dit-analyze summary {shlex.quote(str(trace))}", err=True)


@main.command()
@TRACES
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Folder for figures: the matrix of S, mean curves, change over depth.  [default: none]")  # fmt: skip
@click.option("--axis", type=click.Choice(["step", "noise"]),
              help="Compare at the same relative step, or noise level.  [default: both]")  # fmt: skip
@SOURCE
@DASK
@click.option("--force", is_flag=True, help="Replace figures that are there already.")
@click.option("--json", "as_json", is_flag=True, help="Print numbers for programs.")
def compare(
    traces: tuple[Path, ...],
    output: Path | None,
    axis: str | None,
    source: str,
    dask: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Say whether the curves of two or more TRACES have the same shape over steps and layers.

    For each kind: concordance S (1 equal, 0 unrelated, -1 opposite), the factor by which shapes differ, the level of
    the second above the first, and a verdict, over the prompts that both traces have. Equivalent means that the
    95 % interval of the difference ends below 0.15 in logarithms, a factor of 1.16. Then, with intervals: whether
    deeper layers change more, how far kinds are apart, absolute and relative, and how rough the curves are.

    Example: dit-analyze compare steps-28.trace steps-14.trace -o figures
    """
    from dit_analyzer.measures.axes import AXES
    from dit_analyzer.show import comparison

    if len(traces) < 2:
        raise click.UsageError("compare takes two traces or more; dit-analyze summary shows one")
    axes = (axis,) if axis else AXES
    stem = _stem(traces)
    if output:
        from dit_analyzer.show.figures import refuse_existing

        for name in ("concordance", "curves", "depth"):
            refuse_existing(output / f"{stem}-{name}", force=force)
    runs = comparison.read(traces, source, dask)
    found = comparison.pairs(runs, axes)
    if as_json:
        click.echo(json.dumps(comparison.as_json(found, runs)))
    else:
        comparison.show(found, runs)
    if output:
        for file in comparison.draw(found, runs, output / stem, force=force):
            click.echo(file, err=as_json)
    if not as_json:
        click.echo(f"next: {f'look at {output}' if output else _again(traces)}", err=True)


@main.command()
@TRACES
@click.option("--json", "as_json", is_flag=True, help="Print the findings for programs.")
def check(traces: tuple[Path, ...], as_json: bool) -> int:
    """Read every byte of TRACES and say what is damaged or missing. Changes nothing.

    Exit code 0: whole; 3: damaged, or no trace; 4: prompts are missing.

    Example: dit-analyze check out.trace
    """
    from dit_formats.check import check as look
    from dit_formats.errors import TraceError

    found, missing = {}, None
    for path in traces:
        try:
            found[path] = look(path)
        except (FileNotFoundError, TraceError) as error:
            missing = missing or error
    if as_json:
        click.echo(json.dumps([health.as_json() | {"trace": str(path)} for path, health in found.items()]))
    else:
        for path, health in found.items():
            for line in health.lines(path):
                click.echo(harmless(line))
    readable = [str(path) for path, health in found.items() if not health.problems]
    if readable and not as_json:
        click.echo(f"next: dit-analyze summary {shlex.join(readable)}", err=True)
    if missing:
        raise missing
    return max(health.exit_code for health in found.values())


@main.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("--budget", type=click.IntRange(min=1), help="Steps that are computed.")
@click.option("--reuse", type=SHARE, metavar="SHARE", help="Share that is left out: 40% or 0.4.  [default: 50%]")
@click.option("--error", type=SHARE, metavar="SHARE", help="As little as a predicted error of this allows: 5% or 0.05.")
@click.option("--per", "granularity", type=click.Choice(["step", "type", "layer"]), default="step", show_default=True,
              help="What is computed or left out as one: whole steps, layers of a type, single layers.")  # fmt: skip
@click.option("--predictor", type=click.Choice(["reuse", "linear"]),
              help="In place of what is left out: the last computed value, or a line through the last two.  [default: "
              "linear for whole steps where the target can, else reuse]")  # fmt: skip
@click.option("--signal", type=click.Choice(["prediction", "outputs"]),
              help="Whose errors count: the network's prediction by how far it moves the latents, or the layers' "
              "outputs.  [default: prediction for whole steps, where it was recorded]")  # fmt: skip
@click.option("--aim", type=click.Choice(["total", "minimax"]), default="total", show_default=True,
              help="Least sum of errors, or least largest one (then the next).")  # fmt: skip
@click.option("--change-points", is_flag=True, help="Always compute steps that begin a new segment of all layers.")
@click.option("--compute", metavar="STEPS", default="", help="Always compute these steps too: 0,11.")
@click.option("--steps", type=click.IntRange(min=2), help="Plan for another number of steps, along the noise level.")
@click.option("--sigmas", type=click.IntRange(min=2), metavar="N",
              help="Instead choose N of the trace's noise levels, for a run of N steps.")  # fmt: skip
@click.option("--policy", type=click.Choice(["modulated", "model_input"]), metavar="SIGNAL",
              help="Instead a rule that decides while it runs: compute when the added change of SIGNAL reaches a "
              "threshold; modulated (the first block's input, as TeaCache) or model_input (latents).")  # fmt: skip
@click.option("--to", "targets", multiple=True, type=click.Choice(EXPORTS), metavar="TARGET",
              help=f"Also write it for another engine; may be repeated: {', '.join(EXPORTS)}.")  # fmt: skip
@click.option("--monotone", is_flag=True, help="Export polynomials that never fall, fitted anew.")
@click.option("--curve", is_flag=True, help="41 plans, from all computed to a fifth; -o is then a folder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: TRACE.plan.json]")
@DASK
@click.option("--force", is_flag=True, help="Replace files that are there already, and export fits that are poor.")
@click.option("--json", "as_json", is_flag=True, help="Print the result for programs.")
def plan(
    trace: Path,
    compute: str,
    sigmas: int | None,
    policy: str | None,
    monotone: bool,
    curve: bool,
    output: Path | None,
    dask: str | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which steps of the model of TRACE to compute and which to reuse, and what error that is likely to cost.

    One prompt in five is held out: the predicted error is of those. dit-trace replay runs the plan for real.

    Example: dit-analyze plan out.trace --budget 4 -o plan.json
    """
    from dit_formats.reader import open_trace

    from dit_analyzer.plans import command
    from dit_analyzer.plans.asked import Asked

    _refuse_contradictions(sigmas, curve, policy, output, options)
    if sigmas is not None:
        options |= {"budget": sigmas, "granularity": "grid"}
    asked = Asked(**options, compute=_numbers(compute))
    with open_trace(trace) as opened:
        told = {"force": force, "as_json": as_json, "dask": dask}
        if curve:
            command.curve(opened, asked, output, **told)
        elif policy:
            command.policy(opened, asked, policy, output or Path(f"{_stem((trace,))}.policy.json"), **told)
        else:
            file = output or Path(f"{_stem((trace,))}.plan.json")
            command.one(opened, asked, file, monotone=monotone, **told)


def _refuse_contradictions(
    sigmas: int | None, curve: bool, policy: str | None, output: Path | None, options: dict[str, Any]
) -> None:
    """Refuse options of `plan` of which one would be ignored."""
    sizes = [name for name in ("budget", "reuse", "error") if options[name] is not None]
    if len(sizes) + (sigmas is not None) + curve > 1:
        raise click.UsageError("--budget, --reuse, --error, --sigmas and --curve: give one of them")
    if policy and (options["targets"] or curve or sigmas or options["granularity"] != "step"):
        raise click.UsageError("--policy decides for whole steps while it runs; give it without --to, --curve, --per")
    if options["signal"] == "prediction" and options["granularity"] != "step":
        raise click.UsageError("--signal prediction is of whole steps; layers and types are planned by their outputs")
    if curve and options["targets"]:
        raise click.UsageError("--curve writes 41 plans and no exports; give --to with the plan that you choose")
    if sigmas is not None and (options["granularity"] != "step" or options["predictor"]):
        raise click.UsageError("--sigmas chooses steps as wholes, and its solver predicts: no --per, no --predictor")
    if output is not None and not curve and output.suffix != ".json":
        raise click.UsageError(f"-o {output}: a plan is a file whose name ends in .json")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(one) for one in text.split(",") if one.strip())
    except ValueError:
        raise click.UsageError(f"--compute {text!r}: give numbers of steps, as 0,11") from None


@main.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
@click.option("--stats-only", is_flag=True, help="Leave the samples out.")
@click.option("--force", is_flag=True, help="Replace the file if it is there already.")
@click.option("--json", "as_json", is_flag=True, help="Print the result for programs.")
def pack(trace: Path, output: Path, stats_only: bool, force: bool, as_json: bool) -> None:
    """Join the shards of TRACE into one file, which every command reads as it reads the folder.

    Example: dit-analyze pack out.trace -o out.h5
    """
    from dit_formats.pack import pack as join
    from dit_formats.reader import open_trace

    with open_trace(trace) as opened, _progress(len(opened.prompts)) as done:
        packed = join(opened, output, stats_only=stats_only, force=force, done=done)
    if as_json:
        click.echo(json.dumps({**vars(packed), "path": str(packed.path), "trace": str(trace)}))
        return
    size = f"{packed.bytes / 1e6:.1f} MB"
    of = f" of {packed.asked} asked for" if packed.asked > packed.prompts else ""
    click.echo(f"{output}: {plural(packed.prompts, 'prompt')}{of}, {size}")
    click.echo(f"next: dit-analyze summary {shlex.quote(str(output))}", err=True)


def _stem(traces: tuple[Path, ...]) -> str:
    """Name for what several traces give together: all theirs up to three, else the first and how many follow."""
    from dit_analyzer.members import name_of

    stems = [name_of(path) for path in traces]
    return "-".join(stems) if len(stems) <= 3 else f"{stems[0]}-and-{len(stems) - 1}-more"


def _again(traces: tuple[Path, ...]) -> str:
    return f"dit-analyze compare {shlex.join(map(str, traces))} -o figures"


@contextmanager
def _progress(length: int) -> Iterator[Callable[[], object]]:
    """A bar on a terminal, nothing elsewhere; what comes out is called after each of so many things."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=length, file=sys.stderr) as bar:
        yield lambda: bar.update(1)


def _write(study: Any, output: Path, pages: Any, force: bool, *, compared: bool = True) -> None:
    """Write these pages of a study, and say what was written, and how good samples are where they are the source."""
    from dit_analyzer.pages.paper import deviations
    from dit_analyzer.study import write_study

    for path in write_study(study, output, pages, force=force):
        click.echo(path)
    for row in deviations(study) if compared and study.source == "sample" else ():
        of = f"{row['kind'].upper()} {QUANTITIES[row['quantity']]}"
        apart = f"median {row['median']:.2%}, largest {row['largest']:.2%}" if row["cells"] else "nothing to compare"
        click.echo(f"{harmless(row['trace'])}: {of} from samples deviates by {apart}")


if __name__ == "__main__":
    main()

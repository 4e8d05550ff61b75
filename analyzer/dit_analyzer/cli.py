"""The command dit-analyze. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from dit_formats.console import Program, harmless, plural

TRACES = click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path))
DASK = click.option("--dask", metavar="ADDRESS",
                    help="Read on a Dask cluster: tcp://host:8786, or the scheduler's file. Its workers must see the "
                         "traces at the same paths. Default: processes of this machine.")  # fmt: skip


@click.group(cls=Program, name="dit-analyze", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ditscope")
def main() -> None:
    """Show where a diffusion transformer repeats itself, from the traces that dit-trace wrote.

    Example: dit-analyze summary out.trace
    """


@main.command()
@TRACES
@click.option("--source", type=click.Choice(["exact", "sample"]), default="exact", show_default=True,
              help="Take the exact statistics, or the sampled values alone.")  # fmt: skip
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
@click.option("--source", type=click.Choice(["exact", "sample"]), default="exact", show_default=True,
              help="Take the exact statistics, or the sampled values alone.")  # fmt: skip
@DASK
@click.option("--force", is_flag=True, help="Replace figures that are there already.")
def figures(traces: tuple[Path, ...], output: Path, source: str, dask: str | None, force: bool) -> None:
    """Draw TRACES as the paper does: a panel for each layer, and a heat map of layers and steps; PDF and PNG.

    Example: dit-analyze figures out.trace -o figures
    """
    from dit_formats.reader import open_trace

    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.paper import paper_view
    from dit_analyzer.show import figures as draw
    from dit_analyzer.show.tables import headline

    makers = {"redundancy": draw.redundancy, "heatmap": draw.heatmap}
    stems = [path.resolve().name.removesuffix(".trace").removesuffix(".h5") for path in traces]
    if len(set(stems)) < len(stems):
        raise click.UsageError("two of the traces have the same name; draw them into two folders")
    for stem in stems:
        for name in makers:
            draw.refuse_existing(output / f"{stem}-{name}", force=force)
    for path, stem in zip(traces, stems):
        with open_trace(path) as trace:
            view = paper_view(distances(trace, source=source, dask=dask))
            title = headline(trace)
        for name, figure in makers.items():
            for file in draw.save(figure(view, title), output / f"{stem}-{name}", force=force):
                click.echo(file)
    click.echo(f"next: look at {output}, or dit-analyze summary {shlex.join(map(str, traces))}", err=True)


@main.command()
@TRACES
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="Folder for figures: the matrix of S, and mean curves.  [default: none]")  # fmt: skip
@click.option("--axis", type=click.Choice(["step", "noise"]),
              help="Compare at the same relative step, or noise level.  [default: both]")  # fmt: skip
@click.option("--source", type=click.Choice(["exact", "sample"]), default="exact", show_default=True,
              help="Take the exact statistics, or the sampled values alone.")  # fmt: skip
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
    95 % interval of the difference ends below 0.15 in logarithms, a factor of 1.16.

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

        for name in ("concordance", "curves"):
            refuse_existing(output / f"{stem}-{name}", force=force)
    runs = comparison.read(traces, source, dask)
    found = comparison.pairs(runs, axes)
    if as_json:
        click.echo(json.dumps(comparison.as_json(found)))
    else:
        comparison.show(found)
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
    stems = [path.resolve().stem for path in traces]
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


if __name__ == "__main__":
    main()

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

from dit_analyzer.views import VIEWS

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
@click.option("--view", "views", type=click.Choice(list(VIEWS)), multiple=True,
              help="Draw what an earlier paper plotted instead; may be repeated.")  # fmt: skip
@click.option("--source", type=click.Choice(["exact", "sample"]), default="exact", show_default=True,
              help="Take the exact statistics, or the sampled values alone.")  # fmt: skip
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
    from dit_formats.reader import open_trace

    from dit_analyzer.measures.distance import distances
    from dit_analyzer.measures.paper import paper_view
    from dit_analyzer.show import figures as draw
    from dit_analyzer.show.tables import headline

    if views and dask:
        raise click.UsageError("--view reads the trace here; leave out --dask")
    makers = {"redundancy": draw.redundancy, "heatmap": draw.heatmap}
    stems = [path.resolve().stem for path in traces]
    if len(set(stems)) < len(stems):
        raise click.UsageError("two of the traces have the same name; draw them into two folders")
    for stem in stems:
        for name in views or makers:
            draw.refuse_existing(output / f"{stem}-{name}", force=force)
    for path, stem in zip(traces, stems):
        with open_trace(path) as trace:
            title = headline(trace)
            if views:
                drawn = {name: VIEWS[name].draw(VIEWS[name].measure(trace, source), title) for name in views}
            else:
                view = paper_view(distances(trace, source=source, dask=dask))
                drawn = {name: figure(view, title) for name, figure in makers.items()}
        for name, figure in drawn.items():
            for file in draw.save(figure, output / f"{stem}-{name}", force=force):
                click.echo(file)
    click.echo(f"next: look at {output}, or dit-analyze summary {shlex.join(map(str, traces))}", err=True)


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


@contextmanager
def _progress(length: int) -> Iterator[Callable[[], object]]:
    """A bar on a terminal, nothing elsewhere; what comes out is called after each of so many things."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    with click.progressbar(length=length, file=sys.stderr) as bar:
        yield lambda: bar.update(1)

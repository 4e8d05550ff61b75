"""The command dit-trace. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dit_formats.console import Program, plural

if TYPE_CHECKING:
    from dit_tracer.models.catalog import Model

NEEDS = 'tracing needs torch and diffusers, and {} is not installed; pip install "ditscope[trace]"'


@click.group(cls=Program, name="dit-trace", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ditscope")
def main() -> None:
    """Record what the attention layers of a diffusion transformer compute, step by step.

    Example: dit-trace run digits-pixart -n 16 -o out.trace
    """


main.interrupted = ("stopped; every finished prompt is kept, and the same command goes on from there", 75)


@main.command()
@click.argument("model")
@click.option("-p", "--prompts", help="A text, or a .txt, .csv, .jsonl or COCO .json file.  [default: built in]")
@click.option("-n", "--limit", type=click.IntRange(min=1), help="The first N prompts.  [default: all; 16 if built in]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: MODEL-STEPSs.trace]")
@click.option("--steps", type=click.IntRange(min=1), help="Diffusion steps.  [default: the model's]")
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=42,
    show_default=True,
    help="Seed of the noise, the same for every prompt.",
)
@click.option("--guidance-scale", type=float, help="Strength of guidance; 1 for none.  [default: the model's]")
@click.option("--pipeline-kwargs", default="{}", help="Further arguments of the pipeline, as JSON.")
@click.option(
    "--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), help="[default: bfloat16; float32 on CPUs]"
)
@click.option("--device", help="Where to run, as torch names it.  [default: cuda if there is one, else cpu]")
@click.option("--sample", type=click.IntRange(min=0), default=4096, show_default=True,
              help="Values kept of each activation, a quarter of that for text; 0 for statistics only.")  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def run(
    model: str,
    prompts: str | None,
    limit: int | None,
    output: Path | None,
    steps: int | None,
    seed: int,
    guidance_scale: float | None,
    pipeline_kwargs: str,
    dtype: str | None,
    device: str | None,
    sample: int,
    quiet: bool,
    as_json: bool,
) -> int:
    """Trace MODEL over many prompts. Run the same command again to go on where it stopped.

    MODEL is a name that `dit-trace models` lists, or a folder with a diffusers pipeline.

    Example: dit-trace run digits-pixart -n 16 -o out.trace
    """
    from dit_tracer.models.catalog import find

    found = find(model)
    texts = _prompts(found, prompts, limit)
    further = _arguments(pipeline_kwargs)
    try:
        from dit_tracer.models.loading import load
        from dit_tracer.recording.settings import Sample
        from dit_tracer.runs import run as trace
    except ModuleNotFoundError as error:
        raise click.ClickException(NEEDS.format(error.name)) from None

    steps = steps or found.steps
    call = found.call | ({} if guidance_scale is None else {found.guidance: guidance_scale}) | further
    output = output or Path(f"{found.name}-{steps}s.trace")
    outcome = trace(
        lambda: load(found, dtype, device),
        texts,
        output,
        model=found.name,
        seed=seed,
        call=call | {"num_inference_steps": steps},
        sample=Sample(latent=sample, text=-(-sample // 4)),
        quiet=quiet,
    )
    return _report(output, outcome, as_json)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def models(as_json: bool) -> None:
    """List the models that are known by name.

    Example: dit-trace models
    """
    from dit_tracer.models.catalog import MODELS

    if as_json:
        click.echo(json.dumps([{"name": m.name, "steps": m.steps, "about": m.about} for m in MODELS.values()]))
        return
    width = max(map(len, MODELS))
    for known in MODELS.values():
        click.echo(f"{known.name:{width}}  {known.about}")
    click.echo(f"\nnext: dit-trace run {next(iter(MODELS))}", err=True)


def _prompts(model: Model, source: str | None, limit: int | None) -> list[str]:
    """The prompts asked for, in order, each once."""
    from dit_formats.prompts import read_prompts

    if source is not None:
        return list(dict.fromkeys(read_prompts(source)))[:limit]
    if model.captions is None:
        raise click.UsageError(f"{model.name} has no built-in prompts; give some with -p")
    return model.captions(limit or 16)


def _arguments(text: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"--pipeline-kwargs is not JSON ({error}); write '{{\"height\": 512}}'") from None
    if not isinstance(arguments, dict):
        raise click.UsageError("--pipeline-kwargs is not a JSON object; write '{\"height\": 512}'")
    for name in ("prompt", "generator", "num_inference_steps", "output_type", "return_dict", "self"):
        if name in arguments:
            raise click.UsageError(f"--pipeline-kwargs may not set {name}; the options -p, --seed and --steps do")
    return arguments


def _report(output: Path, outcome: Any, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"trace": str(output), **vars(outcome)}))
    else:
        present = f", {outcome.present} were there already" if outcome.present else ""
        click.echo(f"{output}: {plural(outcome.traced, 'prompt')} traced{present}")
        if outcome.traced + outcome.present:
            click.echo(f"next: dit-analyze summary {shlex.quote(str(output))}", err=True)
    for failure in outcome.failures:
        click.echo(f"dit-trace: {failure}", err=True)
    return 1 if outcome.failures else 0

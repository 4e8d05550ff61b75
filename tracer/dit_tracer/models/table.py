"""The layers of a model: what `dit-trace models NAME` shows, from one forward pass or, without weights, from shapes."""

from __future__ import annotations

import json
import re
import shlex
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from dit_formats.console import harmless
from torch import Tensor, nn

from dit_tracer.models.catalog import BUNDLED, MODELS, SEVEN, Model, find
from dit_tracer.models.loading import LoadError, hub_advice, hush, load
from dit_tracer.recording.capture import Capture
from dit_tracer.recording.clock import Clock
from dit_tracer.recording.settings import What
from dit_tracer.recording.sites import find_attention, find_networks


@dataclass
class Row:
    """One layer: tokens by kind and stream of one element of the batch; none where it has not run."""

    name: str
    type: str
    heads: int
    channels: int = 0
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The layers of a model in the order in which they run, and the parameters of its networks."""

    model: Model
    networks: dict[str, str]
    parameters: dict[str, int]
    kinds: tuple[str, ...]
    rows: list[Row]


def table_of(name: str) -> Table:
    """The table of one of the seven at full size, of a bundled model or a twin, or of a pipeline's configuration.

    Raises:
        LookupError: There is no such model.
    """
    model = find(name)
    if model is SEVEN.get(model.name):
        from dit_tracer.models import fullsize

        networks = fullsize.meta_transformers(model.name)
        with fullsize.on_meta():
            rows = _seen(networks, lambda: networks["transformer"](**fullsize.probe(model.name)))
    elif model is BUNDLED.get(model.name) or model.random_weights:
        pipeline = load(model, device="cpu")
        networks = find_networks(pipeline)
        rows = _seen(networks, lambda: _few_steps(pipeline, model), pipeline.scheduler)
    else:
        networks = _from_configuration(model.source)
        rows = [Row(site.name, site.type or "-", site.heads) for site in find_attention(networks)]
    classes = {part: type(network).__name__ for part, network in networks.items()}
    parameters = {part: sum(w.numel() for w in network.parameters()) for part, network in networks.items()}
    return Table(model, classes, parameters, What().kinds_for(networks), rows)


def show(name: str, as_json: bool) -> None:
    """Print the table of a model to stdout."""
    table = table_of(name)
    if as_json:
        rows = [asdict(row) for row in table.rows]
        click.echo(json.dumps({"name": table.model.name, "networks": table.networks, "parameters": table.parameters,
                               "kinds": table.kinds, "layers": rows}))  # fmt: skip
        return
    for line in _lines(table):
        click.echo(harmless(line))
    model = table.model
    name = model.name if model in MODELS.values() or model.random_weights else model.source
    click.echo(f"\nnext: dit-trace run {shlex.quote(name)}" + ("" if model.captions else ' -p "a text"'), err=True)


def _lines(table: Table) -> Iterator[str]:
    model = table.model
    yield f"{model.name}  {model.about}"
    for part, name in table.networks.items():
        yield f"{part}: {name}, {_large(table.parameters[part])} parameters"
    call = ", ".join(f"{key} {value}" for key, value in model.call.items() if value not in (None, ""))
    yield f"called with {model.steps} steps" + (f", {call}" if call else "")
    if model.note:
        yield model.note
    own = sum(row.type not in ("cross", "ff", "-") for row in table.rows)
    if own:
        yield f"{own} self-attention layers; recorded of each by default: {', '.join(table.kinds)}"
    yield ""
    yield from _columns(
        [("count", "layers", "type", "heads", "channels", "tokens of K and V", "tokens of A"), *_groups(table)]
    )


def _groups(table: Table) -> Iterator[tuple[str, ...]]:
    """Layers of one place in all blocks as one row: `transformer_blocks.0-27.attn1`."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in table.rows:
        pattern = re.sub(r"\.\d+(?=\.|$)", ".*", row.name, count=1)
        kinds = tuple(tuple(row.tokens.get(kind, {}).items()) for kind in ("k", "a"))
        groups.setdefault((pattern, row.type, row.heads, row.channels, kinds), []).append(row.name)
    for (pattern, kind, heads, channels, (keys, outputs)), names in groups.items():
        told = [", ".join(f"{stream} {count}" for stream, count in part) or "-" for part in (keys, outputs)]
        yield str(len(names)), _collapsed(pattern, names), kind, str(heads), str(channels or "-"), *told


def _collapsed(pattern: str, names: list[str]) -> str:
    """The pattern with the numbers that occur, as ranges."""
    if ".*" not in pattern:
        return pattern
    place = pattern.split(".").index("*")
    numbers = sorted(int(name.split(".")[place]) for name in names)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return pattern.replace("*", ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs), 1)


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()


def _large(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e8 else f"{count / 1e6:.2f} M"


def _seen(networks: dict[str, nn.Module], run: Any, scheduler: Any = None) -> list[Row]:
    """What the layers of the networks are given when `run` runs them."""
    rows: dict[str, Row] = {}

    def sink(layer: str, stream: str, kind: str, tensor: Tensor, lengths: list[int] | None) -> None:
        row = rows.setdefault(layer, Row(layer, "", 0))
        batch = clock.batch if len(tensor) % clock.batch == 0 else len(tensor)
        count = len(tensor) // batch * tensor.shape[-2]
        row.tokens.setdefault(kind, {})[stream] = count
        if kind == "k":
            row.channels = tensor.shape[-1] * (tensor.shape[1] if tensor.ndim == 4 else 1)

    clock = Clock(SimpleNamespace(scheduler=scheduler or FlowMatchEulerDiscreteScheduler()), networks)
    capture = Capture(networks, clock, sink)
    with ExitStack() as stack:
        stack.enter_context(clock)
        stack.enter_context(capture)
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of the libraries, about themselves
        run()
    for site in capture.fired.values():
        rows[site.name].type, rows[site.name].heads = site.type, site.heads
    return [rows[name] for name in capture.fired]


def _few_steps(pipeline: Any, model: Model) -> None:
    """As many steps as run every network: the second transformer of Wan 2.2 has its own part of them."""
    captions = model.captions(1) if model.captions else ["a red bus"]
    generator = torch.Generator().manual_seed(0)
    pipeline(prompt=captions[0], generator=generator, num_inference_steps=3, output_type="latent", **model.call)


def _from_configuration(source: str) -> dict[str, nn.Module]:
    """The denoising networks of a pipeline, made from its configuration on the meta device."""
    import diffusers

    hush()
    try:
        parts = DiffusionPipeline.load_config(source)
    except OSError as error:
        raise LoadError(hub_advice(error, source, None) or str(error)) from error
    networks = {}
    for name, value in parts.items():
        if isinstance(value, (list, tuple)) and value[0] == "diffusers" and ("transformer" in name or name == "unet"):
            made = getattr(diffusers, value[1])
            with torch.device("meta"):
                networks[name] = made.from_config(made.load_config(source, subfolder=name))
    return networks or find_networks(SimpleNamespace(components={}))

"""The layers of a model: what `dit-trace models NAME` shows, from one forward pass or, without weights, from shapes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline
from dit_formats.console import harmless
from dit_formats.schema import KINDS
from torch import nn

from dit_tracer.models.catalog import BUNDLED, MODELS, SEVEN, Model, find
from dit_tracer.models.fullsize import meta_transformers
from dit_tracer.models.loading import LoadError, hub_advice, hush, load
from dit_tracer.models.sketch import Sketch, of_pipeline, of_the_seven
from dit_tracer.recording.settings import What
from dit_tracer.recording.sites import find_attention, find_networks
from dit_tracer.work import Task

_LAYERS = What(kinds=KINDS, stack=False)


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
        networks = meta_transformers(model.name)
        rows = _rows(of_the_seven(model, {}, _LAYERS, model.steps))
    elif model is BUNDLED.get(model.name) or model.random_weights:
        pipeline = load(model, device="cpu")
        networks = find_networks(pipeline)
        text = model.captions(1)[0] if model.captions else "a red bus"
        rows = _rows(of_pipeline(pipeline, model.call | {"num_inference_steps": model.steps}, _LAYERS, Task(text, 0)))
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


def _rows(found: Sketch) -> list[Row]:
    """What the layers are given."""
    rows = {layer.name: Row(layer.name, layer.type, layer.heads) for layer in found.layers}
    for (stream, kind, layer), by_branch in found.activations.items():
        first = next(iter(by_branch.values()))
        rows[layer].tokens.setdefault(kind, {})[stream] = first.tokens
        if kind == "k":
            rows[layer].channels = first.channels
    return list(rows.values())


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

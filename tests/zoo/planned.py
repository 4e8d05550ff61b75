"""Plans for twins: as a trace's analysis would make them, from a mask by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from dit_formats.plan import LAYERS, STEPS, Plan, Request, Row
from dit_tracer.recording.sites import find_attention, find_feed_forward, find_networks

MASK = [1, 1, 0, 1, 0, 0, 1, 0]
STEPS_RUN = len(MASK)


def plan_of(pipeline: Any, rows: list[tuple[str, list[str], list[int]]], granularity: str, **changes: Any) -> Plan:
    """A plan for a twin, from names, layers and steps of its rows."""
    made = tuple(Row(name, tuple(layers), tuple(map(bool, compute))) for name, layers, compute in rows)
    steps = len(rows[0][2])
    times = tuple(np.linspace(900, 100, steps))
    scheduler, network = type(pipeline.scheduler).__name__, next(iter(find_networks(pipeline).values()))
    names = type(pipeline).__name__, type(network).__name__, scheduler
    request = Request("twin", {}, None, *names, "0" * 64, steps, times, times, "float32", changes.pop("call", {}))
    kinds = types_of(pipeline)
    types = {layer: kinds[layer] for row in made for layer in row.layers}
    plan = {"predictor": "reuse", "levels": times} | changes
    return Plan(request, granularity, rows=made, types=types, **plan)


def types_of(pipeline: Any) -> dict[str, str]:
    """`ff` or `attention`, by layer."""
    networks = find_networks(pipeline)
    attention = find_attention(networks)
    kinds = {site.name: "attention" for site in attention}
    return kinds | {site.name: "ff" for site in find_feed_forward(networks, attention)}


def layers_of(pipeline: Any) -> list[str]:
    return list(types_of(pipeline))


def by_layers(pipeline: Any, **changes: Any) -> Plan:
    """A plan that no range and no interval follows: other steps for one attention layer in two, and for the rest."""
    kinds = types_of(pipeline)
    attention = [layer for layer, kind in kinds.items() if kind == "attention"]
    rows = [
        ("even", attention[::2], [1, 1, 0, 1, 0, 1, 0, 1]),
        ("odd", attention[1::2], [1, 1, 0, 0, 1, 0, 0, 1]),
        ("ff", [layer for layer, kind in kinds.items() if kind == "ff"], [1, 1, 0, 1, 0, 0, 1, 0]),
    ]
    return plan_of(pipeline, rows, LAYERS, **changes)


def by_steps(pipeline: Any, mask: list[int] = MASK, **changes: Any) -> Plan:
    return plan_of(pipeline, [("all", layers_of(pipeline), mask)], STEPS, **changes)

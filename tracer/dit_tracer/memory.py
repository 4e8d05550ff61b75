"""What memory is free, and where the activations of the step before are kept for exact changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch

from dit_tracer.models.sketch import Sketch
from dit_tracer.recording.history import HELD
from dit_tracer.recording.settings import What

QUEUE = 256 << 20
"""Bytes that are left on the host for the results of the prompt that runs, and of one that waits to be written."""

OWN = 1 << 30
"""Bytes that are always left to the model's own work."""

AT_WORK = 32
"""Tensors of the size of its largest activation that a model is taken to have at work at once."""

CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)
"""Where a container's limit, its use and what of that can be given back stand, in version 2 and in version 1."""


def choose(need: int, own: int, device: int | None, host: int, exact: bool = False) -> str:
    """Where the activations of the step before are kept: one of `recording.history.PREVIOUS`.

    Args:
        need: Bytes that they take.
        own: Bytes that the model's own work takes beside its weights.
        device: Free bytes on the device; None where the model computes in the memory of the host.
        host: Free bytes on the host.
        exact: Whether a part of them will not do, because there is a trace with exact changes already.
    """
    host -= QUEUE
    if device is None:
        return "device" if exact or need + own <= host else "subset"
    if need + own <= device:
        return "device"
    return "host" if exact or need <= host * 0.8 else "subset"  # pinned memory cannot be swapped out; leave some


def own_work(sketch: Sketch) -> int:
    """Bytes that the model's own work is taken to need beside its weights."""
    return max(OWN, AT_WORK * sketch.largest_nbytes)


def anchors(sketch: Sketch, what: What) -> int:
    """Bytes of the steps that wait for a later one, where products of pairs of steps were asked for."""
    last = {first: max(late for one, late in what.step_pairs if one == first) for first, _ in what.step_pairs}
    waiting = [sum(first <= step < last[first] for first in last) for step in last]
    return max(waiting, default=0) * sketch.step_nbytes


def kept(sketch: Sketch, previous: str) -> tuple[int, int]:
    """Bytes that the step before takes on the device and on the host, if it is kept so."""
    if previous == "subset":
        every = (one for found in sketch.activations.values() for one in found.values())
        return sum(min(one.size, HELD) * one.dtype.itemsize for one in every), 0
    return (sketch.step_nbytes, 0) if previous == "device" else (0, sketch.step_nbytes)


def free_on_device(device: Any) -> int | None:
    """Free bytes on a GPU, those included that torch holds for later; None for what computes in the host's memory.

    None also for a GPU that is not on this machine, where a run is only planned.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_on_host() -> int:
    """Free bytes on the host: of the machine, or of the container that this is."""
    free = psutil.virtual_memory().available
    for limit, used, detail in CGROUPS:
        try:
            room = int(Path(limit).read_text()) - int(Path(used).read_text())
            known = dict(line.split() for line in Path(detail).read_text().splitlines())
        except (OSError, ValueError):  # no container, or one without a limit
            continue
        free = min(free, room + int(known.get("inactive_file", 0)))
    return max(free, 0)

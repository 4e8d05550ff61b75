"""Brings small results from the device to the host without making anybody wait."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 32 << 20
"""Bytes that are gathered on the device before they are sent, if no step ends before."""


class Arrival:
    """A tensor that is on its way to the host, or was there all along."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._sent: _Sent | None = None

    def tensor(self) -> Tensor:
        """The tensor on the host; waits until it is there."""
        if self._sent is not None:
            self._tensor, self._sent = self._sent.part(self), None
        return self._tensor


@dataclass
class _Sent:
    """One buffer of pinned memory and the event that says when it is filled."""

    buffer: Tensor
    done: Any
    parts: dict[int, tuple[int, torch.Size]]

    def part(self, arrival: Arrival) -> Tensor:
        self.done.synchronize()
        start, shape = self.parts[id(arrival)]
        return self.buffer[start : start + shape.numel()].view(shape)


class Transfer:
    """Sends what it is given in few large pieces, on a stream of its own; what is on the host passes through."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[torch.device, torch.dtype], list[Arrival]] = defaultdict(list)
        self._bytes = 0
        self._streams: dict[torch.device, Any] = {}

    def send(self, tensor: Tensor) -> Arrival:
        arrival = Arrival(tensor)
        if tensor.device.type == "cuda":
            self._waiting[tensor.device, tensor.dtype].append(arrival)
            self._bytes += tensor.nbytes
            if self._bytes >= AT_ONCE:
                self.flush()
        elif tensor.device.type not in ("cpu", "meta"):
            arrival._tensor = tensor.cpu()
        return arrival

    def flush(self) -> None:
        """Send everything that waits."""
        for (device, _), arrivals in self._waiting.items():
            self._copy(device, arrivals)
        self._waiting.clear()
        self._bytes = 0

    def _copy(self, device: torch.device, arrivals: list[Arrival]) -> None:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        joined = torch.cat([arrival._tensor.reshape(-1) for arrival in arrivals])
        buffer = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            buffer.copy_(joined, non_blocking=True)
            joined.record_stream(stream)
            done = stream.record_event()
        parts, start = {}, 0
        for arrival in arrivals:
            parts[id(arrival)] = start, arrival._tensor.shape
            start += arrival._tensor.numel()
        sent = _Sent(buffer, done, parts)
        for arrival in arrivals:
            arrival._sent, arrival._tensor = sent, arrival._tensor.new_empty(0)

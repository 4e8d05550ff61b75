"""What a trace file is: write, read, check. Knows numpy, h5py and a deflate, nothing else.

Example:

    with dit_formats.open_trace("flux.trace") as trace:
        trace.layers, trace.prompts, trace.run
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_formats.errors import IncompleteError, TraceError
    from dit_formats.reader import Trace, open_trace
    from dit_formats.schema import Layer, Prompt, Run

_HOMES = {
    "open_trace": "reader",
    "Trace": "reader",
    "TraceError": "errors",
    "IncompleteError": "errors",
    "Layer": "schema",
    "Prompt": "schema",
    "Run": "schema",
}
__all__ = ["IncompleteError", "Layer", "Prompt", "Run", "Trace", "TraceError", "open_trace"]


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only prints its help should not load HDF5."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

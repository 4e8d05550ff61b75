"""Runs a diffusion pipeline and records its attention activations. The only room that knows torch and diffusers.

Example:

    with dit_tracer.record(pipe, "flux.trace") as recorder:
        with recorder.prompt(text, seed=42):
            pipe(text, generator=torch.Generator().manual_seed(42))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_tracer.recording.recorder import Recorder, record
    from dit_tracer.recording.settings import Sample, What

__all__ = ["Recorder", "Sample", "What", "record"]


def __getattr__(name: str) -> Any:
    """Import on first use: a command that only prints its help should not load torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dit_tracer.recording import recorder

    return getattr(recorder, name)

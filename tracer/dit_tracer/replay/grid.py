"""Makes a pipeline go through chosen steps of its scheduler's grid alone: fewer steps, at levels of our choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dit_tracer.recording.patching import around
from dit_tracer.recording.sites import UnsupportedError


@contextmanager
def chosen_steps(pipeline: Any, compute: Sequence[bool]) -> Iterator[None]:
    """Within the block the scheduler sets its whole grid, and keeps the steps that are computed.

    It must go from level to level by its own list of sigmas, as the flow and DPM solvers do.

    Raises:
        UnsupportedError: The scheduler has no such list, or makes another number of steps.
    """
    scheduler, kept = pipeline.scheduler, torch.from_numpy(np.flatnonzero(compute))

    def set_timesteps(original: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        sigmas, timesteps = getattr(scheduler, "sigmas", None), scheduler.timesteps
        fits = torch.is_tensor(sigmas) and len(sigmas) == len(timesteps) + 1 == len(compute) + 1
        if not fits or not hasattr(scheduler, "step_index"):
            raise UnsupportedError(
                f"{type(scheduler).__name__} has no list of {len(compute)} sigmas to choose from; plan by steps instead"
            )
        scheduler.timesteps = timesteps[kept.to(timesteps.device)]
        scheduler.sigmas = torch.cat([sigmas[kept.to(sigmas.device)], sigmas[-1:]])
        scheduler.num_inference_steps = len(kept)

    with around(type(scheduler), "set_timesteps", scheduler, set_timesteps):
        yield

"""How far a generation is from the uncached one, and how fast; means over prompts with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from dit_tracer.models.loading import LoadError

Floats = NDArray[np.float64]

LOGARITHMIC = ("error", "seconds")
"""Measures whose mean over prompts is geometric: they are positive, and skewed."""

BEST = 100.0
"""PSNR of pictures that are equal, in decibels."""


@dataclass(frozen=True)
class Made:
    """One generation.

    Args:
        latents: After the last step.
        pictures: (picture, height, width, channel) in 0..1; the frames of a video are pictures.
        seconds: From the first call of a network to the end of the last step.
    """

    latents: Floats
    pictures: Floats
    seconds: float


@dataclass(frozen=True)
class Mean:
    """A mean over prompts; the ends are NaN for a single prompt."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        return {name: value if np.isfinite(value) else None for name, value in vars(self).items()}


def compared(made: Made, reference: Made, lpips: Callable[[Floats, Floats], float] | None = None) -> dict[str, float]:
    """What a generation loses against the uncached one.

    Returns:
        error: mean |difference| of the final latents over mean |uncached latents|; psnr in decibels, at most `BEST`,
        and ssim, mean over pictures; lpips where it is given; seconds.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    size = np.abs(reference.latents).mean()
    found = {"error": float(np.abs(made.latents - reference.latents).mean() / size), "seconds": made.seconds}
    pairs = list(zip(reference.pictures, made.pictures))
    window = min(7, *(side - 1 + side % 2 for side in reference.pictures.shape[1:3]))
    with np.errstate(divide="ignore"):
        noise = [min(peak_signal_noise_ratio(one, other, data_range=1.0), BEST) for one, other in pairs]
    alike = [
        structural_similarity(one, other, data_range=1.0, channel_axis=-1, win_size=window) for one, other in pairs
    ]
    found |= {"psnr": float(np.mean(noise)), "ssim": float(np.mean(alike))}
    if lpips is not None:
        found["lpips"] = float(np.mean([lpips(one, other) for one, other in pairs]))
    return found


def mean_of(values: Sequence[float], name: str) -> Mean:
    """Mean over prompts, geometric for what `LOGARITHMIC` names, with Student's interval on that scale."""
    x = np.asarray(values, float)
    logs = name in LOGARITHMIC and bool((x > 0).all())
    x = np.log(x) if logs else x
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else float("nan")
    ends = np.array([x.mean(), x.mean() - half, x.mean() + half])
    return Mean(*map(float, np.exp(ends) if logs else ends))


def ratio_of(values: Sequence[float], other: Sequence[float]) -> Mean:
    """Geometric mean of the ratio prompt by prompt, with its interval: 2 is twice as much."""
    pairs = [(one, two) for one, two in zip(values, other) if one > 0 and two > 0]
    if not pairs:
        return Mean(float("nan"), float("nan"), float("nan"))
    return mean_of([one / two for one, two in pairs], "error")


def learned_similarity() -> Callable[[Floats, Floats], float]:
    """LPIPS (arXiv 1801.03924) with the weights on this machine.

    Raises:
        LoadError: The package or its weights are not here.
    """
    try:
        import lpips
        import torch

        network: Any = lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception as error:  # it downloads what it lacks, and raises whatever that meets
        raise LoadError(
            f"--lpips needs the package lpips and its weights ({type(error).__name__}: {error}); pip install lpips, "
            "and run it once where there is a network"
        ) from error

    def distance(one: Floats, other: Floats) -> float:
        tensors = [torch.from_numpy(np.moveaxis(x, -1, 0)[None] * 2 - 1).float() for x in (one, other)]
        with torch.no_grad():
            return float(network(*tensors))

    return distance

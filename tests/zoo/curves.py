"""Views of made-up runs whose truth is known: l1 is a function of the noise level, the layer and the prompt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import xarray as xr

Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""ln speed at noise level sigma, (layer, 1) and (1, transition): (layer, transition)."""


def bend(sigma: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """A curve with a valley that moves with depth."""
    return 0.5 * np.cos(4 * sigma + depth)


def shifted(steps: int, shift: float = 1.0) -> np.ndarray:
    """Sigmas of a flow as schedulers shift them, with the 0 at the end."""
    sigma = np.linspace(1, 0, steps + 1)
    return shift * sigma / (1 + (shift - 1) * sigma)


def run(
    curve: Curve = bend,
    sigmas: np.ndarray | None = None,
    prompts: int = 10,
    layers: int = 5,
    kinds: str = "k",
    noise: float = 0.0,
    first: int = 0,
    seed: int = 42,
    draw: int = 0,
) -> xr.Dataset:
    """What `paper_view` gives of a run whose speed is `curve`, and whose prompts differ in level and in shape."""
    sigmas = shifted(12) if sigmas is None else sigmas
    steps = len(sigmas) - 1
    before, after = sigmas[: steps - 1], sigmas[1:steps]
    middle = (before + after) / 2
    depth = (np.arange(layers)[:, None] + 0.5) / layers
    rng = np.random.default_rng(draw)
    shape = (prompts, len(kinds), layers, steps - 1)
    own = rng.normal(0, 0.1, (prompts, 1, 1, 1)) + rng.normal(0, noise, shape)
    l1 = np.exp(curve(middle[None], depth) + own) * (before - after)
    axes = ("prompt", "kind", "layer", "transition")
    coordinates = {
        "prompt": range(prompts),
        "kind": list(kinds),
        "layer": range(layers),
        "transition": range(steps - 1),
        "sigma": ("transition", before),
        "sigma_after": ("transition", after),
        "text": ("prompt", [f"prompt {first + place}" for place in range(prompts)]),
        "seed": ("prompt", [seed] * prompts),
        "image": ("prompt", [0] * prompts),
    }
    return xr.Dataset({"l1": (axes, l1), "rel_l1": (axes, l1 / 2)}, coordinates, {"num_steps": steps, "model": "made"})

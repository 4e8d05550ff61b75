"""What the paper prints (arXiv 2411.13588): its models in Tables 1 and 2, and the numbers of its figures; and what its
models are by their configurations."""

from __future__ import annotations

from dataclasses import dataclass

FLUX = "flux.1-dev"


@dataclass(frozen=True)
class Published:
    """What Tables 1 and 2 say of a model, and how it is drawn.

    Args:
        figure: Its number.
        parameters: In billions.
        cv: Of K, V and A in percent; empty where Table 2 has no entry.
        columns: Panels in a row, as the published script draws them.
    """

    figure: int
    parameters: float
    layers: int
    steps: int
    cv: tuple[float, ...]
    columns: int


PAPER = {
    "flux.1-dev": Published(2, 12, 57, 28, (10.0, 10.0, 10.8), 19),
    "pixart-alpha": Published(3, 0.6, 28, 20, (10.4, 11.4, 12.7), 14),
    "sd3": Published(4, 2, 24, 28, (10.5, 11.1, 11.3), 12),
    "cogvideox-5b": Published(5, 5, 30, 50, (13.9, 14.1, 14.9), 15),
    "open-sora": Published(7, 1.1, 56, 30, (11.6, 13.7, 15.0), 19),
    "latte-1": Published(6, 0.7, 56, 50, (12.6, 12.7, 14.1), 19),
    "mochi-1-preview": Published(8, 10, 48, 64, (), 16),
}
"""In the order of the paper's tables."""

CONFIGURED = {
    "flux.1-dev": (57, 11_901_408_320),
    "pixart-alpha": (28, 611_349_152),
    "sd3": (24, 2_028_328_000),
    "cogvideox-5b": (42, 5_570_283_072),
    "open-sora": (56, 1_207_643_936),
    "latte-1": (56, 1_057_246_880),
    "mochi-1-preview": (48, 10_027_677_744),
}
"""Attention layers without cross-attention, and parameters of the transformer, by the configuration that was published
with each; as `dit-trace models` counts them in the network without weights."""

FURTHER = {
    9: "flux.1-dev at 56 steps",
    10: "flux.1-dev at 14 steps",
    11: "flux.1-dev with the scheduler of sd3 (shift 3)",
}
"""Figures that show FLUX under another setting."""

WORDS = {
    "flux.1-dev": dict.fromkeys("kva", "decreasing with a sharp rise"),
    "pixart-alpha": dict.fromkeys("kva", "mid bump"),
    "sd3": dict.fromkeys("kva", "U-shaped"),
    "cogvideox-5b": dict.fromkeys("kva", "decrease-increase-decrease"),
    "open-sora": {"k": "decreasing", "v": "decreasing", "a": "U-shaped"},
    "latte-1": dict.fromkeys("kva", "late spike"),
    "mochi-1-preview": dict.fromkeys("kva", "early fluctuation"),
}
"""What the curves of Figures 2 to 8 do, in the words of `shape_of`; put into words from descriptions of the figures."""

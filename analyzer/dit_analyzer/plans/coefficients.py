"""What other tools take as calibrated numbers, made from a trace: a row for each target.

Loads nothing heavy: a command that prints its help reads the names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_formats.reader import Trace

SHARE = 0.4
"""Of the steps that the threshold in a file skips, unless told otherwise."""

FILE = "FILE"
"""Stands in a snippet for the name of the file."""


@dataclass(frozen=True)
class Coefficients:
    """A file for another tool.

    Args:
        text: Its content.
        ending: Of its name, `.json` or `.py`.
        lines_of_quality: What the numbers are worth, and how many steps they would skip.
        lost: What the target cannot express, and where it does otherwise than the trace says.
        snippet: How it is used, `FILE` standing for its name.
        ran_here: Whether that was run against the real tool, by our tests.
    """

    text: str
    ending: str
    lines_of_quality: tuple[str, ...]
    lost: tuple[str, ...]
    snippet: str
    ran_here: bool


def _made(home: str, target: str, trace: Trace, **options: Any) -> Coefficients:
    return import_module(f"dit_analyzer.plans.{home}").write(target, trace, **options)


COEFFICIENT_TARGETS: dict[str, Callable[..., Coefficients]] = {
    "magcache": partial(_made, "ratio_files", "magcache"),
    "comfyui-magcache": partial(_made, "ratio_files", "comfyui-magcache"),
    "teacache": partial(_made, "polynomial_files", "teacache"),
    "comfyui-teacache": partial(_made, "polynomial_files", "comfyui-teacache"),
    "vllm-omni": partial(_made, "polynomial_files", "vllm-omni"),
}
"""`target(trace, *, force=False, monotone=False, share=0.4)` by name.

A polynomial that tells too little is refused (`FitError`) unless forced; `monotone` takes one that never falls. Both
change nothing for ratios. `share` is that of the steps which the threshold in the file skips, on average. All raise
IncompleteError if the trace has no stack or one step only, and PlanError if something is missing at some steps.
"""

PYTHON = ("teacache", "comfyui-teacache", "comfyui-magcache")
"""Targets whose file is lines of Python, `.py`; that of the others is JSON."""

"""What every file for another tool says of itself: for what it was made, how well, and what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dit_formats.console import harmless, plural
from dit_formats.reader import Trace

FEW_PROMPTS = 10


def prompts_of(trace: Trace) -> str:
    """How many prompts, and whether they are few."""
    number = len(trace.prompts)
    return plural(number, "prompt") + (", too few to trust intervals" if number < FEW_PROMPTS else "")


def name_of(trace: Trace) -> str:
    """The model's name as a literal of Python, whatever it holds."""
    return json.dumps(harmless(str(trace.run.settings.get("model", ""))))


def told_of(trace: Trace, quality: Sequence[str], lost: Sequence[str]) -> dict[str, Any]:
    """For what and how well it was made, for JSON."""
    settings = trace.run.settings
    scheduler = settings.get("scheduler")
    return {
        "model": settings.get("model"),
        "pipeline": settings.get("pipeline"),
        "scheduler": scheduler.get("class") if isinstance(scheduler, dict) else None,
        "num_steps": trace.num_steps,
        "timesteps": trace.timesteps.tolist(),
        "prompts": len(trace.prompts),
        "quality": list(quality),
        "lost": list(lost),
    }


def as_json(data: dict[str, Any]) -> str:
    """The content of a JSON file."""
    return json.dumps(data, indent=1, ensure_ascii=False) + "\n"


def as_python(trace: Trace, quality: Sequence[str], lost: Sequence[str], lines: Sequence[str]) -> str:
    """Lines of Python under comments that say for what and how well they were made."""
    told = told_of(trace, (), ())
    made = f"{told['model']}, {told['scheduler']}, {plural(trace.num_steps, 'step')}; made by ditscope, not run here"
    comments = [made, *quality, *(f"limit: {one}" for one in lost)]
    return "\n".join([*(f"# {harmless(one)}" for one in comments), *lines]) + "\n"

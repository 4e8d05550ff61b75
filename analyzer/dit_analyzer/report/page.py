"""Writes a report as one HTML file that asks for nothing: no address outside of it is ever opened.

Texts from a trace are somebody else's. Jinja escapes all of them, the script gets its numbers as JSON in which no `<`
is left, and the Content-Security-Policy lets no other script run than the two that are named by their hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from dit_formats.publish import published
from jinja2 import Environment, StrictUndefined

from dit_analyzer.plans.command import refuse_existing
from dit_analyzer.report.data import report_of
from dit_analyzer.study import Study, refuse_incomplete

BUNDLE = "vendor/plotly-cartesian.min.js"

DRAWN = ("anchor", "name", "kinds", "layers", "steps", "numbers", "plans")
"""What the script needs of a trace."""


def write_report(study: Callable[[], Study], file: Path, *, force: bool = False) -> str:
    """Write the page of what `study` opens, whole or not at all, and say how large it is.

    Raises:
        ConflictError: The file is there already; then no trace is read.
        TraceError: As `report_of`.
    """
    refuse_existing(file, force)
    content = page(study()).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with published(file, replace=force) as opened:
        opened.write(content)
    return f"{file}: {len(content) / 1e6:.1f} MB"


def page(study: Study) -> str:
    """The whole file; the same for the same traces.

    Raises:
        IncompleteError: A trace has one step, or no samples where they are the source.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["tick"] = lambda share: f"{100 * share:.2f}"
    scripts = [_script(name) for name in (BUNDLE, "report.js")]
    for one in study.members:
        refuse_incomplete(one, study.source)
    report = report_of(study)
    return environment.from_string(_read("report.html.j2")).render(
        report,
        numbers=[_drawn(trace) for trace in report["traces"]],
        style=_read("style.css"),
        bundle=scripts[0],
        script=scripts[1],
        hashes=[_hash(script) for script in scripts],
        version=version("ditscope"),
    )


def _drawn(trace: dict[str, Any]) -> dict[str, Any]:
    return {name: trace[name] for name in DRAWN} | {"changes": [one["changes"] for one in trace["maps"]["kinds"]]}


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _script(name: str) -> str:
    """A script that may stand in a page: nothing in it ends the element early."""
    return "\n" + _read(name).replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() + "'"

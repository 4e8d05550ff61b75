"""Tables 1 and 2 of the paper (arXiv 2411.13588) from traces: as Markdown, as LaTeX with booktabs, and as CSV.

A value that is missing is a dash, and a note says why; in CSV it is empty, and the note stands in the last column.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from dit_formats.console import harmless, plural

from dit_analyzer.measures.variation import variation
from dit_analyzer.members import Member

DASH = "–"
CVS = ("cv_published", "cv", "cv_low", "cv_high", "cv_median", "cv_ratio")
"""Of what `variation` gives for a kind."""

SOURCES = {"exact": "", "sample": ", from the sampled values alone"}


@dataclass(frozen=True)
class Cell:
    """What people read, what programs read, and why there is nothing to read."""

    text: str
    value: str | int | float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header, and the same as tidy records.

    Args:
        number: `1` or `2`, as in the paper.
        records: One for each line of the CSV file.
    """

    number: str
    title: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str]
    records: list[dict[str, str | int | float | None]]

    @property
    def marks(self) -> dict[str, str]:
        """Letters for the notes of cells, in the order in which they are met."""
        notes = dict.fromkeys(cell.note for row in self.rows for cell in row if cell.note)
        return {note: _letter(place) for place, note in enumerate(notes)}


def table_1(members: Sequence[Member], views: Sequence[xr.Dataset]) -> Table:
    """Models, parameters, attention layers that the paper looks at, steps, scheduler and prompts."""
    rows, records = [], []
    for one, view in zip(members, views):
        unknown = "the trace does not say how many parameters its transformer has"
        parameters = Cell(billions(one.parameters), one.parameters) if one.parameters else Cell(DASH, None, unknown)
        layers = view.sizes["layer"]
        cells = {
            "model": Cell(one.model or one.name, one.model),
            "parameters": parameters,
            "layers": Cell(str(layers), layers),
            "steps": Cell(str(one.num_steps), one.num_steps),
            "scheduler": Cell(one.scheduler_name or DASH, one.scheduler_name, "" if one.scheduler[0] else _SILENT),
            "prompts": _prompts(one),
        }
        rows.append(list(cells.values()))
        records.append(_record({"trace": one.name}, cells))
    header = ["Model", "Parameters", "Attention layers", "Steps", "Scheduler", "Prompts (N)"]
    notes = ["Layers: those that the paper looks at, without cross-attention.", *_random(members)]
    return Table("1", "Models", header, rows, notes, records)


def table_2(
    members: Sequence[Member],
    views: Sequence[xr.Dataset],
    source: str = "exact",
    found: Callable[[Member], xr.Dataset] | None = None,
) -> Table:
    """CV over prompts of K, V and A for each trace: as the paper defines it, beside what it prints, and corrected for
    the number of prompts, with its 95 % interval.

    Args:
        found: Gives `variation` of a trace, where it is known already.
    """
    columns = [_variations(one, view, found) for one, view in zip(members, views)]
    kinds = "kva"
    rows = [[Cell(kind.upper()), *(column[kind]["cv_published"] for column in columns)] for kind in kinds]
    if any(one.cv_printed for one in members):
        rows += [[Cell(f"{kind.upper()}, the paper's"), *(_printed(one, kind) for one in members)] for kind in kinds]
    rows += [[Cell(f"{kind.upper()}, corrected"), *(column[kind]["cv"] for column in columns)] for kind in kinds]
    rows += [[Cell("Prompts (N)"), *map(_prompts, members)]]
    records = [
        _record(
            {"trace": one.name, "model": one.model, "kind": kind},
            column[kind] | {"cv_printed": _printed(one, kind), "prompts": _prompts(one)},
        )
        for one, column in zip(members, columns)
        for kind in kinds
    ]
    notes = [
        "CV: standard deviation over prompts by mean, of each layer and transition; then the mean of these. K, V, A as "
        "in the paper: with N degrees of freedom. Corrected: with N - 1, times 1 + 1/(4N), and its 95 % interval over "
        "prompts (leave-one-prompt-out jackknife of log CV, Student's t; no narrower than of normal values).",
        *(_left_out(one, column) for one, column in zip(members, columns)),
        *(_over(one) for one in members if source == "exact"),
        *(f"{one.name}: prompts and seeds vary together." for one in members if one.seeds > 1),
        *_random(members),
    ]
    title = f"Coefficient of variation over prompts{SOURCES[source]}"
    return Table("2", title, ["Target", *_headings(members)], rows, [note for note in notes if note], records)


_SILENT = "the trace names no scheduler"


def _prompts(one: Member) -> Cell:
    """How many prompts, of how many if some are missing; a prompt with each of several seeds counts as several."""
    seeds = f" ({plural(one.seeds, 'seed')})" if one.seeds > 1 else ""
    return Cell(f"{one.prompts}{seeds}", one.prompts, f"{one.name}: {one.incomplete}" if one.incomplete else "")


def _printed(one: Member, kind: str) -> Cell:
    """What the paper's Table 2 has for this setting; its own N is 1000, and 10 in the published script."""
    if not one.cv_printed:
        return Cell(DASH, None, "" if one.figure.startswith("S") else "Table 2 of the paper has no entry")
    value = one.cv_printed["kva".index(kind)]
    return Cell(f"{value:.1f}%", value / 100)


def _over(one: Member) -> str:
    """That exact changes are estimates, where they were not taken over whole tensors."""
    over = f"{one.name}: changes were taken over a {one.transitions} elements of each activation, and are estimates."
    return over if one.transitions != "exact" else ""


def _random(members: Sequence[Member]) -> list[str]:
    return [f"{one.name}: random weights, its numbers mean nothing." for one in members if one.has_random_weights]


def _headings(members: Sequence[Member]) -> list[str]:
    """Names of the models, or of the traces where two are of one model."""
    models = [one.model for one in members]
    return [one.model if one.model and models.count(one.model) == 1 else one.name for one in members]


def _variations(
    one: Member, view: xr.Dataset, found: Callable[[Member], xr.Dataset] | None
) -> dict[str, dict[str, Cell]]:
    """By kind: CV as published, corrected and with its interval, cells that they are means of, and cells left out."""
    if view.sizes["prompt"] < 2:
        why = f"{one.name}: one prompt has no variation"
        return {kind: _nothing(why) for kind in "kva"}
    varied = found(one) if found else variation(view)
    return {kind: _variation(one, view, varied, kind) for kind in "kva"}


def _variation(one: Member, view: xr.Dataset, found: xr.Dataset, kind: str) -> dict[str, Cell]:
    if kind not in view.kind:
        return _nothing(f"{one.name}: {kind.upper()} was not recorded")
    of_kind = found.sel(kind=kind)
    cells, left_out = int(of_kind["cells"]), int(of_kind["cells_left_out"])
    counts = {"cells": Cell(str(cells), cells), "cells_left_out": Cell(str(left_out), left_out)}
    if not cells:
        why = "never changes, or not in every prompt" if left_out else "has no value"
        return _nothing(f"{one.name}: {kind.upper()} {why}") | counts
    published, cv, low, high, *others = (float(of_kind[name]) for name in CVS)
    known = np.isfinite([low, high]).all()
    why = "" if known else f"{one.name}: no interval, {_no_interval(found.attrs['prompts'])}"
    ends = (Cell(f"{end:.1%}", end) if known else Cell(DASH, None, why) for end in (low, high))
    whole = Cell(f"{cv:.1%}" + (f" ({100 * low:.1f} to {100 * high:.1f})" if known else ""), cv, why)
    robust = (Cell(f"{value:.1%}", value) for value in others)
    return dict(zip(CVS, (Cell(f"{published:.1%}", published), whole, *ends, *robust))) | counts


def _no_interval(prompts: int) -> str:
    return f"it takes 3 prompts and here are {prompts}" if prompts < 3 else "without some prompt nothing varies"


def _nothing(why: str) -> dict[str, Cell]:
    return {name: Cell(DASH, None, why) for name in (*CVS, "cells", "cells_left_out")}


def _left_out(one: Member, column: dict[str, dict[str, Cell]]) -> str:
    """Which share of a trace's cells is zero or not finite in some prompt, where there are such cells."""
    counts = [column[kind][name].value or 0 for name in ("cells_left_out", "cells") for kind in column]
    out, all_cells = sum(counts[: len(column)]), sum(counts)
    return f"{one.name}: {out} of {all_cells} cells are left out, zero or not finite in some prompt." if out else ""


def _record(names: dict[str, str], cells: dict[str, Cell]) -> dict[str, str | int | float | None]:
    notes = dict.fromkeys(cell.note for cell in cells.values() if cell.note)
    return names | {name: cell.value for name, cell in cells.items()} | {"note": "; ".join(notes)}


def billions(number: int) -> str:
    """`11.9 B`, `56.2 M`, `830 k`: three figures."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def to_markdown(table: Table) -> str:
    marks = table.marks
    lines = [[*map(_markdown, table.header)], ["---", *("---:" for _ in table.header[1:])]]
    for row in table.rows:
        lines.append([_markdown(cell.text) + (f" [{marks[cell.note]}]" if cell.note else "") for cell in row])
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = [*map(_markdown, table.notes), *(f"[{mark}] {_markdown(note)}." for note, mark in marks.items())]
    return f"**Table {table.number}.** {table.title}.\n\n{body}\n\n" + "\n\n".join(notes) + "\n"


def to_latex(table: Table) -> str:
    """For `\\usepackage{booktabs}`."""
    marks = table.marks
    lines = [
        [_latex(cell.text) + (f"\\textsuperscript{{{marks[cell.note]}}}" if cell.note else "") for cell in row]
        for row in table.rows
    ]
    notes = [*map(_latex, table.notes), *(f"\\textsuperscript{{{m}}} {_latex(note)}." for note, m in marks.items())]
    parts = [
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_latex(table.title)}.}}",
        f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        "\\toprule",
        " & ".join(map(_latex, table.header)) + " \\\\",
        "\\midrule",
        *(" & ".join(line) + " \\\\" for line in lines),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"\\par\\smallskip\\footnotesize {note}" for note in notes),
        "\\end{table}",
    ]
    return "\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    return records_to_csv(table.records)


def records_to_csv(records: Sequence[dict[str, str | int | float | None]]) -> str:
    """A line of names, then the values in full precision; what is missing is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]) if records else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def known(value: Any) -> Any:
    """A value for programs: None where it is no finite number."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


FORMATS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
"""How a table is written, by the ending of the file."""


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", harmless(text))


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    DASH: "--",
}


def _latex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in harmless(text))


def _letter(place: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(97 + rest) + letters
    return letters

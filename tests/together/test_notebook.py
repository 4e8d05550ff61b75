"""The notebook runs as it stands, in a kernel of its own, and what it says is so.

With its outputs it is written anew by `python tests/together/test_notebook.py`.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "docs" / "from-trace-to-figure.ipynb"
MOST_BYTES = 200_000

NUMBERS = """
import json

print(json.dumps({
    "sizes": dict(view.sizes),
    "smallest": float(curves.min()),
    "cv": varied[["cv", "cv_low", "cv_high", "cv_published"]].to_array().T.values.tolist(),
    "left_out": int(varied["cells_left_out"].sum()),
    "posteriors": [point["posterior"] for point in declared],
    "words": sorted(set(shapes["mean_shape"].values.tolist())),
    "layers": int(shapes["layers"].sum()),
    "stability": {name: compared[name].values.tolist() for name in ("s", "s_low", "s_high", "level")},
    "off": float(off.sel(stream="latent").max()),
    "audit": [audit.mean / audit.mean_error, audit.spread, audit.inside],
    "further": further.values.tolist(),
    "files": sorted(path.name for path in written),
    "same": bool(np.array_equal(again["l1"], view["l1"], equal_nan=True)),
    "torch": torch.__version__,
}))
place.cleanup()
"""


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook with its outputs, run in this folder; its kernel keeps to the folder too."""
    own = {"IPYTHONDIR": "ipython", "JUPYTER_RUNTIME_DIR": "runtime", "TMPDIR": "tmp"}
    (folder / "tmp").mkdir()
    (folder / "at").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, place in own.items():
            patch.setenv(name, str(folder / place))
        patch.setattr(tempfile, "tempdir", None)
        NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder / "at")}}).execute()
    return notebook


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the notebook finds when it is run now."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(NUMBERS))
    found = executed(notebook, folder)
    assert os.listdir(folder / "at") == [], "it writes beside itself"
    yield json.loads(_text(found.cells[-1]))


def test_ten_cells_go_from_trace_to_figure(stored: Any) -> None:
    assert len(_code(stored)) == 10
    assert sum("image/png" in output.get("data", {}) for cell in _code(stored) for output in cell.outputs) == 2


def test_it_is_stored_with_outputs_and_without_anything_of_a_machine(stored: Any) -> None:
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert len(content.encode()) < MOST_BYTES
    assert [cell.execution_count for cell in _code(stored)] == list(range(1, 11))
    kinds = {(o.output_type, o.get("name")) for cell in _code(stored) for o in cell.outputs}
    assert kinds <= {("stream", "stdout"), ("execute_result", None), ("display_data", None)}
    shown = "".join(_text(cell) for cell in _code(stored))
    assert shown and not re.search(r"[Ww]arning|/(tmp|home|root|usr|work|Users)\b|site-packages", shown)


def test_shown_numbers_are_what_it_finds(stored: Any, numbers: dict[str, Any]) -> None:
    """To 5 %, for networks do not compute the same everywhere."""
    for kind, values in zip("kva", numbers["cv"]):
        row = re.search(rf"^{kind} +(.+)$", _text(_cell(stored, "variation(view)")), re.MULTILINE)
        assert [float(value) for value in row[1].split()[:4]] == pytest.approx(values, rel=0.05, abs=1e-3)


def test_every_cell_finds_what_the_text_says(numbers: dict[str, Any]) -> None:
    assert numbers["sizes"] == {"prompt": 8, "kind": 3, "layer": 9, "transition": 27}
    assert numbers["smallest"] > 0 and numbers["left_out"] == 0 and numbers["layers"] == 27
    assert all(published < cv and low < cv < high for cv, low, high, published in numbers["cv"])
    assert numbers["posteriors"] and all(0.5 < one <= 1 for one in numbers["posteriors"])
    assert numbers["words"] == ["U-shaped"]


def test_half_the_steps_have_a_like_shape_and_twice_the_change(numbers: dict[str, Any]) -> None:
    found = numbers["stability"]
    for name, low, high in (("s", 0.9, 1.0), ("s_low", 0.85, 1.0), ("s_high", 0.9, 1.0)):
        assert all(low < value <= high for row in found[name] for value in row)
    by_step, by_noise = found["level"]
    assert all(1.7 < level < 2 for level in by_step) and all(0.85 < level < 1 for level in by_noise)


def test_the_sample_agrees_within_its_errors(numbers: dict[str, Any]) -> None:
    mean, spread, inside = numbers["audit"]
    assert abs(mean) < 3 and 0.8 < spread < 1.2 and 0.9 < inside < 0.99
    assert numbers["off"] < 0.03 and all(1.8 < one < 2 for one in numbers["further"])


def test_what_it_exports_is_read_again(numbers: dict[str, Any]) -> None:
    assert numbers["files"] == ["flux-variation.nc", "flux.csv", "flux.nc"] and numbers["same"]


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _cell(notebook: Any, source: str) -> Any:
    return next(cell for cell in _code(notebook) if source in cell.source)


def _text(cell: Any) -> str:
    """What a cell shows in letters; what libraries say on stderr is not its own."""
    shown = (output.get("data", {}).get("text/plain", output.get("text", "")) for output in _own(cell))
    return "".join(shown)


def _own(cell: Any) -> list[Any]:
    return [output for output in cell.outputs if output.get("name") != "stderr"]


def _small(picture: str) -> str:
    """A PNG of 256 colours, which is half of the bytes."""
    image, content = Image.open(io.BytesIO(base64.b64decode(picture))), io.BytesIO()
    image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        content, "PNG", optimize=True
    )
    return base64.b64encode(content.getvalue()).decode()


def write() -> None:
    """Run the notebook, and keep what it shows."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(nbformat.read(NOTEBOOK, as_version=4), Path(folder))
    for cell in _code(notebook):
        cell.metadata, cell.outputs = {}, _own(cell)
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _small(output.data["image/png"])
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    write()

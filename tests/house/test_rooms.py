"""Who may import whom."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"formats": "dit_formats", "tracer": "dit_tracer", "analyzer": "dit_analyzer"}
HEAVY = ("torch", "diffusers", "transformers")

MAY_IMPORT = {
    "formats": {"numpy", "h5py", "isal", "deflate", "dit_formats"},
    "tracer": {
        "numpy", "click", "rich", "torch", "diffusers", "transformers", "tokenizers", "safetensors",
        "sklearn", "PIL", "huggingface_hub", "psutil", "triton", "cache_dit", "SmoothCache", "yaml",
        "scipy", "matplotlib", "skimage", "lpips",
        "dit_formats", "dit_tracer",
    },
    "analyzer": {
        "numpy", "scipy", "xarray", "matplotlib", "jinja2", "distributed", "click", "rich",
        "dit_formats", "dit_analyzer",
    },
}  # fmt: skip


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room / ROOMS[room]).rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("file", [f for room in ROOMS for f in modules(room)], ids=lambda f: str(f.relative_to(ROOT)))
def test_file_imports_what_its_room_may_know(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT[room] | ({"click"} if file.name == "console.py" else set())
    assert imported(file) <= allowed


@pytest.mark.parametrize("room", ["formats", "analyzer"])
def test_room_never_loads_torch(room: str) -> None:
    names = [
        ".".join(f.relative_to(ROOT / room).with_suffix("").parts).removesuffix(".__init__") for f in modules(room)
    ]
    code = f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
    code += f"print([name for name in {HEAVY!r} + ('dit_tracer',) if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

"""The distribution holds what the tree holds."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("formats", "tracer", "analyzer")


@pytest.fixture
def options() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def test_every_package_is_listed(options: configparser.ConfigParser) -> None:
    found = {
        ".".join(init.parent.relative_to(ROOT / room).parts)
        for room in ROOMS
        for init in (ROOT / room).rglob("__init__.py")
    }
    assert set(options["options"]["packages"].split()) == found


def test_every_folder_of_code_is_a_package() -> None:
    folders = {file.parent for room in ROOMS for file in (ROOT / room).rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def pins(name: str) -> dict[str, str]:
    """Versions by package of a file of constraints."""
    return dict(line.split("==") for line in (ROOT / name).read_text().splitlines() if "==" in line)


def test_tested_versions_are_pinned() -> None:
    assert pins("constraints.txt")["torch"] == "2.13.0"
    assert {"diffusers", "transformers", "h5py", "numpy", "xarray", "h5netcdf", "click"} <= set(pins("constraints.txt"))


def test_oldest_versions_tested_are_the_oldest_admitted(options: configparser.ConfigParser) -> None:
    """Of what follows the models; torch is the same in both."""
    oldest = pins("constraints-oldest.txt")
    admitted = dict(line.split(">=") for line in options["options.extras_require"]["trace"].split() if ">=" in line)
    for package in ("diffusers", "transformers", "accelerate"):
        assert oldest[package].removesuffix(".0") == admitted[package], package
    assert oldest["torch"] == pins("constraints.txt")["torch"]


def test_readme_names_both_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text

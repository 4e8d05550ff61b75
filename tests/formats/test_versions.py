"""Traces of earlier versions of the format are read as the code of their time read them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import pytest
from dit_formats import Trace, open_trace, schema
from dit_formats.check import check
from numpy.typing import NDArray

TRACES = Path(__file__).parents[1] / "data" / "traces"
VERSIONS = ["1.0", "1.1"]
SUMS = ("step_sums", "transition_sums", "branch_products", "pair_products")


def digest(values: NDArray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()[:16]


def digests(trace: Trace) -> dict[str, str]:
    """A digest of every array in a trace."""
    found = {}
    for stream in (*trace.streams, *((schema.STACK,) if trace.has_stack else ())):
        arrays = {
            name: trace.geometry(stream, name) for name in schema.STREAM if "prompt" not in schema.STREAM[name].axes
        }
        held = (True, True, trace.branch_pairs(stream), trace.step_pairs(stream))
        arrays |= {name: getattr(trace, name)(stream) for name, there in zip(SUMS, held) if there}
        arrays |= {f"samples/{row}": trace.samples(stream, row) for row in range(len(trace.prompts))}
        found |= {f"{stream}/{name}": digest(values) for name, values in arrays.items()}
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_traces_of_an_earlier_version_read_as_they_did(version: str) -> None:
    expected = json.loads((TRACES / f"{version}.json").read_text())
    with open_trace(TRACES / version) as trace:
        assert [prompt.text for prompt in trace.prompts] == expected["prompts"]
        assert len(trace.layers) == expected["layers"]
        assert trace.run.signature == expected["signature"]
        assert digests(trace) == expected["arrays"]
    assert check(TRACES / version).exit_code == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_the_kept_trace_is_of_that_version(version: str) -> None:
    for path in (TRACES / version).glob("*.h5"):
        with h5py.File(path) as file:
            assert f"{file.attrs['format_major']}.{file.attrs['format_minor']}" == version

"""A trace may tell how long a generation takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from dit_formats import open_trace
from dit_formats.check import check
from dit_formats.errors import TraceError
from dit_formats.pack import pack
from dit_formats.schema import Shard, Timing
from dit_formats.writer import write_shard

TIMING = Timing({"a": np.array([0.25, 0.5]), "k": np.array([0.125, np.nan])}, np.arange(1.0, 6.0))


def test_timing_is_read_as_it_was_written(shard: Callable[..., Shard], tmp_path: Path) -> None:
    write_shard(tmp_path, replace(shard(0), timing=TIMING))
    with open_trace(tmp_path) as trace:
        found = trace.timing
    assert found.layers.keys() == {"a", "k"}
    assert all(np.array_equal(found.layers[kind], TIMING.layers[kind], equal_nan=True) for kind in "ak")
    assert np.array_equal(found.steps, TIMING.steps)


def test_first_shard_that_has_a_timing_tells_it(shard: Callable[..., Shard], tmp_path: Path) -> None:
    """A run that goes on with a trace may be the first to time, and on another machine than a third."""
    other = Timing(TIMING.layers, 2 * TIMING.steps)
    for index, timing in enumerate((None, TIMING, other)):
        write_shard(tmp_path, replace(shard(index), timing=timing))
    with open_trace(tmp_path) as trace:
        assert np.array_equal(trace.timing.steps, TIMING.steps)
    assert check(tmp_path).exit_code == 0


def test_packed_trace_keeps_the_timing(shard: Callable[..., Shard], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index, timing in enumerate((None, TIMING)):
        write_shard(folder, replace(shard(index), timing=timing))
    with open_trace(folder) as trace:
        pack(trace, tmp_path / "packed.h5")
    with open_trace(tmp_path / "packed.h5") as trace:
        assert np.array_equal(trace.timing.steps, TIMING.steps)


def test_trace_without_timing_has_none(trace_folder: Path) -> None:
    with open_trace(trace_folder) as trace:
        assert trace.timing is None


def test_timing_of_another_type_is_refused(shard: Callable[..., Shard], tmp_path: Path) -> None:
    path = write_shard(tmp_path, replace(shard(0), timing=TIMING))
    with h5py.File(path, "r+") as file:
        del file["layers/seconds_a"]
        file["layers"].create_dataset("seconds_a", data=np.zeros(2, "f4"))
    with open_trace(tmp_path) as trace, pytest.raises(TraceError, match="seconds_a"):
        _ = trace.timing
    assert check(tmp_path).exit_code == 3

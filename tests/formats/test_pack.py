"""Joining the shards of a trace into one file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from dit_formats import Trace, TraceError, open_trace, schema
from dit_formats.check import check
from dit_formats.errors import ConflictError
from dit_formats.pack import pack
from dit_formats.schema import Prompt, Run, Shard
from dit_formats.writer import write_failure, write_shard

MakeShard = Callable[..., Shard]
KEPT = Path(__file__).parents[1] / "data" / "traces"
SUMS = ("step_sums", "transition_sums", "branch_products", "pair_products")


def packed(folder: Path, target: Path, **options: bool) -> Path:
    with open_trace(folder) as trace:
        return pack(trace, target, **options).path


def arrays(trace: Trace) -> dict[str, np.ndarray]:
    """Every array of a trace."""
    found = {"timesteps": trace.timesteps, "sigmas": trace.sigmas}
    for stream in (*trace.streams, *((schema.STACK,) if trace.has_stack else ())):
        held = (True, True, trace.branch_pairs(stream), trace.step_pairs(stream))
        found |= {f"{stream}/{name}": getattr(trace, name)(stream) for name, there in zip(SUMS, held) if there}
        for name, spec in schema.STREAM.items():
            if "prompt" not in spec.axes:
                found[f"{stream}/{name}"] = trace.geometry(stream, name)
        found |= {f"{stream}/samples/{row}": trace.samples(stream, row) for row in range(len(trace.prompts))}
    return found


def same(one: Path, other: Path) -> None:
    """All that two traces hold is equal, every bit of it."""
    with open_trace(one) as first, open_trace(other) as second:
        for name in ("prompts", "layers", "streams", "has_stack"):
            assert getattr(first, name) == getattr(second, name), name
        assert first.run.settings == second.run.settings
        for stream in first.streams:
            assert first.source_dtype(stream) == second.source_dtype(stream)
        found, expected = arrays(second), arrays(first)
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name].tobytes() != expected[name].tobytes()] == []


def test_packed_trace_equals_its_folder(trace_folder: Path, tmp_path: Path) -> None:
    same(trace_folder, packed(trace_folder, tmp_path / "new" / "one.h5"))
    assert check(tmp_path / "new" / "one.h5").exit_code == 0


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_traces_of_an_earlier_version_are_packed(version: str, tmp_path: Path) -> None:
    same(KEPT / version, packed(KEPT / version, tmp_path / "one.h5"))


def test_packed_trace_is_packed_again(trace_folder: Path, tmp_path: Path) -> None:
    first = packed(trace_folder, tmp_path / "one.h5")
    same(trace_folder, packed(first, tmp_path / "two.h5"))


@pytest.mark.parametrize("positions", [0, 12])
def test_without_samples_the_statistics_stay(tmp_path: Path, shard: MakeShard, positions: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in range(2):
        write_shard(folder, shard(index, positions=positions))
    target = packed(folder, tmp_path / "one.h5", stats_only=True)
    with open_trace(folder) as whole, open_trace(target) as stats:
        assert stats.samples("latent", 1).shape == (2, 3, 2, 0, 5)
        assert stats.geometry("latent", "weight").shape == (3, 2, 0)
        for name in ("step_sums", "transition_sums"):
            assert getattr(stats, name)("text").tobytes() == getattr(whole, name)("text").tobytes()
        assert stats.run.signature == whole.run.signature
    assert check(target).exit_code == 0


def test_prompts_are_in_order_of_their_index(tmp_path: Path, shard: MakeShard) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for index in (1000000, 7, 999999):
        write_shard(folder, shard(index))
    with open_trace(packed(folder, tmp_path / "one.h5")) as trace:
        assert [prompt.index for prompt in trace.prompts] == [7, 999999, 1000000]
    same(folder, tmp_path / "one.h5")


def test_stored_chunks_are_copied_as_they_are(trace_folder: Path, tmp_path: Path) -> None:
    with h5py.File(packed(trace_folder, tmp_path / "one.h5")) as one:
        for row, path in enumerate(sorted(trace_folder.glob("*.h5"))):
            with h5py.File(path) as shard:
                for name in ("latent/samples", "text/transition_sums"):
                    zeros = (0,) * (shard[name].ndim - 1)
                    stored = shard[name].id.read_direct_chunk((0, *zeros))
                    assert one[name].id.read_direct_chunk((row, *zeros)) == stored


def test_what_is_missing_stays_missing(trace_folder: Path, tmp_path: Path, shard: MakeShard) -> None:
    one = shard(3)
    versions = {"num_prompts": 8, "versions": {"torch": "3"}}
    write_shard(trace_folder, replace(one, run=Run(one.run.settings, versions)))
    write_failure(trace_folder, Prompt(4, "hopeless"), "out of memory")
    for target in packed(trace_folder, tmp_path / "one.h5"), packed(tmp_path / "one.h5", tmp_path / "two.h5"):
        health = check(target)
        assert (health.prompts, health.asked, health.exit_code) == (4, 8, 4)
    for target in (tmp_path / "one.h5", tmp_path / "two.h5"):
        with open_trace(target) as trace:
            told = trace.run.provenance["packed"]
        assert told["provenances"] == [{"num_prompts": 1}, versions]
        assert told["failures"] == [Prompt(4, "hopeless").stem]


@pytest.mark.parametrize("group", ["latent", "text", "prompts"])
def test_packed_trace_opens_labelled_in_xarray(trace_folder: Path, tmp_path: Path, group: str) -> None:
    with xr.open_dataset(packed(trace_folder, tmp_path / "one.h5"), engine="h5netcdf", group=group) as ds:
        assert ds.prompt.values.tolist() == [0, 1, 2]
        if group != "prompts":
            assert ds["samples"].sel(prompt=2).shape == (2, 3, 2, 12, 5)


def test_nothing_is_replaced_without_force(trace_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "one.h5"
    target.write_text("dear")
    with pytest.raises(ConflictError, match="--force"):
        packed(trace_folder, target)
    assert target.read_text() == "dear"
    same(trace_folder, packed(trace_folder, target, force=True))


def test_a_trace_is_not_packed_into_itself(trace_folder: Path) -> None:
    with pytest.raises(ConflictError, match="would become part of"):
        packed(trace_folder, trace_folder / "one.h5")


def damage(path: Path) -> None:
    """Flip one bit in the last chunk of samples."""
    with h5py.File(path) as file:
        dataset = file["text/samples"].id
        at = dataset.get_chunk_info(dataset.get_num_chunks() - 1)
    content = bytearray(path.read_bytes())
    content[at.byte_offset + at.size // 2] ^= 4
    path.write_bytes(content)


def test_damage_is_not_copied(trace_folder: Path, tmp_path: Path) -> None:
    last = sorted(trace_folder.glob("*.h5"))[-1]
    damage(last)
    with pytest.raises(TraceError, match=last.name):
        packed(trace_folder, tmp_path / "new" / "one.h5")
    assert list((tmp_path / "new").iterdir()) == []


def test_foreign_links_are_not_followed(trace_folder: Path, tmp_path: Path) -> None:
    with h5py.File(sorted(trace_folder.glob("*.h5"))[1], "r+") as file:
        del file["latent/step_sums"]
        file["latent/step_sums"] = h5py.ExternalLink("other.h5", "/latent/step_sums")
    with pytest.raises(TraceError, match="a link to somewhere else"):
        packed(trace_folder, tmp_path / "one.h5")


@pytest.mark.parametrize("limit", [100, 20_000, 100_000])
def test_full_disk_leaves_nothing_and_ends_well(trace_folder: Path, tmp_path: Path, limit: int) -> None:
    target = tmp_path / "new" / "one.h5"
    code = f"""
import resource
from pathlib import Path
from dit_formats import open_trace
from dit_formats.pack import pack
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
with open_trace({str(trace_folder)!r}) as trace:
    try:
        pack(trace, Path({str(target)!r}))
    except OSError as error:
        print(error.filename)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, str(target))
    assert list(target.parent.iterdir()) == []

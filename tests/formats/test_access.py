"""A shard from a stranger: everything that the specification does not allow is refused, by name."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from dit_formats import TraceError, open_trace
from dit_formats.access import ShardFile
from dit_formats.check import check
from dit_formats.pack import pack

Mutation = Callable[[h5py.File], None]


@pytest.fixture
def shard_path(trace_folder: Path) -> Path:
    return next(trace_folder.glob("000000-*.h5"))


def replace(group: str, name: str, **options: object) -> Mutation:
    """Write an array again in another way."""

    def change(file: h5py.File) -> None:
        values = file[group][name][()]
        del file[group][name]
        file[group].create_dataset(name, data=options.pop("data", values), **options)

    return change


def external_link(file: h5py.File) -> None:
    del file["latent/step_sums"]
    file["latent/step_sums"] = h5py.ExternalLink("other.h5", "/latent/step_sums")


def soft_link(file: h5py.File) -> None:
    del file["latent"]
    file["latent"] = h5py.SoftLink("/text")


def linked_run(file: h5py.File) -> None:
    del file["run"]
    file["run"] = h5py.ExternalLink("other.h5", "/run")


def external_storage(file: h5py.File) -> None:
    shape = file["latent/weight"].shape
    del file["latent/weight"]
    file["latent"].create_dataset("weight", shape, "f8", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual_dataset(file: h5py.File) -> None:
    shape = file["latent/weight"].shape
    del file["latent/weight"]
    layout = h5py.VirtualLayout(shape, "f8")
    layout[:] = h5py.VirtualSource("nowhere.h5", "weight", shape)
    file["latent"].create_virtual_dataset("weight", layout)


def variable_strings(file: h5py.File) -> None:
    del file["prompts/text"]
    file["prompts"].create_dataset("text", data=["hello"], dtype=h5py.string_dtype())


def huge_shape(file: h5py.File) -> None:
    del file["prompts/text"], file["prompts/prompt"]
    n = 1 << 23
    file["prompts"].create_dataset("prompt", (n,), "i8", chunks=(n,))
    file["prompts"].create_dataset("text", (n,), "S16", chunks=(n,), shuffle=True, compression="gzip")


def bomb(file: h5py.File) -> None:
    dataset = file["latent/weight"]
    dataset.id.write_direct_chunk((0, 0, 0), zlib.compress(bytes(64 << 20)))


def other_mask(file: h5py.File) -> None:
    at = (0,) * 6
    dataset = file["latent/samples"]
    dataset.id.write_direct_chunk(at, dataset.id.read_direct_chunk(at)[1] + b"0", filter_mask=1)


def other_run(file: h5py.File) -> None:
    text = file["run"][()].replace(b"hand-made", b"hand-fake")
    file["run"][()] = text


def missing_array(file: h5py.File) -> None:
    del file["text/recorded"]


def newer_format(file: h5py.File) -> None:
    file.attrs["format_major"] = 2


def foreign_file(file: h5py.File) -> None:
    file.attrs["format"] = np.bytes_("something-else")


REFUSED: dict[str, tuple[Mutation, str]] = {
    "external link": (external_link, "a link to somewhere else"),
    "soft link": (soft_link, "a link to somewhere else"),
    "linked run": (linked_run, "a link to somewhere else"),
    "external storage": (external_storage, "not chunked"),
    "virtual dataset": (virtual_dataset, "not chunked"),
    "variable strings": (variable_strings, "not of type S"),
    "huge shape": (huge_shape, "of more than 67108864 bytes"),
    "decompression bomb": (bomb, "damaged|out of place"),
    "filter mask": (other_mask, "out of place"),
    "changed run": (other_run, "checksum"),
    "missing array": (missing_array, "text/recorded|recorded: missing"),
    "newer format": (newer_format, "trace format 2, this version reads 1; upgrade"),
    "foreign file": (foreign_file, "not a trace"),
    "no filters": (replace("latent", "weight", chunks=(1, 1, 12)), "filters"),
    "contiguous": (replace("latent", "weight"), "not chunked"),
    "lzf": (replace("latent", "weight", chunks=(1, 1, 12), compression="lzf"), "filters"),
    "gzip twice": (
        replace("latent", "weight", chunks=(1, 1, 12), shuffle=True, compression="gzip", fletcher32=True),
        "filters",
    ),
    "other chunks": (replace("latent", "weight", chunks=(3, 2, 12), shuffle=True, compression="gzip"), "chunks"),
    "integers": (
        replace(
            "latent", "weight", data=np.zeros((3, 2, 12), "i4"), chunks=(1, 1, 12), shuffle=True, compression="gzip"
        ),
        "not of type f8",
    ),
    "other length": (
        replace("latent", "weight", data=np.zeros((3, 2, 9)), chunks=(1, 1, 9), shuffle=True, compression="gzip"),
        "whose scale has",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_forbidden_content_is_refused(shard_path: Path, name: str) -> None:
    mutate, said = REFUSED[name]
    with h5py.File(shard_path, "r+") as file:
        mutate(file)
    with pytest.raises(TraceError, match=said) as refusal:
        read_everything(shard_path)
    assert str(shard_path) in str(refusal.value)


def read_everything(path: Path) -> None:
    health = check(path)
    if health.problems:
        raise TraceError(health.problems[0])


def test_bit_flips_in_data_are_found(shard_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = shard_path.read_bytes()
    with h5py.File(shard_path) as file:
        chunks = [file[f"latent/{name}"].id.get_chunk_info(0) for name in ("samples", "step_sums", "transition_sums")]
    for info in chunks * 20:
        damaged = bytearray(whole)
        damaged[info.byte_offset + rng.integers(info.size)] ^= 1 << rng.integers(8)
        shard_path.write_bytes(damaged)
        assert check(shard_path).exit_code == 3


@pytest.mark.parametrize("name", ["step_sums", "samples", "weight"])
def test_chunk_that_says_it_belongs_elsewhere_is_found(shard_path: Path, name: str) -> None:
    """A flipped bit in a chunk's own coordinates must not leave a hole that is read as numbers."""
    rng = np.random.default_rng(0)
    whole = shard_path.read_bytes()
    with h5py.File(shard_path) as file:
        truth = file[f"latent/{name}"][()]
        at = file[f"latent/{name}"].id.get_chunk_info(0).byte_offset
    place = at.to_bytes(8, "little")
    found = [i for i in range(len(whole)) if whole.startswith(place, i)]
    for where in found:
        for byte in range(max(where - 72, 0), where):
            damaged = bytearray(whole)
            damaged[byte] ^= 1 << rng.integers(8)
            shard_path.write_bytes(damaged)
            try:
                with ShardFile(shard_path) as shard:
                    read = shard.stream("latent", name)
            except TraceError:
                continue
            assert np.array_equal(read, truth, equal_nan=True), byte


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_refused(shard_path: Path, share: float) -> None:
    whole = shard_path.read_bytes()
    shard_path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TraceError, match=str(shard_path)):
        read_everything(shard_path)


def test_text_file_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "notes.h5"
    path.write_text("these are notes")
    with pytest.raises(TraceError, match="no HDF5 file"):
        open_trace(path)


def test_unknown_names_of_a_newer_minor_version_are_ignored(shard_path: Path) -> None:
    with h5py.File(shard_path, "r+") as file:
        file.attrs["format_minor"] = 7
        file["latent/novelty"] = np.arange(3)
        file["novelties/list"] = np.arange(3)
        file["steps/novelty"] = np.arange(3)
    assert check(shard_path).exit_code == 0


@pytest.mark.parametrize("packed_as", ["1.2", "1.1"])
def test_prompts_of_one_file_are_read_apart(trace_folder: Path, tmp_path: Path, packed_as: str) -> None:
    """Also where the sums of all prompts are one chunk, as before 1.2."""
    path = tmp_path / "one.h5"
    with open_trace(trace_folder) as trace:
        pack(trace, path)
    if packed_as == "1.1":
        with h5py.File(path, "r+") as file:
            values = file["latent/step_sums"][()]
            replace("latent", "step_sums", chunks=values.shape, shuffle=True, compression="gzip")(file)
    with h5py.File(path) as file:
        expected = {name: file[f"latent/{name}"][()] for name in ("step_sums", "samples")}
    with ShardFile(path) as shard:
        for name, values in expected.items():
            for rows in (range(1), range(1, 3), range(3)):
                found = shard.stream("latent", name, rows)
                assert np.array_equal(found, values[rows.start : rows.stop], equal_nan=True)
        assert np.array_equal(shard.cell("latent", 2, 1, 0, 0), expected["samples"][2, 1, 0, 0])


def test_shards_of_different_shape_are_not_one_trace(trace_folder: Path) -> None:
    with h5py.File(sorted(trace_folder.glob("*.h5"))[1], "r+") as file:
        names = file["latent/transition_statistic"][()][[1, 0, 2, 3]]
        data = {"data": names, "chunks": (4,), "shuffle": True, "compression": "gzip"}
        replace("latent", "transition_statistic", **data)(file)
    with pytest.raises(TraceError, match="transition_statistics"):
        open_trace(trace_folder)

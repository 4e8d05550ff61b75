"""Writing shards and reading them back."""

from __future__ import annotations

import hashlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from dit_formats import TraceError, deflate, open_trace, schema
from dit_formats.errors import PromptError
from dit_formats.schema import Prompt, Shard
from dit_formats.writer import image, write_failure, write_shard

MakeShard = Callable[..., Shard]
FLOATS = {name for name, spec in schema.STREAM.items() if spec.dtype[0] == "f"}


def test_trace_read_back_equals_what_was_written(tmp_path: Path, shard: MakeShard) -> None:
    shards = [shard(index) for index in range(3)]
    for one in reversed(shards):
        write_shard(tmp_path, one)
    with open_trace(tmp_path) as trace:
        assert trace.run == shards[0].run
        assert trace.layers == shards[0].layers
        assert trace.prompts == tuple(one.prompts[0] for one in shards)
        assert np.array_equal(trace.timesteps, shards[0].timesteps)
        assert np.array_equal(trace.sigmas, shards[0].sigmas)
        assert trace.streams == ("latent", "text")
        for name in trace.streams:
            streams = [one.streams[name] for one in shards]
            assert trace.branches(name) == streams[0].branches
            assert trace.kinds(name) == streams[0].kinds
            assert trace.source_dtype(name) == "float32"
            for row, stream in enumerate(streams):
                assert np.array_equal(trace.samples(name, row), stream.arrays["samples"][0], equal_nan=True)
                assert np.array_equal(trace.step_sums(name)[row], stream.arrays["step_sums"][0], equal_nan=True)
                sums = trace.transition_sums(name)[row]
                assert np.array_equal(sums, stream.arrays["transition_sums"][0], equal_nan=True)
            for array in ("recorded", "token", "channel", "weight", "num_tokens", "num_channels"):
                assert np.array_equal(trace.geometry(name, array), streams[0].arrays[array])


def test_hdf5_itself_reads_what_was_written(tmp_path: Path, shard: MakeShard) -> None:
    one = shard()
    with h5py.File(write_shard(tmp_path, one)) as file:
        for name, stream in one.streams.items():
            for array, values in stream.arrays.items():
                assert np.array_equal(file[name][array][()], values, equal_nan=array in FLOATS), (name, array)


def test_without_isal_and_libdeflate_the_numbers_are_the_same(
    tmp_path: Path, shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deflate, "isal_zlib", None)
    monkeypatch.setattr(deflate, "libdeflate", None)
    write_shard(tmp_path, shard())
    with open_trace(tmp_path) as trace:
        assert np.array_equal(trace.samples("text", 0), shard().streams["text"].arrays["samples"][0], equal_nan=True)


@pytest.mark.parametrize("missing", ["", "libdeflate"])
def test_what_is_damaged_or_of_another_size_is_not_inflated(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing:
        monkeypatch.setattr(deflate, missing, None)
    content = np.random.default_rng(0).normal(size=5000).astype("f4").tobytes()
    stored, size = deflate.deflated(content, 4), len(content)
    assert deflate.unshuffled(deflate.inflated(stored, size), np.dtype("f4")).tobytes() == content
    flipped = stored[:900] + bytes([stored[900] ^ 8]) + stored[901:]
    for wrong, length in ((stored[:-1], size), (stored, size - 1), (stored, size + 1), (flipped, size), (b"", size)):
        assert deflate.inflated(wrong, length) is None


@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0xFFFF0000, 0xFFFFE000], ids=["float32", "bfloat16", "float16"])
def test_zlib_inflates_whatever_was_deflated(bits: int) -> None:
    values = np.cumsum(np.random.default_rng(2).normal(size=(4096, 28)), 1).astype("f4")
    content = (values.view("u4") & np.uint32(bits)).tobytes()
    planes = np.frombuffer(content, "u1").reshape(-1, 4).T.tobytes()
    assert zlib.decompress(deflate.deflated(content, 4)) == planes


@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0xFFFF0000, 0xFFFFE000], ids=["float32", "bfloat16", "float16"])
def test_bytes_come_back_in_their_places(bits: int) -> None:
    values = (np.random.default_rng(1).normal(size=4099).astype("f4").view("u4") & np.uint32(bits)).view("f4")
    values[:3] = np.nan, np.inf, -0.0
    planes = np.frombuffer(values.tobytes(), "u1").reshape(-1, 4).T.tobytes()
    assert deflate.unshuffled(planes, np.dtype("f4")).tobytes() == values.tobytes()


class Asked:
    """Samples that are made when they are asked for, and remember in which order."""

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self._values, self.order = values.shape, values, []
        self._one = np.empty(values.shape[-2:], "f4")

    def __getitem__(self, at: tuple[int, ...]) -> np.ndarray:
        self.order.append(at)
        self._one[:] = self._values[at]
        return self._one


def test_samples_are_asked_for_chunk_by_chunk_in_order(shard: MakeShard) -> None:
    one = shard()
    streams = {
        name: replace(stream, arrays={**stream.arrays, "samples": Asked(stream.arrays["samples"])})
        for name, stream in one.streams.items()
    }
    assert image(replace(one, streams=streams)) == image(one)
    for stream in streams.values():
        asked = stream.arrays["samples"]
        assert asked.order == list(np.ndindex(*asked.shape[:4]))


def test_a_chunk_of_another_shape_is_refused(shard: MakeShard) -> None:
    one = shard()

    class Turned(Asked):
        def __getitem__(self, at: tuple[int, ...]) -> np.ndarray:
            return super().__getitem__(at).T

    arrays = {**one.streams["text"].arrays, "samples": Turned(one.streams["text"].arrays["samples"])}
    with pytest.raises(ValueError, match="a chunk of shape"):
        image(replace(one, streams={"text": replace(one.streams["text"], arrays=arrays)}))


def test_a_shard_is_in_memory_once(shard: MakeShard) -> None:
    one = shard()
    rng = np.random.default_rng(0)

    class Noise:
        shape = 1, 2, 3, 2, 1 << 16, 5

        def __getitem__(self, at: tuple[int, ...]) -> np.ndarray:
            return rng.random(self.shape[-2:], "f4")

    positions = np.zeros((3, 2, 1 << 16))
    places = {name: positions for name in ("token", "channel", "weight")}
    latent = replace(one.streams["latent"], arrays={**one.streams["latent"].arrays, **places, "samples": Noise()})
    tracemalloc.start()
    content = image(replace(one, streams={"latent": latent}))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(content) > 12e6
    assert peak < 1.8 * len(content)  # and a few chunks


def test_shards_are_built_in_several_threads_at_once(shard: MakeShard) -> None:
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(image, [shard(index) for index in range(8)]))
    assert built == [image(shard(index)) for index in range(8)]


def test_single_shard_is_a_trace(trace_folder: Path) -> None:
    with open_trace(next(trace_folder.glob("000001-*.h5"))) as trace:
        assert [prompt.index for prompt in trace.prompts] == [1]


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps_are_kept(tmp_path: Path, shard: MakeShard, steps: int) -> None:
    write_shard(tmp_path, shard(steps=steps))
    with open_trace(tmp_path) as trace:
        assert trace.num_steps == steps
        assert trace.transition_sums("latent").shape[-1] == steps - 1


def test_trace_without_samples_is_kept(tmp_path: Path, shard: MakeShard) -> None:
    write_shard(tmp_path, shard(positions=0))
    with open_trace(tmp_path) as trace:
        assert trace.samples("latent", 0).shape == (2, 3, 2, 0, 5)


@pytest.mark.parametrize("text", ["", "déjà vu 猫", "a" * 5000, '"quotes"\n and lines'])
def test_any_text_is_kept(tmp_path: Path, shard: MakeShard, text: str) -> None:
    write_shard(tmp_path, shard(text=text))
    with open_trace(tmp_path) as trace:
        assert trace.prompts[0].text == text


@pytest.mark.parametrize("text", ["a\0b", "\udcff", "a" * (1 << 21)])
def test_text_that_cannot_be_kept_is_refused(text: str) -> None:
    with pytest.raises(PromptError):
        Prompt(0, text)


def test_name_of_a_shard_follows_from_its_prompt() -> None:
    key = hashlib.sha256('["déjà",42,0]'.encode()).hexdigest()[:8]
    assert Prompt(7, "déjà", 42).stem == f"000007-{key}"


def test_shard_is_never_replaced(tmp_path: Path, shard: MakeShard) -> None:
    path = write_shard(tmp_path, shard())
    before = path.read_bytes()
    with pytest.raises(TraceError, match="traced already"):
        write_shard(tmp_path, shard())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_failed_write_leaves_nothing(tmp_path: Path, shard: MakeShard, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path, shard())
    assert os.listdir(tmp_path) == []


def test_same_content_gives_the_same_bytes(shard: MakeShard) -> None:
    assert image(shard()) == image(shard())


def test_everything_is_shuffled_and_deflated(trace_folder: Path) -> None:
    with h5py.File(next(trace_folder.glob("*.h5"))) as file:
        plain: list[str] = []

        def look(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and not (item.shuffle and item.compression == "gzip"):
                plain.append(name)

        file.visititems(look)
    assert plain == ["run"]


def test_run_is_strict_json_with_its_hash(trace_folder: Path) -> None:
    with h5py.File(next(trace_folder.glob("*.h5"))) as file:
        text = file["run"][()]
        assert json.loads(text)["settings"]["model"] == "hand-made"
        assert hashlib.sha256(text).hexdigest() == file["run"].attrs["sha256"].decode()


@pytest.mark.parametrize("group", ["latent", "text", "layers", "steps", "prompts"])
def test_shard_opens_labelled_in_xarray(trace_folder: Path, group: str) -> None:
    with xr.open_dataset(next(trace_folder.glob("*.h5")), engine="h5netcdf", group=group) as ds:
        if group in schema.TABLES:
            assert set(ds.variables) - set(ds.sizes) == set(schema.TABLES[group])
            return
        assert {name: ds[name].dims for name in schema.STREAM} == {n: s.axes for n, s in schema.STREAM.items()}
        assert ds.kind.astype(str).values.tolist() == ["k", "v", "a"]
        assert ds.step.values.tolist() == [0, 1, 2, 3, 4]
        assert ds.step_statistic.astype(str).values.tolist() == list(schema.STEP_STATISTICS)
        picked = ds.set_index()["samples"].sel(kind=b"k", branch=b"cond", layer=0)
        assert picked.shape == (1, 12, 5)


def test_failures_are_told_and_do_not_disturb(trace_folder: Path) -> None:
    write_failure(trace_folder, Prompt(9, "hopeless"), "out of memory")
    with open_trace(trace_folder) as trace:
        assert len(trace.prompts) == 3
        assert "out of memory" in trace.failures[0].read_text()


def test_other_settings_in_one_folder_are_refused_by_name(trace_folder: Path, shard: MakeShard) -> None:
    write_shard(trace_folder, shard(3, dtype="bfloat16"))
    with pytest.raises(TraceError, match='dtype: null in the trace, "bfloat16" now'):
        open_trace(trace_folder)


def test_other_steps_in_one_folder_are_refused(trace_folder: Path, shard: MakeShard) -> None:
    write_shard(trace_folder, shard(3, steps=4))
    with pytest.raises(TraceError, match="timesteps"):
        open_trace(trace_folder)


def test_prompt_that_is_there_twice_is_refused(trace_folder: Path, shard: MakeShard) -> None:
    write_shard(trace_folder, shard(7, text="prompt 1"))
    with pytest.raises(TraceError, match="same prompt"):
        open_trace(trace_folder)


def test_nothing_at_the_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such trace"):
        open_trace(tmp_path / "none.trace")
    with pytest.raises(TraceError, match="holds no shard"):
        open_trace(tmp_path)

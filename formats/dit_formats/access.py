"""A shard: its records, checked when it is opened, and its arrays by their names in the specification."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
from h5py import h5d
from numpy.typing import NDArray

from dit_formats import schema
from dit_formats.arrays import Arrays, offsets, spec_of
from dit_formats.errors import TraceError
from dit_formats.schema import Array, Layer, Prompt, Run, Timing


class ShardFile(Arrays):
    """A shard: its records, and, inside a `with` block, its arrays. Closed in between, for a trace may have many."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with self:
            self._check_format()
            self.run = self._read_run()
            self.prompts = self._read_prompts()
            self.layers = self._read_layers()
            self.timesteps = self.table("steps", "timestep")
            self.sigmas = self.table("steps", "sigma")
            self.streams = self._find_streams()
            self.branches = [self.names(stream, "branch") for stream in self.streams]
            self.kinds = [self.names(stream, "kind") for stream in self.streams]
            self.transition_statistics = [self.names(stream, "transition_statistic") for stream in self.streams]
            self.num_tokens = [self.stream(stream, "num_tokens").tolist() for stream in self.streams]
            self.num_channels = [self.stream(stream, "num_channels").tolist() for stream in self.streams]
            self.sites = [self._site_names(stream) for stream in self.streams]
            self.step_pairs = [self._pair_names(stream, "step_pair") for stream in self.streams]
            self.branch_pairs = [self._pair_names(stream, "branch_pair") for stream in self.streams]

    def table(self, group: str, name: str) -> NDArray[Any]:
        """One column of `prompts`, `layers` or `steps`."""
        return self.read(group, name, _column(group, name))

    def holds(self, stream: str, name: str) -> bool:
        """Whether a stream or table has an array that it need not have."""
        with self._guarded(stream):
            return self._group(stream).links.exists(name.encode())

    def shape(self, stream: str, name: str) -> tuple[int, ...]:
        """Lengths along the axes of an array."""
        return self.check(stream, name, spec_of(name)).shape

    def chunks(self, stream: str, name: str) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Offset and stored bytes of every chunk of an array whose chunks hold one prompt.

        All is checked as if it were read, deflate's checksum too.
        """
        with self._guarded(f"{stream}/{name}"):
            checked = self.check(stream, name, spec_of(name))
            for offset in offsets(checked) if 0 not in checked.shape else ():
                yield offset, self.stored(checked, offset)[0]

    def source_dtype(self, stream: str) -> str:
        """The data type of the tensors that were sampled."""
        with self._guarded(f"{stream}/samples"):
            return self.text_attribute(self.check(stream, "samples", spec_of("samples")).id, "source_dtype")

    def timing(self) -> Timing | None:
        """How long a generation takes, if the shard tells."""
        if not self.holds("steps", "seconds"):
            return None
        kinds = [kind for kind in schema.TIMED if self.holds("layers", f"seconds_{kind}")]
        return Timing({kind: self.table("layers", f"seconds_{kind}") for kind in kinds}, self.table("steps", "seconds"))

    # Records -----------------------------------------------------------------

    def _check_format(self) -> None:
        with self._guarded(""):
            name = self.text_attribute(self._file.id, "format") if "format" in self._file.attrs else None
            if name != schema.FORMAT:
                what = f'{self.path}: not a trace (an HDF5 file without format "{schema.FORMAT}")'
                raise TraceError(f"{what}; dit-trace run writes traces")
            major = self.int_attribute(self._file.id, "format_major")
            if major != schema.MAJOR:
                raise TraceError(
                    f"{self.path}: trace format {major}, this version reads {schema.MAJOR}; upgrade ditscope"
                )

    def _read_run(self) -> Run:
        with self._guarded("run"):
            dataset = self._dataset("", "run")
            if dataset.shape != ():
                self._refuse("run", "not a single string")
            self._check_type(dataset, "run", Array("S", ()))
            plist = dataset.get_create_plist()
            if plist.get_layout() != h5d.CONTIGUOUS or plist.get_external_count():
                self._refuse("run", "stored outside this file")
            text = bytes(h5py.Dataset(dataset)[()])
            if hashlib.sha256(text).hexdigest() != self.text_attribute(dataset, "sha256"):
                self._refuse("run", "its checksum does not fit")
            run = json.loads(text)
            if not isinstance(run, dict) or not all(isinstance(run.get(k), dict) for k in ("settings", "provenance")):
                self._refuse("run", "settings or provenance missing")
            return Run(run["settings"], run["provenance"])

    def _read_prompts(self) -> tuple[Prompt, ...]:
        texts = self.texts("prompts", "text", _column("prompts", "text"))
        numbers = (self.table("prompts", name).tolist() for name in ("index", "seed", "image"))
        own = ("",) * len(texts)
        if self.holds("prompts", "arguments"):
            own = self.texts("prompts", "arguments", _column("prompts", "arguments"))
        rows = zip(texts, *numbers, own)
        return tuple(Prompt(index, text, seed, image, arguments) for text, index, seed, image, arguments in rows)

    def _read_layers(self) -> tuple[Layer, ...]:
        names, types = (self.texts("layers", name, _column("layers", name)) for name in ("name", "type"))
        return tuple(map(Layer, names, types, self.table("layers", "heads").tolist()))

    def _site_names(self, stream: str) -> tuple[str, ...]:
        return self.texts(stream, "site", schema.OPTIONAL["site"]) if self.holds(stream, "site") else ()

    def _pair_names(self, stream: str, axis: str) -> tuple[str, ...]:
        return self.names(stream, axis) if self.holds(stream, axis) else ()

    def _find_streams(self) -> tuple[str, ...]:
        with self._guarded(""):
            groups = [name for name in self._file if name not in schema.TABLES and self._is_group(name)]
            streams = tuple(name for name in groups if self.holds(name, "samples"))
            if not streams:
                self._refuse("the file", "holds no stream")
            return streams


def _column(group: str, name: str) -> Array:
    return (schema.TABLES[group] | schema.OPTIONAL_TABLES.get(group, {}))[name]

"""Allots the sample to channels by one generation made beforehand, the same for all prompts and processes.

The allotment is plain JSON of numbers and names in a hidden file of the trace's folder, which appears whole. The first
process to publish one wins, and the others read it. Once there is a shard, positions are read from that. If none comes
of it, the last process takes the file away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from dit_formats.access import ShardFile
from dit_formats.errors import ConflictError, TraceError
from dit_formats.publish import published
from numpy.typing import NDArray
from torch import Tensor

from dit_tracer.calls import generate, subject
from dit_tracer.claims import Claims
from dit_tracer.models.sketch import watched
from dit_tracer.recording.call import arguments, is_unguided, longest_text
from dit_tracer.recording.generation import Key
from dit_tracer.recording.sampling import Allotment, Positions, allot, neyman_mix
from dit_tracer.recording.settings import Sample, What
from dit_tracer.recording.sites import find_networks
from dit_tracer.shards import Shards
from dit_tracer.work import Task

NAME = ".pilot.json"
TOKENS = 256
"""Tokens of an activation that a pilot looks at; enough to tell channels apart, and little to keep."""


@dataclass(frozen=True)
class Pilot:
    """Shapes of activations (token, channel), and how their sample is allotted; `hash` tells allotments apart."""

    shapes: dict[Key, tuple[int, int]]
    allotments: dict[Key, Allotment]
    hash: str

    def positions(self, seed: int) -> dict[Key, Positions]:
        """The positions of every activation."""
        return {
            key: neyman_mix(one, self.shapes[key][0], np.random.default_rng([seed, *(crc32(n.encode()) for n in key)]))
            for key, one in self.allotments.items()
        }


def settled(folder: Path, signature: str, sample: Sample, fly: Callable[[], dict[Key, Any]]) -> Pilot:
    """The pilot of the trace at `folder`: the one that is published there, or else what `fly` finds, published.

    Args:
        signature: What the pilot is for; one that was published for something else is refused.
        fly: Makes a generation, and gives tokens and the spread of each channel of every activation.

    Raises:
        ConflictError: There is one of other settings, or a file that is no pilot.
    """
    path = folder / NAME
    if not path.exists():
        rows = []
        for (stream, kind, layer), (tokens, spread) in fly().items():
            one = allot(spread, tokens, sample.size(stream))
            rows.append([stream, kind, layer, tokens, one.group.tolist(), one.count.tolist()])
        content = json.dumps({"for": signature, "allotted": rows}).encode()
        _read(path, content, signature, sample)  # what others would refuse is not published
        _publish(path, content)
    return _read(path, path.read_bytes(), signature, sample)


@contextmanager
def withdrawn(folder: Path, claims: Claims) -> Iterator[None]:
    """After the block, the pilot at `folder` is gone if no shard was made with it, and no other process is at work.

    Processes enter `claims` before they look for a pilot.
    """
    try:
        yield
    finally:
        if (folder / NAME).exists() and claims.alone() and not _is_used(folder):
            (folder / NAME).unlink()


def _is_used(folder: Path) -> bool:
    shard = Shards(folder).any
    if shard is None:
        return False
    try:
        sample = ShardFile(shard).run.settings.get("sample")
    except TraceError:
        return True  # it cannot be told
    return isinstance(sample, dict) and sample.get("pilot") == _hash((folder / NAME).read_bytes())


def fly(pipeline: Any, call: dict[str, Any], what: What, task: Task) -> dict[Key, tuple[int, NDArray[np.float64]]]:
    """Tokens of every activation, and S_c: the deviation of |d| over tokens in each channel, over all transitions."""
    networks = find_networks(pipeline)
    given = arguments(pipeline, (), call | subject(pipeline, task.text))
    text_tokens = longest_text(pipeline, networks, given)
    found: dict[Key, tuple[int, Tensor]] = {}
    before: dict[Any, tuple[int, Tensor]] = {}

    def look(key: Key, tensor: Tensor) -> None:
        if len(tensor) % clock.batch or not tensor.numel():
            return
        tensor = tensor if tensor.ndim == 4 else tensor.unsqueeze(1)
        folds, (_, heads, length, width) = len(tensor) // clock.batch, tensor.shape
        some = _some_tokens(tensor, folds)
        place = key, clock.branches
        step, last = before.get(place, (-1, some))
        if step == clock.step:
            return
        longest = max(length, text_tokens) if key[0] == "text" else length
        _, spread = found.get(key, (0, torch.zeros(heads * width, device=some.device)))
        if step == clock.step - 1 and step >= 0 and last.shape == some.shape:
            spread = spread + torch.nan_to_num((some - last).abs()).std(1, correction=0).sum(0)
        found[key] = folds * longest, spread
        before[place] = clock.step, some

    with watched(networks, pipeline.scheduler, what, look) as (clock, _):
        clock.unguided = is_unguided(given)
        generate(pipeline, task, call)
    return {key: (tokens, spread.double().cpu().numpy()) for key, (tokens, spread) in found.items()}


def _some_tokens(tensor: Tensor, folds: int) -> Tensor:
    """Up to `TOKENS` tokens of every group, the same for all tensors of a shape: (group, token, channel), float32."""
    length = tensor.shape[2]
    places = np.random.default_rng(0).choice(folds * length, min(TOKENS, folds * length), replace=False)
    fold, token = (torch.from_numpy(axis).to(tensor.device) for axis in np.divmod(places, length))
    grouped = tensor.unflatten(0, (-1, folds))
    return grouped[:, fold, :, token].movedim(0, 1).flatten(2).float()


def _publish(path: Path, content: bytes) -> None:
    """Make the file appear whole, unless another process was faster."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError), published(path) as file:
        file.write(content)


def _read(path: Path, content: bytes, signature: str, sample: Sample) -> Pilot:
    try:
        data = json.loads(content)
        whose, rows = data["for"], data["allotted"]
        shapes, allotments = {}, {}
        for stream, kind, layer, tokens, group, count in rows:
            one = Allotment(_integers(group), _integers(count))
            key = str(stream), str(kind), str(layer)
            shapes[key], allotments[key] = (int(tokens), len(group)), one
            _check(one, int(tokens), sample.size(stream))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        raise ConflictError(f"{path}: no allotment of a sample; remove it, and run the same command again") from None
    if whose != signature:
        raise ConflictError(
            f"{path}: made for a run with other settings, which has traced no prompt; remove it, or trace elsewhere"
        )
    return Pilot(shapes, allotments, _hash(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _check(one: Allotment, tokens: int, n: int) -> None:
    """Refuse an allotment that cannot be had, or is not as large as wanted.

    Raises:
        ValueError: It is one.
    """
    members = np.bincount(one.group, minlength=len(one.count))
    wanted = min(n, tokens * len(one.group))
    if len(members) != len(one.count) or (members < 1).any() or (one.count < 1).any():
        raise ValueError
    if one.count.sum() != wanted or (-(-one.count // members) > tokens).any():
        raise ValueError


def _integers(values: Any) -> NDArray[np.int64]:
    """A list of integers that are not negative."""
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 1 << 32 for value in values):
        raise ValueError
    return np.array(values, dtype=np.int64)

"""The numbers of `statistics` on a CPU with a C compiler: one loop, `sums.c`, as fast as memory is.

It is built in a moment, when first used. Without a compiler `chunked` gives the same numbers in three times the time;
they differ by 3e-7 of the sum of magnitudes at most.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from ctypes import c_int, c_ssize_t, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit_tracer.recording import statistics
from dit_tracer.recording.chunked import as_rows

SOURCE = Path(__file__).with_name("sums.c")

OPTIONS = (
    ["-O3", "-march=native", "-fopenmp"],
    ["-O3", "-mcpu=native", "-fopenmp"],
    ["-O3", "-fopenmp-simd"],
)
"""Of the compiler, from fast to modest; it fails at what it does not know."""


def measure(x: Tensor, previous: Tensor | None, keep: Tensor | None = None) -> tuple[Tensor, Tensor | None] | None:
    """Step sums of x and transition sums from previous to x, as `statistics` gives them.

    None, and nothing is kept, if they are not float32 of one shape, or do not lie in memory row by row, or if there is
    no compiler.

    Args:
        x, previous: Activations of shape (group, ...).
        keep: Where to copy x on the way; may be the memory of `previous`.
    """
    tensors = [x, previous, keep]
    if not all(t is None or t.dtype == torch.float32 and t.shape == x.shape for t in tensors) or not _is_ours(x):
        return None
    plan = _plan(x.shape, *(None if t is None else t.stride() for t in tensors)) if x.numel() else None
    if plan is None:
        return None
    shape, strides = plan
    work = torch.empty(library().room(shape), dtype=torch.uint8)
    steps = torch.empty(len(x), 5, dtype=torch.float64)
    changes = None if previous is None else torch.empty(len(x), 4, dtype=torch.float64)
    now, before, kept, *results = (0 if t is None else t.data_ptr() for t in (*tensors, work, steps, changes))
    library().measure(now, before, kept, shape, strides, _num_threads(), *results)
    return steps, changes


def picked(x: Tensor, at: Tensor) -> Tensor | None:
    """As `picking.picked`."""
    if not _is_ours(x):
        return None
    found = torch.empty(at.shape)
    library().pick(x.data_ptr(), at.data_ptr(), at.numel(), found.data_ptr())
    return found


def token_norms(x: Tensor) -> Tensor:
    """As `statistics.token_norms`, which also does what is not for this: folded states, other types and devices."""
    if not _is_ours(x) or x.shape[1:-2].numel() != 1:
        return statistics.token_norms(x)
    found = torch.empty(len(x), x.shape[-2])
    shape, strides = ((c_ssize_t * 3)(one[0], *one[-2:]) for one in (x.shape, x.stride()))
    library().norms(x.data_ptr(), shape, strides, _num_threads(), found.data_ptr())
    return found


def norm_ratios(previous: Tensor, current: Tensor) -> Tensor:
    """As `statistics.norm_ratios`."""
    if not _is_ours(current) or previous.shape != current.shape:
        return statistics.norm_ratios(previous, current)
    found = torch.empty(len(current), 2, dtype=torch.float64)
    library().ratios(previous.data_ptr(), current.data_ptr(), *current.shape, found.data_ptr())
    return found


def _num_threads() -> int:
    """torch's, but one in a forked process: OpenMP has threads in its parent alone, and would wait for them."""
    return 1 if _FORKED else torch.get_num_threads()


def _note_fork() -> None:
    global _FORKED
    _FORKED = True


_FORKED = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _is_ours(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu" and library() is not None


def usable() -> bool:
    """Whether there is a compiler, and what it makes works."""
    return library() is not None


@functools.lru_cache(256)
def _plan(shape: torch.Size, *strides: tuple[int, ...] | None) -> tuple[Any, Any] | None:
    """Groups, rows and elements of a row; strides of group and row, of each tensor. None if there are no such rows."""
    tensors = [None if one is None else torch.empty_strided(shape, one, device="meta") for one in strides]
    rows = as_rows(*tensors)
    if rows is None:
        return None
    lengths = [stride for one in rows for stride in (one.stride()[:2] if one is not None else (0, 0))]
    return (c_ssize_t * 3)(*rows[0].shape), (c_ssize_t * 6)(*lengths)


@functools.cache
def library() -> Any:
    """`sums.c`, built and tried; None if that cannot be."""
    for options in OPTIONS:
        with tempfile.TemporaryDirectory(prefix="dit-trace-") as folder:
            target = Path(folder) / "sums.so"
            compiler = shlex.split(os.environ.get("CC", "cc"))
            command = [*compiler, *options, "-shared", "-fPIC", "-o", target, SOURCE, "-lm"]
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
                return _declared(ctypes.CDLL(str(target)))
            except (OSError, subprocess.SubprocessError):  # no compiler, another one, a folder without execution
                continue
    return None


def _declared(library: Any) -> Any:
    library.room.argtypes, library.room.restype = [c_void_p], c_ssize_t
    library.measure.argtypes = [*[c_void_p] * 5, c_int, *[c_void_p] * 3]
    library.pick.argtypes = [c_void_p, c_void_p, c_ssize_t, c_void_p]
    library.norms.argtypes = [c_void_p, c_void_p, c_void_p, c_int, c_void_p]
    library.ratios.argtypes = [c_void_p, c_void_p, c_ssize_t, c_ssize_t, c_void_p]
    for function in (library.measure, library.pick, library.norms, library.ratios):
        function.restype = None
    return library

"""The kernels for GPUs, without one: interpreted on the CPU, and compiled for several GPUs. Needs Triton."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.triton

INTERPRETED = """
import torch
from dit_tracer.recording import fused, statistics

assert fused.agrees(torch.device("cpu"))
generator = torch.Generator().manual_seed(0)
shapes = {(2, 576, 4, 64): torch.bfloat16, (1, 600, 2, 128): torch.float32, (3, 1, 7, 1): torch.float16}
for shape, dtype in shapes.items():
    previous, x = torch.randn(2, *shape, generator=generator).to(dtype).transpose(2, 3).unsqueeze(2)
    for before, now in ((previous, x), (previous.contiguous(), x), (previous[..., ::2, :], x[..., ::2, :])):
        found = fused.measure(now, before)
        expected = statistics.measure(now, before)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3)
        alone, none = fused.measure(now, None)
        torch.testing.assert_close(alone, expected[0], rtol=1e-6, atol=1e-3)
        assert none is None
"""

COMPILED = """
import triton
from dit_tracer.recording import fused
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

STRIDES = {name: "i64" for name in ("x_group", "x_row", "previous_group", "previous_row")}
CONSTANTS = {name: "constexpr" for name in ("compared", "block", "blocks")}
for target in (GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)):
    for dtype, compared in (("*bf16", True), ("*bf16", False), ("*fp16", True), ("*fp32", True)):
        signature = {"x": dtype, "previous": dtype, "partial": "*fp32", "length": "i32", **STRIDES, **CONSTANTS}
        values = {"compared": compared, "block": fused.BLOCK, "blocks": fused.BLOCKS}
        triton.compile(ASTSource(fused._partial_sums, signature, values), target=target)
    signature = {"partial": "*fp32", "found": "*fp64", "programs": "i32", "size": "i32", "block": "constexpr"}
    triton.compile(ASTSource(fused._total_sums, signature, {"block": fused.BLOCK}), target=target)
"""


@pytest.mark.parametrize("code, interpret", [(INTERPRETED, "1"), (COMPILED, "0")], ids=["interpreted", "compiled"])
def test_kernels(code: str, interpret: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

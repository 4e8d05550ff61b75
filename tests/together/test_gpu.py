"""Recording on a GPU; run with `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import dit_tracer
import numpy as np
import pytest
import torch
from dit_analyzer import distances
from dit_formats import open_trace
from dit_tracer.models.catalog import BUNDLED
from dit_tracer.models.loading import load

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", BUNDLED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recording_on_a_gpu_changes_nothing_and_measures_the_same(name: str, dtype: str, tmp_path: Path) -> None:
    """The samples are of the tensors themselves, so distances from samples and from statistics must agree."""
    model = BUNDLED[name]
    pipeline = load(model, dtype, "cuda")

    def generate() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call = model.call | {"num_inference_steps": 6, "output_type": "latent"}
        return pipeline(model.captions(1)[0], generator=generator, **call).images

    untraced = generate()
    sample = dit_tracer.Sample(latent=10**9, text=10**9)
    with dit_tracer.record(pipeline, tmp_path / "a.trace", sample=sample) as recorder, recorder.prompt("a"):
        traced = generate()
    assert torch.equal(traced, untraced)
    with open_trace(tmp_path / "a.trace") as trace:
        exact, sampled = (distances(trace, source=source)["l1"].values for source in ("exact", "sample"))
    np.testing.assert_allclose(sampled, exact, rtol=1e-5)

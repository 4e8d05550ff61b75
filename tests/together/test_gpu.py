"""Recording on a GPU; run with `make test-gpu`."""

from __future__ import annotations

from pathlib import Path

import dit_tracer
import numpy as np
import pytest
import torch
from dit_analyzer import distances
from dit_formats import open_trace
from dit_tracer.calls import generate
from dit_tracer.encoders import encode_once
from dit_tracer.models.catalog import BUNDLED
from dit_tracer.models.loading import load
from dit_tracer.recording import fused, statistics
from dit_tracer.recording.settings import What
from dit_tracer.recording.timing import timed
from dit_tracer.work import Task

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


def test_kernels_give_the_numbers_of_torch() -> None:
    device = torch.device("cuda")
    assert fused.usable(device)
    generator = torch.Generator().manual_seed(0)
    previous, x = torch.randn(2, 2, 24, 600, 128, generator=generator).to(device, torch.bfloat16).unsqueeze(2)
    for before, now in ((previous, x), (previous[..., 88:, :], x[..., 88:, :])):
        torch.testing.assert_close(fused.measure(now, before), statistics.measure(now, before), rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("previous", ["host", "subset"])
def test_step_before_may_be_kept_elsewhere(previous: str, tmp_path: Path) -> None:
    model, found = BUNDLED["digits-flux"], []
    pipeline = load(model, "bfloat16", "cuda")
    for place in ("device", previous):
        with dit_tracer.record(pipeline, tmp_path / place, previous=place) as recorder, recorder.prompt("a red seven"):
            generate(pipeline, Task("a red seven", 0), model.call | {"num_inference_steps": 4})
        with open_trace(tmp_path / place) as trace:
            found.append(distances(trace)["l1"].values)
    np.testing.assert_allclose(*found, rtol=1e-6 if previous == "host" else 0.2)


@pytest.mark.parametrize("others", [False, True])
def test_text_encoders_leave_the_gpu_and_latents_stay_equal(others: bool) -> None:
    model = BUNDLED["digits-flux"]
    pipeline = load(model, "bfloat16", "cuda")

    def latents() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        call = model.call | {"num_inference_steps": 2, "output_type": "latent"}
        return pipeline("a red seven", generator=generator, **call).images

    wanted, before = latents(), torch.cuda.memory_allocated()
    weights = [weight for part in (pipeline.text_encoder, pipeline.text_encoder_2) for weight in part.parameters()]
    size = sum(weight.nbytes for weight in weights)
    del weights
    assert encode_once(pipeline, [Task("a red seven", 0)], model.call, others=others)
    assert torch.cuda.memory_allocated() <= before - size
    assert torch.equal(latents(), wanted)


def test_time_on_a_gpu_is_that_of_its_kernels() -> None:
    model = BUNDLED["digits-flux"]
    pipeline = load(model, "bfloat16", "cuda")
    found = timed(pipeline, lambda: generate(pipeline, Task("a red seven", 0), model.call), What())
    assert (found.steps > 0).all()
    assert 0 < np.nansum(found.layers["a"]) < np.median(found.steps)

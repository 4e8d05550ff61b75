"""States between the blocks, and products of guidance halves and of steps, against hooks of the test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dit_analyzer
import dit_tracer
import numpy as np
import pytest
import torch
from dit_formats import IncompleteError, TraceError, open_trace
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.stack import SITES
from numpy.typing import NDArray

STEPS = 4
WHOLE = dit_tracer.Sample(latent=10**9, text=10**9)


def generate(pipeline: Any, name: str, prompt: str = "a red bus", **changes: Any) -> Any:
    call = find(f"tiny:{name}").call | {"num_inference_steps": STEPS, "output_type": "latent"} | changes
    return pipeline(prompt=prompt, generator=torch.Generator().manual_seed(0), **call)


class Seen:
    """What a module was given and gave, at every call."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.given: list[dict[str, torch.Tensor]] = []
        self.gave: list[Any] = []
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        module.register_forward_hook(self._after)

    def _before(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(enumerate(args)) | kwargs
        self.given.append({str(k): v.clone() for k, v in given.items() if isinstance(v, torch.Tensor)})

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        self.gave.append(tuple(part.clone() if isinstance(part, torch.Tensor) else part for part in parts))


def states(trace: Any, site: str, branch: str = "cond") -> NDArray[np.float32]:
    """Whole states of a site, (element, step)."""
    values = trace.samples("stack", 0)[trace.branches("stack").index(branch), 0, trace.sites().index(site)]
    return values[~np.isnan(values).all(-1)]


def test_states_of_flux_are_those_between_its_blocks(tmp_path: Path) -> None:
    """Three single blocks follow two double ones; text is left out, and the middle is after the second block."""
    pipeline = tiny.build("flux.1-dev")
    net = pipeline.transformer
    first, second, last = (
        Seen(net.transformer_blocks[0]),
        Seen(net.transformer_blocks[1]),
        Seen(net.single_transformer_blocks[-1]),
    )
    attention, whole = Seen(net.transformer_blocks[0].attn), Seen(net)
    with dit_tracer.record(pipeline, tmp_path / "a", sample=WHOLE) as recorder, recorder.prompt("a"):
        generate(pipeline, "flux.1-dev")
    with open_trace(tmp_path / "a") as trace:
        assert trace.sites() == SITES and trace.kinds("stack") == ("x",) and "stack" not in trace.streams
        for step in range(STEPS):
            begin, end = first.given[step]["hidden_states"], last.gave[step][1]
            expected = {
                "model_input": whole.given[step]["hidden_states"],
                "input": begin,
                "modulated": attention.given[step]["hidden_states"],
                "first": second.given[step]["hidden_states"],
                "middle": second.gave[step][1],
                "last": end,
                "residual": end - begin,
                "prediction": whole.gave[step][0],
            }
            for site, tensor in expected.items():
                assert np.array_equal(states(trace, site)[:, step], tensor.flatten().numpy()), (site, step)


@pytest.mark.parametrize("name", ["pixart-alpha", "sd3", "cogvideox-5b", "latte-1", "open-sora", "mochi-1-preview"])
def test_residual_is_last_less_input(name: str, tmp_path: Path) -> None:
    pipeline = tiny.build(name)
    with dit_tracer.record(pipeline, tmp_path / "a", sample=WHOLE) as recorder, recorder.prompt("a"):
        generate(pipeline, name)
    with open_trace(tmp_path / "a") as trace:
        begin, end, residual = (states(trace, site) for site in ("input", "last", "residual"))
        assert residual.shape == end.shape
        if name == "latte-1":  # the last block works over time: frames and places are the other way round
            frames, channels = find("tiny:latte-1").call["video_length"], trace.geometry("stack", "num_channels")[0, 1]
            end = end.reshape(-1, frames, channels, STEPS).swapaxes(0, 1).reshape(end.shape)
        np.testing.assert_allclose(residual, end - begin, atol=2e-4)
        assert trace.geometry("stack", "recorded").all()


def test_signals_are_what_caching_methods_calibrate_on(tmp_path: Path) -> None:
    """TeaCache's relative L1 of the modulated input, MagCache's ratio of the norms of the residual."""
    pipeline = tiny.build("pixart-alpha")
    attention = Seen(pipeline.transformer.transformer_blocks[0].attn1)
    first, last = (Seen(pipeline.transformer.transformer_blocks[i]) for i in (0, -1))
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder, recorder.prompt("a"):
        generate(pipeline, "pixart-alpha")
    with open_trace(tmp_path / "a") as trace:
        found = dit_analyzer.signals(trace).isel(prompt=0).sel(branch="cond")
    modulated = [given["0"][1] for given in attention.given]
    residual = [(after[0] - before["0"])[1] for after, before in zip(last.gave, first.given)]
    for t in range(STEPS - 1):
        change = (modulated[t + 1] - modulated[t]).abs().mean() / modulated[t].abs().mean()
        assert found["rel_l1"].sel(site="modulated")[t] == pytest.approx(float(change), rel=1e-5)
        ratio = residual[t + 1].norm(dim=-1) / residual[t].norm(dim=-1)
        assert found["ratio_mean"].sel(site="residual")[t] == pytest.approx(float(ratio.mean()), rel=1e-5)
        assert found["ratio_std"].sel(site="residual")[t] == pytest.approx(float(ratio.std(correction=0)), rel=1e-4)


@pytest.mark.parametrize("name", ["pixart-alpha", "wan2.1"])
def test_cosine_of_the_guidance_halves(name: str, tmp_path: Path) -> None:
    """In one batch, and in two calls."""
    pipeline = tiny.build(name)
    path = tmp_path / "a"
    with dit_tracer.record(pipeline, path, sample=WHOLE, halves=True) as recorder, recorder.prompt("a"):
        generate(pipeline, name)
    with open_trace(path) as trace:
        found = dit_analyzer.branch_cosines(trace).isel(prompt=0)
        x = trace.samples("latent", 0).astype(float)
        cond, uncond = x[trace.branches("latent").index("cond")], x[trace.branches("latent").index("uncond")]
    with np.errstate(invalid="ignore"):
        expected = np.nansum(cond * uncond, 2) / np.sqrt(np.nansum(cond**2, 2) * np.nansum(uncond**2, 2))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.nanmin(expected) < 0.999, "the halves differ"


def test_cosine_of_chosen_steps(tmp_path: Path) -> None:
    pipeline, path = tiny.build("sd3"), tmp_path / "a"
    options = {"sample": WHOLE, "step_pairs": [(0, 3), (2, 0), (0, 1)]}
    with dit_tracer.record(pipeline, path, **options) as recorder, recorder.prompt("a"):
        generate(pipeline, "sd3")
    with open_trace(path) as trace:
        found = dit_analyzer.step_cosines(trace).isel(prompt=0)
        x = trace.samples("latent", 0).astype(float)
    assert found.step_pair.values.tolist() == ["0:3", "0:2", "0:1"]
    for row, (one, other) in enumerate([(0, 3), (0, 2), (0, 1)]):
        a, b = x[..., one], x[..., other]
        expected = np.nansum(a * b, -1) / np.sqrt(np.nansum(a**2, -1) * np.nansum(b**2, -1))
        np.testing.assert_allclose(found[..., row], expected, rtol=1e-5)


def test_named_boundaries_are_recorded(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    block = Seen(pipeline.transformer.transformer_blocks[1])
    options = {"sample": WHOLE, "boundaries": ["transformer_blocks.1"]}
    with dit_tracer.record(pipeline, tmp_path / "a", **options) as recorder, recorder.prompt("a"):
        generate(pipeline, "sd3")
    with open_trace(tmp_path / "a") as trace:
        assert "transformer_blocks.1" in trace.sites()
        for branch, half in (("cond", 1), ("uncond", 0)):
            found = states(trace, "transformer_blocks.1", branch)[:, 2]
            assert np.array_equal(found, block.gave[2][1][half].flatten().numpy())
    with pytest.raises(ValueError, match="transformer_blocks.7: no block"):
        dit_tracer.record(pipeline, tmp_path / "b", boundaries=["transformer_blocks.7"])


def test_feed_forward_heads_and_queries_on_request(tmp_path: Path) -> None:
    pipeline = tiny.build("pixart-alpha")
    block = pipeline.transformer.transformer_blocks[1]
    ff, to_q, to_out = Seen(block.ff), Seen(block.attn1.to_q), Seen(block.attn1.to_out[0])
    options = {"sample": WHOLE, "kinds": ["q", "o", "f"]}
    with dit_tracer.record(pipeline, tmp_path / "a", **options) as recorder, recorder.prompt("a"):
        generate(pipeline, "pixart-alpha")
    with open_trace(tmp_path / "a") as trace:
        assert trace.kinds("latent") == ("q", "o", "f")
        rows = {layer.name.removeprefix("transformer.transformer_blocks.1."): i for i, layer in enumerate(trace.layers)}
        assert trace.layers[rows["ff"]].type == "ff"
        x = trace.samples("latent", 0)[trace.branches("latent").index("cond")]
    for kind, layer, tensor in (
        (0, "attn1", to_q.gave),
        (1, "attn1", [(g["0"],) for g in to_out.given]),
        (2, "ff", ff.gave),
    ):
        for step in range(STEPS):
            expected = tensor[step][0][1]
            if layer == "attn1":  # heads come first in a trace, in the order of their tokens
                expected = expected.reshape(len(expected), -1)
            assert np.array_equal(np.sort(kept(x[kind, rows[layer], :, step])), np.sort(expected.flatten().numpy()))


def test_traces_without_them_say_what_to_trace(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    with dit_tracer.record(pipeline, tmp_path / "a", stack=False) as recorder, recorder.prompt("a"):
        generate(pipeline, "sd3")
    with open_trace(tmp_path / "a") as trace:
        for measure, option in (
            ("signals", "--no-stack"),
            ("branch_cosines", "--halves"),
            ("step_cosines", "--step-pairs"),
        ):
            with pytest.raises(IncompleteError, match=option):
                getattr(dit_analyzer, measure)(trace)


def test_more_is_not_added_to_a_trace_without_it(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder, recorder.prompt("a"):
        generate(pipeline, "sd3")
    with pytest.raises(TraceError, match="halves: false in the trace, true now"):
        dit_tracer.record(pipeline, tmp_path / "a", halves=True)


def kept(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[~np.isnan(values)]

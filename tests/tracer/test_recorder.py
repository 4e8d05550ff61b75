"""Recording real pipelines; what is captured where is checked against hooks of the test's own."""

from __future__ import annotations

import inspect
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import dit_analyzer
import dit_tracer
import numpy as np
import pytest
import torch
from dit_formats import TraceError, open_trace
from dit_formats.errors import ConflictError
from dit_tracer.recording.recorder import NonFiniteError
from dit_tracer.recording.settings import Sample

EVERYTHING = Sample(latent=10**9, text=10**9)


def outputs_of(module: torch.nn.Module, seen: list[torch.Tensor]) -> Any:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        seen.append(torch.cat([part.reshape(len(part), -1) for part in parts], 1).clone())

    return module.register_forward_hook(hook)


def trace_one(gold: Any, path: Path, **changes: Any) -> torch.Tensor:
    """Trace prompt 0 whole, and return its latents."""
    with dit_tracer.record(gold.pipeline, path, sample=EVERYTHING) as recorder, recorder.prompt("a"):
        return gold.generate(0, **changes)


def patched(pipeline: Any) -> tuple[Any, ...]:
    """Everything that recording replaces for a while."""
    owners = (
        (type(pipeline), "__call__"),
        (type(pipeline.scheduler), "step"),
        (type(pipeline.transformer), "cache_context"),
    )
    return dict(vars(torch.nn.functional)), *(vars(owner).get(name) for owner, name in owners)


def test_a_trace_says_how_many_parameters_its_transformer_has(gold: Any, tmp_path: Path) -> None:
    trace_one(gold, tmp_path / "a.trace")
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.run.provenance["parameters"] == gold.pipeline.transformer.num_parameters()


def test_latents_are_equal_to_the_bit_and_everything_is_undone(gold: Any, tmp_path: Path) -> None:
    pipeline = gold.pipeline
    before = patched(pipeline)
    untraced = gold.generate(0)
    with dit_tracer.record(pipeline, tmp_path / "a.trace") as recorder:
        with recorder.prompt("a"):
            traced = gold.generate(0)
        signature = inspect.signature(pipeline.scheduler.step)
    assert torch.equal(traced, untraced)
    assert torch.equal(gold.generate(0), untraced)
    assert patched(pipeline) == before
    assert signature == inspect.signature(pipeline.scheduler.step), "pipelines look at this signature"
    hooks = [m for m in pipeline.transformer.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooks == []


def test_everything_is_undone_after_an_error(flux: Any, tmp_path: Path) -> None:
    original = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with recorder.prompt("a"):
            raise ZeroDivisionError
    assert torch.nn.functional.scaled_dot_product_attention is original
    assert [path.suffix for path in (tmp_path / "a.trace").iterdir()] == [".failed"]


def test_joint_layer_is_split_into_streams(flux: Any, tmp_path: Path) -> None:
    """FLUX double block: V is to_v of the latent and add_v_proj of the text tokens, A what the module returns."""
    attention = flux.pipeline.transformer.transformer_blocks[1].attn
    expected: dict[str, list[torch.Tensor]] = {"to_v": [], "add_v_proj": [], "out": []}
    hooks = [outputs_of(getattr(attention, name), expected[name]) for name in ("to_v", "add_v_proj")]
    hooks.append(outputs_of(attention, expected["out"]))
    trace_one(flux, tmp_path / "a.trace")
    for hook in hooks:
        hook.remove()
    with open_trace(tmp_path / "a.trace") as trace:
        layer = [layer.name for layer in trace.layers].index("transformer.transformer_blocks.1.attn")
        assert trace.layers[layer].type == "joint"
        latent, text = (trace.samples(stream, 0)[0][:, layer] for stream in ("latent", "text"))
        assert trace.geometry("latent", "num_tokens")[:, layer].tolist() == [48] * 3
        assert trace.geometry("text", "num_tokens")[:, layer].tolist() == [7] * 3
    for step in range(10):
        assert np.array_equal(kept(latent[1], step), expected["to_v"][step].flatten())
        assert np.array_equal(kept(text[1], step), expected["add_v_proj"][step].flatten())
        whole = np.concatenate([kept(latent[2], step), kept(text[2], step)])
        assert np.array_equal(whole, expected["out"][step].flatten())


def test_single_layer_is_split_text_first(flux: Any, tmp_path: Path) -> None:
    attention = flux.pipeline.transformer.single_transformer_blocks[0].attn
    seen: list[torch.Tensor] = []
    hook = outputs_of(attention.to_v, seen)
    trace_one(flux, tmp_path / "a.trace")
    hook.remove()
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.layers[2].type == "single"
        parts = [kept(trace.samples(stream, 0)[0][1, 2], 4) for stream in ("text", "latent")]
    assert np.array_equal(np.concatenate(parts), seen[4].flatten())


def test_cross_attention_belongs_to_text_and_latent(pixart: Any, tmp_path: Path) -> None:
    with dit_tracer.record(pixart.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        pixart.generate(0)
    with open_trace(tmp_path / "a.trace") as trace:
        types = [layer.type for layer in trace.layers]
        assert types == ["self", "cross"] * 4
        seen = {stream: trace.geometry(stream, "recorded")[0, :, :, 0] for stream in trace.streams}
    assert seen["latent"].tolist() == [[1, 0] * 4, [1, 0] * 4, [1, 1] * 4]
    assert seen["text"].tolist() == [[0, 1] * 4, [0, 1] * 4, [0, 0] * 4]


def test_batched_guidance_is_split_into_branches(pixart: Any, tmp_path: Path) -> None:
    """The batch is [negative, positive]; each half gets its own name."""
    attention = pixart.pipeline.transformer.transformer_blocks[2].attn1
    seen: list[torch.Tensor] = []
    hook = outputs_of(attention.to_k, seen)
    trace_one(pixart, tmp_path / "a.trace")
    hook.remove()
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.branches("latent") == ("cond", "uncond")
        samples = trace.samples("latent", 0)[:, 0, 4]
        sums = trace.step_sums("latent")[0, :, 0, 4, 0]
    for step in range(10):
        uncond, cond = seen[step].double()
        assert np.array_equal(kept(samples[0], step), cond.flatten())
        assert np.array_equal(kept(samples[1], step), uncond.flatten())
        np.testing.assert_allclose(sums[:, step], [cond.abs().sum(), uncond.abs().sum()], rtol=2e-7)


def test_model_without_guidance_has_cond_alone(pixart: Any, tmp_path: Path) -> None:
    with dit_tracer.record(pixart.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        pixart.generate(0, guidance_scale=1.0)
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.branches("latent") == ("cond",)


def test_sequential_guidance_takes_the_names_of_the_pipeline(flux: Any, tmp_path: Path) -> None:
    """FLUX with true guidance calls its transformer twice a step."""
    negative = {
        f"negative_{name}": 0.5 * flux.tensors[f"p0.in.{name}"] for name in ("prompt_embeds", "pooled_prompt_embeds")
    }
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        traced = flux.generate(0, true_cfg_scale=3.0, num_inference_steps=4, **negative)
    assert torch.equal(traced, flux.generate(0, true_cfg_scale=3.0, num_inference_steps=4, **negative))
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.branches("latent") == ("cond", "uncond")
        assert trace.geometry("latent", "recorded").all()
        sums = trace.step_sums("latent")[0]
    assert not np.allclose(sums[0], sums[1])


def test_several_images_are_several_prompts(flux: Any, tmp_path: Path) -> None:
    from diffusers.utils.torch_utils import randn_tensor

    tensors = dict(flux.tensors)
    shape = tensors.pop("p0.in.latents").shape
    flux.tensors.clear()
    flux.tensors.update(tensors)
    noise = randn_tensor((2, *shape[1:]), generator=torch.Generator().manual_seed(0))
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with recorder.prompt("a", seed=5):
            flux.generate(0, num_images_per_prompt=2, latents=noise, num_inference_steps=3)
        assert recorder.has("a", 5, 1)
    with open_trace(tmp_path / "a.trace") as trace:
        assert [(p.index, p.seed, p.image) for p in trace.prompts] == [(0, 5, 0), (1, 5, 1)]
        assert not np.array_equal(trace.samples("latent", 0), trace.samples("latent", 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_kept_exactly(flux: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    flux.pipeline.to(dtype)
    flux.tensors.update({name: value.to(dtype) for name, value in flux.tensors.items()})
    seen: list[torch.Tensor] = []
    hook = outputs_of(flux.pipeline.transformer.transformer_blocks[0].attn.to_v, seen)
    trace_one(flux, tmp_path / "a.trace", num_inference_steps=3)
    hook.remove()
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.source_dtype("latent") == str(dtype).removeprefix("torch.")
        assert trace.run.settings["dtype"] == trace.source_dtype("latent")
        assert np.array_equal(kept(trace.samples("latent", 0)[0, 1, 0], 2), seen[2].float().flatten())


def test_chosen_attention_backend_is_put_back(flux: Any, tmp_path: Path) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    flux.pipeline.transformer.set_attention_backend("_native_math")
    active = _AttentionBackendRegistry._active_backend  # the same one, or as it was: versions of diffusers differ
    try:
        with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)
        assert _AttentionBackendRegistry._active_backend == active
        assert flux.pipeline.transformer.transformer_blocks[0].attn.processor._attention_backend == "_native_math"
    finally:
        flux.pipeline.transformer.set_attention_backend("native")


def test_run_tells_how_to_repeat_it(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace", model="gold-flux") as recorder, recorder.prompt("a", 7):
        flux.generate(0, num_inference_steps=3)
    with open_trace(tmp_path / "a.trace") as trace:
        settings, made = trace.run.settings, trace.run.provenance
        assert trace.prompts[0].seed == 7
    assert settings["model"] == "gold-flux"
    assert settings["scheduler"]["class"] == "FlowMatchEulerDiscreteScheduler"
    assert settings["scheduler"]["config"]["shift"] == 3.0
    assert settings["transformers"]["transformer"]["config"]["num_single_layers"] == 3
    assert settings["call"]["num_inference_steps"] == 3 and settings["call"]["guidance_scale"] == 3.5
    assert made["versions"]["torch"] == torch.__version__


def test_trace_grows_by_prompts_of_the_same_settings(flux: Any, tmp_path: Path) -> None:
    for prompt in range(2):
        with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt(f"p{prompt}"):
            flux.generate(prompt, num_inference_steps=2)
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        assert recorder.has("p1") and not recorder.has("p2") and not recorder.has("p1", seed=1)
        with pytest.raises(ConflictError, match="already"), recorder.prompt("p0"):
            flux.generate(0, num_inference_steps=2)
    with open_trace(tmp_path / "a.trace") as trace:
        assert [prompt.text for prompt in trace.prompts] == ["p0", "p1"]


def test_prompt_that_another_process_traced_meanwhile_is_left_to_it(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    one, other = dit_tracer.record(flux.pipeline, path), dit_tracer.record(flux.pipeline, path)
    with one, one.prompt("a"):
        flux.generate(0, num_inference_steps=2)
    (shard,) = path.iterdir()
    before = shard.read_bytes()
    with other, other.prompt("a"):
        flux.generate(0, num_inference_steps=2)
    assert other.beaten == 1
    assert [file.read_bytes() for file in path.iterdir()] == [before]


def test_other_settings_are_refused_by_name_before_any_step(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with dit_tracer.record(flux.pipeline, path) as recorder, recorder.prompt("a"):
        flux.generate(0, num_inference_steps=2)
    steps: list[torch.Tensor] = []
    hook = outputs_of(flux.pipeline.transformer.x_embedder, steps)
    with pytest.raises(ConflictError, match="call.num_inference_steps: 2 in the trace, 3 now"):
        with dit_tracer.record(flux.pipeline, path) as recorder, recorder.prompt("b"):
            flux.generate(0, num_inference_steps=3)
    hook.remove()
    assert steps == []
    with pytest.raises(ConflictError, match="sample.latent: 4096 in the trace, 5 now"):
        dit_tracer.record(flux.pipeline, path, sample=Sample(latent=5))
    flux.pipeline.scheduler = type(flux.pipeline.scheduler)(shift=1.0)
    with pytest.raises(ConflictError, match="scheduler.config.shift: 3.0 in the trace, 1.0 now"):
        dit_tracer.record(flux.pipeline, path)


def test_other_settings_within_one_recording_are_refused(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)
        with pytest.raises(ConflictError, match="call.guidance_scale: 3.5 in the trace, 7.0 now"), recorder.prompt("b"):
            flux.generate(0, num_inference_steps=2, guidance_scale=7.0)
    assert [path.suffix for path in (tmp_path / "a.trace").iterdir()] == [".h5"], "a refusal is no failure"


def test_other_weights_are_refused(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        flux.generate(0, num_inference_steps=2)
    with torch.no_grad():
        flux.pipeline.transformer.transformer_blocks[1].attn.to_k.weight *= 1.01
    with pytest.raises(ConflictError, match="transformers.transformer.weights"):
        dit_tracer.record(flux.pipeline, tmp_path / "a.trace")


def test_other_sizes_are_refused_in_this_run_and_in_later_ones(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    long = {name: torch.cat([value, value], 1) if value.ndim == 3 and name.endswith("prompt_embeds") else value
            for name, value in flux.tensors.items()}  # fmt: skip
    with dit_tracer.record(flux.pipeline, path) as recorder, recorder.prompt("a"):
        flux.generate(0, num_inference_steps=2)
    flux.tensors.update(long)
    for _ in range(2):
        with pytest.raises(ConflictError, match="a text of 14 tokens, and the first prompts left room for 7"):
            with dit_tracer.record(flux.pipeline, path) as recorder, recorder.prompt("b"):
                flux.generate(0, num_inference_steps=2)


def test_shorter_text_lacks_positions_and_is_counted(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    short = {name: value[:, :5] if value.ndim == 3 and name.endswith("prompt_embeds") else value
             for name, value in flux.tensors.items()}  # fmt: skip
    with dit_tracer.record(flux.pipeline, path, sample=EVERYTHING) as recorder:
        with recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)
        flux.tensors.update(short)
        with recorder.prompt("b"):
            flux.generate(0, num_inference_steps=2)
    with open_trace(path) as trace:
        assert trace.geometry("text", "num_tokens").max() == 7
        counts = trace.step_sums("text")[:, 0, 0, 0, 3, 0]
        assert counts.tolist() == [7 * 48, 5 * 48]
        assert trace.step_sums("text")[:, 0, 0, 0, 4].max() == 0, "what does not exist is not non-finite"
        token = trace.geometry("text", "token")[0, 0]
        values = trace.samples("text", 1)[0, 0, 0, :, 0]
        assert np.array_equal(np.isnan(values), token >= 5)


def without_text(flux: Any) -> Any:
    """The same pipeline, given texts of no tokens."""
    empty = {name: value[:, :0] for name, value in flux.tensors.items() if value.ndim == 3 and "prompt_embeds" in name}
    return replace(flux, tensors=flux.tensors | {n: v for n, v in empty.items() if not n.startswith("pooled")})


@pytest.mark.parametrize("previous", ["device", "host", "subset"])
def test_text_of_no_tokens_has_no_elements_and_no_distance(previous: str, flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with dit_tracer.record(flux.pipeline, path, sample=EVERYTHING, previous=previous) as recorder:
        for text, gold in {"a": flux, "": without_text(flux)}.items():
            with recorder.prompt(text):
                gold.generate(0, num_inference_steps=3)
    with open_trace(path) as trace:
        sums = trace.step_sums("text")[:, 0, 0, 0]
        assert (sums[0, 3] == 7 * 48).all() and (sums[1] == 0).all()
        assert np.isnan(trace.samples("text", 1)).all() and np.isfinite(trace.samples("latent", 1)).all()
        assert {layer.type for layer in trace.layers} == {"joint", "single"}
        for source in ("exact", "sample"):
            ds = dit_analyzer.distances(trace, source=source)
            text = ds.sel(stream="text").isel(prompt=1)
            assert text["l1"].isnull().all() and text["count"].isnull().all()
            assert np.isfinite(dit_analyzer.paper_view(ds)["l1"]).all()


def test_trace_of_no_text_at_all_has_no_text_stream(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with dit_tracer.record(flux.pipeline, path) as recorder:
        with recorder.prompt(""):
            without_text(flux).generate(0, num_inference_steps=2)
        with pytest.raises(ConflictError, match="the first prompts left room for 0"), recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)
    with open_trace(path) as trace:
        assert trace.streams == ("latent",)
        assert np.isfinite(dit_analyzer.distances(trace)["l1"]).all()
    with dit_tracer.record(flux.pipeline, path) as recorder:
        with pytest.raises(ConflictError, match="other layers|left room for 0"), recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)


def test_interrupted_generation_is_not_recorded(flux: Any, tmp_path: Path) -> None:
    def stop(pipeline: Any, step: int, timestep: Any, tensors: Any) -> Any:
        pipeline._interrupt = step >= 1
        return tensors

    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with pytest.raises(TraceError, match="stopped after 2 steps"), recorder.prompt("a"):
            flux.generate(0, callback_on_step_end=stop)


def test_prompts_are_recorded_one_at_a_time(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        with pytest.raises(TraceError, match="one at a time"), recorder.prompt("b"):
            pass
        flux.generate(0, num_inference_steps=2)
    with pytest.raises(TraceError, match="inside `with"), recorder.prompt("c"):
        pass


def test_failed_first_prompt_pins_nothing(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with pytest.raises(ZeroDivisionError), recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2, guidance_scale=9.0)
            raise ZeroDivisionError
        with recorder.prompt("a"):
            flux.generate(0, num_inference_steps=3)
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.num_steps == 3 and trace.run.settings["call"]["guidance_scale"] == 3.5


def test_replaced_scheduler_is_refused(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        flux.pipeline.scheduler = type(flux.pipeline.scheduler)(shift=1.0)
        with (
            pytest.raises(ConflictError, match="the scheduler changed after recording began"),
            recorder.prompt("a"),
        ):
            flux.generate(0, num_inference_steps=2)


def test_replaced_transformer_is_refused(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        flux.pipeline.transformer = type(flux.pipeline.transformer).from_config(flux.pipeline.transformer.config)
        with pytest.raises(ConflictError, match="the transformer changed"), recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)


def test_cache_that_skips_layers_is_refused(flux: Any, tmp_path: Path) -> None:
    from diffusers import FirstBlockCacheConfig

    flux.pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with pytest.raises(ValueError, match="disable_cache"), recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)
        flux.pipeline.transformer.disable_cache()
        with recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)


def test_images_from_one_noise_are_no_guidance_halves(tmp_path: Path) -> None:
    from dit_tracer.models import catalog, tiny

    pipeline = tiny.build("pixart-alpha")
    call = catalog.find("tiny:pixart-alpha").call | {"guidance_scale": 1.0, "num_images_per_prompt": 2}
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    with dit_tracer.record(pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        pipeline("a bus", num_inference_steps=2, generator=generators, output_type="latent", **call)
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.branches("latent") == ("cond",) and [prompt.image for prompt in trace.prompts] == [0, 1]


def test_several_texts_in_one_prompt_are_refused(tmp_path: Path) -> None:
    from dit_tracer.models import catalog, tiny

    pipeline, call = tiny.build("sd3"), catalog.find("tiny:sd3").call
    with dit_tracer.record(pipeline, tmp_path / "a.trace") as recorder:
        with pytest.raises(TraceError, match="one generation per prompt"), recorder.prompt("a"):
            pipeline(["a bus", "a fox"], num_inference_steps=2, output_type="latent", **call)


def test_something_else_at_the_output_is_left_alone(flux: Any, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("precious")
    with pytest.raises(ConflictError, match="is a file"):
        dit_tracer.record(flux.pipeline, file)
    with pytest.raises(ConflictError, match="notes.txt"):
        dit_tracer.record(flux.pipeline, tmp_path)
    assert file.read_text() == "precious" and os.listdir(tmp_path) == ["notes.txt"]


def test_block_without_a_generation_is_refused(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        with pytest.raises(TraceError, match="nothing was recorded"), recorder.prompt("a"):
            pass
        with pytest.raises(TraceError, match="one generation per prompt"), recorder.prompt("b"):
            flux.generate(0, num_inference_steps=2)
            flux.generate(1, num_inference_steps=2)


def test_generations_outside_of_a_prompt_are_not_recorded(flux: Any, tmp_path: Path) -> None:
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        flux.generate(0, num_inference_steps=3)
        with recorder.prompt("a"):
            flux.generate(0, num_inference_steps=2)
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.num_steps == 2


def test_pipeline_without_transformer_is_refused(tmp_path: Path) -> None:
    class Pipeline:
        components: dict[str, object] = {}

    with pytest.raises(ValueError, match="no component named transformer or unet"):
        dit_tracer.record(Pipeline(), tmp_path / "a.trace")


def kept(samples: Any, step: int) -> Any:
    """Stored values (position, step) of one step; padding is left out."""
    values = samples[:, step]
    return values[~np.isnan(values)]


def test_prediction_that_is_not_finite_fails_the_prompt_and_says_where_it_began(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"

    def spoil(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return output * torch.inf if recorder._clock.step == 3 else output

    with dit_tracer.record(flux.pipeline, path) as recorder:
        hook = flux.pipeline.transformer.transformer_blocks[1].attn.to_v.register_forward_hook(spoil)
        with pytest.raises(NonFiniteError, match=r"from step 3 on, first transformer\.transformer_blocks\.1\.attn"):
            with recorder.prompt("a"):
                flux.generate(0, num_inference_steps=5)
        hook.remove()
        with recorder.prompt("b"):
            flux.generate(0, num_inference_steps=5)
    assert sorted(file.suffix for file in path.iterdir()) == [".failed", ".h5"]


def test_layer_that_gets_no_finite_values_at_first_is_no_unknown_layer(flux: Any, tmp_path: Path) -> None:
    """The first generation shows where the text tokens are, and one that is not finite shows nothing."""
    block = flux.pipeline.transformer.transformer_blocks[0]
    with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
        hook = block.register_forward_hook(lambda module, args, output: tuple(part * torch.nan for part in output))
        with pytest.raises(NonFiniteError, match=r"reach transformer\.transformer_blocks\.1\.attn .* in step 0"):
            with recorder.prompt("a"):
                flux.generate(0, num_inference_steps=2)
        hook.remove()
        with recorder.prompt("b"):
            flux.generate(0, num_inference_steps=2)


def test_shards_are_written_when_the_block_ends(flux: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    with dit_tracer.record(flux.pipeline, path) as recorder:
        for text in ("a", "b", "c"):
            with recorder.prompt(text):
                flux.generate(0, num_inference_steps=2)
            assert recorder.has(text)
        recorder.flush()
        assert len(list(path.glob("*.h5"))) == 3


def test_shard_that_cannot_be_written_is_an_error_at_the_end(flux: Any, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError, match="File too large"):
        with dit_tracer.record(flux.pipeline, tmp_path / "a.trace") as recorder:
            with recorder.prompt("a"):
                flux.generate(0, num_inference_steps=2)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
            with pytest.raises(OSError):
                recorder.flush()
            with recorder.prompt("b"):
                flux.generate(0, num_inference_steps=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "a.trace").iterdir()) == []


@pytest.mark.parametrize("previous", ["host", "subset"])
def test_step_before_may_be_kept_elsewhere_or_in_part(
    previous: str, flux: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("history", "settings"):
        monkeypatch.setattr(f"dit_tracer.recording.{module}.HELD", 700)
    for name, options in (("whole", {}), ("other", {"previous": previous})):
        with dit_tracer.record(flux.pipeline, tmp_path / name, **options) as recorder, recorder.prompt("a"):
            flux.generate(0, num_inference_steps=4)
    with open_trace(tmp_path / "whole") as whole, open_trace(tmp_path / "other") as other:
        one, two = (trace.transition_sums("latent")[0, 0] for trace in (whole, other))
        ratios = [trace.transition_sums("stack")[0, 0, 0, :, 4:] for trace in (whole, other)]
        np.testing.assert_allclose(*ratios, rtol=1e-6)
        assert np.array_equal(whole.step_sums("latent"), other.step_sums("latent"), equal_nan=True)
        held = other.run.settings["recorded"].get("transitions")
        cosines = [dit_analyzer.distances(trace)["cosine"] for trace in (whole, other)]
        assert dit_analyzer.signals(other)["cosine"].max() <= 1
    assert cosines[1].max() <= 1
    np.testing.assert_allclose(1 - cosines[0], 1 - cosines[1], rtol=0.5, atol=1e-3)
    if previous == "host":
        np.testing.assert_allclose(one, two, rtol=1e-6)
        assert held is None
    else:
        assert set(two[..., 3, :].ravel()) == {700.0}
        np.testing.assert_allclose(one[..., 0, :] / one[..., 3, :], two[..., 0, :] / two[..., 3, :], rtol=0.2)
        assert held == "subset of 700"


@pytest.mark.parametrize("previous", ["device", "subset"])
def test_keys_of_a_text_do_not_change_and_latents_do(previous: str, pixart: Any, tmp_path: Path) -> None:
    with dit_tracer.record(pixart.pipeline, tmp_path / "a.trace", previous=previous) as recorder, recorder.prompt("a"):
        pixart.generate(0)
    with open_trace(tmp_path / "a.trace") as trace:
        text, latent = (trace.transition_sums(stream)[0, :, 0] for stream in ("text", "latent"))
        sums = trace.step_sums("text")[0, :, 0]
    cross, own = slice(1, None, 2), slice(0, None, 2)
    assert (text[:, cross, :2] == 0).all() and (latent[:, own, :2] > 0).all()
    np.testing.assert_allclose(text[:, cross, 2], sums[:, cross, 1, :-1], rtol=1e-7)
    assert np.array_equal(text[:, cross, 3], sums[:, cross, 3, :-1])

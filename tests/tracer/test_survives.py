"""What users do to their pipelines, a recording survives; and it leaves no mark on them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bitsandbytes
import diffusers
import dit_tracer
import numpy as np
import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from diffusers import DiffusionPipeline, TorchAoConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry, attention_backend
from diffusers.models.attention_processor import AttnProcessor, SD3IPAdapterJointAttnProcessor2_0, SlicedAttnProcessor
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from dit_formats import open_trace
from dit_formats.errors import ConflictError
from dit_formats.reader import Trace
from dit_tracer.models import tiny
from dit_tracer.models.catalog import BUNDLED, find
from dit_tracer.models.tiny_parts import WIDTH
from peft import LoraConfig
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig

STEPS = 3

TWINS = [f"tiny:{name}" for name in tiny.TWINS if tiny.available(name)]

EVERYTHING = {
    "kinds": ("q", "k", "v", "o", "a", "f"),
    "stack": True,
    "halves": True,
    "step_pairs": ((0, 2),),
}

WHOLE = {"kinds": ("q", "k", "v", "a"), "sample": dit_tracer.Sample(latent=10**9, text=10**9)}

CPU = torch.device("cpu")


def build(name: str) -> Any:
    if name.startswith("tiny:"):
        return tiny.build(name)
    pipeline = DiffusionPipeline.from_pretrained(find(name).source)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: Any, name: str, seed: int = 0, **changes: Any) -> Tensor:
    """Final latents."""
    call = {"prompt": "a red bus", "generator": torch.Generator().manual_seed(seed), "num_inference_steps": STEPS}
    return pipeline(**call | find(name).call | {"output_type": "latent"} | changes)[0]


def networks(pipeline: Any) -> list[nn.Module]:
    parts = (getattr(pipeline, name, None) for name in ("transformer", "transformer_2", "unet"))
    return [getattr(part, "_orig_mod", part) for part in parts if isinstance(part, nn.Module)]


def marks(pipeline: Any) -> dict[str, Any]:
    """Everything that recording replaces for a while."""
    owners = [(type(pipeline), "__call__"), (type(pipeline.scheduler), "step")]
    owners += [(type(network), "cache_context") for network in networks(pipeline)]
    modules = {path: part for network in networks(pipeline) for path, part in network.named_modules()}
    processors = {path: getattr(part, "processor", None) for path, part in modules.items()}
    return {
        "functional": dict(vars(torch.nn.functional)),
        "methods": [vars(owner).get(name) for owner, name in owners],
        "hooks": {path: (len(part._forward_hooks), len(part._forward_pre_hooks)) for path, part in modules.items()},
        "forward": {path for path, part in modules.items() if "forward" in vars(part)},
        "backend": _AttentionBackendRegistry._active_backend,
        "processors": processors,
        "backends": {path: getattr(part, "_attention_backend", None) for path, part in processors.items()},
    }


def record(pipeline: Any, path: Path, run: Callable[[], Any], **options: Any) -> Any:
    """What `run` gives, traced."""
    with dit_tracer.record(pipeline, path, **options) as recorder, recorder.prompt("a red bus"):
        return run()


def survive(pipeline: Any, name: str, path: Path, options: dict[str, Any] | None = None, **changes: Any) -> Trace:
    """The trace of a generation that comes out the same untraced, traced, and untraced again."""
    before, untraced = marks(pipeline), generate(pipeline, name, **changes)
    traced = record(pipeline, path, lambda: generate(pipeline, name, **changes), **options or {})
    assert torch.equal(traced, untraced)
    assert marks(pipeline) == before
    assert torch.equal(generate(pipeline, name, **changes), untraced)
    return open_trace(path)


def plain(name: str, path: Path, **changes: Any) -> tuple[Tensor, Trace]:
    """Latents and trace of the pipeline as it is built."""
    pipeline = build(name)
    latents = record(pipeline, path, lambda: generate(pipeline, name, **changes), **WHOLE)
    return latents, open_trace(path)


def assert_same_values(one: Trace, other: Trace, image: int = 0, other_image: int = 0) -> None:
    """Equal but for the order of sums in matrix products of other sizes."""
    assert one.layers == other.layers and one.streams == other.streams
    for stream in one.streams:
        values, others = one.samples(stream, image), other.samples(stream, other_image)
        np.testing.assert_allclose(values, others, rtol=1e-3, atol=1e-4)


def draw(*shape: int, seed: int = 3) -> Tensor:
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Every family ----------------------------------------------------------------


@pytest.mark.parametrize("name", [*TWINS, *BUNDLED])
def test_latents_are_equal_to_the_bit_with_everything_recorded(name: str, tmp_path: Path) -> None:
    with survive(build(name), name, tmp_path / "a.trace", EVERYTHING) as trace:
        assert trace.kinds("latent") == EVERYTHING["kinds"]
        assert trace.sites("stack")


# Weights and modules ---------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["flux.1-dev", "pixart-alpha", "sd3", "cogvideox-5b", "wan2.1", "ltx", "stable-diffusion"],
)
def test_fused_projections_give_the_same_keys_and_values(name: str, tmp_path: Path) -> None:
    name = f"tiny:{name}"
    pipeline = build(name)
    network = networks(pipeline)[0]
    network.fuse_qkv_projections()
    assert any(path.endswith(("to_qkv", "to_kv")) for path, _ in network.named_modules())
    with survive(pipeline, name, tmp_path / "fused.trace", WHOLE) as trace:
        assert_same_values(trace, plain(name, tmp_path / "apart.trace")[1])


def unet_adapter(pipeline: Any) -> dict[str, Any]:
    """Loads an IP-Adapter; returns the arguments that use it."""
    weights, row = {}, 1
    for path in pipeline.unet.attn_processors:
        if "attn2" in path:
            width = len(pipeline.unet.get_submodule(path.removesuffix(".processor")).to_q.weight)
            weights |= {f"{row}.to_{part}_ip.weight": draw(width, WIDTH, seed=row) for part in "kv"}
            row += 2
    pipeline.load_ip_adapter(
        {"image_proj": projection(), "ip_adapter": weights}, subfolder="", weight_name="", image_encoder_folder=None
    )
    return {"ip_adapter_image_embeds": [draw(2, 1, 8)]}


def flux_adapter(pipeline: Any) -> dict[str, Any]:
    weights = {}
    for row in range(len(pipeline.transformer.transformer_blocks)):
        for part in "kv":
            weights[f"{row}.to_{part}_ip.weight"] = draw(WIDTH, WIDTH, seed=row)
            weights[f"{row}.to_{part}_ip.bias"] = draw(WIDTH, seed=row)
    pipeline.load_ip_adapter(
        {"image_proj": projection(), "ip_adapter": weights},
        weight_name="",
        image_encoder_pretrained_model_name_or_path=None,
    )
    return {f"{sign}ip_adapter_image_embeds": [draw(1, 1, 8)] for sign in ("", "negative_")}


def sd3_adapter(pipeline: Any) -> dict[str, Any]:
    """Its image tokens are attended to in a further call within each layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        image = IPAdapterTimeImageProjection(
            embed_dim=8, output_dim=WIDTH, hidden_dim=64, dim_head=64, heads=1, num_queries=4, timestep_in_dim=16
        )
        parts = [
            SD3IPAdapterJointAttnProcessor2_0(
                hidden_size=WIDTH, ip_hidden_states_dim=WIDTH, head_dim=WIDTH // 2, timesteps_emb_dim=64
            )
            for _ in pipeline.transformer.attn_processors
        ]
    weights = {f"{row}.{name}": w for row, part in enumerate(parts) for name, w in part.state_dict().items()}
    pipeline.transformer._load_ip_adapter_weights({"ip_adapter": weights, "image_proj": image.state_dict()})
    return {"ip_adapter_image_embeds": draw(2, 3, 8)}


def projection() -> dict[str, Tensor]:
    """An image of 8 numbers becomes four tokens."""
    return {
        "proj.weight": draw(4 * WIDTH, 8),
        "proj.bias": draw(4 * WIDTH),
        "norm.weight": 1 + draw(WIDTH),
        "norm.bias": draw(WIDTH),
    }


@pytest.mark.parametrize(
    "name, load", [("stable-diffusion", unet_adapter), ("flux.1-dev", flux_adapter), ("sd3", sd3_adapter)]
)
def test_layer_with_ip_adapter_is_still_a_layer_of_text_and_latent(name: str, load: Any, tmp_path: Path) -> None:
    """The image's keys and values, attended apart, are no part of the layer's."""
    name = f"tiny:{name}"
    pipeline = build(name)
    call = load(pipeline)
    without, other = plain(name, tmp_path / "without.trace")
    with survive(pipeline, name, tmp_path / "with.trace", WHOLE, **call) as trace:
        assert trace.layers == other.layers and trace.streams == other.streams == ("latent", "text")
        for stream in trace.streams:
            for array in ("num_tokens", "num_channels", "recorded"):
                assert np.array_equal(trace.geometry(stream, array), other.geometry(stream, array))
        first = slice(1, 3), 0, slice(None), 0  # nothing of the image has reached the first layer's k and v
        for stream in trace.streams:
            values, others = (t.samples(stream, 0)[(slice(None), *first)] for t in (trace, other))
            np.testing.assert_allclose(values, others, rtol=1e-3, atol=1e-4)
    assert not torch.equal(generate(pipeline, name, **call), without)


@pytest.mark.parametrize("name", ["tiny:flux.1-dev", "tiny:sana", "tiny:stable-diffusion"])
def test_lora_is_traced_and_told_apart_by_weights_and_scale(name: str, tmp_path: Path) -> None:
    pipeline = build(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        adapter = LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False)
        networks(pipeline)[0].add_adapter(adapter, adapter_name="style")
    _, without = plain(name, tmp_path / "without.trace")
    with survive(pipeline, name, tmp_path / "with.trace", WHOLE) as trace:
        assert trace.layers == without.layers
        assert not np.allclose(trace.samples("latent", 0), without.samples("latent", 0), equal_nan=True)
    with pytest.raises(ConflictError, match="weights"):
        dit_tracer.record(pipeline, tmp_path / "without.trace", **WHOLE)
    dit_tracer.record(pipeline, tmp_path / "with.trace", **WHOLE)
    pipeline.set_adapters(["style"], [0.5])
    with pytest.raises(ConflictError, match="weights"):
        dit_tracer.record(pipeline, tmp_path / "with.trace", **WHOLE)
    pipeline.fuse_lora()
    survive(pipeline, name, tmp_path / "fused.trace")


def test_scale_of_an_ip_adapter_tells_models_apart(tmp_path: Path) -> None:
    pipeline = build("tiny:flux.1-dev")
    call = flux_adapter(pipeline)
    pipeline.set_ip_adapter_scale(0.7)
    survive(pipeline, "tiny:flux.1-dev", tmp_path / "a.trace", **call)
    pipeline.set_ip_adapter_scale(0.1)
    with pytest.raises(ConflictError, match="weights"):
        dit_tracer.record(pipeline, tmp_path / "a.trace")


@pytest.mark.parametrize("name", ["tiny:sd3", "tiny:flux.1-dev"])
def test_model_quantised_with_torchao_is_traced(name: str, tmp_path: Path) -> None:
    pipeline, before = build(name), generate(build(name), name)
    pipeline.transformer.save_pretrained(tmp_path / "whole")
    pipeline.transformer = type(pipeline.transformer).from_pretrained(
        tmp_path / "whole",
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        torch_dtype=torch.float32,
    )
    assert "Int8" in type(pipeline.transformer.transformer_blocks[0].attn.to_k.weight).__name__
    with survive(pipeline, name, tmp_path / "a.trace", EVERYTHING) as trace:
        settings = trace.run.settings["transformers"]["transformer"]
        assert "Int8WeightOnlyConfig" in settings["config"]["quantization_config"] and settings["weights"]
    assert not torch.equal(generate(pipeline, name), before)


def linear_8bit(old: nn.Linear) -> nn.Module:
    new = bitsandbytes.nn.Linear8bitLt(old.in_features, old.out_features, old.bias is not None, has_fp16_weights=False)
    new.weight = bitsandbytes.nn.Int8Params(old.weight.data, requires_grad=False, has_fp16_weights=False)
    return new


def linear_4bit(old: nn.Linear) -> nn.Module:
    new = bitsandbytes.nn.Linear4bit(old.in_features, old.out_features, old.bias is not None, torch.float32)
    new.weight = bitsandbytes.nn.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4")
    return new


@pytest.mark.parametrize("name", ["tiny:sd3", "tiny:flux.1-dev"])
@pytest.mark.parametrize("quantised, dtype", [(linear_8bit, torch.int8), (linear_4bit, torch.uint8)])
def test_model_quantised_with_bitsandbytes_is_traced(name: str, quantised: Any, dtype: Any, tmp_path: Path) -> None:
    """Its linear layers are put in by hand: diffusers puts them in only where there is a GPU."""
    pipeline, before = build(name), generate(build(name), name)
    transformer = pipeline.transformer
    for path, old in [(p, m) for p, m in transformer.named_modules() if isinstance(m, nn.Linear) and "blocks" in p]:
        new = quantised(old)
        new.bias = old.bias
        parent, _, leaf = path.rpartition(".")
        setattr(transformer.get_submodule(parent), leaf, new.to("cpu"))
    assert transformer.transformer_blocks[0].attn.to_k.weight.dtype == dtype
    with survive(pipeline, name, tmp_path / "a.trace", EVERYTHING) as trace:
        assert trace.run.settings["transformers"]["transformer"]["weights"]
    assert not torch.equal(generate(pipeline, name), before)


def test_layerwise_casting_is_traced(tmp_path: Path) -> None:
    pipeline = build("tiny:sd3")
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    survive(pipeline, "tiny:sd3", tmp_path / "a.trace", EVERYTHING)


# Where the weights are -------------------------------------------------------


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("name", ["tiny:sd3", "tiny:flux.1-dev", "tiny:wan2.1"])
def test_group_offloading_is_survived(name: str, kind: str, tmp_path: Path) -> None:
    pipeline, untouched = build(name), build(name)
    pipeline.transformer.enable_group_offload(CPU, CPU, offload_type=kind, num_blocks_per_group=1)
    survive(pipeline, name, tmp_path / "a.trace", EVERYTHING)
    assert torch.equal(generate(pipeline, name), generate(untouched, name))
    dit_tracer.record(untouched, tmp_path / "a.trace", **EVERYTHING)  # is the same model


def test_weights_offloaded_to_disk_are_not_mistaken_for_others(tmp_path: Path) -> None:
    """What is in memory meanwhile is not theirs, and other each time."""
    pipeline = build("tiny:sd3")
    where = {"offload_type": "block_level", "num_blocks_per_group": 1, "offload_to_disk_path": str(tmp_path / "disk")}
    pipeline.transformer.enable_group_offload(CPU, CPU, **where)
    with survive(pipeline, "tiny:sd3", tmp_path / "a.trace") as trace:
        assert trace.run.settings["transformers"]["transformer"]["weights"] is None
    for _ in range(3):
        generate(pipeline, "tiny:sd3")
        dit_tracer.record(pipeline, tmp_path / "a.trace")


@pytest.mark.parametrize("name", ["tiny:sd3", "tiny:wan2.2"])
def test_model_offloading_is_survived(name: str, tmp_path: Path) -> None:
    pipeline = build(name)
    pipeline.enable_model_cpu_offload(device="cpu")
    survive(pipeline, name, tmp_path / "a.trace", EVERYTHING)
    assert torch.equal(generate(pipeline, name), generate(build(name), name))


def test_sequential_offloading_is_survived(tmp_path: Path) -> None:
    """Every weight is on the meta device but while its module computes."""
    pipeline, untouched = build("tiny:sd3"), generate(build("tiny:sd3"), "tiny:sd3")
    cpu_offload(pipeline.transformer, CPU)
    assert {weight.device.type for weight in pipeline.transformer.parameters()} == {"meta"}
    survive(pipeline, "tiny:sd3", tmp_path / "a.trace", EVERYTHING)
    assert torch.equal(generate(pipeline, "tiny:sd3"), untouched)


def test_blocks_dispatched_to_several_places_are_traced(tmp_path: Path) -> None:
    """As `device_map` spreads a network, here over memory and disk."""
    pipeline, untouched = build("tiny:sd3"), generate(build("tiny:sd3"), "tiny:sd3")
    places = {name: "cpu" for name, _ in pipeline.transformer.named_children() if name != "transformer_blocks"}
    places |= {f"transformer_blocks.{block}": place for block, place in enumerate(("cpu", "disk", "cpu"))}
    pipeline.transformer = dispatch_model(
        pipeline.transformer, places, main_device="cpu", offload_dir=str(tmp_path / "disk")
    )
    assert {weight.device.type for weight in pipeline.transformer.parameters()} == {"cpu", "meta"}
    survive(pipeline, "tiny:sd3", tmp_path / "a.trace", EVERYTHING)
    assert torch.equal(generate(pipeline, "tiny:sd3"), untouched)


@pytest.mark.parametrize("placed", ["cpu", "balanced"])
def test_pipeline_loaded_with_a_device_map_is_traced(placed: str, tmp_path: Path) -> None:
    build("tiny:sd3").save_pretrained(tmp_path / "sd3")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "sd3", device_map=placed)
    pipeline.set_progress_bar_config(disable=True)
    survive(pipeline, "tiny:sd3", tmp_path / "a.trace", EVERYTHING)


# How it computes -------------------------------------------------------------


class Compiler:
    """A backend of torch.compile that counts how often what it compiled was run."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


def compile_network(pipeline: Any, backend: Any) -> None:
    pipeline.transformer = torch.compile(pipeline.transformer, backend=backend)


def compile_in_place(pipeline: Any, backend: Any) -> None:
    pipeline.transformer.compile(backend=backend)


def compile_blocks(pipeline: Any, backend: Any) -> None:
    blocks = pipeline.transformer.transformer_blocks
    for place, block in enumerate(blocks):
        blocks[place] = torch.compile(block, backend=backend)


def compile_repeated_blocks(pipeline: Any, backend: Any) -> None:
    pipeline.transformer.compile_repeated_blocks(backend=backend)


@pytest.mark.parametrize(
    "name, compile_it",
    [
        ("tiny:pixart-alpha", compile_network),
        ("tiny:pixart-alpha", compile_in_place),
        ("tiny:pixart-alpha", compile_blocks),
        ("tiny:flux.1-dev", compile_repeated_blocks),
    ],
)
def test_compiled_network_is_traced_as_it_is_written(name: str, compile_it: Any, tmp_path: Path) -> None:
    """And runs compiled again afterwards."""
    torch.compiler.reset()
    pipeline, compiler = build(name), Compiler()
    compile_it(pipeline, compiler)
    generate(pipeline, name)
    before, runs = marks(pipeline), compiler.runs
    assert runs
    latents = record(pipeline, tmp_path / "a.trace", lambda: generate(pipeline, name), **WHOLE)
    assert compiler.runs == runs and marks(pipeline) == before
    generate(pipeline, name)
    assert compiler.runs == 2 * runs
    eager, trace = plain(name, tmp_path / "eager.trace")
    assert torch.equal(latents, eager)
    with open_trace(tmp_path / "a.trace") as compiled:
        assert compiled.run.settings == trace.run.settings
        assert compiled.sites("stack") == trace.sites("stack")
        assert_same_values(compiled, trace)


def test_network_compiled_by_a_stock_backend_is_traced(tmp_path: Path) -> None:
    torch.compiler.reset()
    pipeline = build("tiny:pixart-alpha")
    compile_network(pipeline, "aot_eager")
    record(pipeline, tmp_path / "a.trace", lambda: generate(pipeline, "tiny:pixart-alpha"), **EVERYTHING)
    generate(pipeline, "tiny:pixart-alpha")
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.num_steps == STEPS


@pytest.mark.parametrize("name", ["tiny:wan2.1", "tiny:sd3"])
def test_inference_mode_changes_no_number(name: str, tmp_path: Path) -> None:
    """Its tensors do not tell whether they were written to."""
    pipeline, options = build(name), EVERYTHING | {"sample": WHOLE["sample"]}
    with torch.inference_mode():
        inferred = survive(pipeline, name, tmp_path / "inference.trace", options)
    ordinary = survive(pipeline, name, tmp_path / "ordinary.trace", options)
    for stream in ordinary.streams:
        for part in ("step_sums", "transition_sums"):
            one, other = (getattr(found, part)(stream) for found in (inferred, ordinary))
            assert np.array_equal(one, other, equal_nan=True)
        assert np.array_equal(inferred.samples(stream, 0), ordinary.samples(stream, 0), equal_nan=True)


@pytest.mark.parametrize("backend", ["_native_math", "flex"])
def test_chosen_attention_backend_is_put_back_after_recording(backend: str, tmp_path: Path) -> None:
    pipeline, native = build("tiny:flux.1-dev"), generate(build("tiny:flux.1-dev"), "tiny:flux.1-dev")
    pipeline.transformer.set_attention_backend(backend)
    try:
        before = marks(pipeline)
        assert set(before["backends"].values()) - {None} == {backend} and before["backend"] == backend
        run = lambda: generate(pipeline, "tiny:flux.1-dev")  # noqa: E731
        assert torch.equal(record(pipeline, tmp_path / "a.trace", run), native)
        assert marks(pipeline) == before
    finally:
        pipeline.transformer.set_attention_backend("native")


def test_attention_backend_chosen_for_a_block_of_code_is_put_back(tmp_path: Path) -> None:
    pipeline, native = build("tiny:flux.1-dev"), generate(build("tiny:flux.1-dev"), "tiny:flux.1-dev")
    with attention_backend("flex"):
        before = marks(pipeline)
        run = lambda: generate(pipeline, "tiny:flux.1-dev")  # noqa: E731
        assert torch.equal(record(pipeline, tmp_path / "a.trace", run), native)
        assert marks(pipeline) == before


def slice_attention(pipeline: Any) -> None:
    pipeline.enable_attention_slicing(1)


def attend_by_hand(pipeline: Any) -> None:
    pipeline.unet.set_attn_processor(AttnProcessor())


@pytest.mark.parametrize("choose, kind", [(slice_attention, SlicedAttnProcessor), (attend_by_hand, AttnProcessor)])
def test_chosen_attention_processor_is_put_back_after_recording(choose: Any, kind: type, tmp_path: Path) -> None:
    name = "tiny:stable-diffusion"
    native, pipeline = generate(build(name), name), build(name)
    choose(pipeline)
    before = marks(pipeline)
    assert any(type(processor) is kind for processor in before["processors"].values())
    assert torch.equal(record(pipeline, tmp_path / "a.trace", lambda: generate(pipeline, name)), native)
    assert marks(pipeline) == before


# What is asked of it ---------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pixart-alpha", "sd3", "flux.1-dev", "mochi-1-preview", "wan2.1", "z-image", "lumina2", "stable-diffusion"]
)
def test_several_images_are_each_what_they_are_alone(name: str, tmp_path: Path) -> None:
    name = f"tiny:{name}"
    pipeline = build(name)
    videos = name in ("tiny:mochi-1-preview", "tiny:wan2.1")
    count = {"num_videos_per_prompt" if videos else "num_images_per_prompt": 2}
    generators = lambda: [torch.Generator().manual_seed(seed) for seed in (5, 6)]  # noqa: E731
    untraced = generate(pipeline, name, **count, generator=generators())
    run = lambda: generate(pipeline, name, **count, generator=generators())  # noqa: E731
    assert torch.equal(record(pipeline, tmp_path / "two.trace", run, **WHOLE), untraced)
    with open_trace(tmp_path / "two.trace") as two:
        assert [prompt.image for prompt in two.prompts] == [0, 1]
        for image, seed in enumerate((5, 6)):
            path = tmp_path / f"{image}.trace"
            record(pipeline, path, lambda seed=seed: generate(pipeline, name, seed), **WHOLE)
            with open_trace(path) as alone:
                assert_same_values(two, alone, image)


@pytest.mark.parametrize(
    "name, scheduler",
    [
        ("tiny:sd3", "FlowMatchHeunDiscreteScheduler"),
        ("tiny:stable-diffusion", "HeunDiscreteScheduler"),
        ("tiny:stable-diffusion", "KDPM2DiscreteScheduler"),
    ],
)
def test_scheduler_that_asks_twice_a_step_has_a_step_for_each_call(name: str, scheduler: str, tmp_path: Path) -> None:
    """A step is a call of the scheduler."""
    pipeline = build(name)
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    with survive(pipeline, name, tmp_path / "a.trace", EVERYTHING) as trace:
        assert trace.num_steps == 2 * STEPS - 1 == len(pipeline.scheduler.timesteps)
        np.testing.assert_allclose(trace.timesteps, pipeline.scheduler.timesteps.numpy(), rtol=1e-6)
        assert all(np.diff(trace.sigmas) <= 0) and trace.sigmas[0] > trace.sigmas[-1] > 0
        assert trace.geometry("latent", "recorded")[:, trace.kinds("latent").index("a"), 0].all()


@pytest.mark.parametrize("scheduler", ["PNDMScheduler", "LMSDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_further_schedulers_are_survived(scheduler: str, tmp_path: Path) -> None:
    pipeline = build("tiny:stable-diffusion")
    further = {"skip_prk_steps": False} if scheduler == "PNDMScheduler" else {}
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **further)
    with survive(pipeline, "tiny:stable-diffusion", tmp_path / "a.trace", num_inference_steps=4) as trace:
        assert trace.num_steps == len(pipeline.scheduler.timesteps)


def ltx2() -> Any:
    """Steps its own scheduler for the video, and a deep copy for the sound."""
    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=16,
        rope_double_precision=False,
    )
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(2,),
    )
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=1,
        rope_double_precision=False,
        **{f"{part}_connector_{key}": value for part in ("video", "audio") for key, value in heads.items()},
    )
    pipeline = diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae,
        audio_vae=diffusers.AutoencoderKLLTX2Audio(
            base_channels=4, ch_mult=(1,), num_res_blocks=1, latent_channels=2, mel_bins=8
        ),
        text_encoder=None,
        tokenizer=None,
        connectors=connectors,
        transformer=transformer,
        vocoder=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_deep_copy_of_the_scheduler_steps_for_itself(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = ltx2()
    signs = {"": 1, "negative_": -1}
    texts = {f"{name}prompt_embeds": sign * draw(1, 5, 16) for name, sign in signs.items()}
    masks = {f"{name}prompt_attention_mask": torch.ones(1, 5) for name in signs}
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": STEPS}
    off = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}

    def run() -> Any:
        generator = torch.Generator().manual_seed(0)
        call = texts | masks | size | off
        return pipeline(**call, generator=generator, output_type="latent", return_dict=False)

    untraced = run()
    for one, other in zip(record(pipeline, tmp_path / "a.trace", run, **EVERYTHING), untraced, strict=True):
        assert torch.equal(one, other)
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.num_steps == STEPS and trace.streams == ("audio", "latent", "text")
        assert trace.branches("latent") == trace.branches("audio") == ("cond", "uncond")
        np.testing.assert_allclose(trace.timesteps, pipeline.scheduler.timesteps.numpy(), rtol=1e-6)


def test_copy_of_the_scheduler_made_while_recording_is_free(tmp_path: Path) -> None:
    pipeline = build("tiny:sd3")
    with dit_tracer.record(pipeline, tmp_path / "a.trace") as recorder, recorder.prompt("a"):
        generate(pipeline, "tiny:sd3")
        other = copy.deepcopy(pipeline.scheduler)
        other.set_timesteps(STEPS)
        other.step(draw(1, 4), other.timesteps[0], draw(1, 4))
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.num_steps == STEPS


def test_pipeline_that_steps_copies_alone_is_refused(tmp_path: Path) -> None:
    """Diffusion forcing: every frame has a scheduler, and so a step, of its own."""
    transformer = diffusers.SkyReelsV2Transformer3DModel(
        text_dim=WIDTH, freq_dim=16, ffn_dim=32, num_layers=1, num_attention_heads=2, attention_head_dim=16
    )
    pipeline = diffusers.SkyReelsV2DiffusionForcingPipeline(
        transformer=transformer,
        vae=diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        text_encoder=None,
        tokenizer=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    texts = {"prompt": None, "prompt_embeds": draw(1, 8, WIDTH), "negative_prompt_embeds": draw(1, 8, WIDTH)}
    size = {"height": 32, "width": 32, "num_frames": 5, "base_num_frames": 5, "num_inference_steps": 2}
    run = lambda: pipeline(**texts, **size, output_type="latent")  # noqa: E731
    with pytest.raises(ValueError, match="never called the step of its scheduler .it may step copies"):
        record(pipeline, tmp_path / "a.trace", run)


# When it fails ---------------------------------------------------------------


def fail_after_a_step(pipeline: Any, error: type[BaseException]) -> Callable[[], None]:
    calls = []

    def hook(*_: Any) -> None:
        calls.append(0)
        if len(calls) == 3:
            raise error

    return networks(pipeline)[0].register_forward_hook(hook).remove


def fail_within_attention(pipeline: Any, error: type[BaseException]) -> Callable[[], None]:
    """In the very first layer, which is being looked at most closely then."""
    calls = []

    def hook(*_: Any) -> None:
        calls.append(0)
        if len(calls) == 1:
            raise error

    parts = networks(pipeline)[0].named_modules()
    last = next(part for path, part in parts if ".to_out" in path and isinstance(part, nn.Linear))
    return last.register_forward_pre_hook(hook).remove


@pytest.mark.parametrize("name", ["tiny:sd3", "tiny:flux.1-dev", "tiny:pixart-alpha", "tiny:sana", "tiny:wan2.1"])
@pytest.mark.parametrize("fail", [fail_after_a_step, fail_within_attention])
def test_error_in_mid_run_leaves_nothing_behind(name: str, fail: Any, tmp_path: Path) -> None:
    """And the prompt can be tried again, within the same recording."""
    pipeline = build(name)
    untraced, path = generate(pipeline, name), tmp_path / "a.trace"
    untouched = marks(pipeline)
    repair = fail(pipeline, ZeroDivisionError)
    with dit_tracer.record(pipeline, path, **WHOLE) as recorder:
        with pytest.raises(ZeroDivisionError), recorder.prompt("a red bus"):
            generate(pipeline, name)
        assert [note.suffix for note in path.iterdir()] == [".failed"]
        repair()
        with recorder.prompt("a red bus"):
            assert torch.equal(generate(pipeline, name), untraced)
    assert marks(pipeline) == untouched
    assert [shard.suffix for shard in path.iterdir()] == [".h5"]
    with open_trace(path) as trace:
        assert_same_values(trace, plain(name, tmp_path / "b.trace")[1])


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("fail", [fail_after_a_step, fail_within_attention])
def test_error_that_ends_the_recording_undoes_everything(fail: Any, error: type, tmp_path: Path) -> None:
    pipeline = build("tiny:sd3")
    untraced, untouched = generate(pipeline, "tiny:sd3"), marks(pipeline)
    repair = fail(pipeline, error)
    with pytest.raises(error):
        record(pipeline, tmp_path / "a.trace", lambda: generate(pipeline, "tiny:sd3"), **EVERYTHING)
    repair()
    assert marks(pipeline) == untouched
    assert torch.equal(generate(pipeline, "tiny:sd3"), untraced)

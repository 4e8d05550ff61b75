"""Open-Sora v1.2: the network against its formulas in numpy, its schedule, its guidance, its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler
from dit_tracer.models.opensora import (
    CheckpointError,
    OpenSoraPipeline,
    RectifiedFlowScheduler,
    STDiT3,
    load_transformer,
)
from dit_tracer.models.opensora_network import Attention, CrossAttention
from dit_tracer.models.opensora_pipeline import latent_size, prepare_prompt
from dit_tracer.models.opensora_tiny import tiny_opensora
from numpy.typing import NDArray
from safetensors.torch import save_file

Array = NDArray[np.float64]

SMALL = {"height": 72, "width": 88, "num_frames": 17, "num_inference_steps": 4}
"""A video whose latents (5, 9, 11) no patch divides."""


@pytest.fixture
def pipeline() -> OpenSoraPipeline:
    pipeline = tiny_opensora()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Formulas:
    """STDiT3 in float64 for one video and the words of one text, without padding, masks, or a batch."""

    def __init__(self, model: STDiT3) -> None:
        self.w = {name: weight.double().numpy() for name, weight in model.state_dict().items()}
        self.heads, self.depth = model.config.num_heads, model.config.depth
        self.channels = model.config.hidden_size
        self.keys: list[Array] = []

    def __call__(self, z: Array, time: float, text: Array, fps: float, height: int, width: int) -> Array:
        _, frames, h, w = z.shape
        z = np.pad(z, ((0, 0), (0, 0), (0, h % 2), (0, w % 2)))
        rows, columns = z.shape[2] // 2, z.shape[3] // 2
        patches = z.reshape(4, frames, rows, 2, columns, 2)
        x = np.einsum("ctyaxb,dcab->tyxd", patches, self.w["x_embedder.proj.weight"][:, :, 0])
        x = x + self.w["x_embedder.proj.bias"] + self.places(rows, columns, height, width)
        x = x.reshape(frames, rows * columns, -1)

        t = self.two("t_embedder.mlp.{}", self.waves(time), "0", "2", silu)
        t = t + self.two("fps_embedder.mlp.{}", self.waves(fps), "0", "2", silu)
        modulation = self.linear("t_block.1", silu(t)).reshape(6, -1)
        text = self.two("y_embedder.y_proj.{}", text, "fc1", "fc2", gelu)
        for i in range(self.depth):
            x = self.block(f"spatial_blocks.{i}.", x, text, modulation)
            x = self.block(f"temporal_blocks.{i}.", x.swapaxes(0, 1), text, modulation, rotated=True).swapaxes(0, 1)

        shift, scale = self.w["final_layer.scale_shift_table"] + t
        x = self.linear("final_layer.linear", standard(x) * (1 + scale) + shift)
        x = np.einsum("tyxabc->ctyaxb", x.reshape(frames, rows, columns, 2, 2, -1))
        return x.reshape(-1, frames, 2 * rows, 2 * columns)[:, :, :h, :w]

    def block(self, name: str, x: Array, text: Array, modulation: Array, rotated: bool = False) -> Array:
        """`x` is (independent sequence, token, channel)."""
        shift, scale, gate, shift2, scale2, gate2 = self.w[name + "scale_shift_table"] + modulation
        x = x + gate * self.self_attention(name + "attn.", standard(x) * (1 + scale) + shift, rotated)
        x = x + self.cross_attention(name + "cross_attn.", x, text)
        return x + gate2 * self.two(name + "mlp.{}", standard(x) * (1 + scale2) + shift2, "fc1", "fc2", gelu)

    def self_attention(self, name: str, x: Array, rotated: bool) -> Array:
        q, k, v = np.moveaxis(self.linear(name + "qkv", x).reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        q, k = (self.rms(name + norm, part) for norm, part in (("q_norm", q), ("k_norm", k)))
        if rotated:
            q, k = turn(q), turn(k)
        self.keys.append(k)
        return self.linear(name + "proj", attend(q, k, v))

    def cross_attention(self, name: str, x: Array, text: Array) -> Array:
        q = self.linear(name + "q_linear", x).reshape(*x.shape[:2], self.heads, -1)
        k, v = np.moveaxis(self.linear(name + "kv_linear", text).reshape(1, len(text), 2, self.heads, -1), 2, 0)
        return self.linear(name + "proj", attend(q, k, v))

    def places(self, rows: int, columns: int, height: int, width: int) -> Array:
        side = round((rows * columns) ** 0.5)
        unit = side * 512 / (height * width) ** 0.5
        quarter = self.channels // 4
        speed = 10000.0 ** -(np.arange(quarter) / quarter)
        y, x = (np.arange(n)[:, None] * unit / n * speed for n in (rows, columns))
        table = np.zeros((rows, columns, 4, quarter))
        table[..., 0, :], table[..., 1, :] = np.sin(x), np.cos(x)
        table[..., 2, :], table[..., 3, :] = np.sin(y)[:, None], np.cos(y)[:, None]
        return table.reshape(rows, columns, -1)

    def waves(self, number: float) -> Array:
        angle = number * 10000.0 ** -(np.arange(128) / 128)
        return np.concatenate((np.cos(angle), np.sin(angle)))

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def two(self, name: str, x: Array, first: str, second: str, activation: Any) -> Array:
        return self.linear(name.format(second), activation(self.linear(name.format(first), x)))

    def rms(self, name: str, x: Array) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.w[name + ".weight"]


def attend(q: Array, k: Array, v: Array) -> Array:
    """Softmax attention, (sequence, token, head, channel) in, heads joined out."""
    scores = np.einsum("nqhd,nkhd->nhqk", q, np.broadcast_to(k, (len(q), *k.shape[1:]))) / np.sqrt(q.shape[-1])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    joined = np.einsum("nhqk,nkhd->nqhd", shares, np.broadcast_to(v, (len(q), *v.shape[1:])))
    return joined.reshape(*q.shape[:2], -1)


def turn(x: Array) -> Array:
    """Channel pairs of (sequence, token, head, channel) as complex numbers, turned by time."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    half = pairs.shape[-1]
    angle = np.arange(x.shape[1])[:, None, None] * 10000.0 ** -(np.arange(half) / half)
    pairs = pairs * np.exp(1j * angle)
    return np.stack((pairs.real, pairs.imag), -1).reshape(x.shape)


def standard(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("size", [(5, 9, 11), (1, 8, 7), (6, 4, 4)], ids=str)
@pytest.mark.parametrize("time, tolerance", [(12.5, 1e-5), (987.5, 1e-4)])  # float32, of angles up to `time`
def test_network_is_its_formulas(
    pipeline: OpenSoraPipeline, size: tuple[int, int, int], time: float, tolerance: float
) -> None:
    torch.manual_seed(0)
    model, lengths = pipeline.transformer, (7, 23)
    z, text = torch.randn(2, 4, *size), torch.randn(2, 30, 32)
    mask = torch.arange(30)[None] < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        output = model(z, torch.tensor(time), text, mask, fps=24, height=72, width=90).sample
        as_published = model(z, torch.tensor([time] * 2), text[:, None], mask.long(), fps=24, height=72, width=90)
    assert output.shape == (2, 8, *size) and torch.equal(output, as_published.sample)
    formulas = Formulas(model)
    for i, length in enumerate(lengths):
        expected = formulas(z[i].double().numpy(), time, text[i, :length].double().numpy(), 24, 72, 90)
        assert np.abs(expected).mean() > 0.1
        np.testing.assert_allclose(output[i].numpy(), expected, rtol=0, atol=tolerance)


def test_keys_enter_attention_after_norm_and_rotation(
    pipeline: OpenSoraPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, **kw: seen.append(k) or attention(q, k, v))
    torch.manual_seed(0)
    z, text = torch.randn(1, 4, 3, 5, 6), torch.randn(1, 9, 32)
    with torch.no_grad():
        pipeline.transformer(z, torch.tensor(3.0), text, fps=24, height=40, width=48)
    formulas = Formulas(pipeline.transformer)
    formulas(z[0].double().numpy(), 3.0, text[0].double().numpy(), 24, 40, 48)
    places, frames = 9, 3
    assert [tuple(k.shape) for k in seen[:4]] == [
        (frames, 3, places, 16), (1, 3, 9, 16), (places, 3, frames, 16), (1, 3, 9, 16)
    ]  # fmt: skip
    for found, expected in zip(seen[::2], formulas.keys, strict=True):
        np.testing.assert_allclose(found.transpose(1, 2).numpy(), expected, atol=1e-5)


def test_checkpoint_of_full_size_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        model = STDiT3()
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    block = {
        "scale_shift_table": (6, 1152),
        "attn.q_norm.weight": (72,),
        "attn.k_norm.weight": (72,),
        **linear("attn.qkv", 1152, 3456),
        **linear("attn.proj", 1152, 1152),
        **linear("cross_attn.q_linear", 1152, 1152),
        **linear("cross_attn.kv_linear", 1152, 2304),
        **linear("cross_attn.proj", 1152, 1152),
        **linear("mlp.fc1", 1152, 4608),
        **linear("mlp.fc2", 4608, 1152),
    }
    expected = {
        "rope.freqs": (36,),
        "x_embedder.proj.weight": (1152, 4, 1, 2, 2),
        "x_embedder.proj.bias": (1152,),
        **linear("t_embedder.mlp.0", 256, 1152),
        **linear("t_embedder.mlp.2", 1152, 1152),
        **linear("fps_embedder.mlp.0", 256, 1152),
        **linear("fps_embedder.mlp.2", 1152, 1152),
        **linear("t_block.1", 1152, 6912),
        "y_embedder.y_embedding": (300, 4096),
        **linear("y_embedder.y_proj.fc1", 4096, 1152),
        **linear("y_embedder.y_proj.fc2", 1152, 1152),
        **{f"{kind}_blocks.{i}.{key}": shape for kind in ("spatial", "temporal") for i in range(28)
           for key, shape in block.items()},
        "final_layer.scale_shift_table": (2, 1152),
        **linear("final_layer.linear", 1152, 32),
    }  # fmt: skip
    assert found == expected and len(found) == 973
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == 1.208


def linear(name: str, channels: int, out_channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_channels, channels), f"{name}.bias": (out_channels,)}


def test_full_size_gives_the_default_video() -> None:
    with torch.device("meta"):
        z, text = torch.empty(2, 4, *latent_size(51, 240, 426)), torch.empty(2, 300, 4096)
        output = STDiT3(depth=1)(z, torch.empty(()), text, text[..., 0], fps=24, height=240, width=426).sample
    assert output.shape == (2, 8, 15, 30, 53)


@pytest.mark.parametrize("num_frames, frames", [(1, 1), (4, 1), (5, 2), (17, 5), (18, 6), (51, 15), (102, 30)])
def test_frames_are_compressed_in_chunks(num_frames: int, frames: int) -> None:
    assert latent_size(num_frames, 240, 426) == (frames, 30, 53)


@pytest.mark.parametrize(
    "height, width, num_frames, frames", [(240, 426, 51, 15), (512, 512, 1, 1), (720, 1280, 60, 15)]
)
def test_noise_levels_are_shifted_by_the_size_of_the_video(
    height: int, width: int, num_frames: int, frames: int
) -> None:
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(30, height=height, width=width, num_frames=num_frames)
    even = np.arange(29, 0, -1) / 30
    ratio = np.sqrt(height * width / 512**2 * frames)
    sigmas = scheduler.sigmas.double().numpy()
    assert len(sigmas) == 31 and sigmas[0] == 1 and sigmas[-1] == 0
    # in log odds the shift is a constant
    odds = np.log(sigmas[1:-1] / (1 - sigmas[1:-1]))
    np.testing.assert_allclose(odds, np.log(even / (1 - even)) + np.log(ratio), atol=1e-4)
    np.testing.assert_allclose(scheduler.timesteps.numpy(), 1000 * sigmas[:-1], rtol=1e-6)


def test_noise_levels_need_the_size_or_none_at_all() -> None:
    with pytest.raises(ValueError, match="give height, width and num_frames"):
        RectifiedFlowScheduler().set_timesteps(4)
    scheduler = RectifiedFlowScheduler(use_timestep_transform=False)
    scheduler.set_timesteps(4)
    assert scheduler.sigmas.tolist() == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("num_frames", [1, 2, 16])
def test_short_videos_have_noise_levels_too(num_frames: int) -> None:
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(4, height=64, width=64, num_frames=num_frames)
    assert (scheduler.sigmas.diff() < 0).all()


def test_a_straight_flow_is_followed_to_its_end() -> None:
    data, noise = torch.randn(2, 1, 4, 5, 9, 11, generator=seeded())
    scheduler = RectifiedFlowScheduler()
    scheduler.set_timesteps(5, height=72, width=88, num_frames=17)
    assert scheduler.step_index is None
    x = noise
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(noise - data, timestep, x, return_dict=False)[0]
        assert scheduler.step_index == i + 1
    torch.testing.assert_close(x, data)


def test_a_step_is_that_of_diffusers_with_the_same_noise_levels() -> None:
    ours, stock = RectifiedFlowScheduler(), FlowMatchEulerDiscreteScheduler()
    ours.set_timesteps(6, height=240, width=426, num_frames=51)
    stock.set_timesteps(sigmas=ours.sigmas[:-1].tolist())
    x = y = torch.randn(1, 4, 3, 5, 5, generator=seeded())
    for timestep, other in zip(ours.timesteps, stock.timesteps, strict=True):
        x = ours.step(torch.sin(3 * x), timestep, x).prev_sample
        y = stock.step(torch.sin(3 * y), other, y).prev_sample
    torch.testing.assert_close(x, y)


def test_guidance_runs_cond_first_and_the_null_text_under_the_mask_of_the_prompt(pipeline: OpenSoraPipeline) -> None:
    calls: list[dict[str, Any]] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, args, kw: calls.append(kw), with_kwargs=True)
    noise = torch.randn(2, 4, 5, 9, 11, generator=seeded())
    texts = ["a cat", "two grey dogs"]
    latents = pipeline(texts, **SMALL | {"num_inference_steps": 1}, latents=noise, guidance_scale=3.0).frames
    hook.remove()
    (call,) = calls
    embeds, mask = pipeline.encode_prompt(texts)
    null = pipeline.transformer.y_embedder.y_embedding
    cond, uncond = call["encoder_hidden_states"].chunk(2)
    assert torch.equal(cond, embeds) and torch.equal(uncond, null.expand(2, -1, -1))
    assert torch.equal(call["encoder_attention_mask"], torch.cat((mask, mask)))
    assert mask.sum(1).tolist() == [len(prepare_prompt(text)) + 2 for text in texts]  # a letter a token, "▁" and </s>
    assert torch.equal(call["hidden_states"], torch.cat((noise, noise)))

    other = {"timestep": torch.tensor(1000.0), "fps": 24, "height": 72, "width": 88}
    for i in range(2):
        length = int(mask[i].sum())
        with torch.no_grad():
            v, v_null = (
                pipeline.transformer(noise[i : i + 1], encoder_hidden_states=text[None, :length], **other).sample[:, :4]
                for text in (embeds[i], null)
            )
        expected = noise[i] + v_null[0] + 3 * (v - v_null)[0]
        torch.testing.assert_close(latents[i], expected, atol=1e-5, rtol=1e-5)


def test_without_guidance_the_cond_half_runs_alone(pipeline: OpenSoraPipeline) -> None:
    batches: list[int] = []
    pipeline.transformer.register_forward_pre_hook(
        lambda _, args, kw: batches.append(len(kw["hidden_states"])), with_kwargs=True
    )
    pipeline("a cat", **SMALL, guidance_scale=1.0)
    assert batches == [1] * 4


def test_same_generator_same_video_and_another_seed_another(pipeline: OpenSoraPipeline) -> None:
    first, again, other = (pipeline("a cat", **SMALL, generator=seeded(seed)).frames for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first, tiny_opensora()("a cat", **SMALL, generator=seeded()).frames)
    assert not torch.equal(first, tiny_opensora(seed=1)("a cat", **SMALL, generator=seeded()).frames)


def test_what_the_prompt_says_matters_and_its_letter_case_does_not(pipeline: OpenSoraPipeline) -> None:
    first, same, other = (pipeline(text, **SMALL, generator=seeded()).frames for text in ("a cat", "A  Cat", "a dog"))
    assert torch.equal(first, same) and not torch.equal(first, other)


@pytest.mark.parametrize("num_frames", [1, 5, 17, 34])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_videos_of_any_length_in_either_precision(num_frames: int, dtype: torch.dtype) -> None:
    pipeline = tiny_opensora().to(dtype)
    latents = pipeline("a cat", **SMALL | {"num_frames": num_frames}, generator=seeded()).frames
    assert latents.shape == (1, 4, *latent_size(num_frames, 72, 88)) and latents.dtype == torch.float32
    assert latents.isfinite().all() and latents.std() > 0.1


def test_embeddings_stand_for_the_prompt(pipeline: OpenSoraPipeline) -> None:
    embeds, mask = pipeline.encode_prompt("a cat")
    expected = pipeline("a cat", **SMALL, generator=seeded()).frames
    bare = OpenSoraPipeline(None, None, pipeline.transformer, pipeline.scheduler)
    found = bare(prompt_embeds=embeds, prompt_attention_mask=mask, **SMALL, generator=seeded(), return_dict=False)[0]
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="no text encoder"):
        bare("a cat", **SMALL)


def test_a_stock_scheduler_may_take_over(pipeline: OpenSoraPipeline) -> None:
    expected = pipeline("a cat", **SMALL | {"num_inference_steps": 40}, generator=seeded()).frames
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    found = pipeline("a cat", **SMALL | {"num_inference_steps": 40}, generator=seeded()).frames
    pipeline.scheduler = RectifiedFlowScheduler(transform_scale=0.01)
    rough = pipeline("a cat", **SMALL | {"num_inference_steps": 2}, generator=seeded()).frames
    assert (found - expected).abs().mean() < 0.5 * (rough - expected).abs().mean()


def test_every_attention_output_changes_at_every_step(pipeline: OpenSoraPipeline) -> None:
    outputs: dict[torch.nn.Module, list[torch.Tensor]] = {}
    for module in pipeline.transformer.modules():
        if isinstance(module, (Attention, CrossAttention)):
            outputs[module] = []
            module.register_forward_hook(lambda module, args, output: outputs[module].append(output))
    pipeline("a cat", **SMALL, generator=seeded())
    assert len(outputs) == 8
    for steps in outputs.values():
        assert len(steps) == 4
        for previous, current in zip(steps, steps[1:]):
            assert (current - previous).abs().mean() > 0.005 * previous.abs().mean()


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ({"output_type": "pil"}, "no autoencoder"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"latents": torch.zeros(1, 4, 5, 9, 9)}, "this video needs"),
        ({"max_sequence_length": 301}, "the model knows 300"),
        ({"height": 7}, "a frame at least"),
    ],
)
def test_wrong_arguments_are_refused(pipeline: OpenSoraPipeline, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        pipeline(**{"prompt": "a cat", **SMALL} | arguments)


@pytest.mark.parametrize(
    "text, prepared",
    [
        ("A Cat.", "a cat. aesthetic score: 6.5."),
        ("a cat, aesthetic score: 5.0.", "a cat, aesthetic score: 5.0."),
        ("“Grey” cats…  it’s (almost) 3.5 m;\nwhat a–sight", '"grey" cats… it\'s almost 3.5 m; what a-sight'),
        ("fish &amp; chips/tea,now", "fish chips tea, now"),
        ("a-b, c-d, e-f, g_h", "a b, c d, e f, g h"),
    ],
)
def test_prompts_are_prepared(text: str, prepared: str) -> None:
    assert prepare_prompt(text, 6.5 if "6.5" in prepared else None) == prepared


@pytest.fixture
def checkpoint(pipeline: OpenSoraPipeline, tmp_path: Path) -> Path:
    """A folder like the published one, in miniature."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file(pipeline.transformer.state_dict(), folder / "model.safetensors")
    config = {"hidden_size": 48, "depth": 2, "num_heads": 3, "caption_channels": 32, "patch_size": [1, 2, 2]}
    (folder / "config.json").write_text(json.dumps(config | {"enable_flash_attn": True, "model_type": "STDiT3"}))
    return folder


def test_checkpoint_read_back_is_the_same_pipeline(
    pipeline: OpenSoraPipeline, checkpoint: Path, tmp_path: Path
) -> None:
    pipeline.text_encoder.save_pretrained(tmp_path / "t5")
    pipeline.tokenizer.save_pretrained(tmp_path / "t5")
    expected = pipeline("a cat", **SMALL, generator=seeded()).frames
    for text_encoder in (pipeline.text_encoder, str(tmp_path / "t5")):
        found = OpenSoraPipeline.from_checkpoint(checkpoint, text_encoder, tokenizer=pipeline.tokenizer)
        assert torch.equal(found("a cat", **SMALL, generator=seeded()).frames, expected)
    found = OpenSoraPipeline.from_checkpoint(str(checkpoint), tmp_path / "t5", torch_dtype=torch.bfloat16)
    assert found.dtype == found.transformer.rope.freqs.dtype == torch.bfloat16
    assert found("a cat", **SMALL, generator=seeded()).frames.isfinite().all()


@pytest.mark.parametrize(
    "change, complaint",
    [
        (lambda w: w.pop("t_block.1.bias"), r"keys 1 missing \(t_block.1.bias\)$"),
        (lambda w: w.update(extra=torch.zeros(1)), r"keys 1 unexpected \(extra\)$"),
        (lambda w: w.update({"rope.freqs": torch.zeros(3)}), r"keys 1 of another shape \(rope.freqs\)$"),
    ],
)
def test_checkpoint_of_another_network_is_refused_in_one_line(checkpoint: Path, change: Any, complaint: str) -> None:
    weights = tiny_opensora().transformer.state_dict()
    change(weights)
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=complaint) as error:
        load_transformer(checkpoint)
    assert "\n" not in str(error.value) and str(checkpoint) in str(error.value)


def test_sizes_are_the_published_ones_unless_a_configuration_says_otherwise(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(CheckpointError, match="884 missing .*, 88 of another shape"):
        load_transformer(checkpoint)


def test_weights_that_would_be_unpickled_are_not_read(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no model.*safetensors"):
        load_transformer(checkpoint)


def test_pipeline_is_saved_and_loaded_as_those_of_diffusers(pipeline: OpenSoraPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    found = OpenSoraPipeline.from_pretrained(tmp_path / "saved")
    latents = [p("a cat", **SMALL, generator=seeded()).frames for p in (pipeline, found)]
    assert torch.equal(*latents)

"""Networks that nobody prepared the tracer for: they are traced, or an error names the module and the way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dit_tracer
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from dit_formats import open_trace
from dit_formats.reader import Trace
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.sites import UnsupportedError
from torch import Tensor, nn

TOKENS, CHANNELS, HEADS, BLOCKS = 6, 16, 2, 3

WHOLE = dit_tracer.Sample(latent=10**9, text=10**9)


def softmax(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def by_hand(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-1, -2)).softmax(-1) @ value


def linear(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return query.softmax(-1) @ (key.softmax(-2).transpose(-1, -2) @ value)


ATTENTIONS: dict[str, Callable[..., Tensor]] = {"softmax": softmax, "by_hand": by_hand, "linear": linear}


class Mixer(nn.Module):
    """Attention of a class that diffusers does not know."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(CHANNELS, CHANNELS) for _ in range(4))
        self.attend = ATTENTIONS[kind]

    def forward(self, x: Tensor) -> Tensor:
        heads = (part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.to_q, self.to_k, self.to_v))
        return self.out(self.attend(*heads).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.mixer = Mixer(kind)
        self.mlp = nn.Sequential(nn.Linear(CHANNELS, 32), nn.GELU(), nn.Linear(32, CHANNELS))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(x)
        return x + self.mlp(x)


class PlainNetwork(nn.Module):
    """No model of diffusers: it has no configuration, no dtype, no device."""

    def __init__(self, kind: str = "softmax", skip: int = -1) -> None:
        super().__init__()
        self.into = nn.Linear(4, CHANNELS)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(BLOCKS))
        self.final = nn.Linear(CHANNELS, 4)
        self.skip = skip

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        x = self.into(x) + timestep / 1000
        for place, block in enumerate(self.blocks):
            if place != self.skip:
                x = block(x)
        return self.final(x)


class Network(ModelMixin, ConfigMixin):
    """The same as a model of diffusers."""

    @register_to_config
    def __init__(self, kind: str = "softmax", skip: int = -1) -> None:
        super().__init__()
        plain = PlainNetwork(kind, skip)
        self.into, self.blocks, self.final, self.skip = plain.into, plain.blocks, plain.final, skip

    forward = PlainNetwork.forward


class Pipeline(DiffusionPipeline):
    """The least that a pipeline does."""

    def __init__(self, transformer: nn.Module, scheduler: FlowMatchEulerDiscreteScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps: int = 3, generator: torch.Generator | None = None) -> Tensor:
        latents = torch.randn(1, TOKENS, 4, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            latents = self.scheduler.step(self.transformer(latents, timestep), timestep, latents)[0]
        return latents


def pipeline_of(network: type[nn.Module], **how: Any) -> Pipeline:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pipeline(network(**how).eval(), FlowMatchEulerDiscreteScheduler())


def run(pipeline: Pipeline) -> Tensor:
    return pipeline(generator=torch.Generator().manual_seed(0))


def trace(pipeline: Any, path: Path, generate: Callable[[], Any], **options: Any) -> Trace:
    with dit_tracer.record(pipeline, path, **options) as recorder, recorder.prompt("a"):
        generate()
    return open_trace(path)


def outputs_of(module: nn.Module, seen: list[Tensor]) -> Any:
    return module.register_forward_hook(lambda _, __, output: seen.append(output.flatten().clone()))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# A transformer of one's own ---------------------------------------------------


@pytest.mark.parametrize("network", [Network, PlainNetwork])
def test_own_transformer_is_refused_with_its_modules_and_the_option(network: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as refusal:
        dit_tracer.record(pipeline_of(network), tmp_path / "a.trace")
    lines = str(refusal.value).splitlines()
    assert "attention=['blocks.*.attn']" in lines[0] and "--attention 'blocks.*.attn'" in lines[0]
    assert lines[1] == f"transformer ({network.__name__}):"
    assert "  blocks.0-2.mixer (Mixer)" in lines and "  final (Linear)" in lines


def test_pattern_that_fits_nothing_is_refused_with_the_modules(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no module fits layers\.\*\.attn(.|\n)*blocks\.0-2\.mixer \(Mixer\)"):
        dit_tracer.record(pipeline_of(Network), tmp_path / "a.trace", attention=["layers.*.attn"])


@pytest.mark.parametrize("network", [Network, PlainNetwork])
@pytest.mark.parametrize("pattern", ["blocks.*.mixer", "transformer.blocks.*.mixer"])
def test_own_transformer_is_traced_by_the_names_of_its_layers(network: Any, pattern: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(network)
    untraced = run(pipeline)
    mixer = pipeline.transformer.blocks[1].mixer
    seen: dict[str, list[Tensor]] = {"q": [], "k": [], "v": [], "a": []}
    hooks = [outputs_of(part, seen[k]) for k, part in zip("qkva", (mixer.to_q, mixer.to_k, mixer.to_v, mixer))]
    with dit_tracer.record(
        pipeline, tmp_path / "a.trace", attention=[pattern], kinds=["q", "k", "v", "o", "a", "f"], sample=WHOLE
    ) as recorder:
        with recorder.prompt("a"):
            assert torch.equal(run(pipeline), untraced)
    for hook in hooks:
        hook.remove()
    with open_trace(tmp_path / "a.trace") as found:
        assert [layer.name for layer in found.layers if layer.type == "self"] == [
            f"transformer.blocks.{block}.mixer" for block in range(BLOCKS)
        ]
        assert {layer.heads for layer in found.layers if layer.type == "self"} == {HEADS}
        assert [layer.type for layer in found.layers].count("ff") == BLOCKS
        assert found.streams == ("latent",) and found.branches("latent") == ("cond",)
        assert "last" in found.sites("stack")
        place = [layer.name for layer in found.layers].index("transformer.blocks.1.mixer")
        for kind, tensors in seen.items():
            values = found.samples("latent", 0)[0, found.kinds("latent").index(kind), place]
            assert np.array_equal(values[: TOKENS * CHANNELS], torch.stack(tensors, -1).numpy())


def test_some_layers_alone_can_be_chosen(tmp_path: Path) -> None:
    pipeline = pipeline_of(Network)
    with trace(pipeline, tmp_path / "a.trace", lambda: run(pipeline), attention=["blocks.[02].mixer"]) as found:
        assert [layer.name for layer in found.layers] == ["transformer.blocks.0.mixer", "transformer.blocks.2.mixer"]


# Silence is an error ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["by_hand", "linear"])
def test_layer_without_softmax_attention_is_named(kind: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(Network, kind=kind)
    with pytest.raises(UnsupportedError, match=r"transformer\.blocks\.0\.mixer \(Mixer\) ran without scaled dot-"):
        trace(pipeline, tmp_path / "a.trace", lambda: run(pipeline), attention=["blocks.*.mixer"])
    assert [path.suffix for path in (tmp_path / "a.trace").iterdir()] == [".failed"]


def test_layer_declared_linear_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """K, V are what its projections give."""
    row = dit_tracer.Family(types={"*.mixer": "linear"}, attention=("*.mixer",))
    monkeypatch.setitem(dit_tracer.FAMILIES, "Network", row)
    pipeline = pipeline_of(Network, kind="linear")
    seen: list[Tensor] = []
    hook = outputs_of(pipeline.transformer.blocks[0].mixer.to_k, seen)
    with trace(pipeline, tmp_path / "a.trace", lambda: run(pipeline), sample=WHOLE) as found:
        assert {layer.type for layer in found.layers} == {"linear"}
        values = found.samples("latent", 0)[0, found.kinds("latent").index("k"), 0]
        assert np.array_equal(values, torch.stack(seen, -1).numpy())
    hook.remove()


def test_layer_that_never_ran_is_named(tmp_path: Path) -> None:
    pipeline = pipeline_of(Network, skip=1)
    with pytest.raises(UnsupportedError, match=r"1 layer never ran in this generation: transformer\.blocks\.1\.mixer"):
        trace(pipeline, tmp_path / "a.trace", lambda: run(pipeline), attention=["blocks.*.mixer"])
    assert [path.suffix for path in (tmp_path / "a.trace").iterdir()] == [".failed"]


def test_layers_that_do_run_are_traced_by_name(tmp_path: Path) -> None:
    pipeline = pipeline_of(Network, skip=1)
    with trace(pipeline, tmp_path / "a.trace", lambda: run(pipeline), attention=["blocks.[02].mixer"]) as found:
        assert len(found.layers) == 2


def test_layer_silent_in_a_later_prompt_is_named(tmp_path: Path) -> None:
    pipeline = pipeline_of(Network)
    with dit_tracer.record(pipeline, tmp_path / "a.trace", attention=["blocks.*.mixer"]) as recorder:
        with recorder.prompt("a"):
            run(pipeline)
        pipeline.transformer.skip = 2
        with pytest.raises(UnsupportedError, match=r"never ran .* transformer\.blocks\.2\.mixer"), recorder.prompt("b"):
            run(pipeline)


# Wan 2.2: a transformer for the noisy steps, another for the rest --------------


def wan(pipeline: Any, steps: int = 6) -> Callable[[], Tensor]:
    call = find("tiny:wan2.2").call | {"num_inference_steps": steps, "output_type": "latent"}
    return lambda: pipeline(prompt="a red bus", generator=torch.Generator().manual_seed(0), **call)[0]


def test_each_of_two_transformers_is_marked_in_the_steps_it_ran_in(tmp_path: Path) -> None:
    pipeline = tiny.build("wan2.2")
    calls: list[str] = []
    hooks = [
        getattr(pipeline, part).register_forward_hook(lambda *_, part=part: calls.append(part))
        for part in ("transformer", "transformer_2")
    ]
    with trace(pipeline, tmp_path / "a.trace", wan(pipeline)) as found:
        for hook in hooks:
            hook.remove()
        ran = calls[::2]  # the two guidance halves are two calls
        assert len(ran) == 6 and set(ran) == {"transformer", "transformer_2"}
        kinds = found.kinds("latent")
        recorded, values = found.geometry("latent", "recorded"), found.samples("latent", 0)
        sums = found.step_sums("latent")[0]
        for place, layer in enumerate(found.layers):
            expected = [layer.name.startswith(f"{part}.") for part in ran]
            for branch in range(2):
                assert recorded[branch, kinds.index("a"), place].astype(bool).tolist() == expected
                sample = values[branch, kinds.index("a"), place]
                assert np.isnan(sample[:, ~np.array(expected)]).all(), "not zero: it was not there"
                assert (sums[branch, kinds.index("a"), place, 0][expected] > 0).all()
        assert found.geometry("stack", "recorded").all(), "the stack is that of whichever ran"


def test_second_transformer_that_never_ran_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    pipeline = tiny.build("wan2.2")
    pipeline.register_to_config(boundary_ratio=1e-6)  # every step is a noisy one
    with pytest.raises(UnsupportedError, match=r"4 layers never ran .*: transformer_2\.blocks\.0\.attn1"):
        trace(pipeline, tmp_path / "a.trace", wan(pipeline, 3))
    only = ["transformer.blocks.*.attn?"]
    with trace(pipeline, tmp_path / "b.trace", wan(pipeline, 3), attention=only) as found:
        assert [layer.name.split(".")[0] for layer in found.layers] == ["transformer"] * 4


# U-Nets -----------------------------------------------------------------------


def test_unet_is_traced_by_the_same_discovery(tmp_path: Path) -> None:
    """Self- and cross-attention of every place, K and V as projected, A as returned, smaller further down."""
    pipeline, name = tiny.build("stable-diffusion"), "tiny:stable-diffusion"
    call = find(name).call | {"num_inference_steps": 3, "output_type": "latent"}
    generate = lambda: pipeline("a red bus", generator=torch.Generator().manual_seed(0), **call)[0]  # noqa: E731
    untraced = generate()
    block = pipeline.unet.mid_block.attentions[0].transformer_blocks[0]
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for layer in ("attn1", "attn2"):
        module = getattr(block, layer)
        for kind, part in zip("kva", (module.to_k, module.to_v, module)):
            hooks.append(outputs_of(part, seen.setdefault(f"{layer}.{kind}", [])))
    with dit_tracer.record(pipeline, tmp_path / "a.trace", sample=WHOLE) as recorder, recorder.prompt("a"):
        assert torch.equal(generate(), untraced)
    for hook in hooks:
        hook.remove()
    with open_trace(tmp_path / "a.trace") as found:
        assert found.streams == ("latent", "text") and found.branches("latent") == ("cond", "uncond")
        names = [layer.name for layer in found.layers]
        assert [layer.type for layer in found.layers] == ["self", "cross"] * (len(names) // 2)
        assert [name.split(".")[1] for name in names[::2]] == ["down_blocks", "mid_block", "up_blocks", "up_blocks"]
        assert all(name.endswith(".attn1") for name in names[::2]) and all(n.endswith(".attn2") for n in names[1::2])
        assert found.sites("stack") == ("model_input", "prediction")
        tokens = found.geometry("latent", "num_tokens")[found.kinds("latent").index("a")]
        assert tokens[names.index("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1")] == 16 * 16
        assert tokens[names.index("unet.mid_block.attentions.0.transformer_blocks.0.attn1")] == 8 * 8
        for key, tensors in seen.items():
            layer, kind = key.split(".")
            stream = "text" if layer == "attn2" and kind != "a" else "latent"
            place = names.index(f"unet.mid_block.attentions.0.transformer_blocks.0.{layer}")
            uncond, cond = torch.stack(tensors, -1).chunk(2)  # the halves of the batch
            for branch, half in zip(("cond", "uncond"), (cond, uncond)):
                row = found.branches(stream).index(branch), found.kinds(stream).index(kind), place
                values = found.samples(stream, 0)[row]
                assert np.array_equal(values[: len(half)], half.numpy()), key

"""What must not go into one trace unnoticed, and labels that once were wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dit_tracer
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers.models.attention_processor import Attention
from dit_formats import TraceError, open_trace
from dit_formats.errors import ConflictError
from dit_tracer.cli import main
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from torch import nn


def generate(pipeline: Any, name: str, prompt: str = "a red bus", **changes: Any) -> Any:
    call = find(f"tiny:{name}").call | {"num_inference_steps": 3, "output_type": "latent"} | changes
    given = {"generator": torch.Generator().manual_seed(0)} | call
    return pipeline(prompt=prompt, **given)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in (*arguments, "--steps", 3, "-q")])


def lines(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_dictionary_of_a_call_is_a_setting(tmp_path: Path) -> None:
    pipeline = tiny.build("flux.1-dev")
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder:
        with recorder.prompt("a"):
            generate(pipeline, "flux.1-dev", joint_attention_kwargs={"scale": 0.5})
        with pytest.raises(ConflictError, match="call.joint_attention_kwargs.scale: 0.5"), recorder.prompt("b"):
            generate(pipeline, "flux.1-dev", joint_attention_kwargs={"scale": 1.0})


@pytest.mark.parametrize("part", ["text_encoder", "transformer"])
def test_other_weights_of_any_part_are_refused_later(part: str, tmp_path: Path) -> None:
    pipeline = tiny.build("pixart-alpha")
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder, recorder.prompt("a"):
        generate(pipeline, "pixart-alpha")
    with torch.no_grad():
        for weight in getattr(pipeline, part).parameters():
            weight *= 1.01
    with pytest.raises(ConflictError, match=f"{part}.weights"):
        dit_tracer.record(pipeline, tmp_path / "a")


def test_weights_and_precision_stay_as_they_were_when_recording_began(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder:
        with recorder.prompt("a"):
            generate(pipeline, "sd3")
        pipeline.to(torch.bfloat16)
        with pytest.raises(ConflictError, match="the weights or their precision changed"), recorder.prompt("b"):
            generate(pipeline, "sd3")


def test_arguments_of_a_prompt_are_stored_and_compared(tmp_path: Path) -> None:
    first = lines(tmp_path / "1.jsonl", {"prompt": "a cat", "negative_prompt": "dog"})
    other = lines(tmp_path / "2.jsonl", {"prompt": "a cat", "negative_prompt": "COW"})
    plain = tmp_path / "3.txt"
    plain.write_text("a cat\n")
    path = tmp_path / "a.trace"
    assert run("run", "tiny:sd3", "-p", first, "-o", path).exit_code == 0
    with open_trace(path) as trace:
        assert json.loads(trace.prompts[0].arguments) == {"negative_prompt": "dog"}
    assert run("run", "tiny:sd3", "-p", first, "-o", path).exit_code == 0, "the same again"
    for source in (other, plain):
        refused = run("run", "tiny:sd3", "-p", source, "-o", path)
        assert refused.exit_code == 1 and len(list(path.glob("*.h5"))) == 1, refused.output
    assert 'negative_prompt: "dog" in the trace, "COW" now' in run("run", "tiny:sd3", "-p", other, "-o", path).stderr


@pytest.mark.parametrize("last", [[7], None, "7"])
def test_strength_of_guidance_cannot_vary_by_prompt(last: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "a cat", "guidance_scale": 3}, {"prompt": "a fox", "guidance_scale": 12}]
    source = lines(tmp_path / "p.jsonl", *rows, {"prompt": "a bus", "guidance_scale": last})
    result = run("run", "tiny:sd3", "-p", source, "-o", tmp_path / "a.trace")
    assert result.exit_code == 2 and "guidance_scale" in result.stderr
    assert not (tmp_path / "a.trace").exists()


def test_seeds_added_later_take_free_places(tmp_path: Path) -> None:
    path = tmp_path / "a.trace"
    for seeds in ("0-1", "0-2"):
        assert run("run", "tiny:pixart-alpha", "-n", 2, "--seeds", seeds, "-o", path).exit_code == 0
    with open_trace(path) as trace:
        assert len({prompt.index for prompt in trace.prompts}) == 6
    assert run("run", "tiny:pixart-alpha", "--seed", 1, "--seeds", "1-2").exit_code == 2


def test_images_from_equal_noise_are_told_from_guidance_halves(tmp_path: Path) -> None:
    """Three images and both halves of each: six elements of a batch, all of one noise."""
    pipeline = tiny.build("sd3")
    noise = [torch.Generator().manual_seed(0) for _ in range(3)]
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder, recorder.prompt("a"):
        generate(pipeline, "sd3", num_images_per_prompt=3, generator=noise)
    with open_trace(tmp_path / "a") as trace:
        assert trace.branches("latent") == ("cond", "uncond") and len(trace.prompts) == 3


def test_second_call_of_a_step_is_the_other_half_whatever_its_latents() -> None:
    """Cosmos draws new noise for its condition in each of the two."""
    from dit_tracer.recording.clock import Clock

    class Pipeline:
        scheduler = type("Scheduler", (), {"step": lambda self, model_output, timestep, sample: None})()

    network = nn.Linear(3, 3)
    network.forward = lambda hidden_states: hidden_states  # type: ignore[method-assign]
    with Clock(Pipeline(), {"transformer": network}) as clock:
        found = []
        for size in (1, 1, 2):
            network(torch.randn(size, 3))
            found.append(clock.branches)
    assert found == [("cond",), ("uncond",), ("call2",)]


def test_steps_of_a_scheduler_with_its_timestep_elsewhere(tmp_path: Path) -> None:
    result = run(
        "run", "tiny:cogvideox-5b", "-n", 1, "--scheduler", "CogVideoXDPMScheduler", "-o", tmp_path / "a.trace"
    )
    assert result.exit_code == 0, result.output
    with open_trace(tmp_path / "a.trace") as trace:
        assert trace.timesteps[0] > trace.timesteps[-1]


def test_two_networks_have_no_change_between_them(tmp_path: Path) -> None:
    pipeline = tiny.build("wan2.2")
    options = {"num_inference_steps": 8}
    with dit_tracer.record(pipeline, tmp_path / "a", boundaries=["blocks.0"]) as recorder, recorder.prompt("a"):
        generate(pipeline, "wan2.2", **options)
    with open_trace(tmp_path / "a") as trace:
        second = next(i for i, layer in enumerate(trace.layers) if layer.name.startswith("transformer_2"))
        switch = int(np.argmax(trace.geometry("latent", "recorded")[0, 0, second]))
        last, block = trace.sites().index("last"), trace.sites().index("blocks.0")
        changes = trace.transition_sums("stack")[0, 0, 0, last, 0]
        assert np.isnan(changes[switch - 1]) and np.isfinite(np.delete(changes, switch - 1)).all()
        assert trace.geometry("stack", "recorded")[0, 0, block].all(), "the boundary is that of both networks"


class Mixed(nn.Module):
    """A block with attention of its own beside one of diffusers'."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.cross = Attention(query_dim=8, cross_attention_dim=8, heads=2, dim_head=4)
        self.own = own

    def forward(self, hidden_states: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if self.own:
            heads = hidden_states.unflatten(2, (2, 4)).transpose(1, 2)
            attended = nn.functional.scaled_dot_product_attention(heads, heads, heads)
            hidden_states = hidden_states + attended.transpose(1, 2).flatten(2)
        return hidden_states + self.cross(hidden_states, encoder_hidden_states=text)


class Network(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Mixed(own), Mixed(own)])

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, encoder_hidden_states)
        return hidden_states


class Loop:
    """A denoising loop around it."""

    def __init__(self, own: bool) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler

        self.transformer, self.scheduler = Network(own), FlowMatchEulerDiscreteScheduler()

    @torch.no_grad()
    def __call__(self) -> None:
        self.scheduler.set_timesteps(3)
        x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.transformer(x, torch.ones(1, 4, 8)), t, x).prev_sample


def test_attention_outside_of_the_layers_is_an_error(tmp_path: Path) -> None:
    """Only the cross-attention is of diffusers' class; leaving out the other would be a silent gap."""
    for own in (False, True):
        loop = Loop(own)
        with dit_tracer.record(loop, tmp_path / str(own)) as recorder:
            if own:
                with pytest.raises(ValueError, match="outside of the layers that were found(.|\n)*blocks.0-1"):
                    with recorder.prompt("a"):
                        loop()
            else:
                with recorder.prompt("a"):
                    loop()


def test_heads_that_attend_to_picture_and_text_are_summed(tmp_path: Path) -> None:
    """`o` is what enters the output projection."""
    from zoo.bench import bench
    from zoo.videos import CASES

    case = [case for case in CASES if case.transformer == "WanTransformer3DModel"][1]
    pipeline = bench(case)
    entered: list[torch.Tensor] = []
    projection = pipeline.transformer.blocks[1].attn2.to_out[0]
    projection.register_forward_pre_hook(lambda module, args: entered.append(args[0].clone()))
    with dit_tracer.record(pipeline, tmp_path / "a", kinds=["o"]) as recorder, recorder.prompt("a"):
        pipeline(case=case)
    with open_trace(tmp_path / "a") as trace:
        row = [layer.name for layer in trace.layers].index("transformer.blocks.1.attn2")
        sums = trace.step_sums("latent")[0, trace.branches("latent").index("cond"), 0, row, :2, 0]
    np.testing.assert_allclose(sums, [entered[0].abs().sum(), entered[0].square().sum()], rtol=1e-5)


def test_channels_of_input_and_prediction_are_found(tmp_path: Path) -> None:
    from zoo.bench import bench
    from zoo.images import CASES

    case = next(case for case in CASES if case.transformer == "Kandinsky5Transformer3DModel")
    pipeline = bench(case)
    with dit_tracer.record(pipeline, tmp_path / "k") as recorder, recorder.prompt("a"):
        pipeline(case=case)
    pipeline = tiny.build("cogvideox-5b")
    with dit_tracer.record(pipeline, tmp_path / "c") as recorder, recorder.prompt("a"):
        generate(pipeline, "cogvideox-5b", num_frames=13)  # as many latent frames as channels
    with open_trace(tmp_path / "k") as trace:
        place = trace.sites().index("prediction")
        assert trace.geometry("stack", "num_channels")[0, place] == case.config["out_visual_dim"]
    with open_trace(tmp_path / "c") as trace:
        tokens, channels = (trace.geometry("stack", name)[0, 0] for name in ("num_tokens", "num_channels"))
        frames = 4
        assert channels == pipeline.transformer.config.in_channels == frames and tokens % frames == 0
        x = trace.samples("stack", 0)[0, 0, 0, :, 0]
    assert np.isfinite(x).any()


def test_attention_over_pictures_of_a_u_net(tmp_path: Path) -> None:
    """DeepFloyd's blocks give their attention (batch, channel, height, width), with the text's keys before its own."""
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    whole = tiny.build("stable-diffusion")
    config = dict(whole.unet.config) | {
        "down_block_types": ("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config).eval()
    pipeline = StableDiffusionPipeline(**whole.components | {"unet": unet})
    pipeline.set_progress_bar_config(disable=True)
    path, module = next((p, m) for p, m in unet.named_modules() if isinstance(m, Attention))
    outputs: list[torch.Tensor] = []
    module.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder, recorder.prompt("a"):
        traced = generate(pipeline, "stable-diffusion")[0]
    assert torch.equal(torch.as_tensor(traced), torch.as_tensor(generate(pipeline, "stable-diffusion")[0]))
    with open_trace(tmp_path / "a") as trace:
        assert trace.layers[0].name == f"unet.{path}" and trace.layers[0].type == "joint"
        kinds = trace.kinds("latent")
        tokens = trace.geometry("latent", "num_tokens")[[kinds.index("k"), kinds.index("a")], 0]
        height, width = outputs[0].shape[2:]
        assert tokens.tolist() == [height * width] * 2
        assert trace.geometry("latent", "num_channels")[kinds.index("a"), 0] == outputs[0].shape[1]


def test_every_pattern_must_fit_something(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no module fits blocks.\\*.crss"):
        dit_tracer.record(Loop(False), tmp_path / "a", attention=["blocks.*.cross", "blocks.*.crss"])
    assert dit_tracer.What(attention="blocks.*.cross").attention == ("blocks.*.cross",)


def test_pair_of_steps_that_never_came_is_an_error(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    with dit_tracer.record(pipeline, tmp_path / "a", step_pairs=[(0, 30)]) as recorder:
        with pytest.raises(TraceError, match="0:30"), recorder.prompt("a"):
            generate(pipeline, "sd3")


def test_same_lines_go_on_where_one_leaves_out_an_argument(tmp_path: Path) -> None:
    source = lines(tmp_path / "p.jsonl", {"prompt": "a cat", "negative_prompt": "dog"}, {"prompt": "a fox"})
    path = tmp_path / "a.trace"
    for _ in range(2):
        result = run("run", "tiny:pixart-alpha", "-p", source, "-o", path)
        assert result.exit_code == 0, result.output
    assert len(list(path.glob("*.h5"))) == 2


def test_parts_that_are_elsewhere_or_compiled_are_no_other_parts(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder, recorder.prompt("a"):
        generate(pipeline, "sd3")
    pipeline = tiny.build("sd3")
    pipeline.text_encoder = torch.compile(pipeline.text_encoder, backend="eager")
    pipeline.vae.to(torch.float16)
    pipeline.register_modules(text_encoder_3=None)
    pipeline.safety_checker = nn.Identity()
    dit_tracer.record(pipeline, tmp_path / "a")


def test_part_that_changes_while_recording_is_refused(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder:
        with recorder.prompt("a"):
            generate(pipeline, "sd3")
        with torch.no_grad():
            for weight in pipeline.text_encoder_3.parameters():
                weight *= 1.5
        with pytest.raises(ConflictError, match="the weights or their precision changed"), recorder.prompt("b"):
            generate(pipeline, "sd3")


def test_attention_after_a_failed_prompt_is_nobodys(tmp_path: Path) -> None:
    pipeline = tiny.build("sd3")
    block = pipeline.transformer.transformer_blocks[1]
    with dit_tracer.record(pipeline, tmp_path / "a") as recorder:
        hook = block.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError), recorder.prompt("a"):
            generate(pipeline, "sd3")
        hook.remove()
        x = torch.randn(1, 2, 4, 8)
        nn.functional.scaled_dot_product_attention(x, x, x)


def test_two_processes_with_one_list_write_every_prompt_once(tmp_path: Path) -> None:
    """Their places follow from the list alone, however late the one begins."""
    from dit_tracer.runs import _free

    taken = {0, 1, 2, 3, 4, 5}
    first = [_free(index, taken, 18) for index in range(6, 18)]
    late = [_free(index, taken | set(first[:5]), 18) for index in range(11, 18)]
    assert first == list(range(6, 18)) and late == first[5:]
    assert _free(2, taken, 18) == 20

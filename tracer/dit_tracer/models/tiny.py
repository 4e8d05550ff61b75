"""Twins: a family's own pipeline class in miniature, built in memory, with random weights.

Everything is there that a published pipeline has: tokenizers, text encoders, transformer, scheduler, autoencoder. All
but the tokenizers are of the classes of the published one and wired alike, so that every option can be tried in a
second on any machine. What the numbers say about the family is nothing.

One function per family says what is particular to it; the parts that families share stand in `tiny_parts`, the
arguments that a twin is called with in the catalog.
"""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from dit_tracer.models import tiny_parts as parts
from dit_tracer.models.catalog import TINY
from dit_tracer.models.catalog import TWINS as CATALOG
from dit_tracer.models.tiny_parts import TEXT_TOKENS, WIDTH

_HEADS = {"num_attention_heads": 2, "attention_head_dim": WIDTH // 2}
_ROPE = (4, 6, 6)
"""A head's 16 channels, divided among the three axes of a rotary embedding."""

_DIFFUSION = {"beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}
"""PixArt and Latte predict the noise. Read so, what a random network says makes latents a hundred times too large at
the first step, and attention to the text saturates."""


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """The twin of this name (`sd3` or `tiny:sd3`) on the CPU in float32, every weight drawn from `seed`.

    The state of torch's own generator is left as it was.

    Raises:
        LookupError: There is no such twin, or the installed diffusers does not have its pipeline.
    """
    name = name.removeprefix(TINY)
    if name not in BUILDERS:
        raise LookupError(f"unknown twin {name!r}; known are {', '.join(BUILDERS)}")
    if not available(name):
        wanted = CATALOG[TINY + name].pipeline
        raise LookupError(
            f"{TINY}{name} needs {wanted}, which diffusers {diffusers.__version__} does not have; upgrade it"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = BUILDERS[name]()
        if name != "open-sora":  # which sees to its weights itself
            for module in pipeline.components.values():
                if isinstance(module, torch.nn.Module):
                    _draw(module.eval())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def available(name: str) -> bool:
    """Whether the installed diffusers has this twin's pipeline."""
    return name == "open-sora" or hasattr(diffusers, CATALOG[TINY + name].pipeline)


def flux() -> DiffusionPipeline:
    """Two double and three single blocks; guidance is an input, as in FLUX.1-dev."""
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,  # four latent channels, packed two by two
        num_layers=2,
        num_single_layers=3,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=True,
        axes_dims_rope=_ROPE,
        **_HEADS,
    )
    return diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=parts.image_vae(shift_factor=0.1),
        text_encoder=parts.clip(),
        tokenizer=parts.tokenizer(),
        text_encoder_2=parts.t5(),
        tokenizer_2=parts.tokenizer(),
    )


def pixart() -> DiffusionPipeline:
    """Two blocks of self- and cross-attention; the variance is predicted too and dropped, as in PixArt-alpha."""
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        interpolation_scale=1,
        **_HEADS,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(**_DIFFUSION)
    return diffusers.PixArtAlphaPipeline(parts.tokenizer(), parts.t5(), parts.image_vae(), transformer, scheduler)


def sd3(**further: object) -> DiffusionPipeline:
    """Three joint blocks; the last one gives no text."""
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        joint_attention_dim=WIDTH,  # of T5; those of both CLIPs are joined and padded to it
        caption_projection_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=16,
        **_HEADS,
        **further,
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=parts.image_vae(shift_factor=0.1),
        text_encoder=parts.clip(WIDTH // 2, projected=True),
        tokenizer=parts.tokenizer(),
        text_encoder_2=parts.clip(WIDTH // 2, projected=True),
        tokenizer_2=parts.tokenizer(),
        text_encoder_3=parts.t5(),
        tokenizer_3=parts.tokenizer(),
    )


def sd35() -> DiffusionPipeline:
    """SD3 with norms on queries and keys, and a second attention, of latent tokens alone, in the first two blocks."""
    return sd3(qk_norm="rms_norm", dual_attention_layers=(0, 1))


def cogvideox() -> DiffusionPipeline:
    """Two joint blocks with rotary embedding, as the 5B (the 2B has none)."""
    transformer = diffusers.CogVideoXTransformer3DModel(
        in_channels=4,
        out_channels=4,
        time_embed_dim=WIDTH,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=8,
        sample_height=8,
        sample_frames=9,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=True,
        **_HEADS,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=32,
        sample_width=32,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_end=0.012,
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=1.0,
        timestep_spacing="trailing",
    )
    return diffusers.CogVideoXPipeline(parts.tokenizer(), parts.t5(), vae, transformer, scheduler)


def opensora() -> DiffusionPipeline:
    """Open-Sora is not in diffusers; its twin stands with it."""
    from dit_tracer.models.opensora_tiny import tiny_opensora

    return tiny_opensora(torch.initial_seed())


def latte() -> DiffusionPipeline:
    """Two spatial blocks with cross-attention, two temporal ones without."""
    transformer = diffusers.LatteTransformer3DModel(
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=WIDTH,
        attention_bias=True,
        sample_size=16,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=WIDTH,
        video_length=4,
        **_HEADS,
    )
    scheduler = diffusers.DDIMScheduler(**_DIFFUSION, clip_sample=False)
    return diffusers.LattePipeline(parts.tokenizer(), parts.t5(), parts.image_vae(), transformer, scheduler)


def mochi() -> DiffusionPipeline:
    """Three joint blocks, text half as wide; the last one gives no text."""
    transformer = diffusers.MochiTransformer3DModel(
        num_layers=3,
        pooled_projection_dim=WIDTH // 2,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=WIDTH,
        max_sequence_length=TEXT_TOKENS,
        **_HEADS,
    )
    vae = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32,) * 4,  # its norms have 32 groups
        decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
        add_attention_block=(False,) * 5,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return diffusers.MochiPipeline(scheduler, vae, parts.t5(), parts.tokenizer(), transformer)


def wan21() -> DiffusionPipeline:
    """Two blocks of self- and cross-attention; the guidance halves are two calls."""
    return _wan(transformer=_wan_transformer(), flow_shift=3.0)


def wan22() -> DiffusionPipeline:
    """Two transformers: the first for timesteps above 875, the second below."""
    experts = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return _wan(**experts, flow_shift=3.0, boundary_ratio=0.875)


def _wan(flow_shift: float, **further: object) -> DiffusionPipeline:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=flow_shift
    )
    vae = diffusers.AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return diffusers.WanPipeline(
        tokenizer=parts.tokenizer(), text_encoder=parts.umt5(), vae=vae, scheduler=scheduler, **further
    )


def _wan_transformer() -> torch.nn.Module:
    return diffusers.WanTransformer3DModel(
        text_dim=WIDTH, freq_dim=WIDTH, ffn_dim=2 * WIDTH, num_layers=2, rope_max_seq_len=32, **_HEADS
    )


def ltx() -> DiffusionPipeline:
    """Two blocks of self- and cross-attention on unpatched latents."""
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, cross_attention_dim=WIDTH, num_layers=2, caption_channels=WIDTH, **_HEADS
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8),
        down_block_types=("LTXVideoDownBlock3D",) * 2,
        decoder_block_out_channels=(8, 8),
        layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        spatio_temporal_scaling=(True, False),
        decoder_spatio_temporal_scaling=(True, False),
        decoder_inject_noise=(False,) * 3,
        downsample_type=("conv", "conv"),
        upsample_residual=(False, False),
        upsample_factor=(1, 1),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=1024, shift_terminal=0.1
    )
    return diffusers.LTXPipeline(scheduler, vae, parts.t5(), parts.tokenizer(), transformer)


def sana() -> DiffusionPipeline:
    """Two blocks of linear self-attention (no softmax) and ordinary cross-attention."""
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=WIDTH // 2,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
        sample_size=8,
        **_HEADS,
    )
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(parts.tokenizer(), parts.gemma(), vae, transformer, scheduler)


def qwen_image() -> DiffusionPipeline:
    """Two joint blocks; text tokens are as many as the prompt has, after the opening of a template is cut off."""
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, joint_attention_dim=WIDTH, axes_dims_rope=_ROPE, **_HEADS
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, shift_terminal=0.02)
    vae = diffusers.AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipeline = diffusers.QwenImagePipeline(scheduler, vae, parts.qwen_vl(), parts.tokenizer(1024), transformer)
    opening = pipeline.prompt_template_encode.split("{}")[0]
    pipeline.prompt_template_encode_start_idx = len(pipeline.tokenizer(opening).input_ids) - 1  # less the </s>
    return pipeline


def lumina2() -> DiffusionPipeline:
    """Text and image tokens are one sequence in two blocks; before, each has a refiner block."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=WIDTH,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=_ROPE,
        axes_lens=(2 * TEXT_TOKENS, 32, 32),
        cap_feat_dim=WIDTH,
    )
    vae = parts.image_vae(levels=4, shift_factor=0.1)  # the pipeline takes eight pixels a latent for granted
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    return diffusers.Lumina2Pipeline(transformer, scheduler, vae, parts.gemma(), parts.tokenizer())


def z_image() -> DiffusionPipeline:
    """Image and text tokens are one sequence in two blocks; before, each has a refiner block."""
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=WIDTH,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=list(_ROPE),
        axes_lens=[256, 32, 32],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    vae = parts.image_vae(shift_factor=0.1)
    return diffusers.ZImagePipeline(scheduler, vae, parts.qwen3(), parts.tokenizer(), transformer)


def stable_diffusion() -> DiffusionPipeline:
    """A U-Net of two levels."""
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    return diffusers.StableDiffusionPipeline(
        vae=parts.image_vae(),
        text_encoder=parts.clip(),
        tokenizer=parts.tokenizer(),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "flux.1-dev": flux,
    "pixart-alpha": pixart,
    "sd3": sd3,
    "cogvideox-5b": cogvideox,
    "open-sora": opensora,
    "latte-1": latte,
    "mochi-1-preview": mochi,
    "sd3.5": sd35,
    "wan2.1": wan21,
    "wan2.2": wan22,
    "ltx": ltx,
    "sana": sana,
    "qwen-image": qwen_image,
    "lumina2": lumina2,
    "z-image": z_image,
    "stable-diffusion": stable_diffusion,
}

TWINS = tuple(BUILDERS)
"""Names of all twins, without `tiny:`."""


def _draw(module: torch.nn.Module) -> None:
    """New random weights: no layer starts at zero, so that every activation depends on prompt and step.

    Matrices keep the size of what passes through; norms scale by about one; biases are small.
    """
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=(weight.numel() / len(weight)) ** -0.5)
            else:
                weight.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.1)

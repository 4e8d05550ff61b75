"""Image transformers in miniature, with the labels that reading them and their pipelines gives.

Most latents are a picture of 4 x 6 tokens, or 4 x 4 where the class wants a square one (`GRID`, `SQUARE`); a text has
another number of tokens than its picture, so that a swap shows. Tokens that are neither, such as a register, a pooled
text or the timestep as a token, count as `text`: they carry the condition. Padding of a text counts where it enters the
attention.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from diffusers.models.transformers.transformer_glm_image import GlmImageKVCache
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache

from .case import Case, Expected

GRID = (4, 6)
SQUARE = (4, 4)
LATENT = GRID[0] * GRID[1]
TEXT = 7
STEP = 500.0


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents(batch: int, *shape: int) -> torch.Tensor:
    """The same latents for every element of the batch."""
    return normal(*shape, seed=0).repeat(batch, *[1] * len(shape))


def texts(batch: int, *shape: int, seed: int = 1) -> torch.Tensor:
    """Another text for every element of the batch; an element is the same in every batch."""
    return torch.stack([normal(*shape, seed=seed + 100 * i) for i in range(batch)])


def picture(batch: int, channels: int, grid: tuple[int, int] = GRID, patch: int = 2) -> torch.Tensor:
    return latents(batch, channels, grid[0] * patch, grid[1] * patch)


def step(batch: int, value: float = STEP) -> torch.Tensor:
    return torch.full((batch,), value)


def mask(batch: int, tokens: int, valid: int | None = None) -> torch.Tensor:
    """Which text tokens are none of the padding; the same number in every element."""
    return (torch.arange(tokens) < (tokens if valid is None else valid)).repeat(batch, 1)


def grid_ids(axes: int = 3) -> torch.Tensor:
    """Row and column of every latent token, after as many zeros as the model wants."""
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    ids = torch.zeros(LATENT, axes)
    ids[:, 1], ids[:, 2] = rows.flatten(), columns.flatten()
    return ids


def itself(tokens: int = LATENT) -> Expected:
    return Expected("self", kv={"latent": tokens}, a={"latent": tokens})


def cross(text: int, tokens: int = LATENT) -> Expected:
    return Expected("cross", kv={"text": text}, a={"latent": tokens})


def both(kind: str, **tokens: int) -> Expected:
    """A layer that attends to several streams at once, in the order of the arguments, and returns all of them."""
    return Expected(kind, kv=tokens, a=tokens)


# FLUX, its descendants, and the Brias --------------------------------------------------------------------------------


def packed_flux(batch: int, **more: Any) -> dict[str, Any]:
    """Arguments that the descendants of FLUX share: packed latents, and positions for text and latents apart."""
    return dict(
        hidden_states=latents(batch, LATENT, 4),
        timestep=step(batch, STEP / 1000),
        encoder_hidden_states=texts(batch, TEXT, 12),
        txt_ids=torch.zeros(TEXT, 3),
        img_ids=grid_ids(),
        return_dict=False,
        **more,
    )


TINY = dict(num_attention_heads=2, attention_head_dim=8)
FLUX = dict(TINY, in_channels=4, num_layers=2, num_single_layers=2, joint_attention_dim=12, axes_dims_rope=(2, 2, 4))
JOINT_AND_SINGLE = {
    "transformer_blocks.*.attn": both("joint", text=TEXT, latent=LATENT),
    "single_transformer_blocks.*.attn": both("single", text=TEXT, latent=LATENT),
}


def flux(batch: int) -> dict[str, Any]:
    return packed_flux(
        batch, guidance=step(batch, 3.5), pooled_projections=texts(batch, 6, seed=2), joint_attention_kwargs=None
    )


def flux2(batch: int) -> dict[str, Any]:
    given = packed_flux(batch, guidance=step(batch, 4.0), joint_attention_kwargs=None)
    given["txt_ids"] = torch.zeros(batch, TEXT, 4)
    given["img_ids"] = grid_ids(4).repeat(batch, 1, 1)
    return given


def flux3(batch: int) -> dict[str, Any]:
    given = packed_flux(batch)
    given["txt_ids"], given["img_ids"] = torch.zeros(TEXT, 4), grid_ids(4)
    return given


def bria(batch: int) -> dict[str, Any]:
    return packed_flux(batch, attention_kwargs=None) | {"timestep": step(batch)}


def bria_fibo(batch: int) -> dict[str, Any]:
    valid = torch.cat([mask(batch, TEXT, TEXT - 2), mask(batch, LATENT)], dim=1)
    return packed_flux(
        batch,
        text_encoder_layers=[texts(batch, TEXT, 6, seed=3 + i) for i in range(4)],
        joint_attention_kwargs={"attention_mask": valid[:, None, None, :]},
    ) | {"timestep": step(batch)}


def bria_fibo2(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=picture(batch, 4),
        timestep=step(batch, STEP / 1000),
        encoder_hidden_states=texts(batch, 2, 9, 6),
        encoder_attention_mask=mask(batch, 9, TEXT),
        context_latents=None,
        return_dict=False,
    )


def chroma(batch: int) -> dict[str, Any]:
    valid = torch.cat([mask(batch, TEXT, TEXT - 2), mask(batch, LATENT)], dim=1)
    return packed_flux(batch, attention_mask=valid, joint_attention_kwargs=None)


FLUXES = [
    Case(
        transformer="FluxTransformer2DModel",
        config=dict(FLUX, pooled_projection_dim=6, guidance_embeds=True),
        inputs=flux,
        layers=JOINT_AND_SINGLE,
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="FluxPipeline",
        note="uncond only if true_cfg_scale is above 1 and a negative prompt is given",
    ),
    Case(
        transformer="Flux2Transformer2DModel",
        config=dict(FLUX, axes_dims_rope=(2, 2, 2, 2), timestep_guidance_channels=8, mlp_ratio=2.0),
        inputs=flux2,
        layers=JOINT_AND_SINGLE,
        guidance="none",
        branches=("cond",),
        pipeline="Flux2Pipeline",
        note="Flux2KleinPipeline calls it twice, in the contexts cond and uncond",
    ),
    Case(
        transformer="Flux3Transformer2DModel",
        config=dict(
            TINY,
            in_channels=4,
            cond_in_channels=4,
            num_layers=2,
            num_single_layers=2,
            joint_attention_dim=12,
            timestep_channels=8,
            mlp_ratio=2.0,
            axes_dims_rope=(2, 2, 2, 2),
        ),
        inputs=flux3,
        layers={
            "mode_blocks.image.*.attn": itself(),
            "single_transformer_blocks.*.attn": both("single", text=TEXT, latent=LATENT),
        },
        guidance="none",
        branches=("cond",),
        note="no pipeline has it yet; txt_mode_blocks see the text alone, mode_blocks.image_cond never run here",
    ),
    Case(
        transformer="BriaTransformer2DModel",
        config=FLUX,
        inputs=bria,
        layers=JOINT_AND_SINGLE,
        pipeline="BriaPipeline",
    ),
    Case(
        transformer="BriaFiboTransformer2DModel",
        config=dict(FLUX, text_encoder_dim=6),
        inputs=bria_fibo,
        layers=JOINT_AND_SINGLE,
        pipeline="BriaFiboPipeline",
    ),
    Case(
        transformer="BriaFibo2Transformer2DModel",
        config=dict(
            in_channels=4,
            patch_size=2,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=6,
            injection_layer_ids=(1,),
            perceiver_num_layers=1,
            min_num_gist_tokens=3,
            max_num_gist_tokens=9,
            gist_step=3,
            gist_min_text_len=4,
            gist_max_text_len=16,
            axes_dims=(4, 6, 6),
            axes_lens=(64, 16, 16),
        ),
        inputs=bria_fibo2,
        layers={
            "noise_refiner.*.attention": itself(),
            "layers.*.attention": both("single", text=6, latent=LATENT),
            "layers.*.cross_attention": Expected("cross", kv={"text": 9}, a={"text": 6, "latent": LATENT}),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="BriaFibo2Pipeline",
        note="the perceiver makes 3 to 9 tokens of a text; they come last where a batch has different numbers of them",
    ),
    Case(
        transformer="ChromaTransformer2DModel",
        config=dict(FLUX, approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1),
        inputs=chroma,
        layers=JOINT_AND_SINGLE,
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="ChromaPipeline",
    ),
    Case(
        transformer="LongCatImageTransformer2DModel",
        config=dict(FLUX, pooled_projection_dim=6),
        inputs=partial(packed_flux, guidance=None),
        layers=JOINT_AND_SINGLE,
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="LongCatImagePipeline",
    ),
    Case(
        transformer="OvisImageTransformer2DModel",
        config=dict(FLUX, out_channels=4),
        inputs=partial(packed_flux, joint_attention_kwargs=None),
        layers=JOINT_AND_SINGLE,
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="OvisImagePipeline",
    ),
]

# Text and latents apart until they are attended together -----------------------------------------------------------


def sizes(batch: int) -> dict[str, Any]:
    """What the CogViews are told of the size of the picture."""
    return dict(
        original_size=torch.tensor([[64.0, 96.0]]).repeat(batch, 1),
        target_size=torch.tensor([[64.0, 96.0]]).repeat(batch, 1),
        crop_coords=torch.zeros(batch, 2),
        return_dict=False,
    )


def text_to_picture(batch: int, **more: Any) -> dict[str, Any]:
    """The commonest arguments of all: a picture, a text and the time."""
    return dict(
        hidden_states=picture(batch, 4),
        encoder_hidden_states=texts(batch, TEXT, 6),
        timestep=step(batch),
        return_dict=False,
        **more,
    )


def cogview(batch: int, **more: Any) -> dict[str, Any]:
    return text_to_picture(batch) | sizes(batch) | more


def glm_image(batch: int) -> dict[str, Any]:
    given = cogview(batch, timestep=step(batch, STEP - 1), attention_kwargs=None)
    del given["original_size"]
    prior = torch.arange(LATENT).remainder(16).repeat(batch, 1)
    return given | dict(
        prior_token_id=prior,
        prior_token_drop=torch.zeros_like(prior, dtype=torch.bool),
        kv_caches=GlmImageKVCache(num_layers=2),
    )


def sd3(batch: int) -> dict[str, Any]:
    return text_to_picture(batch, pooled_projections=texts(batch, 6, seed=2), joint_attention_kwargs=None)


def qwen_image(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, LATENT, 4),
        timestep=step(batch, STEP / 1000),
        guidance=None,
        encoder_hidden_states=texts(batch, TEXT, 12),
        encoder_hidden_states_mask=mask(batch, TEXT, TEXT - 2),
        img_shapes=[[(1, *GRID)]] * batch,
        attention_kwargs=None,
        return_dict=False,
    )


def nucleus(batch: int) -> dict[str, Any]:
    given = qwen_image(batch)
    del given["guidance"]
    return given | {"img_shapes": [(1, *GRID)] * batch}


def hunyuan_image(batch: int) -> dict[str, Any]:
    return text_to_picture(
        batch,
        encoder_attention_mask=mask(batch, TEXT, TEXT - 2).long(),
        encoder_hidden_states_2=texts(batch, 4, 5, seed=2),
        encoder_attention_mask_2=mask(batch, 4, 3).long(),
        timestep_r=None,
        guidance=None,
        attention_kwargs=None,
    ) | {"hidden_states": picture(batch, 4, patch=1)}


def hidream(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=picture(batch, 4, SQUARE),
        timesteps=step(batch),
        encoder_hidden_states_t5=texts(batch, 5, 6),
        encoder_hidden_states_llama3=texts(batch, 4, 3, 8, seed=2).transpose(0, 1),
        pooled_embeds=texts(batch, 6, seed=3),
        attention_kwargs=None,
        return_dict=False,
    )


def joy_edit(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, 2, 4, 1, GRID[0] * 2, GRID[1] * 2),
        timestep=step(batch),
        encoder_hidden_states=texts(batch, TEXT, 6),
        return_dict=False,
    )


def joy_edit_plus(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, LATENT + 6, 4, 1, 2, 2),
        timestep=step(batch),
        encoder_hidden_states=texts(batch, TEXT, 6),
        encoder_hidden_states_mask=mask(batch, TEXT, TEXT - 2).float(),
        shape_list=[[(1, *GRID), (1, 2, 3)]] * batch,
        return_dict=False,
    )


def prx(batch: int) -> dict[str, Any]:
    given = text_to_picture(batch, attention_mask=mask(batch, TEXT, TEXT - 2))
    return given | {"timestep": step(batch, STEP / 1000)}


SD3 = dict(
    TINY,
    sample_size=16,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    joint_attention_dim=6,
    caption_projection_dim=16,
    pooled_projection_dim=6,
    pos_embed_max_size=12,
)
COGVIEW = dict(
    TINY,
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    text_embed_dim=6,
    time_embed_dim=8,
    condition_dim=4,
)
JOY = dict(in_channels=4, hidden_size=16, num_attention_heads=2, text_dim=6, num_layers=2, rope_dim_list=[4, 2, 2])

JOINT = [
    Case(
        transformer="SD3Transformer2DModel",
        config=SD3,
        inputs=sd3,
        layers={"transformer_blocks.*.attn": both("joint", latent=LATENT, text=TEXT)},
        pipeline="StableDiffusion3Pipeline",
        note="as in SD3: the last block returns text of its attention too, not projected, and drops it",
    ),
    Case(
        transformer="SD3Transformer2DModel",
        config=dict(SD3, num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm"),
        inputs=sd3,
        layers={
            "transformer_blocks.*.attn": both("joint", latent=LATENT, text=TEXT),
            "transformer_blocks.*.attn2": itself(),
        },
        pipeline="StableDiffusion3Pipeline",
        note="as in SD3.5 medium: a second attention over the latents alone",
    ),
    Case(
        transformer="CogView3PlusTransformer2DModel",
        config=dict(COGVIEW, pos_embed_max_size=16, sample_size=16),
        inputs=cogview,
        layers={"transformer_blocks.*.attn1": both("joint", text=TEXT, latent=LATENT)},
        pipeline="CogView3PlusPipeline",
    ),
    Case(
        transformer="CogView4Transformer2DModel",
        config=dict(COGVIEW, sample_size=16, rope_axes_dim=(16, 16)),
        inputs=partial(cogview, attention_kwargs=None),
        layers={"transformer_blocks.*.attn1": both("joint", text=TEXT, latent=LATENT)},
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="CogView4Pipeline",
    ),
    Case(
        transformer="GlmImageTransformer2DModel",
        config=dict(COGVIEW, prior_vq_quantizer_codebook_size=16),
        inputs=glm_image,
        layers={"transformer_blocks.*.attn1": both("joint", text=TEXT, latent=LATENT)},
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="GlmImagePipeline",
        note="with a picture to edit, keys of an earlier call are put before these",
    ),
    Case(
        transformer="QwenImageTransformer2DModel",
        config=dict(
            TINY, in_channels=4, out_channels=4, num_layers=2, joint_attention_dim=12, axes_dims_rope=(2, 2, 4)
        ),
        inputs=qwen_image,
        layers={"transformer_blocks.*.attn": both("joint", text=TEXT, latent=LATENT)},
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="QwenImagePipeline",
    ),
    Case(
        transformer="HunyuanImageTransformer2DModel",
        config=dict(
            TINY,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            num_refiner_layers=1,
            text_embed_dim=6,
            text_embed_2_dim=5,
            rope_axes_dim=(4, 4),
        ),
        inputs=hunyuan_image,
        layers={
            "transformer_blocks.*.attn": both("joint", latent=LATENT, text=TEXT + 4),
            "single_transformer_blocks.*.attn": both("joint", latent=LATENT, text=TEXT + 4),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="HunyuanImagePipeline",
        note="a guider calls it, in the contexts pred_cond and pred_uncond; the single blocks split text off again",
    ),
    Case(
        transformer="HiDreamImageTransformer2DModel",
        config=dict(
            TINY,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_single_layers=2,
            caption_channels=[6, 8],
            text_emb_dim=6,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(16, 16),
            llama_layers=[0, 1, 2, 3],
        ),
        inputs=hidream,
        layers={
            "double_stream_blocks.*.block.attn1": both("joint", latent=16, text=5 + 3 + 3),
            "single_stream_blocks.*.block.attn1": both("single", latent=16, text=5 + 3 + 3),
        },
        pipeline="HiDreamImagePipeline",
        note="text: of T5, of Llama's last layer, of Llama's layer for this block",
    ),
    Case(
        transformer="JoyImageEditTransformer3DModel",
        config=JOY,
        inputs=joy_edit,
        layers={"double_blocks.*.attn": both("joint", latent=2 * LATENT, text=TEXT)},
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="JoyImageEditPipeline",
        note="the picture to edit is half of the latents",
    ),
    Case(
        transformer="JoyImageEditPlusTransformer3DModel",
        config=JOY,
        inputs=joy_edit_plus,
        layers={"double_blocks.*.attn": both("joint", latent=LATENT + 6, text=TEXT)},
        pipeline="JoyImageEditPlusPipeline",
        note="the pictures to edit are among the latents",
    ),
    Case(
        transformer="NucleusMoEImageTransformer2DModel",
        config=dict(
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(4, 6, 6),
            dense_moe_strategy="all_dense",
        ),
        inputs=nucleus,
        layers={
            "transformer_blocks.*.attn": Expected("joint", kv={"latent": LATENT, "text": TEXT}, a={"latent": LATENT})
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="NucleusMoEImagePipeline",
        note="text is attended to, and asks nothing itself; no experts here, their weights are made uninitialised",
    ),
    Case(
        transformer="PRXTransformer2DModel",
        config=dict(in_channels=4, context_in_dim=6, hidden_size=16, num_heads=2, depth=2, axes_dim=[4, 4]),
        inputs=prx,
        layers={"blocks.*.attention": Expected("joint", kv={"text": TEXT, "latent": LATENT}, a={"latent": LATENT})},
        pipeline="PRXPipeline",
        note="text is attended to, and asks nothing itself",
    ),
    Case(
        transformer="AuraFlowTransformer2DModel",
        config=dict(
            TINY,
            sample_size=16,
            in_channels=4,
            out_channels=4,
            num_mmdit_layers=2,
            num_single_dit_layers=2,
            joint_attention_dim=6,
            caption_projection_dim=16,
            pos_embed_max_size=64,
        ),
        inputs=partial(text_to_picture, attention_kwargs=None),
        layers={
            "joint_transformer_blocks.*.attn": both("joint", text=8 + TEXT, latent=LATENT),
            "single_transformer_blocks.*.attn": both("single", text=8 + TEXT, latent=LATENT),
        },
        pipeline="AuraFlowPipeline",
        note="eight registers before the text",
    ),
]

# One sequence from the start ------------------------------------------------------------------------------------------


def ernie(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=picture(batch, 4),
        timestep=step(batch),
        text_bth=texts(batch, TEXT, 6),
        text_lens=torch.tensor([TEXT - 2 + i % 2 for i in range(batch)]),
        return_dict=False,
    )


def ideogram(batch: int) -> dict[str, Any]:
    """Text and latents in one sequence already here: zeros where the other is."""
    inside = torch.arange(TEXT + LATENT) >= TEXT
    padded = torch.arange(TEXT + LATENT) < 2
    indicator = torch.where(inside, 2, 3).masked_fill(padded, -1)
    positions = torch.cat([torch.arange(TEXT)[:, None].repeat(1, 3), grid_ids().long() + 65536])
    return dict(
        hidden_states=torch.cat([torch.zeros(batch, TEXT, 4), latents(batch, LATENT, 4)], dim=1),
        timestep=step(batch, 0.5),
        encoder_hidden_states=torch.cat([texts(batch, TEXT, 6), torch.zeros(batch, LATENT, 6)], dim=1),
        position_ids=positions.repeat(batch, 1, 1),
        segment_ids=torch.where(padded, -1, 1).repeat(batch, 1),
        indicator=indicator.repeat(batch, 1),
        attention_kwargs=None,
        return_dict=False,
    )


def krea(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, LATENT, 4),
        encoder_hidden_states=texts(batch, TEXT, 3, 8),
        timestep=step(batch, STEP / 1000),
        position_ids=torch.cat([torch.zeros(TEXT, 3), grid_ids()]),
        encoder_attention_mask=mask(batch, TEXT, TEXT - 2),
        attention_kwargs=None,
        return_dict=False,
    )


def lumina2(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=picture(batch, 4),
        timestep=step(batch, 0.5),
        encoder_hidden_states=texts(batch, 9, 6),
        encoder_attention_mask=mask(batch, 9, TEXT).long(),
        attention_kwargs=None,
        return_dict=False,
    )


def omnigen(batch: int) -> dict[str, Any]:
    tokens = TEXT + 1 + LATENT
    causal = torch.ones(tokens, tokens).tril()
    causal[-LATENT:] = 1
    return dict(
        hidden_states=picture(batch, 4),
        timestep=step(batch, 0.5),
        input_ids=torch.stack([(torch.arange(TEXT) * (3 + 2 * i) + i).remainder(20) for i in range(batch)]),
        input_img_latents=[],
        input_image_sizes={},
        attention_mask=causal.repeat(batch, 1, 1),
        position_ids=torch.arange(tokens).repeat(batch, 1),
        return_dict=False,
    )


def z_image(batch: int) -> dict[str, Any]:
    return dict(
        x=list(picture(batch, 4, (8, 8))[:, :, None]),
        t=step(batch, 0.5),
        cap_feats=[text[: TEXT + i % 2] for i, text in enumerate(texts(batch, TEXT + 1, 6))],
        joint_attention_kwargs=None,
        return_dict=False,
    )


def qwen_image21(batch: int, **more: Any) -> dict[str, Any]:
    slots = torch.cat([torch.zeros(TEXT), torch.ones(LATENT // 4)]).bool()
    return dict(
        hidden_states=latents(batch, LATENT, 4),
        timestep=step(batch, STEP / 1000),
        encoder_hidden_states=texts(batch, TEXT, 6),
        encoder_hidden_states_mask=mask(batch, TEXT, TEXT - 2),
        img_shapes=[[(1, *GRID)]] * batch,
        img_mask=slots.repeat(batch, 1),
        attention_kwargs=None,
        return_dict=False,
        **more,
    )


def qwen_image21_later(batch: int) -> dict[str, Any]:
    """A call after the first: keys and values of the text are remembered from there."""
    cache = QwenImage21KVCache(2)
    for layer in cache.layer_caches:
        layer.store(texts(batch, TEXT, 2, 8, seed=2), texts(batch, TEXT, 2, 8, seed=3))
    return qwen_image21(batch, kv_cache=cache, kv_cache_mode="cached")


def prior(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, 6),
        timestep=torch.tensor(STEP),
        proj_embedding=texts(batch, 6, seed=2),
        encoder_hidden_states=texts(batch, TEXT, 6),
        attention_mask=mask(batch, TEXT, TEXT - 2),
        return_dict=False,
    )


QWEN21 = dict(
    TINY, in_channels=4, out_channels=4, num_layers=2, context_in_dim=6, axes_dims_rope=(2, 2, 4), causal_condition=True
)

SINGLE = [
    Case(
        transformer="ErnieImageTransformer2DModel",
        config=dict(
            hidden_size=16,
            num_attention_heads=2,
            num_layers=2,
            ffn_hidden_size=32,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            text_in_dim=6,
            rope_axes_dim=(2, 2, 4),
        ),
        inputs=ernie,
        layers={"layers.*.self_attention": both("single", latent=LATENT, text=TEXT)},
        pipeline="ErnieImagePipeline",
    ),
    Case(
        transformer="Ideogram4Transformer2DModel",
        config=dict(
            TINY,
            in_channels=4,
            num_layers=2,
            intermediate_size=32,
            adaln_dim=8,
            llm_features_dim=6,
            mrope_section=(2, 1, 1),
        ),
        inputs=ideogram,
        layers={"layers.*.attention": both("single", text=TEXT, latent=LATENT)},
        guidance="none",
        branches=("cond",),
        pipeline="Ideogram4Pipeline",
        note="uncond is another model of the same class, unconditional_transformer, that gets no text tokens at all",
    ),
    Case(
        transformer="Krea2Transformer2DModel",
        config=dict(
            TINY,
            in_channels=4,
            num_layers=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=8,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(2, 2, 4),
        ),
        inputs=krea,
        layers={"transformer_blocks.*.attn": both("single", text=TEXT, latent=LATENT)},
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="Krea2Pipeline",
    ),
    Case(
        transformer="Lumina2Transformer2DModel",
        config=dict(
            sample_size=16,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=8,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(32, 16, 16),
            cap_feat_dim=6,
        ),
        inputs=lumina2,
        layers={
            "noise_refiner.*.attn": itself(),
            "layers.*.attn": both("single", text=TEXT, latent=LATENT),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="Lumina2Pipeline",
        note="padding of the text is left out before the layers: 9 tokens come in, 7 are attended to",
    ),
    Case(
        transformer="OmniGenTransformer2DModel",
        config=dict(
            in_channels=4,
            hidden_size=16,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=32,
            num_layers=2,
            pad_token_id=0,
            vocab_size=20,
            time_step_dim=8,
            pos_embed_max_size=16,
            rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4},
        ),
        inputs=omnigen,
        layers={"layers.*.self_attn": both("single", text=TEXT + 1, latent=LATENT)},
        branches=("cond", "uncond"),
        pipeline="OmniGenPipeline",
        note="the timestep is the token between text and latents; with pictures a third branch follows",
    ),
    Case(
        transformer="ZImageTransformer2DModel",
        config=dict(
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=6,
            axes_dims=[4, 6, 6],
            axes_lens=[128, 16, 16],
        ),
        inputs=z_image,
        layers={
            "noise_refiner.*.attention": itself(64),
            "layers.*.attention": both("single", latent=64, text=32),
        },
        branches=("cond", "uncond"),
        pipeline="ZImagePipeline",
        note="latents and text are each filled up to a multiple of 32",
    ),
    Case(
        transformer="QwenImage21Transformer2DModel",
        config=QWEN21,
        inputs=qwen_image21,
        layers={"transformer_blocks.*.attn": both("single", text=TEXT, latent=LATENT)},
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="QwenImage21Pipeline",
        note="the first call: text attends to itself first, then the latents attend to both",
    ),
    Case(
        transformer="QwenImage21Transformer2DModel",
        config=QWEN21,
        inputs=qwen_image21_later,
        layers={
            "transformer_blocks.*.attn": Expected("single", kv={"text": TEXT, "latent": LATENT}, a={"latent": LATENT})
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="QwenImage21Pipeline",
        note="a later call, as the pipeline makes them by default: only latents come in, the text is remembered",
    ),
    Case(
        transformer="PriorTransformer",
        config=dict(TINY, num_layers=2, embedding_dim=6, num_embeddings=TEXT, additional_embeddings=4),
        inputs=prior,
        layers={"transformer_blocks.*.attn1": both("single", text=TEXT + 2, latent=2)},
        pipeline="KandinskyPriorPipeline",
        note="text, pooled text, timestep; then the embedding that is denoised, and the token that is read out for it",
    ),
]

# Text in a layer of its own -------------------------------------------------------------------------------------------


def dit(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=picture(batch, 4, SQUARE),
        timestep=step(batch).long(),
        class_labels=torch.tensor([3] * (batch - batch // 2) + [10] * (batch // 2)),
        return_dict=False,
    )


def pixart(batch: int) -> dict[str, Any]:
    return text_to_picture(
        batch,
        encoder_attention_mask=mask(batch, TEXT, TEXT - 2).long(),
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )


def sana(batch: int) -> dict[str, Any]:
    return text_to_picture(batch, encoder_attention_mask=mask(batch, TEXT, TEXT - 2).long(), attention_kwargs=None)


def hunyuan_dit(batch: int) -> dict[str, Any]:
    return text_to_picture(
        batch,
        text_embedding_mask=mask(batch, TEXT, TEXT - 2).long(),
        encoder_hidden_states_t5=texts(batch, 4, 8, seed=2),
        text_embedding_mask_t5=mask(batch, 4, 3).long(),
        image_meta_size=torch.tensor([[64.0, 96.0, 64.0, 96.0, 0.0, 0.0]]).repeat(batch, 1),
        style=torch.zeros(batch, dtype=torch.long),
        image_rotary_emb=get_2d_rotary_pos_embed(8, ((0, 0), GRID), GRID, output_type="pt"),
    )


def lumina(batch: int) -> dict[str, Any]:
    given = text_to_picture(
        batch,
        encoder_mask=mask(batch, TEXT, TEXT - 2).long(),
        image_rotary_emb=get_2d_rotary_pos_embed_lumina(8, 16, 16),
        cross_attention_kwargs={},
    )
    return given | {"timestep": step(batch, 0.5)}


def kandinsky5(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, 1, GRID[0] * 2, GRID[1] * 2, 4),
        encoder_hidden_states=texts(batch, TEXT, 6),
        timestep=step(batch),
        pooled_projections=texts(batch, 5, seed=2),
        visual_rope_pos=[torch.arange(size) for size in (1, *GRID)],
        text_rope_pos=torch.arange(TEXT),
        scale_factor=[1.0, 1.0, 1.0],
        sparse_params=None,
        return_dict=False,
    )


def vq_diffusion(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=torch.arange(16).remainder(10).repeat(batch, 1),
        encoder_hidden_states=texts(batch, TEXT, 6),
        timestep=torch.tensor(50),
        return_dict=False,
    )


def dreamlite(batch: int) -> dict[str, Any]:
    return dict(
        hidden_states=latents(batch, 8, *GRID),
        encoder_hidden_states=texts(batch, TEXT, 6),
        encoder_attention_mask=None,
        return_dict=False,
    )


CROSS = [
    Case(
        transformer="DiTTransformer2DModel",
        config=dict(TINY, in_channels=4, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=10),
        inputs=dit,
        layers={"transformer_blocks.*.attn1": itself(16)},
        branches=("cond", "uncond"),
        pipeline="DiTPipeline",
        note="a class, no text",
    ),
    Case(
        transformer="PixArtTransformer2DModel",
        config=dict(
            TINY, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=16, sample_size=8, caption_channels=6
        ),
        inputs=pixart,
        layers={"transformer_blocks.*.attn1": itself(), "transformer_blocks.*.attn2": cross(TEXT)},
        pipeline="PixArtAlphaPipeline",
    ),
    Case(
        transformer="SanaTransformer2DModel",
        config=dict(
            TINY,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=6,
            sample_size=8,
            patch_size=2,
        ),
        inputs=sana,
        layers={
            "transformer_blocks.*.attn1": Expected("linear", kv={"latent": LATENT}, a={"latent": LATENT}),
            "transformer_blocks.*.attn2": cross(TEXT),
        },
        pipeline="SanaPipeline",
    ),
    Case(
        transformer="HunyuanDiT2DModel",
        config=dict(
            TINY,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=16,
            num_layers=4,
            mlp_ratio=2.0,
            cross_attention_dim=6,
            cross_attention_dim_t5=8,
            pooled_projection_dim=6,
            text_len=TEXT,
            text_len_t5=4,
        ),
        inputs=hunyuan_dit,
        layers={"blocks.*.attn1": itself(), "blocks.*.attn2": cross(TEXT + 4)},
        pipeline="HunyuanDiTPipeline",
    ),
    Case(
        transformer="LuminaNextDiT2DModel",
        config=dict(
            sample_size=16,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=8,
            cross_attention_dim=6,
        ),
        inputs=lumina,
        layers={"layers.*.attn1": itself(), "layers.*.attn2": cross(TEXT)},
        branches=("cond", "uncond"),
        pipeline="LuminaPipeline",
        note="attention returns its heads apart; attn1 is given the latents as encoder_hidden_states too",
    ),
    Case(
        transformer="Kandinsky5Transformer3DModel",
        config=dict(
            in_visual_dim=4,
            in_text_dim=6,
            in_text_dim2=5,
            time_dim=8,
            out_visual_dim=4,
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(4, 2, 2),
        ),
        inputs=kandinsky5,
        layers={
            "visual_transformer_blocks.*.self_attention": itself(),
            "visual_transformer_blocks.*.cross_attention": cross(TEXT),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="Kandinsky5T2IPipeline",
    ),
    Case(
        transformer="Transformer2DModel",
        config=dict(
            TINY,
            num_layers=2,
            cross_attention_dim=6,
            sample_size=4,
            num_vector_embeds=10,
            num_embeds_ada_norm=100,
            norm_type="ada_norm",
        ),
        inputs=vq_diffusion,
        layers={"transformer_blocks.*.attn1": itself(16), "transformer_blocks.*.attn2": cross(TEXT, 16)},
        pipeline="VQDiffusionPipeline",
        note="latents are indices into a codebook; elsewhere the class is a part of UNets",
    ),
    Case(
        transformer="DreamLiteTransformer2DModel",
        config=dict(TINY, in_channels=8, num_layers=2, norm_num_groups=4, cross_attention_dim=6),
        inputs=dreamlite,
        layers={"transformer_blocks.*.attn1": itself(), "transformer_blocks.*.attn2": cross(TEXT)},
        pipeline="DreamLitePipeline",
        note="a part of DreamLiteUNetModel, which is what the pipeline calls",
    ),
]

CASES: list[Case] = [*FLUXES, *JOINT, *SINGLE, *CROSS]

"""Transformers of diffusers that make videos.

Latent grids are small and odd, so that no two streams of a layer have the same number of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMRefinerKVCache
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

from .case import Case, Expected


def noise(batch: int, *shape: int, seed: int = 1) -> Tensor:
    """Random values of this shape, the same in each element of the batch."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed)).repeat(batch, *[1] * len(shape))


def texts(batch: int, *shape: int, seed: int = 2) -> Tensor:
    """Random values of this shape, different in each element of the batch; the same whatever the size of the batch."""
    rng = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(*shape, generator=rng) for _ in range(batch)])


def at(batch: int, timestep: float = 500.0) -> Tensor:
    """The timestep, once for each element of the batch."""
    return torch.full((batch,), timestep)


def only(type_: str, kv: dict[str, int], tokens: int) -> Expected:
    """A layer whose output is all latent."""
    return Expected(type_, kv, {"latent": tokens})


def both(type_: str, **tokens: int) -> Expected:
    """A layer that gives an output for every token it attends to."""
    return Expected(type_, tokens, tokens)


def self_and_cross(
    latent: int, text: int, blocks: str = "transformer_blocks", names: tuple[str, str] = ("attn1", "attn2")
) -> dict[str, Expected]:
    """The layers of a model that attends to its latent tokens, then to the text."""
    return {
        f"{blocks}.*.{names[0]}": only("self", {"latent": latent}, latent),
        f"{blocks}.*.{names[1]}": only("cross", {"text": text}, latent),
    }


def _allegro(batch: int) -> dict[str, Any]:
    frames, height, width, channels = 2, 3, 2, 6
    grid = [axis.flatten() for axis in torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")]
    axis_freqs = torch.ones(max(frames, height, width), channels), torch.zeros(max(frames, height, width), channels)
    return {
        "hidden_states": noise(batch, 4, frames, height * 2, width * 2),
        "encoder_hidden_states": texts(batch, 1, 5, 8),  # the pipeline puts an axis before the tokens
        "encoder_attention_mask": torch.ones(batch, 5),
        "timestep": at(batch),
        "image_rotary_emb": ((axis_freqs,) * 3, tuple(axis[None] for axis in grid)),
        "return_dict": False,
    }


def _cogvideox(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 2, 4, 6, 4),
        "encoder_hidden_states": texts(batch, 5, 8),
        "timestep": at(batch),
        "return_dict": False,
    }


def _consisid(batch: int) -> dict[str, Any]:
    return {
        **_cogvideox(batch),
        "id_vit_hidden": [noise(batch, 4, 8, seed=seed) for seed in (3, 4)],
        "id_cond": noise(batch, 8, seed=5),
    }


def _latte(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 3, 8, 8),
        "encoder_hidden_states": texts(batch, 5, 8),
        "timestep": at(batch),
        "enable_temporal_attentions": True,
        "return_dict": False,
    }


def _mochi(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "encoder_hidden_states": texts(batch, 7, 16),
        "timestep": at(batch),
        "encoder_attention_mask": (torch.arange(7) < 5).repeat(batch, 1),
        "return_dict": False,
    }


def _wan(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 5, 16),
        "return_dict": False,
    }


def _wan_image(batch: int) -> dict[str, Any]:
    return {
        **_wan(batch),
        "encoder_hidden_states": texts(batch, 512, 16),  # the class takes the last 512 tokens for the text
        "encoder_hidden_states_image": noise(batch, 7, 8, seed=3),
    }


_WAN: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
_WAN_IMAGE = {**_WAN, "image_dim": 8, "added_kv_proj_dim": 24}
_WAN_IMAGE_LAYERS = {
    "blocks.*.attn1": only("self", {"latent": 12}, 12),
    "blocks.*.attn2": only("cross", {"image": 7, "text": 512}, 12),
}


def _ltx(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 12, 4),
        "encoder_hidden_states": texts(batch, 5, 8),
        "timestep": at(batch),
        "encoder_attention_mask": torch.ones(batch, 5),
        "num_frames": 2,
        "height": 3,
        "width": 2,
        "return_dict": False,
    }


def _anyflow(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 2, 4, 6, 4),  # frames before channels
        "timestep": at(batch)[:, None].repeat(1, 2),
        "r_timestep": at(batch, 400.0)[:, None].repeat(1, 2),
        "encoder_hidden_states": texts(batch, 5, 16),
        "return_dict": False,
    }


def _anyflow_far(batch: int) -> dict[str, Any]:
    """The second of two chunks (of one and two frames), with the first in the cache, as the pipeline denoises it."""
    caches = [
        {"compressed_cache": torch.zeros(2, batch, 2, 4, 12), "full_cache": noise(batch, 2, 2, 18, 12).transpose(0, 1)}
        for _ in range(2)
    ]
    return {
        "hidden_states": noise(batch, 2, 4, 6, 4),
        "timestep": at(batch)[:, None].repeat(1, 2),
        "r_timestep": at(batch, 400.0)[:, None].repeat(1, 2),
        "encoder_hidden_states": texts(batch, 5, 16),
        "chunk_partition": [1, 2],
        "kv_cache": caches,
        "kv_cache_flag": {"num_cached_chunks": 1, "is_cache_step": False},
        "return_dict": False,
    }


def _hunyuan(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 5, 16),
        "encoder_attention_mask": (torch.arange(5) < 4).repeat(batch, 1),
        "pooled_projections": texts(batch, 8, seed=3),
        "guidance": at(batch, 6000.0),
        "return_dict": False,
    }


_HUNYUAN: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_layers": 1,
    "num_single_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}


def _framepack(batch: int) -> dict[str, Any]:
    """Two new frames after one clean first and one clean last, two of history at half and four at quarter size."""
    return {
        **_hunyuan(batch),
        "hidden_states": noise(batch, 4, 2, 8, 8),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.int64),
        "image_embeds": noise(batch, 3, 8, seed=4),
        "indices_latents": torch.arange(8, 10),
        "latents_clean": noise(batch, 4, 2, 8, 8, seed=5),
        "indices_latents_clean": torch.tensor([0, 7]),
        "latents_history_2x": noise(batch, 4, 2, 8, 8, seed=6),
        "indices_latents_history_2x": torch.arange(5, 7),
        "latents_history_4x": noise(batch, 4, 4, 8, 8, seed=7),
        "indices_latents_history_4x": torch.arange(1, 5),
    }


def _hunyuan15(batch: int) -> dict[str, Any]:
    """Without a picture the pipeline passes zeros for it; they become padding behind the text."""
    return {
        "hidden_states": noise(batch, 9, 2, 3, 2),
        "image_embeds": torch.zeros(batch, 3, 8),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 5, 16),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.int64),
        "encoder_hidden_states_2": texts(batch, 6, 12, seed=3),
        "encoder_attention_mask_2": torch.ones(batch, 6, dtype=torch.int64),
        "return_dict": False,
    }


def _cosmos(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 5, 16),
        "fps": 30,
        "return_dict": False,
    }


_COSMOS: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "mlp_ratio": 2,
    "text_embed_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 8, 8),
    "rope_scale": (2.0, 1.0, 1.0),
    "concat_padding_mask": False,  # the only use of torchvision in the class
    "extra_pos_embed_type": None,
}


def _cosmos3(batch: int) -> dict[str, Any]:
    """The text, then the video, then its sound in one sequence without a batch axis."""
    if batch != 1:
        raise ValueError("this class takes one prompt at a time")
    text, grid, sound = 5, (2, 3, 2), 7
    latent = grid[0] * grid[1] * grid[2]
    video_at, sound_at = torch.arange(text, text + latent), torch.arange(text + latent, text + latent + sound)
    return {
        "input_ids": torch.arange(1, text + 1),
        "text_indexes": torch.arange(text),
        "position_ids": torch.arange(text + latent + sound).repeat(3, 1),
        "und_len": text,
        "sequence_length": text + latent + sound,
        "vision_tokens": [noise(1, 4, 2, 6, 4)],
        "vision_token_shapes": [grid],
        "vision_sequence_indexes": video_at,
        "vision_mse_loss_indexes": video_at,
        "vision_timesteps": at(latent),
        "vision_noisy_frame_indexes": [torch.arange(grid[0])],
        "sound_tokens": [noise(1, 3, sound)[0]],
        "sound_token_shapes": [(sound, 1, 1)],
        "sound_sequence_indexes": sound_at,
        "sound_mse_loss_indexes": sound_at,
        "sound_timesteps": at(sound),
        "sound_noisy_frame_indexes": [torch.arange(sound)],
        "return_dict": False,
    }


def _easyanimate(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 5, 16),
        "return_dict": False,
    }


def _helios(batch: int) -> dict[str, Any]:
    """Two new frames of six tokens, with a history of one frame at full, two at half and four at quarter size."""
    frames = torch.arange(9).repeat(batch, 1)
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "timestep": at(batch).long(),
        "encoder_hidden_states": texts(batch, 5, 16),
        "indices_hidden_states": frames[:, 7:9],
        "indices_latents_history_short": frames[:, 6:7],
        "indices_latents_history_mid": frames[:, 4:6],
        "indices_latents_history_long": frames[:, 0:4],
        "latents_history_short": noise(batch, 4, 1, 6, 4, seed=3),
        "latents_history_mid": noise(batch, 4, 2, 6, 4, seed=4),
        "latents_history_long": noise(batch, 4, 4, 6, 4, seed=5),
        "return_dict": False,
    }


def _kandinsky6(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 2, 6, 4, 9),  # channels last: latent, condition, mask
        "audio_hidden_states": noise(batch, 7, 3),
        "encoder_hidden_states": texts(batch, 5, 16),
        "pooled_projections": texts(batch, 8, seed=3),
        "timestep": at(batch),
        "visual_rope_pos": tuple(torch.arange(size) for size in (2, 3, 2)),
        "encoder_attention_mask": None,
        "visual_token_type_ids": None,
        "return_dict": False,
    }


def _kandinsky6_sr(batch: int) -> dict[str, Any]:
    return {"hidden_states": noise(batch, 2, 8, 8, 9), "timestep": at(batch), "return_dict": False}


def _ltx2(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 12, 4),
        "audio_hidden_states": noise(batch, 7, 3),
        "encoder_hidden_states": texts(batch, 5, 16),
        "audio_encoder_hidden_states": texts(batch, 5, 16, seed=3),
        "timestep": at(batch),
        "sigma": at(batch),
        "encoder_attention_mask": torch.ones(batch, 5),
        "audio_encoder_attention_mask": torch.ones(batch, 5),
        "num_frames": 2,
        "height": 3,
        "width": 2,
        "fps": 24.0,
        "audio_num_frames": 7,
        "return_dict": False,
    }


_LTX2: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 16,
    "audio_in_channels": 3,
    "audio_out_channels": 3,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "num_layers": 2,
    "caption_channels": 16,
    "rope_double_precision": False,
}


def _minimax_h3(batch: int) -> dict[str, Any]:
    """Text, sound and video in one sequence, in this order."""
    text, audio, latent = 5, 7, 12
    ends = torch.tensor([0, text, text + audio, text + audio + latent])
    return {
        "hidden_states": noise(batch, latent, 16),
        "audio_hidden_states": noise(batch, audio, 3),
        "encoder_hidden_states": texts(batch, text, 16),
        "timestep": torch.tensor([0.5]),
        "timestep_indices": torch.zeros(text + audio + latent, dtype=torch.int64),
        "token_tags": torch.tensor([1] * text + [2] * audio + [0] * latent),
        "position_ids": torch.arange(text + audio + latent)[:, None].repeat(1, 3),
        "text_indices": torch.arange(ends[0], ends[1]),
        "audio_indices": torch.arange(ends[1], ends[2]),
        "video_indices": torch.arange(ends[2], ends[3]),
        "return_dict": False,
    }


def _motif(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 9, 2, 6, 4),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 5, 16),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.int64),
        "return_dict": False,
    }


def _sana_video(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 2, 6, 4),
        "encoder_hidden_states": texts(batch, 5, 8),
        "encoder_attention_mask": torch.ones(batch, 5),
        "timestep": at(batch),
        "return_dict": False,
    }


def _sana_wm(batch: int) -> dict[str, Any]:
    """Two frames of six tokens, seen by a camera that does not move."""
    camera = torch.cat([torch.eye(4).flatten(), torch.tensor([2.0, 2.0, 1.0, 1.5])])
    return {
        "hidden_states": noise(batch, 4, 2, 3, 2),
        "timestep": at(batch)[:, None, None].repeat(1, 1, 2),
        "encoder_hidden_states": texts(batch, 1, 5, 8),
        "mask": torch.ones(batch, 5, dtype=torch.int64),
        "camera_conditions": camera.repeat(batch, 2, 1),
        "chunk_plucker": noise(batch, 6, 2, 3, 2, seed=3),
        "return_dict": False,
    }


def _sana_wm_refiner(batch: int) -> dict[str, Any]:
    """A block of twelve tokens after a first frame of four and a history of eight, kept as keys and values."""
    cache = SanaWMRefinerKVCache(2)
    for layer in cache.layer_caches:
        layer.store_sink(noise(batch, 4, 16, seed=4), noise(batch, 4, 16, seed=5))
        layer.store_history(noise(batch, 8, 16, seed=6), noise(batch, 8, 16, seed=7))
    cache.sink_pe = torch.ones(batch, 4, 16), torch.zeros(batch, 4, 16)
    return {
        "hidden_states": noise(batch, 12, 4),
        "encoder_hidden_states": texts(batch, 5, 16),
        "timestep": at(batch)[:, None].repeat(1, 12),
        "video_rotary_emb": (torch.ones(batch, 12, 16), torch.zeros(batch, 12, 16)),
        "encoder_attention_mask": torch.ones(batch, 5),
        "kv_cache": cache,
        "kv_cache_mode": "inject",
        "return_dict": False,
    }


def _temporal(batch: int) -> dict[str, Any]:
    return {"hidden_states": noise(batch, 3, 8, 4, 2).flatten(0, 1), "num_frames": 3, "return_dict": False}


def _wan_animate(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 12, 2, 6, 4),
        "timestep": at(batch),
        "encoder_hidden_states": texts(batch, 512, 16),
        "encoder_hidden_states_image": noise(batch, 7, 8, seed=3),
        "pose_hidden_states": noise(batch, 4, 1, 6, 4, seed=4),
        "face_pixel_values": noise(batch, 3, 4, 16, 16, seed=5),
        "return_dict": False,
    }


def _wan_animate_2(batch: int) -> dict[str, Any]:
    """The pass over the driving video; those that denoise would first compile a mask for the flex backend."""
    return {
        "hidden_states": [*noise(batch, 4, 2, 6, 4)],
        "timestep": at(batch),
        "encoder_hidden_states": [*texts(batch, 5, 16)],
        "encoder_hidden_states_image": noise(batch, 7, 1280, seed=3),
        "condition_latents": [*noise(batch, 8, 2, 6, 4, seed=4)],
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 12,
        "offset_grid_sizes": torch.tensor([[2, 3, 2]]),
        "return_dict": False,
    }


def _wan_vace(batch: int) -> dict[str, Any]:
    return {
        **_wan(batch),
        "control_hidden_states": noise(batch, 6, 2, 6, 4, seed=3),
        "control_hidden_states_scale": torch.ones(2),
    }


CASES: list[Case] = [
    Case(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 18,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 36,
            "sample_width": 4,
            "sample_height": 6,
            "sample_frames": 2,
            "caption_channels": 8,
        },
        _allegro,
        self_and_cross(12, 5),
        pipeline="AllegroPipeline",
        note="encoder_hidden_states has four axes at the root: (batch, 1, token, channel)",
    ),
    Case(
        "AnyFlowTransformer3DModel",
        {**_WAN},
        _anyflow,
        self_and_cross(12, 5, "blocks"),
        pipeline="AnyFlowPipeline",
    ),
    Case(
        "AnyFlowFARTransformer3DModel",
        {**_WAN, "full_chunk_limit": 3, "compressed_patch_size": (1, 4, 4)},
        _anyflow_far,
        {
            "blocks.*.attn1": only("self", {"latent": 18}, 12),
            "blocks.*.attn2": only("cross", {"text": 5}, 12),
        },
        pipeline="AnyFlowFARPipeline",
        note="self-attention runs on the flex backend alone, never scaled_dot_product_attention",
    ),
    Case(
        "ChronoEditTransformer3DModel",
        {**_WAN_IMAGE, "rope_temporal_skip_len": 4},
        _wan_image,
        _WAN_IMAGE_LAYERS,
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="ChronoEditPipeline",
    ),
    Case(
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": 8,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 6,
            "sample_frames": 5,
            "max_text_seq_length": 5,
        },
        _cogvideox,
        {"transformer_blocks.*.attn1": both("joint", text=5, latent=12)},
        contexts=True,
        pipeline="CogVideoXPipeline",
    ),
    Case(
        "ConsisIDTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": 8,
            "num_layers": 2,
            "sample_width": 4,
            "sample_height": 6,
            "sample_frames": 5,
            "max_text_seq_length": 5,
            "is_train_face": True,
            "cross_attn_interval": 1,
            "cross_attn_dim_head": 8,
            "cross_attn_num_heads": 1,
            "LFE_id_dim": 8,
            "LFE_vit_dim": 8,
            "LFE_depth": 2,
            "LFE_dim_head": 8,
            "LFE_num_heads": 1,
            "LFE_num_id_token": 2,
            "LFE_num_querie": 3,
            "LFE_output_dim": 32,
            "LFE_ff_mult": 1,
            "LFE_num_scale": 2,
        },
        _consisid,
        {"transformer_blocks.*.attn1": both("joint", text=5, latent=12)},
        pipeline="ConsisIDPipeline",
    ),
    Case(
        "HunyuanVideoTransformer3DModel",
        _HUNYUAN,
        _hunyuan,
        {
            "transformer_blocks.*.attn": both("joint", latent=12, text=5),
            "single_transformer_blocks.*.attn": both("joint", latent=12, text=5),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="HunyuanVideoPipeline",
        note="guidance is distilled; a second call only with true_cfg_scale above 1 and a negative prompt",
    ),
    Case(
        "HunyuanVideo15Transformer3DModel",
        {
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "text_embed_2_dim": 12,
            "image_embed_dim": 8,
            "rope_axes_dim": (2, 4, 4),
        },
        _hunyuan15,
        {"transformer_blocks.*.attn": both("joint", latent=12, text=14)},
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="HunyuanVideo15Pipeline",
        note="text is 6 tokens of the second encoder, 5 of the first, 3 of the absent picture (zeros, masked)",
    ),
    Case(
        "HunyuanVideoFramepackTransformer3DModel",
        {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        _framepack,
        {
            "transformer_blocks.*.attn": both("joint", latent=69, image=3, text=5),
            "single_transformer_blocks.*.attn": both("joint", latent=69, image=3, text=5),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="HunyuanVideoFramepackPipeline",
    ),
    Case(
        "LatteTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "cross_attention_dim": 16,
            "sample_size": 8,
            "patch_size": 2,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "attention_bias": True,
            "caption_channels": 8,
            "video_length": 3,
        },
        _latte,
        {
            "transformer_blocks.*.attn1": only("spatial", {"latent": 3 * 16}, 3 * 16),
            "transformer_blocks.*.attn2": only("cross", {"text": 3 * 5}, 3 * 16),
            "temporal_transformer_blocks.*.attn1": only("temporal", {"latent": 16 * 3}, 16 * 3),
        },
        pipeline="LattePipeline",
    ),
    Case(
        "LTXVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "num_layers": 2,
            "caption_channels": 8,
        },
        _ltx,
        self_and_cross(12, 5),
        contexts=True,
        pipeline="LTXPipeline",
    ),
    Case(
        "MochiTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "pooled_projection_dim": 8,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 4,
            "max_sequence_length": 7,
        },
        _mochi,
        {
            "transformer_blocks.*.attn1": Expected("joint", {"latent": 12, "text": 5}, {"latent": 12, "text": 5}),
        },
        contexts=True,
        pipeline="MochiPipeline",
        note="attends once for each element, to the 5 valid of 7 text tokens; the 2 of the output are left out",
    ),
    Case(
        "SkyReelsV2Transformer3DModel",
        _WAN,
        _wan,
        self_and_cross(12, 5, "blocks"),
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="SkyReelsV2Pipeline",
    ),
    Case(
        "WanTransformer3DModel",
        _WAN,
        _wan,
        self_and_cross(12, 5, "blocks"),
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="WanPipeline",
    ),
    Case(
        "WanTransformer3DModel",
        _WAN_IMAGE,
        _wan_image,
        _WAN_IMAGE_LAYERS,
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="WanImageToVideoPipeline",
        note="with a picture: cross-attention attends to it first, then to the text",
    ),
    Case(
        "CosmosTransformer3DModel",
        _COSMOS,
        _cosmos,
        self_and_cross(12, 5),
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="CosmosTextToWorldPipeline",
        note="this pipeline calls scheduler.step twice in each step; those of Cosmos 2 and 2.5 once",
    ),
    Case(
        "CosmosTransformer3DModel",
        {**_COSMOS, "img_context_dim_in": 8, "img_context_num_tokens": 7, "img_context_dim_out": 32},
        lambda batch: {**_cosmos(batch), "encoder_hidden_states": (texts(batch, 5, 16), noise(batch, 7, 8, seed=3))},
        {
            "transformer_blocks.*.attn1": only("self", {"latent": 12}, 12),
            "transformer_blocks.*.attn2": only("cross", {"text": 5, "image": 7}, 12),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="Cosmos2_5_TransferPipeline",
        note="attn2 gets a tuple as encoder_hidden_states: the text, which it attends to first, and a picture",
    ),
    Case(
        "Cosmos3OmniTransformer",
        {
            "head_dim": 8,
            "hidden_size": 16,
            "intermediate_size": 16,
            "latent_channel": 4,
            "latent_patch_size": 2,
            "patch_latent_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "num_hidden_layers": 2,
            "rope_axes_dim": (2, 1, 1),
            "sound_gen": True,
            "sound_dim": 3,
            "vocab_size": 16,
        },
        _cosmos3,
        {"layers.*.self_attn": both("joint", text=5, latent=12, audio=7)},
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="Cosmos3OmniPipeline",
        note="attends twice: text to text, then video and sound to all; K, V of the second; outputs without batch axis",
    ),
    Case(
        "EasyAnimateTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 2,
            "mmdit_layers": 1,
            "time_embed_dim": 4,
            "text_embed_dim": 16,
        },
        _easyanimate,
        {"transformer_blocks.*.attn1": both("joint", text=5, latent=12)},
        pipeline="EasyAnimatePipeline",
        note="the output is latent first, although K and V have the text first",
    ),
    Case(
        "HeliosTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 16,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_dim": (4, 4, 4),
            "has_multi_term_memory_patch": True,
            "guidance_cross_attn": True,
            "zero_history_timestep": True,
        },
        _helios,
        {
            "blocks.*.attn1": only("self", {"latent": 21}, 21),
            "blocks.*.attn2": only("cross", {"text": 5}, 12),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="HeliosPipeline",
        note="self-attention has the history before the frames made now; cross-attention is for the latter alone",
    ),
    Case(
        "Kandinsky6Transformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 8,
            "model_dim": 24,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 4),
            "in_audio_dim": 3,
            "out_audio_dim": 3,
        },
        _kandinsky6,
        {
            "visual_transformer_blocks.*.video_dec_block.self_attention": only("self", {"latent": 12}, 12),
            "visual_transformer_blocks.*.video_dec_block.cross_attention": only("cross", {"text": 5}, 12),
            "visual_transformer_blocks.*.audio_dec_block.self_attention": both("self", audio=7),
            "visual_transformer_blocks.*.audio_dec_block.cross_attention": Expected("cross", {"text": 5}, {"audio": 7}),
            "visual_transformer_blocks.*.va_cross_attention": Expected("cross", {"audio": 7}, {"latent": 12}),
            "visual_transformer_blocks.*.av_cross_attention": Expected("cross", {"latent": 12}, {"audio": 7}),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="Kandinsky6TI2VAPipeline",
    ),
    Case(
        "Kandinsky6SRTransformer3DModel",
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "time_dim": 8,
            "model_dim": 32,
            "ff_dim": 32,
            "num_visual_blocks": 2,
            "axes_dims": (4, 6, 6),
        },
        _kandinsky6_sr,
        {"visual_transformer_blocks.*.self_attention": both("self", latent=128)},
        guidance="none",
        branches=("cond",),
        pipeline="Kandinsky6SRPipeline",
        note="runs on the flex backend alone, never scaled_dot_product_attention; a batch holds tiles of one video",
    ),
    Case(
        "LTX2VideoTransformer3DModel",
        _LTX2,
        _ltx2,
        {
            "transformer_blocks.*.attn1": only("self", {"latent": 12}, 12),
            "transformer_blocks.*.audio_attn1": both("self", audio=7),
            "transformer_blocks.*.attn2": only("cross", {"text": 5}, 12),
            "transformer_blocks.*.audio_attn2": Expected("cross", {"text": 5}, {"audio": 7}),
            "transformer_blocks.*.audio_to_video_attn": Expected("cross", {"audio": 7}, {"latent": 12}),
            "transformer_blocks.*.video_to_audio_attn": Expected("cross", {"latent": 12}, {"audio": 7}),
        },
        contexts=True,
        pipeline="LTX2Pipeline",
        note="up to two more calls in a step, of half the batch: uncond_stg, uncond_modality",
    ),
    Case(
        "MiniMaxH3Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 32,
            "in_channels": 4,
            "audio_in_channels": 3,
            "text_dim": 16,
            "freq_dim": 16,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
        _minimax_h3,
        {"transformer_blocks.*.attn": both("single", text=5, audio=7, latent=12)},
        guidance="none",
        branches=("cond",),
        pipeline="MiniMaxH3ModularPipeline",
    ),
    Case(
        "MotifVideoTransformer3DModel",
        {
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 2,
            "num_decoder_layers": 1,
            "text_embed_dim": 16,
            "rope_axes_dim": (2, 4, 4),
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        _motif,
        {
            "transformer_blocks.*.attn": both("joint", latent=12, text=5),
            "transformer_blocks.*.cross_attn": only("cross", {"text": 5}, 12),
            "single_transformer_blocks.0.attn": both("joint", latent=12, text=5),
            "single_transformer_blocks.0.cross_attn": only("cross", {"text": 5}, 12),
            "single_transformer_blocks.1.attn": both("joint", latent=24),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="MotifVideoPipeline",
        note="decoder blocks attend to the latents of both encoder and decoder, and to no text",
    ),
    Case(
        "SanaVideoTransformer3DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 8,
            "sample_size": 6,
            "rope_max_seq_len": 32,
        },
        _sana_video,
        {
            "transformer_blocks.*.attn1": only("linear", {"latent": 12}, 12),
            "transformer_blocks.*.attn2": only("cross", {"text": 5}, 12),
        },
        pipeline="SanaVideoPipeline",
    ),
    Case(
        "SanaWMTransformer3DModel",
        {
            "in_channels": 4,
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "softmax_every_n": 2,
            "linear_head_dim": 16,
            "chunk_plucker_channels": 6,
            "chunk_plucker_post_attn_blocks": 2,
            "caption_channels": 8,
            "mlp_ratio": 1.0,
            "image_size": 32,
        },
        _sana_wm,
        {
            "blocks.0.attn": only("linear", {"latent": 12}, 12),
            "blocks.1.attn": only("self", {"latent": 12}, 12),
            "blocks.*.cross_attn": only("cross", {"text": 5}, 12),
        },
        pipeline="SanaWMPipeline",
        note="blocks.*.attn is no attention module by diffusers' definition; blocks.1.attn attends once more, "
        "in rays of the camera",
    ),
    Case(
        "SanaWMLTX2RefinerTransformer3DModel",
        _LTX2,
        _sana_wm_refiner,
        {
            "transformer_blocks.*.attn1": only("self", {"latent": 24}, 12),
            "transformer_blocks.*.attn2": only("cross", {"text": 5}, 12),
        },
        guidance="none",
        branches=("cond",),
        pipeline="SanaWMLTX2Refiner",
        note="K and V have the first frame and the history before the block refined now; modules for audio never run",
    ),
    Case(
        "TransformerTemporalModel",
        {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 8, "num_layers": 2, "norm_num_groups": 4},
        _temporal,
        {"transformer_blocks.*.attn?": both("temporal", latent=3 * 8)},
        guidance="none",
        branches=("cond",),
        note="a motion module of U-Nets, no denoiser by itself; attn2 is self-attention too",
    ),
    Case(
        "WanAnimateTransformer3DModel",
        {
            **_WAN_IMAGE,
            "in_channels": 12,
            "latent_channels": 4,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 16,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        _wan_animate,
        _WAN_IMAGE_LAYERS,
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="WanAnimatePipeline",
    ),
    Case(
        "WanAnimate2Transformer3DModel",
        {
            "text_len": 9,
            "in_dim": 12,
            "dim": 24,
            "ffn_dim": 32,
            "freq_dim": 16,
            "text_dim": 16,
            "out_dim": 4,
            "num_heads": 2,
            "num_layers": 2,
        },
        _wan_animate_2,
        {
            "blocks.*.self_attn": only("self", {"latent": 12}, 12),
            "blocks.*.cross_attn": only("cross", {"text": 9, "image": 7}, 12),
        },
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="WanAnimate2ModularPipeline",
        note="self-attention of the denoising passes runs on the flex backend; text is padded to text_len",
    ),
    Case(
        "WanVACETransformer3DModel",
        {**_WAN, "vace_layers": [0, 1], "vace_in_channels": 6},
        _wan_vace,
        {**self_and_cross(12, 5, "vace_blocks"), **self_and_cross(12, 5, "blocks")},
        guidance="sequential",
        branches=("cond", "uncond"),
        contexts=True,
        pipeline="WanVACEPipeline",
        note="vace_blocks work on the control video, and run before all others",
    ),
]

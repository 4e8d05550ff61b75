"""Transformers of diffusers that make sound, and others that make neither pictures nor videos.

Tokens that are denoised are the stream `latent` here too; `audio` is another sound beside them.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from .case import Case
from .videos import at, both, noise, only, self_and_cross, texts


def _ace_step(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 12, 4),
        "timestep": at(batch, 0.5),
        "timestep_r": at(batch, 0.5),
        "encoder_hidden_states": texts(batch, 5, 16),
        "context_latents": noise(batch, 12, 8, seed=3),
        "return_dict": False,
    }


def _longcat_audio(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 12, 4),
        "encoder_hidden_states": texts(batch, 5, 16),
        "encoder_attention_mask": torch.ones(batch, 5, dtype=torch.bool),
        "timestep": at(batch, 0.5),
        "attention_mask": torch.ones(batch, 12, dtype=torch.bool),
        "latent_cond": noise(batch, 12, 4, seed=3),
        "return_dict": False,
    }


def _minimax_music(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 12),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": texts(batch, 12, 6),  # one vector for each latent token, joined along the channels
        "return_dict": False,
    }


def _minimax_codes(batch: int) -> dict[str, Any]:
    return {"inputs_embeds": texts(batch, 6, 16)}


def _stable_audio(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 12),
        "timestep": at(1),
        "encoder_hidden_states": texts(batch, 5 + 2, 8),  # the text, then when the sound starts and ends
        "global_hidden_states": noise(batch, 1, 16, seed=3),
        "rotary_embedding": get_1d_rotary_pos_embed(8, 12 + 1, use_real=True, repeat_interleave_real=False),
        "return_dict": False,
    }


def _stable_audio_3(batch: int) -> dict[str, Any]:
    return {
        "hidden_states": noise(batch, 4, 12),
        "timestep": at(batch, 0.5),
        "encoder_hidden_states": texts(batch, 5 + 1, 8),  # the text, then how long the sound is
        "global_hidden_states": noise(batch, 8, seed=3),
        "encoder_attention_mask": torch.ones(batch, 5 + 1, dtype=torch.int64),
        "return_dict": False,
    }


def _proteina(batch: int) -> dict[str, Any]:
    residues = torch.ones(batch, 12, dtype=torch.bool)
    return {
        "bb_ca": noise(batch, 12, 3),
        "local_latents": noise(batch, 12, 4, seed=2),
        "bb_ca_time": at(batch, 0.5),
        "local_latents_time": at(batch, 0.5),
        "padding_mask": residues,
        "conditioning": {"is_in_context_conditioning": ~residues, "supports_local_latent": residues},
        "recycle_depth": 2,
        "return_dict": False,
    }


def _t5_film(batch: int) -> dict[str, Any]:
    """The notes and the sound before, both encoded, and the sound that is made now."""
    return {
        "encodings_and_masks": [
            (texts(batch, 5, 16), torch.ones(batch, 5)),
            (noise(batch, 8, 16, seed=3), torch.ones(batch, 8)),
        ],
        "decoder_input_tokens": noise(batch, 12, 4),
        "decoder_noise_time": at(batch, 0.5),
    }


CASES: list[Case] = [
    Case(
        "AceStepTransformer1DModel",
        {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 12,
            "audio_acoustic_hidden_dim": 4,
            "patch_size": 2,
            "sliding_window": 4,
        },
        _ace_step,
        self_and_cross(6, 5, "layers", ("self_attn", "cross_attn")),
        branches=("cond", "uncond"),
        pipeline="AceStepPipeline",
        note="cond comes first in the batch; steps outside the interval of guidance have cond alone",
    ),
    Case(
        "LongCatAudioDiTTransformer",
        {"dit_dim": 16, "dit_depth": 2, "dit_heads": 2, "dit_text_dim": 16, "latent_dim": 4, "ff_mult": 1.0},
        _longcat_audio,
        self_and_cross(12, 5, "blocks", ("self_attn", "cross_attn")),
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="LongCatAudioDiTPipeline",
    ),
    Case(
        "MiniMaxMusic3Transformer1DModel",
        {
            "in_channels": 4,
            "condition_dim": 6,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "ff_inner_dim": 16,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        _minimax_music,
        {"transformer_blocks.*.attn": both("self", latent=1 + 12)},
        guidance="sequential",
        branches=("cond", "uncond"),
        pipeline="MiniMaxMusic3ModularPipeline",
        note="the timestep is a token before the latent ones; the text is in the channels",
    ),
    Case(
        "MiniMaxMusic3RVQDepthDecoder",
        {
            "hidden_size": 16,
            "num_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "audio_vocab_size": 8,
            "num_codebooks": 4,
        },
        _minimax_codes,
        {"layers.*.attn": both("self", latent=6)},
        guidance="none",
        branches=("cond",),
        pipeline="MiniMaxMusic3ModularPipeline",
        note="no denoiser: predicts the codes of one moment one after another, before the first step",
    ),
    Case(
        "StableAudioDiTModel",
        {
            "sample_size": 12,
            "in_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 1,
            "out_channels": 4,
            "cross_attention_dim": 16,
            "time_proj_dim": 8,
            "global_states_input_dim": 16,
            "cross_attention_input_dim": 8,
        },
        _stable_audio,
        self_and_cross(1 + 12, 5 + 2),
        pipeline="StableAudioPipeline",
        note="timestep and duration are one token before the latent ones",
    ),
    Case(
        "StableAudio3DiTModel",
        {
            "io_channels": 4,
            "embed_dim": 32,
            "depth": 2,
            "num_heads": 2,
            "cond_token_dim": 8,
            "global_cond_dim": 8,
            "local_add_cond_dim": 5,
            "timestep_features_dim": 8,
            "ff_mult": 1.0,
            "num_memory_tokens": 3,
        },
        _stable_audio_3,
        self_and_cross(3 + 12, 5 + 1, names=("self_attn", "cross_attn")),
        pipeline="StableAudio3Pipeline",
        note="attends twice and subtracts: K, V of the first; learned memory tokens come before the latent ones",
        first_call=True,
    ),
    Case(
        "RFD4ProteinaTransformer",
        {
            "nlayers": 2,
            "token_dim": 16,
            "nheads": 2,
            "dim_cond": 8,
            "pair_repr_dim": 8,
            "latent_dim": 4,
            "t_emb_dim": 8,
            "tri_mult_c": 4,
            "feats_seq": ("xt_bb_ca", "xt_local_latents"),
            "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"),
            "feats_pair_repr": ("xt_bb_ca_pair_dists",),
            "feats_pair_cond": ("time_emb_bb_ca", "time_emb_local_latents"),
        },
        _proteina,
        {"transformer_layers.*.mhba.mha": both("self", latent=12)},
        guidance="none",
        branches=("cond",),
        pipeline="RFD4ProteinaPipeline",
        note="makes proteins; every layer runs recycle_depth times in a call",
        first_call=True,
    ),
    Case(
        "T5FilmDecoder",
        {
            "input_dims": 4,
            "targets_length": 12,
            "d_model": 16,
            "num_layers": 2,
            "num_heads": 2,
            "d_kv": 8,
            "d_ff": 16,
        },
        _t5_film,
        {
            "decoders.*.layer.0.attention": both("self", latent=12),
            "decoders.*.layer.1.attention": only("cross", {"text": 5, "audio": 8}, 12),
        },
        guidance="none",
        branches=("cond",),
        pipeline="SpectrogramDiffusionPipeline",
        note="multiplies and takes the softmax itself, never scaled_dot_product_attention; notes stand for the text",
    ),
]

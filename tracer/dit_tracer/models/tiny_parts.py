"""What the twins of several families have in common: a tokenizer, text encoders, an autoencoder for images."""

from __future__ import annotations

from functools import cache

import diffusers
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dit_tracer.models.catalog import twin_captions

WIDTH = 32
"""Channels of text encoders and transformers: two heads of 16."""

TEXT_TOKENS = 32
"""Length that most tokenizers pad and cut to."""

_SPECIAL = ("<pad>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")
_VOCABULARY = 512
_IDS = {"vocab_size": _VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_T5 = {
    "vocab_size": _VOCABULARY,
    "d_model": WIDTH,
    "d_kv": WIDTH // 2,
    "d_ff": 2 * WIDTH,
    "num_layers": 2,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
_DECODER = _IDS | {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 3,  # some pipelines take the last but one
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}

_CHAT = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}"""


@cache
def _pairs() -> Tokenizer:
    """Byte pairs: any text can be written, and the words of the built-in captions are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(twin_captions(64), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def tokenizer(length: int = TEXT_TOKENS) -> PreTrainedTokenizerFast:
    """One for all encoders, of a class that takes its vocabulary from memory in every version of transformers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_pairs(),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        chat_template=_CHAT,
    )


def t5() -> transformers.T5EncoderModel:
    return transformers.T5EncoderModel(transformers.T5Config(**_T5))


def umt5() -> transformers.UMT5EncoderModel:
    return transformers.UMT5EncoderModel(transformers.UMT5Config(**_T5))


def clip(width: int = WIDTH, projected: bool = False) -> transformers.PreTrainedModel:
    config = transformers.CLIPTextConfig(
        **_IDS,
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
    )
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def gemma() -> transformers.Gemma2Model:
    config = transformers.Gemma2Config(**_DECODER, head_dim=WIDTH // 2, query_pre_attn_scalar=WIDTH // 2)
    return transformers.Gemma2Model(config)


def qwen3() -> transformers.Qwen3Model:
    return transformers.Qwen3Model(transformers.Qwen3Config(**_DECODER, head_dim=WIDTH // 2))


def qwen_vl() -> transformers.Qwen2_5_VLForConditionalGeneration:
    rope = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_DECODER | {"rope_scaling": rope},
        vision_config=vision,
        vision_start_token_id=_VOCABULARY,  # no image is ever given
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def image_vae(levels: int = 2, **further: object) -> diffusers.AutoencoderKL:
    """Four latent channels, `2 ** (levels - 1)` pixels a latent."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        latent_channels=4,
        norm_num_groups=2,
        **further,
    )

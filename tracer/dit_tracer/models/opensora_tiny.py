"""Open-Sora in miniature: the pipeline with few, random weights, made in memory."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_tracer.models.opensora_network import STDiT3
from dit_tracer.models.opensora_pipeline import OpenSoraPipeline
from dit_tracer.models.opensora_schedule import RectifiedFlowScheduler

TEXT_WIDTH = 32


def tiny_opensora(seed: int = 0) -> OpenSoraPipeline:
    """A pipeline that takes every argument of the real one; two spatial and two temporal blocks, 200,000 weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = STDiT3(hidden_size=48, depth=2, num_heads=3, caption_channels=TEXT_WIDTH).eval()
        _liven(transformer)
        text_encoder = _text_encoder().eval()
    return OpenSoraPipeline(_tokenizer(), text_encoder, transformer, RectifiedFlowScheduler())


@torch.no_grad()
def _liven(transformer: STDiT3) -> None:
    """Larger weights where fresh ones are small: attention that chooses, and all of it different at every step."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("qkv", "q_linear", "kv_linear", "mlp.0", "mlp.2")):
            module.weight *= 3


def _tokenizer() -> PreTrainedTokenizerFast:
    """A letter is a token. T5's own class takes a vocabulary from memory only since transformers 5."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    tokenizer = Tokenizer(models.Unigram(special + letters, unk_id=2))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=300, **names)


def _text_encoder() -> T5EncoderModel:
    sizes = {"d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=128, feed_forward_proj="gated-gelu", **sizes))

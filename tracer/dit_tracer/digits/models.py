"""The bundled models before training: real diffusers pipelines, small enough to ship in a package.

Every part is a stock class of diffusers or transformers, so that the trained folders load with `from_pretrained` and
nothing else. The autoencoder is an `AutoencoderTiny` whose weights are set by hand to the identity: the latents *are*
the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderTiny,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from dit_tracer.digits.scenes import FRAMES, SIDE, motion_vocabulary, vocabulary

TEXT_TOKENS = 24
"""Length that captions are padded to; the longest has 21 words and the closing token."""

MOTION_TOKENS = 11
"""Words of every caption of a motion, with the closing token. LattePipeline cuts a caption to its length."""

TEXT_WIDTH = 96

KEPT = (0, 1, 5, 6, 7)
"""Layers of digits-pixart that digits-latte begins with.

Eight with their temporal blocks would be 8 MB. Of all choices of five, this one did best before any further training:
a loss of 0.049 on 32 images, where all eight have 0.016.
"""


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """The untrained pipeline of a bundled model, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    return BUILDERS[name]()


def digits_pixart() -> PixArtAlphaPipeline:
    """Self-attention on 64 latent tokens, cross-attention to the caption; v-prediction on a cosine schedule."""
    transformer = PixArtTransformer2DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=3,
        patch_size=2,
        num_layers=8,
        num_attention_heads=4,
        attention_head_dim=32,
        cross_attention_dim=128,
        caption_channels=TEXT_WIDTH,
        interpolation_scale=1,
    )
    _start_as_identity(transformer.adaln_single.linear, transformer.proj_out)
    _start_as_identity(*(block.attn2.to_out[0] for block in transformer.transformer_blocks))
    scheduler = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    words = vocabulary()
    return PixArtAlphaPipeline(_tokenizer(words), _t5_encoder(words), _identity_autoencoder(), transformer, scheduler)


def digits_flux() -> FluxPipeline:
    """Three double and six single blocks on 64 latent and 24 text tokens; rectified flow."""
    transformer = FluxTransformer2DModel(
        in_channels=12,
        num_layers=3,
        num_single_layers=6,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=48,
        guidance_embeds=False,
        axes_dims_rope=(4, 10, 10),
    )
    for block in transformer.transformer_blocks:
        _start_as_identity(block.norm1.linear, block.norm1_context.linear)
    for block in transformer.single_transformer_blocks:
        _start_as_identity(block.norm.linear)
    _start_as_identity(transformer.norm_out.linear, transformer.proj_out)
    words = vocabulary()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_identity_autoencoder(),
        text_encoder=_clip_encoder(words),
        tokenizer=_tokenizer(words),
        text_encoder_2=_t5_encoder(words),
        tokenizer_2=_tokenizer(words),
        transformer=transformer,
    )


def digits_latte() -> LattePipeline:
    """Five times spatial self-attention, cross-attention and temporal attention on eight frames of 64 latent tokens.

    The pipeline drops the second half of the channels it gets, with which Latte tells a variance; here they stay zero.
    """
    transformer = LatteTransformer3DModel(
        sample_size=SIDE,
        in_channels=3,
        out_channels=6,
        patch_size=2,
        video_length=FRAMES,
        num_layers=len(KEPT),
        num_attention_heads=4,
        attention_head_dim=32,
        attention_bias=True,
        cross_attention_dim=128,
        caption_channels=TEXT_WIDTH,
        activation_fn="gelu-approximate",
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    _start_as_identity(transformer.adaln_single.linear, transformer.proj_out)
    _start_as_identity(*(block.attn2.to_out[0] for block in transformer.transformer_blocks))
    for block in transformer.temporal_transformer_blocks:  # so that stills, which skip them, are learned first
        _start_as_identity(block.attn1.to_out[0], block.ff.net[-1])
    scheduler = DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    words = motion_vocabulary()
    return LattePipeline(_tokenizer(words), _t5_encoder(words), _identity_autoencoder(), transformer, scheduler)


BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "digits-pixart": digits_pixart,
    "digits-flux": digits_flux,
    "digits-latte": digits_latte,
}


def begin_with_images(latte: LattePipeline, pixart: PixArtAlphaPipeline | None = None) -> None:
    """Give an untrained digits-latte what digits-pixart knows of single images; words new to it stay as they are.

    Both transformers are of the same blocks, so that without temporal attention the one then draws as the other would
    with the layers in `KEPT`.
    """
    folder = Path(__file__).parent / "digits-pixart"
    pixart = pixart or DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    old, new = pixart.transformer, latte.transformer
    with torch.no_grad():
        for part in ("pos_embed", "adaln_single", "caption_projection"):
            getattr(new, part).load_state_dict(getattr(old, part).state_dict())
        for block, kept in zip(new.transformer_blocks, KEPT):
            block.load_state_dict(old.transformer_blocks[kept].state_dict())
        new.scale_shift_table.copy_(old.scale_shift_table)
        for mine, its in ((new.proj_out.weight, old.proj_out.weight), (new.proj_out.bias, old.proj_out.bias)):
            mine.view(4, 6, -1)[:, :3] = its.view(4, 3, -1)  # pixels of a patch, then channels
        for mine, its in zip(latte.text_encoder.encoder.block, pixart.text_encoder.encoder.block):
            mine.load_state_dict(its.state_dict())
        latte.text_encoder.encoder.final_layer_norm.weight.copy_(pixart.text_encoder.encoder.final_layer_norm.weight)
        ours, theirs = latte.tokenizer.get_vocab(), pixart.tokenizer.get_vocab()
        for word in ours.keys() & theirs.keys():
            latte.text_encoder.shared.weight[ours[word]] = pixart.text_encoder.shared.weight[theirs[word]]


def _tokenizer(vocabulary: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word: <pad> 0, </s> 1, <unk> 2, then the vocabulary of the captions."""
    words = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *vocabulary))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )


def _t5_encoder(vocabulary: Sequence[str]) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(vocabulary) + 3,
        d_model=TEXT_WIDTH,
        d_kv=24,
        d_ff=2 * TEXT_WIDTH,
        num_layers=1,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def _clip_encoder(vocabulary: Sequence[str]) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(vocabulary) + 3,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return CLIPTextModel(config)


def _identity_autoencoder(squeeze: float = 64.0) -> AutoencoderTiny:
    """An AutoencoderTiny that returns its input.

    The decoder splits x into its positive and negative part around the ReLU and joins them again. It starts with
    3 tanh(x / 3); pixels are squeezed to where that is linear (error below 1e-5), so that a latent divided by
    `scaling_factor`, as every pipeline does, decodes to itself.
    """
    vae = AutoencoderTiny(
        encoder_block_out_channels=(6,),
        decoder_block_out_channels=(6,),
        latent_channels=3,
        num_encoder_blocks=(0,),
        num_decoder_blocks=(0,),
        scaling_factor=squeeze,
    )
    eye = torch.eye(3)
    with torch.no_grad():
        for weight in vae.parameters():
            weight.zero_()
        for coder in (vae.encoder, vae.decoder):
            convolutions = [layer for layer in coder.layers if isinstance(layer, torch.nn.Conv2d)]
            first, last = convolutions[0], convolutions[-1]
            first.weight[:, :, 1, 1] = torch.cat([eye, -eye])
            last.weight[:, :, 1, 1] = torch.cat([eye, -eye], dim=1)
        # The encoder first maps [-1, 1] to [0, 1] and, having no ReLU, doubles; the decoder ends with the way back.
        enter, leave = vae.encoder.layers[-1], vae.decoder.layers[-1]
        enter.weight *= 1 / squeeze
        enter.bias -= 1 / squeeze
        leave.weight *= squeeze / 2
        leave.bias += 0.5
    return vae


def _start_as_identity(*layers: torch.nn.Linear) -> None:
    """Zero these layers, so that every block starts by passing its input on (DiT, arXiv 2212.09748, section 3.2)."""
    for layer in layers:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)

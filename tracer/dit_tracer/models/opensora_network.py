"""STDiT3, the network of Open-Sora v1.2, which diffusers does not have; reads the published checkpoint as it is.

Pairs of blocks take turns: a spatial one attends within each frame, a temporal one along time at each place, and both
attend to the text. Tokens lie as (batch, frame * place, channel) between blocks; self-attention folds frames or places
into the batch, which stays the slowest axis, so that the halves of a guided batch are halves of what attention gets.

K enters attention after its norm and, in temporal blocks, after the rotary embedding. As in the original, positions,
timesteps and frame rates are rounded to the precision of the weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import CacheMixin, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

FREQUENCIES = 256
"""Width of the sinusoidal embedding of timesteps and frame rates."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding, each (token, channel of a head)."""


class STDiT3(ModelMixin, ConfigMixin, CacheMixin):
    """The velocity field of Open-Sora v1.2; the defaults are the published model, 1.2 B parameters.

    Args:
        input_sq_size: Side in pixels of a square video whose positions are counted one by one.
        depth: Number of spatial blocks, and of temporal ones.
        pred_sigma: Whether the output has a second half, which sampling does not use.
        caption_channels: Width of the text encoder.
        model_max_length: Number of text tokens, and of the learned null embedding's.
    """

    _no_split_modules = ["Block"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        pred_sigma: bool = True,
        caption_channels: int = 4096,
        model_max_length: int = 300,
        qk_norm: bool = True,
        input_sq_size: int = 512,
    ) -> None:
        super().__init__()
        if hidden_size % (2 * num_heads) or hidden_size % 4:
            raise ValueError(f"hidden_size {hidden_size} must be a multiple of 4 and of twice num_heads ({num_heads})")
        self.patch_size = tuple(patch_size)
        self.out_channels = in_channels * (2 if pred_sigma else 1)
        self.rope = RotaryEmbedding(hidden_size // num_heads)
        self.x_embedder = PatchEmbedding(in_channels, hidden_size, self.patch_size)
        self.t_embedder = NumberEmbedding(hidden_size)
        self.fps_embedder = NumberEmbedding(hidden_size)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))
        self.y_embedder = CaptionEmbedding(caption_channels, hidden_size, model_max_length)
        shape = hidden_size, num_heads, int(hidden_size * mlp_ratio), qk_norm
        self.spatial_blocks = nn.ModuleList(Block(*shape) for _ in range(depth))
        self.temporal_blocks = nn.ModuleList(Block(*shape) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, self.out_channels * math.prod(self.patch_size))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        *,
        fps: Tensor | float,
        height: float,
        width: float,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity from noise to data, float32, (batch, channel, frame, height, width); twice the channels in.

        Args:
            hidden_states: Latents (batch, channel, frame, height, width); sizes that no patch divides are padded.
            timestep: From 1000 (noise) to 0, one for all or one for each element of the batch.
            encoder_hidden_states: Text (batch, token, channel), or (batch, 1, token, channel) as the original has it.
            encoder_attention_mask: (batch, token), zero where the text is padding; each element has its own length.
            fps: Frames per second, one for all or one for each; 120 stands for a still image.
            height: Of the video, in pixels.
            width: Of the video, in pixels.
        """
        dtype = self.x_embedder.proj.weight.dtype
        size = hidden_states.shape[2:]
        x = self.x_embedder(hidden_states.to(dtype))
        batch, channels, frames, *grid = x.shape
        x = x.flatten(3).permute(0, 2, 3, 1)
        x = x + _positions(*grid, channels, (height * width) ** 0.5 / self.config.input_sq_size, x)
        x = x.flatten(1, 2)

        t = self.t_embedder(_each(timestep, batch, x)) + self.fps_embedder(_each(fps, batch, x))
        modulation = self.t_block(t).unflatten(1, (6, -1))
        text = encoder_hidden_states.to(dtype)
        text = self.y_embedder(text.squeeze(1) if text.ndim == 4 else text)
        mask = None if encoder_attention_mask is None else encoder_attention_mask.bool()[:, None, None]
        rotation = self.rope(frames)
        for spatial, temporal in zip(self.spatial_blocks, self.temporal_blocks):
            x = spatial(x, text, modulation, mask, frames)
            x = temporal(x, text, modulation, mask, frames, rotation)

        x = self.final_layer(x, t)
        x = self._unpatchify(x, (frames, *grid))[:, :, : size[0], : size[1], : size[2]].float()
        return Transformer2DModelOutput(sample=x) if return_dict else (x,)

    def _unpatchify(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(batch, token, channel of a patch) as (batch, channel, frame, height, width)."""
        x = x.unflatten(2, (*self.patch_size, self.out_channels)).unflatten(1, grid)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Block(nn.Module):
    """Self-attention within frames, or along time where a rotation is given; attention to the text; an MLP."""

    def __init__(self, channels: int, heads: int, mlp_channels: int, qk_norm: bool) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, channels) / channels**0.5)
        self.norm1 = _norm(channels)
        self.attn = Attention(channels, heads, qk_norm)
        self.cross_attn = CrossAttention(channels, heads)
        self.norm2 = _norm(channels)
        self.mlp = Mlp(channels, mlp_channels, channels)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        modulation: Tensor,
        mask: Tensor | None,
        frames: int,
        rotation: Rotation | None = None,
    ) -> Tensor:
        x = hidden_states
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = (self.scale_shift_table + modulation).chunk(6, dim=1)
        attend = self._within_frames if rotation is None else self._along_time
        x = x + gate * attend(_modulate(self.norm1(x), shift, scale), frames, rotation)
        x = x + self.cross_attn(x, encoder_hidden_states, mask)
        return x + mlp_gate * self.mlp(_modulate(self.norm2(x), mlp_shift, mlp_scale))

    def _within_frames(self, x: Tensor, frames: int, rotation: None) -> Tensor:
        return self.attn(x.unflatten(1, (frames, -1)).flatten(0, 1)).reshape(x.shape)

    def _along_time(self, x: Tensor, frames: int, rotation: Rotation) -> Tensor:
        folded = x.unflatten(1, (frames, -1)).transpose(1, 2)
        y = self.attn(folded.flatten(0, 1), rotation)
        return y.reshape(folded.shape).transpose(1, 2).reshape(x.shape)


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention on (batch, token, channel); to diffusers and to the recorder a layer like any other."""

    is_cross_attention = False
    _supports_qkv_fusion = False
    processor = None

    def __init__(self, channels: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.q_norm = RMSNorm(channels // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(channels // heads, eps=1e-6) if qk_norm else nn.Identity()
        self.proj = nn.Linear(channels, channels)

    def forward(self, hidden_states: Tensor, rotation: Rotation | None = None) -> Tensor:
        query, key, value = (_split_heads(part, self.heads) for part in self.qkv(hidden_states).chunk(3, dim=-1))
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = _rotate(query, *rotation), _rotate(key, *rotation)
        return self.proj(_join_heads(F.scaled_dot_product_attention(query, key, value)))


class CrossAttention(nn.Module, AttentionModuleMixin):
    """Attention of all latent tokens to the text.

    The original strings the texts of a batch together without their padding, under a block-diagonal mask; a padded
    batch with a mask of its own for each element gives the same numbers.
    """

    is_cross_attention = True
    _supports_qkv_fusion = False
    processor = None

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(channels, channels)
        self.kv_linear = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
        query = _split_heads(self.q_linear(hidden_states), self.heads)
        key, value = (_split_heads(part, self.heads) for part in self.kv_linear(encoder_hidden_states).chunk(2, -1))
        return self.proj(_join_heads(F.scaled_dot_product_attention(query, key, value, attn_mask=mask)))


class PatchEmbedding(nn.Module):
    """Latents as one vector a patch, (batch, channel, frame, height, width); zeros fill up the last patches."""

    def __init__(self, in_channels: int, channels: int, patch_size: tuple[int, ...]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, channels, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        missing = [-length % patch for length, patch in zip(x.shape[2:], self.proj.kernel_size)]
        return self.proj(F.pad(x, [pad for end in reversed(missing) for pad in (0, end)]))


class RotaryEmbedding(nn.Module):
    """Rotation of the channel pairs (0, 1), (2, 3), ... by an angle that grows with time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 10000.0 ** -(torch.arange(0, channels, 2) / channels))

    def forward(self, tokens: int) -> Rotation:
        angles = torch.outer(torch.arange(tokens, device=self.freqs.device).to(self.freqs), self.freqs)
        angles = angles.repeat_interleave(2, dim=-1)
        return angles.cos(), angles.sin()


class NumberEmbedding(nn.Module):
    """A vector for each number: a timestep, or a frame rate."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, numbers: Tensor) -> Tensor:
        waves = get_timestep_embedding(numbers, FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.mlp(waves.to(numbers.dtype))


class CaptionEmbedding(nn.Module):
    """The text at the width of the blocks; keeps the embedding that stands for no text at all."""

    def __init__(self, in_channels: int, channels: int, tokens: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, channels, channels)
        self.register_buffer("y_embedding", torch.randn(tokens, in_channels) / in_channels**0.5)

    def forward(self, text: Tensor) -> Tensor:
        return self.y_proj(text)


class FinalLayer(nn.Module):
    """Tokens as patches of the output."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(2, channels) / channels**0.5)
        self.norm_final = _norm(channels)
        self.linear = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)
        return self.linear(_modulate(self.norm_final(x), shift, scale))


class Mlp(nn.Module):
    """Two linear layers with a GELU (tanh approximation) between."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, channels)
        self.fc2 = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def _positions(rows: int, columns: int, channels: int, scale: float, like: Tensor) -> Tensor:
    """Sinusoidal position of every place of a frame, (row * column, channel): of the column first, then of the row.

    Both axes are stretched to the side of the square with as many patches, and by the video's size against the base.
    """
    side = round((rows * columns) ** 0.5)
    half = channels // 2
    steps = torch.arange(0, half, 2, device=like.device, dtype=torch.float32)
    frequencies = (1.0 / 10000 ** (steps / half)).to(like.dtype)

    def along(length: int) -> Tensor:
        places = torch.arange(length, device=like.device) / scale * (side / length)
        angles = places[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    by_column = along(columns).expand(rows, -1, -1)
    by_row = along(rows)[:, None].expand(-1, columns, -1)
    return torch.cat((by_column, by_row), dim=-1).flatten(0, 1).to(like.dtype)


def _each(number: Tensor | float, batch: int, like: Tensor) -> Tensor:
    """One number for each element of the batch, in the precision of the weights."""
    return torch.as_tensor(number, device=like.device).to(like.dtype).expand(batch)


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    return x * cosine + torch.stack((-odd, even), dim=-1).flatten(-2) * sine


def _split_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)

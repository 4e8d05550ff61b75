"""Open-Sora v1.2 from text to latents, and its published files; nothing is decoded, so it needs no autoencoder."""

import html
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Self

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, T5EncoderModel

from dit_tracer.models.opensora_checkpoint import CHECKPOINT, load_transformer
from dit_tracer.models.opensora_network import STDiT3
from dit_tracer.models.opensora_schedule import RectifiedFlowScheduler, latent_frames

TEXT_ENCODER = "PixArt-alpha/PixArt-XL-2-1024-MS"
"""The pipeline whose T5 v1.1 XXL encoder is taken. Open-Sora names DeepFloyd/t5-v1_1-xxl, the same encoder, as PixArt
did; that repository has it as a pickle, which is never opened here."""

IMAGE_FPS = 120
"""The frame rate that a still image was trained with."""

COMPRESSION = 8
"""Pixels to a latent, along height and along width."""

REPLACED = (
    ("[\u2010-\u2015\u2212]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"\.{2,}", " "),
    (r"[#&@~|\\/*(){}\[\]\u00a1\u00a7\u00a9\u00ae\u00b7\u00ba\u00bc-\u00bf\u2022\u2122]+", " "),
    (r"\s+\.\s+", " "),
    (r"(?<=[^\d\s][,.])(?=\w)", " "),
    (r"\s+", " "),
)
"""Patterns of a prompt, and what is put in their place, in this order."""


@dataclass
class OpenSoraPipelineOutput(BaseOutput):
    """Latents (prompt, channel, frame, height, width)."""

    frames: Tensor


class OpenSoraPipeline(DiffusionPipeline):
    """Text to the latents of a video, guided by a learned null text.

    Both halves of guidance run in one batch, cond first and uncond second, under one mask: the null text is as long
    as the prompt. Without text encoder, give `prompt_embeds` and `prompt_attention_mask`.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _optional_components = ["tokenizer", "text_encoder"]

    def __init__(
        self,
        # diffusers before 0.37 holds what is loaded against these, and reads neither `X | None` nor strings.
        tokenizer: Optional[PreTrainedTokenizerBase],  # noqa: UP045
        text_encoder: Optional[T5EncoderModel],  # noqa: UP045
        transformer: STDiT3,
        scheduler: RectifiedFlowScheduler,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, scheduler=scheduler
        )
        self._current_timestep: Tensor | None = None

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path = CHECKPOINT,
        text_encoder: str | Path | T5EncoderModel | None = TEXT_ENCODER,
        tokenizer: PreTrainedTokenizerBase | None = None,
        torch_dtype: torch.dtype = torch.float32,
        revision: str | None = None,
    ) -> Self:
        """The pipeline around the published weights.

        Args:
            checkpoint: Folder, or repository of the hub, that holds `model.safetensors` and maybe `config.json`.
            text_encoder: A T5 encoder, or the folder or repository of one, or the folder of a pipeline that has one;
                None to go without.
            tokenizer: Where `text_encoder` is a model; else it comes from the same place.
            revision: Of the checkpoint's repository.

        Raises:
            CheckpointError: The weights are of another network.
        """
        transformer = load_transformer(checkpoint, torch_dtype, revision)
        if isinstance(text_encoder, (str, Path)):
            whole = text_encoder == TEXT_ENCODER or (Path(text_encoder) / "text_encoder").is_dir()
            encoder, words = ("text_encoder", "tokenizer") if whole else ("", "")
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(text_encoder, subfolder=words)
            text_encoder = T5EncoderModel.from_pretrained(
                text_encoder, subfolder=encoder, torch_dtype=torch_dtype, use_safetensors=True
            )
        return cls(tokenizer, text_encoder, transformer, RectifiedFlowScheduler())

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale > 1

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        return self._current_timestep

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        height: int = 240,
        width: int = 426,
        num_frames: int = 51,
        fps: int = 24,
        num_inference_steps: int = 30,
        guidance_scale: float = 7.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        aesthetic_score: float | None = 6.5,
        max_sequence_length: int = 300,
        output_type: str = "latent",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]] | None = None,
    ) -> OpenSoraPipelineOutput | tuple[Tensor]:
        """Latents (prompt, channel, frame, height, width), float32, in `.frames` (or the only one of a tuple).

        Args:
            height: Of the video in pixels; a latent is 8 wide and high.
            num_frames: Before compression; 17 make 5 latent frames, 1 is a still image.
            guidance_scale: 1 runs the cond half alone.
            aesthetic_score: Named at the end of the prompt, unless the prompt names one; None to leave it.
            max_sequence_length: Number of text tokens, padding included.
            output_type: `latent`; there is no autoencoder to decode with.
            callback_on_step_end: Called after every step with pipeline, step, timestep and a dictionary of the latents;
                latents in the dictionary that it returns replace them.
        """
        if output_type != "latent":
            raise ValueError(f"output_type {output_type!r}: this pipeline has no autoencoder, it gives only 'latent'")
        if (prompt is None) == (prompt_embeds is None):
            raise ValueError("give either prompt or prompt_embeds (with prompt_attention_mask)")
        self._guidance_scale = guidance_scale
        device = self._execution_device
        if prompt is not None:
            prompt_embeds, prompt_attention_mask = self.encode_prompt(
                prompt, max_sequence_length, aesthetic_score, device
            )
        text, mask = self._guided(prompt_embeds.to(device), prompt_attention_mask)
        latents = self.prepare_latents(len(prompt_embeds), height, width, num_frames, generator, latents)
        self._set_timesteps(num_inference_steps, device, height, width, num_frames)
        self._num_timesteps = len(self.scheduler.timesteps)
        conditions = {"fps": fps if num_frames > 1 else IMAGE_FPS, "height": height, "width": width}

        with self.progress_bar(total=self._num_timesteps) as progress:
            for i, timestep in enumerate(self.scheduler.timesteps):
                self._current_timestep = timestep
                velocity = self._velocity(latents, timestep, text, mask, conditions)
                # the network points from noise to data, the schedulers of diffusers from data to noise
                latents = self.scheduler.step(-velocity, timestep, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    latents = callback_on_step_end(self, i, timestep, {"latents": latents}).get("latents", latents)
                progress.update()
        self._current_timestep = None
        self.maybe_free_model_hooks()
        return OpenSoraPipelineOutput(frames=latents) if return_dict else (latents,)

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | list[str],
        max_sequence_length: int = 300,
        aesthetic_score: float | None = 6.5,
        device: torch.device | str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Text embeddings (prompt, token, channel), padded, and the mask (prompt, token) of what is no padding."""
        if self.text_encoder is None:
            raise ValueError("this pipeline has no text encoder; give prompt_embeds and prompt_attention_mask")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        tokens = self.tokenizer(
            [prepare_prompt(text, aesthetic_score) for text in prompts],
            max_length=max_sequence_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(device or self._execution_device)
        embeds = self.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return embeds, tokens.attention_mask

    def prepare_latents(
        self,
        batch: int,
        height: int,
        width: int,
        num_frames: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Noise to start from, or the given latents, in float32; drawn in the precision of the network."""
        shape = batch, self.transformer.config.in_channels, *latent_size(num_frames, height, width)
        if latents is None:
            latents = randn_tensor(shape, generator, self._execution_device, self.transformer.dtype)
        if latents.shape != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)}, this video needs {shape}")
        return latents.to(self._execution_device, torch.float32)

    def _guided(self, embeds: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Text and mask of the batch: of the cond half, then of the uncond half, if there is one."""
        batch, tokens = embeds.shape[:2]
        mask = embeds.new_ones(batch, tokens) if mask is None else mask.to(embeds.device)
        if not self.do_classifier_free_guidance:
            return embeds, mask
        null = self.transformer.y_embedder.y_embedding
        if tokens > len(null):
            raise ValueError(f"{tokens} text tokens, the model knows {len(null)}; lower max_sequence_length")
        null = null[:tokens].to(embeds).expand_as(embeds)
        return torch.cat((embeds, null)), torch.cat((mask, mask))

    def _set_timesteps(self, steps: int, device: torch.device, height: int, width: int, num_frames: int) -> None:
        """Lay out the steps; a stock scheduler that asks for no video size keeps its own noise levels."""
        size = {"height": height, "width": width, "num_frames": num_frames}
        known = inspect.signature(self.scheduler.set_timesteps).parameters
        self.scheduler.set_timesteps(steps, device=device, **(size if "num_frames" in known else {}))

    def _velocity(
        self, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor, conditions: dict[str, Any]
    ) -> Tensor:
        guided = self.do_classifier_free_guidance
        batch = torch.cat((latents, latents)) if guided else latents
        with self.transformer.cache_context("cond_uncond" if guided else "cond"):
            output = self.transformer(
                hidden_states=batch,
                timestep=timestep,
                encoder_hidden_states=text,
                encoder_attention_mask=mask,
                return_dict=False,
                **conditions,
            )[0]
        velocity = output[:, : latents.shape[1]]
        if not guided:
            return velocity
        cond, uncond = velocity.chunk(2)
        return uncond + self.guidance_scale * (cond - uncond)


def prepare_prompt(text: str, aesthetic_score: float | None = 6.5) -> str:
    """The text as the model knows texts: with a score, in small letters, without signs that carry no sound.

    The original's cleaning does the same to ordinary prose, and removes much else that scraped captions hold (links,
    file names, article numbers).

    Example:
        >>> prepare_prompt("A cat \u2013 asleep.")
        'a cat - asleep. aesthetic score: 6.5.'
    """
    if aesthetic_score is not None and "aesthetic score:" not in text:
        text = f"{text} aesthetic score: {aesthetic_score:.1f}."
    text = html.unescape(html.unescape(text.lower()))
    for pattern, replacement in REPLACED:
        text = re.sub(pattern, replacement, text)
    if text.count("-") + text.count("_") > 3:  # a name for a file, to the original, which such prose becomes too
        text = re.sub("[-_]", " ", text)
    return text.strip()


def latent_size(num_frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Size of the latents of a video: frames, height, width.

    Example:
        >>> latent_size(51, 240, 426)
        (15, 30, 53)
    """
    if num_frames < 1 or height < COMPRESSION or width < COMPRESSION:
        raise ValueError(f"{num_frames} frames of {height}x{width}: a video has a frame at least, of 8x8 pixels")
    return latent_frames(num_frames), height // COMPRESSION, width // COMPRESSION

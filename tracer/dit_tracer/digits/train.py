"""Train a bundled model from a fixed seed: `python -m dit_tracer.digits.train digits-flux`.

Scenes and noise of an iteration depend on the seed and the iteration alone, and all that carries over lies in one
checkpoint, so a run may be stopped and resumed at will. The learning rate is constant and falls over the last quarter
only: until then a longer run is a shorter one, continued.

The video model begins with weights of `digits-pixart`. It learns single frames first, which need no temporal attention
and are cheap; then whole clips as well.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtAlphaPipeline,
    SchedulerMixin,
)
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from dit_tracer.digits.models import BUILDERS, MOTION_TOKENS, TEXT_TOKENS, begin_with_images, build
from dit_tracer.digits.scenes import FRAMES, SIDE, all_motions, draw, draw_motion, random_scene

IMAGES = """\
A tiny text-to-image diffusion transformer that draws coloured handwritten digits, 16x16 pixels, from captions such as
"a small red seven at the top left on a dark background"."""

CLIPS = """\
A tiny text-to-video diffusion transformer that draws eight frames of a moving handwritten digit, 16x16 pixels, from
captions such as "a small red seven moving right on a dark background"."""

CARD = """# {name}

{about} Part of DiTscope (MIT licence), trained by
`python -m dit_tracer.digits.train {name}`; docs/models.md tells how well it draws.

Trained on scenes composed from "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI, 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0), as distributed with scikit-learn.
"""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Args:
        stills: So many iterations of single frames come first when clips are to be learned.
        clips: How many clips make a batch then; every third batch stays one of single frames.
        clip_noise: Moves the noise levels of clips up, on the logit scale: eight frames drown later than one.
    """

    iterations: int = 6_000
    batch: int = 32
    matrix_rate: float = 4e-3
    vector_rate: float = 1.5e-3
    warmup: int = 100
    decay: float = 0.25
    no_caption: float = 0.1
    average: float = 0.999
    seed: int = 2411
    stills: int = 2_000
    clips: int = 4
    clip_noise: float = 0.6

    def slope(self, iteration: int) -> float:
        """Factor on both learning rates: up over the warm-up, flat, then straight down to zero."""
        left = (self.iterations - iteration) / (self.decay * self.iterations)
        return min(1.0, (iteration + 1) / self.warmup, left)


RECIPES = {name: Recipe() for name in BUILDERS} | {
    "digits-latte": Recipe(iterations=6_000, matrix_rate=2e-3, vector_rate=1e-3)
}


@dataclass(frozen=True)
class Batch:
    """What an iteration learns from.

    Args:
        pixels: Clean images, (batch, 3, side, side) in [-1, 1]; of a video model (batch, 3, frame, side, side).
        levels: Noise levels in (0, 1), one for each caption.
        noise: Source of the noise itself.
        frames: Number of each single frame in its clip; None if these are images, or whole clips.
    """

    captions: list[str]
    pixels: Tensor
    levels: Tensor
    noise: torch.Generator
    frames: Tensor | None = None


class Trainer:
    """A pipeline in training: its optimisers, and the running average of its weights, which is what ships."""

    def __init__(self, name: str, recipe: Recipe, device: str) -> None:
        self.name = name
        self.recipe = recipe
        self.device = device
        self.iteration = 0
        self.pipeline = build(name, recipe.seed)
        if isinstance(self.pipeline, LattePipeline):
            begin_with_images(self.pipeline)
        self.pipeline.to(device)
        self.weights = dict(_weights(self.pipeline))
        self.average = {key: weight.detach().clone() for key, weight in self.weights.items()}
        hidden = [key for key in self.weights if "blocks." in key and "table" not in key]
        matrices = {key: self.weights[key] for key in hidden if self.weights[key].ndim == 2}
        vectors = [weight for key, weight in self.weights.items() if key not in matrices]
        self.optimisers = [
            torch.optim.Muon(
                matrices.values(), lr=recipe.matrix_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(vectors, lr=recipe.vector_rate, betas=(0.9, 0.99), weight_decay=0.01),
        ]

    def step(self) -> float:
        """One iteration; returns its loss."""
        loss = denoising_loss(self.pipeline, self._batch(), self.device)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        for optimiser, rate in zip(self.optimisers, (self.recipe.matrix_rate, self.recipe.vector_rate)):
            optimiser.param_groups[0]["lr"] = rate * self.recipe.slope(self.iteration)
            optimiser.step()
            optimiser.zero_grad()
        self.iteration += 1
        keep = min(self.recipe.average, self.iteration / (self.iteration + 10))
        torch._foreach_lerp_(list(self.average.values()), [w.detach() for w in self.weights.values()], 1 - keep)
        return loss.item()

    def _batch(self) -> Batch:
        rng = np.random.default_rng([self.recipe.seed, self.iteration])
        if not isinstance(self.pipeline, LattePipeline):
            scenes = [random_scene(rng) for _ in range(self.recipe.batch)]
            return self._captioned(rng, scenes, np.stack([draw(scene, rng) for scene in scenes]))
        still = self.iteration < self.recipe.stills or self.iteration % 3 == 0
        every = all_motions()
        chosen = [every[i] for i in rng.integers(len(every), size=self.recipe.batch if still else self.recipe.clips)]
        clips = np.stack([draw_motion(motion, rng) for motion in chosen])
        if not still:
            return self._captioned(rng, chosen, clips, shift=self.recipe.clip_noise)
        frames = rng.integers(FRAMES, size=len(chosen))
        batch = self._captioned(rng, chosen, clips[np.arange(len(chosen)), :, frames][:, :, None])
        return replace(batch, frames=torch.from_numpy(frames))

    def _captioned(
        self, rng: np.random.Generator, scenes: Sequence[object], pixels: NDArray[np.float32], shift: float = 0.0
    ) -> Batch:
        """Pixels in [0, 1] with their captions, some left empty, and noise at levels drawn logit-normally."""
        captions = ["" if rng.random() < self.recipe.no_caption else str(scene) for scene in scenes]
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        levels = torch.sigmoid(torch.randn(len(captions), generator=noise) + shift)
        return Batch(captions, torch.from_numpy(pixels) * 2 - 1, levels, noise)

    def save(self, path: Path) -> None:
        """Write the checkpoint, replacing the last one at once."""
        tensors = {f"weight/{key}": weight.detach() for key, weight in self.weights.items()}
        tensors |= {f"average/{key}": weight for key, weight in self.average.items()}
        for key, slot, value in self._optimiser_state():
            tensors[f"{slot}/{key}"] = value
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        tensors = {key: value.contiguous() for key, value in tensors.items()}
        save_file(tensors, partial, {"iteration": str(self.iteration), "name": self.name})
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        owners = {key: optimiser for optimiser in self.optimisers for key in self._keys(optimiser)}
        with safe_open(path, "pt", device=self.device) as file, torch.no_grad():
            if file.metadata().get("name") != self.name:
                raise click.ClickException(f"{path}: of another model; give another -o for {self.name}")
            self.iteration = int(file.metadata()["iteration"])
            for name in file.keys():
                slot, key = name.split("/", 1)
                if slot == "weight":
                    self.weights[key].copy_(file.get_tensor(name))
                elif slot == "average":
                    self.average[key].copy_(file.get_tensor(name))
                else:
                    owners[key].state[self.weights[key]][slot] = file.get_tensor(name)

    def _optimiser_state(self) -> Iterator[tuple[str, str, Tensor]]:
        for optimiser in self.optimisers:
            for key in self._keys(optimiser):
                for slot, value in optimiser.state[self.weights[key]].items():
                    yield key, slot, value

    def _keys(self, optimiser: torch.optim.Optimizer) -> list[str]:
        owned = {id(weight) for weight in optimiser.param_groups[0]["params"]}
        return [key for key, weight in self.weights.items() if id(weight) in owned]

    def export(self, folder: Path, record: dict[str, object]) -> None:
        """Write the averaged weights as an ordinary diffusers folder in float16, with the training record beside."""
        with torch.no_grad():
            for key, weight in self.weights.items():
                weight.copy_(self.average[key])
        self.pipeline.to("cpu", torch.float16).save_pretrained(folder)
        for config in folder.glob("tokenizer*/tokenizer_config.json"):  # transformers 4 has no TokenizersBackend
            config.write_text(config.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
        for config in folder.glob("text_encoder*/config.json"):  # else transformers 5 leaves them in float16
            config.write_text(config.read_text().replace('"float16"', '"float32"'))
        for weights in folder.glob("text_encoder*/model.safetensors"):
            _name_as_transformers_4(weights)
        index = folder / "model_index.json"
        index.write_text(index.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
        (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        about = CLIPS if isinstance(self.pipeline, LattePipeline) else IMAGES
        (folder / "README.md").write_text(CARD.format(about=about, **record))


def _name_as_transformers_4(path: Path) -> None:
    """Give CLIP's weights the prefix that transformers 5 drops and reads, and 4 cannot do without."""
    weights = load_file(path)
    if any(key.startswith("embeddings.") for key in weights):
        save_file({f"text_model.{key}": weight for key, weight in weights.items()}, path, {"format": "pt"})


def denoising_loss(pipeline: DiffusionPipeline, batch: Batch, device: str) -> Tensor:
    """Mean squared error of one denoising prediction per caption."""
    pixels, levels = batch.pixels.to(device), batch.levels.to(device)
    gauss = torch.randn(pixels.shape, generator=batch.noise).to(device)
    if isinstance(pipeline, LattePipeline):
        return _clip_error(pipeline, batch.captions, pixels, levels, gauss, batch.frames).square().mean()
    predict = {FluxPipeline: _flow_error, PixArtAlphaPipeline: _velocity_error}[type(pipeline)]
    return predict(pipeline, batch.captions, pixels, levels, gauss).square().mean()


def _flow_error(pipeline: FluxPipeline, captions: list[str], pixels: Tensor, level: Tensor, gauss: Tensor) -> Tensor:
    """Rectified flow: x = (1 - t) pixels + t noise, and the model tells noise - pixels (arXiv 2403.03206, eq. 13)."""
    t = level[:, None, None, None]
    tokens, _ = _tokens(pipeline.tokenizer, captions, pixels.device)
    ids = pipeline._prepare_latent_image_ids(1, SIDE // 2, SIDE // 2, pixels.device, pixels.dtype)
    told = pipeline.transformer(
        hidden_states=_packed((1 - t) * pixels + t * gauss),
        timestep=level,
        pooled_projections=pipeline.text_encoder(tokens).pooler_output,
        encoder_hidden_states=pipeline.text_encoder_2(tokens)[0],
        txt_ids=torch.zeros(TEXT_TOKENS, 3, device=pixels.device),
        img_ids=ids,
        return_dict=False,
    )[0]
    return told - _packed(gauss - pixels)


def _velocity_error(
    pipeline: PixArtAlphaPipeline, captions: list[str], pixels: Tensor, level: Tensor, gauss: Tensor
) -> Tensor:
    timestep, noisy, velocity = _noised(pipeline.scheduler, pixels, level, gauss)
    tokens, mask = _tokens(pipeline.tokenizer, captions, pixels.device)
    told = pipeline.transformer(
        noisy,
        encoder_hidden_states=pipeline.text_encoder(tokens, attention_mask=mask)[0],
        encoder_attention_mask=mask,
        timestep=timestep,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]
    return told - velocity


def _clip_error(
    pipeline: LattePipeline, captions: list[str], pixels: Tensor, level: Tensor, gauss: Tensor, frames: Tensor | None
) -> Tensor:
    """As the pipeline calls it for one caption: the text cut to its length and unmasked, half of the channels used."""
    timestep, noisy, velocity = _noised(pipeline.scheduler, pixels, level, gauss)
    tokens, mask = _tokens(pipeline.tokenizer, captions, pixels.device, MOTION_TOKENS)
    with numbered(pipeline.transformer, frames):
        told = pipeline.transformer(
            noisy,
            timestep=timestep,
            encoder_hidden_states=pipeline.text_encoder(tokens, attention_mask=mask)[0],
            enable_temporal_attentions=frames is None,
            return_dict=False,
        )[0]
    return told.chunk(2, dim=1)[0] - velocity


@contextmanager
def numbered(transformer: LatteTransformer3DModel, frames: Tensor | None) -> Iterator[None]:
    """Tells single frames their number, where the transformer itself tells it to the frames of a clip.

    It does so after the first spatial block, but only on the way to temporal attention, which single frames skip.
    """
    if frames is None:
        yield
        return
    numbers = transformer.temp_pos_embed[0, frames][:, None]
    hook = transformer.transformer_blocks[0].register_forward_hook(lambda block, inputs, output: output + numbers)
    try:
        yield
    finally:
        hook.remove()


def _noised(scheduler: SchedulerMixin, pixels: Tensor, level: Tensor, gauss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Timestep, noisy pixels and what v-prediction tells of them (arXiv 2202.00512, section 4).

    v = sqrt(a) noise - sqrt(1 - a) pixels.
    """
    alphas = scheduler.alphas_cumprod.to(pixels.device)
    timestep = (level * len(alphas)).long()
    a = alphas[timestep].view(-1, *[1] * (pixels.ndim - 1))
    return timestep, a.sqrt() * pixels + (1 - a).sqrt() * gauss, a.sqrt() * gauss - (1 - a).sqrt() * pixels


def _packed(images: Tensor) -> Tensor:
    """2x2 patches of images as tokens, (batch, 64, 12), as FluxPipeline packs its latents."""
    return FluxPipeline._pack_latents(images, len(images), 3, SIDE, SIDE)


def _tokens(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], device: torch.device, length: int = TEXT_TOKENS
) -> tuple[Tensor, Tensor]:
    """Token ids and mask of captions, both (batch, length)."""
    batch = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return batch.input_ids.to(device), batch.attention_mask.to(device)


def _weights(pipeline: DiffusionPipeline) -> Iterator[tuple[str, nn.Parameter]]:
    """All weights that learn: transformer and text encoders, not the fixed autoencoder."""
    for part in ("transformer", "text_encoder", "text_encoder_2"):
        module = getattr(pipeline, part, None)
        if module is not None:
            yield from ((f"{part}.{key}", weight) for key, weight in module.train().named_parameters())


@click.command()
@click.argument("name", type=click.Choice(list(BUILDERS)))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write.  [default: trained/NAME]")
@click.option("--iterations", type=click.IntRange(min=1), help="How many.  [default: the model's recipe]")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option(
    "--until", type=click.IntRange(min=1), help="Stop at this iteration; the same command without it continues."
)
def main(name: str, output: Path | None, iterations: int | None, device: str, until: int | None) -> None:
    """Train the bundled model NAME; resumes from OUTPUT.safetensors if that is there.

    Example: python -m dit_tracer.digits.train digits-flux -o trained/digits-flux
    """
    torch.set_num_threads(1 if device == "cpu" else torch.get_num_threads())  # matrices too small to share
    output = output or Path("trained") / name
    checkpoint = output.with_name(output.name + ".safetensors")
    if output.exists():
        raise click.ClickException(f"{output}: exists already; remove it, or give another -o")
    recipe = replace(RECIPES[name], iterations=iterations or RECIPES[name].iterations)
    trainer = Trainer(name, recipe, device)
    if checkpoint.exists():
        trainer.load(checkpoint)
        click.echo(f"continuing {checkpoint} at iteration {trainer.iteration}", err=True)
    losses: list[float] = []
    started = time.process_time()
    while trainer.iteration < min(recipe.iterations, until or math.inf):
        losses.append(trainer.step())
        if trainer.iteration % 250 == 0:
            seconds = (time.process_time() - started) / len(losses)
            loss = np.mean(losses[-250:])
            click.echo(f"{trainer.iteration:6d}  loss {loss:.4f}  {seconds:.2f} CPU s/iteration", err=True)
            trainer.save(checkpoint)
    trainer.save(checkpoint)
    if trainer.iteration == recipe.iterations:
        trainer.export(output, {"name": name, "recipe": asdict(trainer.recipe), "torch": torch.__version__})
        click.echo(output)


if __name__ == "__main__":
    main()

"""How well a trained model draws what its captions ask for: `python -m dit_tracer.digits.score digits-flux`.

Background, colour, place and digit are read off each picture and compared with the caption, each apart from the
others; off a clip, background, colour, direction, digit, and whether it stays this digit. Real scenes, in hands that
the digit classifier has not seen, are read the same way: no model can be expected to score higher.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from diffusers import DiffusionPipeline, LattePipeline, PixArtAlphaPipeline
from numpy.typing import NDArray
from PIL import Image

from dit_tracer.digits.models import TEXT_TOKENS
from dit_tracer.digits.scenes import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    FRAMES,
    LANES,
    LARGE_PLACES,
    PLACES,
    SIDE,
    SIZES,
    Figure,
    Hands,
    Motion,
    Scene,
    all_motions,
    draw,
    draw_motion,
    handwriting,
    single_scenes,
)
from dit_tracer.models.catalog import BUNDLED

if TYPE_CHECKING:
    from sklearn.svm import SVC

Picture = NDArray[np.float32]
"""Pixels of one image, (3, 16, 16) in [0, 1]."""

Clip = NDArray[np.float32]
"""Pixels of eight images, (3, 8, 16, 16) in [0, 1]."""

KINDS = ("FluxPipeline", "LattePipeline", "PixArtAlphaPipeline")
"""Pipelines that can be scored."""


def asked_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of one digit each, the digits in turn from zero to nine, all else at random."""
    rng = np.random.default_rng(seed)
    scenes = [[scene for scene in single_scenes() if scene.figures[0].digit == digit] for digit in range(10)]
    return [scenes[i % 10][rng.integers(len(scenes[i % 10]))] for i in range(count)]


def real_pictures(scenes: Sequence[Scene], seed: int = 0) -> NDArray[np.float32]:
    """The scenes as they should look, (scene, 3, 16, 16), in unseen hands."""
    rng = np.random.default_rng(seed)
    return np.stack([draw(scene, rng, _unseen_hands) for scene in scenes])


def scores(pictures: NDArray[np.float32], scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures, (scene, 3, 16, 16), in which each word of the caption came true."""
    triples = [(picture, scene, scene.figures[0]) for picture, scene in zip(pictures, scenes, strict=True)]
    right = {
        "digit": [digit_seen(picture, scene) == figure.digit for picture, scene, figure in triples],
        "colour": [colour_seen(picture) == figure.colour for picture, _, figure in triples],
        "place": [place_seen(picture, figure.size) == figure.place for picture, _, figure in triples],
        "background": [background_seen(picture) == scene.background for picture, scene, _ in triples],
    }
    return {word: float(np.mean(found)) for word, found in right.items()}


def asked_motions(count: int, seed: int = 0) -> list[Motion]:
    """Motions, the digits in turn from zero to nine, all else at random."""
    rng = np.random.default_rng(seed)
    motions = [[motion for motion in all_motions() if motion.digit == digit] for digit in range(10)]
    return [motions[i % 10][rng.integers(len(motions[i % 10]))] for i in range(count)]


def real_clips(motions: Sequence[Motion], seed: int = 0) -> NDArray[np.float32]:
    """The motions as they should look, (motion, 3, 8, 16, 16), in unseen hands."""
    rng = np.random.default_rng(seed)
    return np.stack([draw_motion(motion, rng, _unseen_hands) for motion in motions])


def clip_scores(clips: NDArray[np.float32], motions: Sequence[Motion]) -> dict[str, float]:
    """Share of clips, (motion, 3, 8, 16, 16), in which each word of the caption came true.

    Colour and background count if they are right in every frame, the digit in the middle one; `steady` are the clips
    that show the right digit in every frame.
    """
    pairs = list(zip(clips, motions, strict=True))
    digits = [digits_seen(clip, motion) for clip, motion in pairs]
    right = {
        "digit": [seen[FRAMES // 2] == motion.digit for seen, motion in zip(digits, motions)],
        "colour": [{colour_seen(clip[:, i]) for i in range(FRAMES)} == {motion.colour} for clip, motion in pairs],
        "direction": [direction_seen(clip, motion.background) == motion.direction for clip, motion in pairs],
        "background": [
            {background_seen(clip[:, i]) for i in range(FRAMES)} == {motion.background} for clip, motion in pairs
        ],
        "steady": [set(seen) == {motion.digit} for seen, motion in zip(digits, motions)],
    }
    return {word: float(np.mean(found)) for word, found in right.items()}


def background_seen(picture: Picture) -> str:
    """The background nearest to the median pixel."""
    median = np.median(picture, axis=(1, 2))
    return min(BACKGROUNDS, key=lambda name: np.linalg.norm(median - BACKGROUNDS[name]))


def colour_seen(picture: Picture, pixels: int = 4) -> str:
    """The colour nearest to the pixels that differ most from the background."""
    most = np.argsort(_contrast(picture, background_seen(picture)), axis=None)[-pixels:]
    ink = picture.reshape(3, -1)[:, most].mean(axis=1)
    return min(COLOURS, key=lambda name: np.linalg.norm(ink - COLOURS[name]))


def place_seen(picture: Picture, size: str) -> str:
    """The place where some average digit of this size leaves the least squared error over the whole picture."""
    ink = _contrast(picture, background_seen(picture))
    ink /= max(ink.max(), 1e-6)
    digits = _average_digits(SIZES[size])

    def error(place: str) -> float:
        window = _window(ink, Figure(size, "", 0, place).corner, SIZES[size])
        return np.square(window - digits).sum(axis=(1, 2)).min() - np.square(window).sum()

    return min(LARGE_PLACES if size == "large" else PLACES, key=error)


def digit_seen(picture: Picture, asked: Scene) -> int:
    """The digit recognised at the place asked for, whatever its colour."""
    figure = asked.figures[0]
    return _read(picture, figure.corner, SIZES[figure.size], figure.colour, asked.background)


def direction_seen(clip: Clip, background: str) -> str:
    """The direction that a digit moves in; empty if it rather stands still.

    Of all paths, that is the one along which some average digit leaves the least squared error over the whole clip.
    """
    motions = [Motion("", 0, direction, "") for direction in DIRECTIONS]
    paths = [(motion.direction, _path(motion, lane)) for motion, lane in product(motions, LANES)]
    spots = product(range(SIDE - SIZES["small"] + 1), repeat=2)
    misfit = _misfit(clip, background)
    return min([*(("", [spot] * FRAMES) for spot in spots), *paths], key=lambda path: misfit(path[1]))[0]


def digits_seen(clip: Clip, asked: Motion) -> list[int]:
    """The digit recognised in each frame, where it should be by then if it moves as asked, whatever its colour."""
    misfit = _misfit(clip, asked.background)
    path = min((_path(asked, lane) for lane in LANES), key=misfit)
    return [_read(clip[:, i], path[i], SIZES["small"], asked.colour, asked.background) for i in range(FRAMES)]


def _path(motion: Motion, lane: int) -> list[tuple[int, int]]:
    return [motion.corner(lane, frame) for frame in range(FRAMES)]


def _misfit(clip: Clip, background: str) -> Callable[[list[tuple[int, int]]], float]:
    """Tells for a path how far its windows are from the nearest average digit, less how far from no ink."""
    ink = _contrast(clip, background)
    ink /= max(ink.max(), 1e-6)
    digits = _average_digits(SIZES["small"])

    def misfit(path: list[tuple[int, int]]) -> float:
        windows = np.stack([_window(ink[i], corner, SIZES["small"]) for i, corner in enumerate(path)])
        return np.square(windows[:, None] - digits).sum(axis=(0, 2, 3)).min() - np.square(windows).sum()

    return misfit


def _read(picture: Picture, corner: tuple[int, int], side: int, colour: str, background: str) -> int:
    """The digit recognised at a corner; as dark or light as this colour would be there is full ink."""
    full = np.linalg.norm(np.subtract(COLOURS[colour], BACKGROUNDS[background]))
    ink = np.minimum(1, _window(_contrast(picture, background), corner, side) / full)
    return int(_reader(side).predict(ink.reshape(1, -1))[0])


def _contrast(picture: Picture | Clip, background: str) -> NDArray[np.float32]:
    """Distance of each pixel from a background, (..., 16, 16); a drawn digit's is its ink, up to a factor."""
    return np.linalg.norm(picture - BACKGROUNDS[background], axis=0)


def _window(plane: NDArray[np.float32], corner: tuple[int, int], side: int) -> NDArray[np.float32]:
    """The part of a (16, 16) plane that a digit covers."""
    top, left = corner
    return plane[top : top + side, left : left + side]


def _known_hands(side: int) -> Hands:
    """The half of the handwriting that the classifier learns from."""
    return tuple(hands[: len(hands) // 2] for hands in handwriting(side))


def _average_digits(side: int) -> NDArray[np.float32]:
    """Mean ink of each digit in the known hands, (10, side, side)."""
    return np.stack([hands.mean(axis=0) for hands in _known_hands(side)])


def _unseen_hands(side: int) -> Hands:
    return tuple(hands[len(hands) // 2 :] for hands in handwriting(side))


@lru_cache
def _reader(side: int) -> SVC:
    """A classifier of digits by their ink, side * side numbers."""
    from sklearn.svm import SVC

    hands = _known_hands(side)
    digits = np.repeat(np.arange(10), [len(known) for known in hands])
    return SVC(C=10).fit(np.concatenate(hands).reshape(len(digits), -1), digits)


def render(
    pipeline: DiffusionPipeline, captions: Sequence[str], steps: int, guidance: float, batch: int = 50
) -> NDArray[np.float32]:
    """Pictures of captions, (caption, 3, 16, 16); the noise of each depends on its index alone."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for start in range(0, len(captions), batch):
        prompt = list(captions[start : start + batch])
        done = pipeline(
            prompt=prompt,
            height=SIDE,
            width=SIDE,
            num_inference_steps=steps,
            max_sequence_length=TEXT_TOKENS,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(prompt))],
            output_type="np",
            **_own_options(pipeline, len(prompt), guidance),
        )
        pictures.append(done.images)
    return np.concatenate(pictures).transpose(0, 3, 1, 2)


def render_clips(
    pipeline: LattePipeline, captions: Sequence[str], steps: int, guidance: float, batch: int = 10
) -> NDArray[np.float32]:
    """Clips of captions, (caption, 3, 8, 16, 16); the noise of each depends on its index alone.

    Given several captions, LattePipeline attends to their padding, which the model has never seen. So each is encoded
    apart, and cut, as when the pipeline is called with one.
    """
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        told = [pipeline.encode_prompt(caption, negative_prompt="") for caption in captions]
    clips = []
    for start in range(0, len(captions), batch):
        words, nothing = (torch.cat(half) for half in zip(*told[start : start + batch]))
        done = pipeline(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=words,
            negative_prompt_embeds=nothing,
            mask_feature=False,
            height=SIDE,
            width=SIDE,
            video_length=FRAMES,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(start + i) for i in range(len(words))],
            output_type="np",
        )
        clips.append(done.frames)
    return np.concatenate(clips).transpose(0, 4, 1, 2, 3)


def _own_options(pipeline: DiffusionPipeline, count: int, guidance: float) -> dict[str, object]:
    """What only this kind of pipeline takes."""
    if isinstance(pipeline, PixArtAlphaPipeline):
        return {"guidance_scale": guidance, "use_resolution_binning": False, "clean_caption": False}
    if guidance > 1:
        return {"true_cfg_scale": guidance, "negative_prompt": [""] * count}
    return {}


def grid(
    pictures: NDArray[np.float32], rows: int = 8, columns: int = 10, zoom: int = 4, gap: int = 2
) -> Image.Image:
    """The first pictures in rows, enlarged; as `asked_scenes` come, each of ten columns holds one digit."""
    rows = min(rows, len(pictures) // columns)
    tiles = pictures[: columns * rows].repeat(zoom, axis=2).repeat(zoom, axis=3)
    tiles = np.pad(tiles, [(0, 0), (0, 0), (0, gap), (0, gap)], constant_values=1)
    height, width = tiles.shape[2:]
    sheet = tiles.reshape(rows, columns, 3, height, width).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * height, columns * width, 3)
    return Image.fromarray(np.rint(255 * sheet[:-gap, :-gap]).astype(np.uint8))


def clip_grid(clips: NDArray[np.float32]) -> Image.Image:
    """The first twenty clips, two to a row, their frames from left to right."""
    pairs = clips[: len(clips) // 2 * 2][:20].transpose(0, 2, 1, 3, 4)
    return grid(pairs.reshape(-1, 3, SIDE, SIDE), rows=10, columns=2 * FRAMES)


def _load(folder: Path) -> DiffusionPipeline:
    if not (folder / "model_index.json").is_file():
        raise click.ClickException(f"{folder}: no model_index.json; expected a diffusers folder, as training writes it")
    try:
        found = DiffusionPipeline.load_config(folder).get("_class_name")
        if found not in KINDS:
            raise click.ClickException(f"{folder}: holds a {found}; expected a {' or a '.join(KINDS)}")
        return DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise click.ClickException(f"{folder}: not a readable diffusers folder: {reason}") from error


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write a grid of samples to this PNG.")
@click.option("--count", type=click.IntRange(min=10), default=200, show_default=True, help="How many pictures.")
@click.option("--steps", type=click.IntRange(min=2), default=28, show_default=True)
@click.option("--guidance", type=click.FloatRange(min=1), help="1 for none.  [default: the model's; 2 for a folder]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--force", is_flag=True, help="Replace the PNG if it is there.")
def main(
    folder: Path, output: Path | None, count: int, steps: int, guidance: float | None, as_json: bool, force: bool
) -> None:
    """Score a digits model: the share of pictures in which each word of the caption came true.

    FOLDER is a trained one, or the name of a bundled model.

    Example: python -m dit_tracer.digits.score digits-flux -o grid.png
    """
    bundled = BUNDLED.get(str(folder))
    folder = Path(bundled.source) if bundled else folder
    guidance = guidance or (bundled.call[bundled.guidance] if bundled else 2.0)
    if output and output.exists() and not force:
        raise click.ClickException(f"{output} exists; --force replaces it")
    pipeline = _load(folder)
    video = isinstance(pipeline, LattePipeline)
    asked = (asked_motions if video else asked_scenes)(count)
    pictures = (render_clips if video else render)(pipeline, [str(scene) for scene in asked], steps, guidance)
    if not np.isfinite(pictures).all():
        raise click.ClickException(f"{folder}: this model draws pictures that are not finite; train it again")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        (clip_grid if video else grid)(pictures).save(output, "PNG")
    if video:
        rows = {"model": clip_scores(pictures, asked), "real clips": clip_scores(real_clips(asked), asked)}
    else:
        rows = {"model": scores(pictures, asked), "real scenes": scores(real_pictures(asked), asked)}
    if as_json:
        return click.echo(json.dumps({"count": count, "steps": steps, "guidance": guidance, **rows}, indent=2))
    click.echo(" " * 12 + "".join(f"{word:>12}" for word in rows["model"]))
    for name, shares in rows.items():
        click.echo(f"{name:12}" + "".join(f"{share:12.3f}" for share in shares.values()))


if __name__ == "__main__":
    main()

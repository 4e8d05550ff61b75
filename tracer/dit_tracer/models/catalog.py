"""The models that dit-trace knows by name, and how each is run. Knows no torch.

Three groups: the bundled ones (trained, small), the seven of the paper (arXiv 2411.13588; published checkpoints), and
the twins: `tiny:NAME`, a family's pipeline in miniature with random weights.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from dit_tracer.digits.captions import captions, motions

DIGITS = Path(__file__).parent.parent / "digits"

TINY = "tiny:"
"""What the name of a twin begins with."""

RANDOM = "random weights: for trying options and testing, its numbers mean nothing"


@dataclass(frozen=True)
class Model:
    """A model by name: where its weights are, and how its pipeline is called by default.

    Args:
        source: What its weights are loaded from: a folder, a Hugging Face repository, or `tiny:NAME` for a twin.
        call: Arguments of the pipeline.
        guidance: The argument among them that scales guidance.
        captions: Gives built-in prompts, as many as asked for.
        repo: Hugging Face repository; empty if there is none.
        pipeline: Name of the pipeline class; empty if only the source knows.
        gated: Whether the repository asks for a licence to be accepted first.
        dtype: Precision on an accelerator; None for the command's own default.
        kinds: What is recorded by default.
        paper: What the paper ran: steps, size (height, width), frames, guidance, dtype, seed (None if not known).
        card: What the model card runs, or the pipeline by default where the card leaves it open; likewise.
        note: One line on where the two differ and which is used; empty if they agree.
        random_weights: Whether it is a twin.
    """

    name: str
    source: str
    about: str
    steps: int = 28
    call: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    captions: Callable[[int], list[str]] | None = None
    repo: str = ""
    pipeline: str = ""
    gated: bool = False
    dtype: str | None = None
    kinds: tuple[str, ...] = ("k", "v", "a")
    paper: dict[str, Any] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    random_weights: bool = False


_DIGITS_CALL = {"height": 16, "width": 16, "max_sequence_length": 24, "negative_prompt": ""}

BUNDLED = {
    model.name: model
    for model in (
        Model(
            "digits-pixart",
            str(DIGITS / "digits-pixart"),
            "bundled; PixArt on 16x16 scenes of digits: self- and cross-attention, guided",
            call=_DIGITS_CALL | {"use_resolution_binning": False, "clean_caption": False, "guidance_scale": 2.0},
            captions=captions,
            pipeline="PixArtAlphaPipeline",
        ),
        Model(
            "digits-flux",
            str(DIGITS / "digits-flux"),
            "bundled; FLUX on 16x16 scenes of digits: double and single blocks, no guidance",
            call=_DIGITS_CALL | {"true_cfg_scale": 1.0},
            guidance="true_cfg_scale",
            captions=captions,
            pipeline="FluxPipeline",
        ),
        Model(
            "digits-latte",
            str(DIGITS / "digits-latte"),
            "bundled; Latte on 8 frames of a moving digit, 16x16: spatial, temporal and cross-attention, guided",
            call={
                "height": 16,
                "width": 16,
                "video_length": 8,
                "negative_prompt": "",
                "guidance_scale": 2.0,
                "clean_caption": False,
            },
            captions=motions,
            pipeline="LattePipeline",
        ),
    )
}


def _published(
    name: str, repo: str, pipeline: str, about: str, call: dict[str, Any], card: dict[str, Any], **further: Any
) -> Model:
    """One of the seven, run as the paper ran it.

    Args:
        call: The paper's settings in the pipeline's words; sizes and lengths are spelled out even where they are the
            pipeline's defaults, because defaults change between versions of diffusers.
        card: Only what differs from the paper.
    """
    paper = {
        "steps": further["steps"],
        "size": (call["height"], call["width"]),
        "frames": call.get("num_frames", call.get("video_length", 1)),
        "guidance": call["guidance_scale"],
        "dtype": further["dtype"],
        "seed": further.pop("seed", 42),
    }
    note = _difference(paper, card)
    card = {key: value for key, value in (paper | card).items() if key != "seed"}
    return Model(
        name, repo, about, call=call, repo=repo, pipeline=pipeline, paper=paper, card=card, note=note, **further
    )


def _difference(paper: dict[str, Any], card: dict[str, Any]) -> str:
    """`as in the paper: steps 28; the model card says steps 50`, of whatever differs."""
    if not card:
        return ""
    ours, theirs = (", ".join(f"{key} {settings[key]}" for key in card) for settings in (paper, card))
    return f"as in the paper: {ours}; the model card says {theirs}"


SEVEN = {
    model.name: model
    for model in (
        _published(
            "flux.1-dev",
            "black-forest-labs/FLUX.1-dev",
            "FluxPipeline",
            "image; 19 double and 38 single blocks, guidance distilled into the weights",
            {"height": 1024, "width": 1024, "guidance_scale": 3.5, "max_sequence_length": 512},
            card={"steps": 50, "dtype": "bfloat16"},
            steps=28,
            dtype="float16",
            gated=True,
        ),
        _published(
            "pixart-alpha",
            "PixArt-alpha/PixArt-XL-2-1024-MS",
            "PixArtAlphaPipeline",
            "image; 28 blocks of self- and cross-attention",
            # Cleaning captions depends on which packages are installed (bs4, ftfy); the paper's list has neither.
            {"height": 1024, "width": 1024, "guidance_scale": 4.5, "max_sequence_length": 120, "clean_caption": False},
            card={},
            steps=20,
            dtype="float16",
        ),
        _published(
            "sd3",
            "stabilityai/stable-diffusion-3-medium-diffusers",
            "StableDiffusion3Pipeline",
            "image; Stable Diffusion 3 medium, 24 joint blocks",
            {"height": 1024, "width": 1024, "guidance_scale": 7.0, "max_sequence_length": 256},
            card={},
            steps=28,
            dtype="float16",
            gated=True,
        ),
        _published(
            "cogvideox-5b",
            "zai-org/CogVideoX-5b",
            "CogVideoXPipeline",
            "video; 42 joint blocks",
            {"height": 480, "width": 720, "num_frames": 9, "guidance_scale": 6.0, "max_sequence_length": 226},
            card={"frames": 49, "dtype": "bfloat16"},
            steps=50,
            dtype="float16",
        ),
        _published(
            "open-sora",
            "hpcai-tech/OpenSora-STDiT-v3",
            "OpenSoraPipeline",
            "video; Open-Sora 1.2, 28 spatial and 28 temporal blocks, each with cross-attention",
            {"height": 240, "width": 426, "num_frames": 51, "fps": 24}
            | {"guidance_scale": 7.0, "max_sequence_length": 300},
            card={},
            steps=30,
            dtype="bfloat16",
            seed=1024,
        ),
        _published(
            "latte-1",
            "maxin-cn/Latte-1",
            "LattePipeline",
            "video; 28 spatial blocks with cross-attention, 28 temporal blocks",
            {"height": 512, "width": 512, "video_length": 16, "guidance_scale": 7.5, "clean_caption": False},
            card={},
            steps=50,
            dtype="float16",
        ),
        _published(
            "mochi-1-preview",
            "genmo/mochi-1-preview",
            "MochiPipeline",
            "video; 48 joint blocks, narrower for text",
            {"height": 480, "width": 848, "num_frames": 163, "guidance_scale": 4.5, "max_sequence_length": 256},
            card={"frames": 84},
            steps=64,
            dtype="bfloat16",
            seed=None,  # its script leaves it to a default that is not known here
            kinds=("k", "v", "a", "o"),  # the paper's A of Mochi is taken before the output projection
        ),
    )
}

RENAMED = {"THUDM/CogVideoX-5b": "zai-org/CogVideoX-5b"}
"""Repositories that moved; the Hub forwards the old name."""


def twin_captions(count: int) -> list[str]:
    """The first so many of 64 short prompts for twins."""
    subjects = ("bus", "cat playing the piano", "lighthouse in a storm at night", "fox")
    colours = ("red", "blue", "green", "yellow", "black", "white", "pink", "purple")
    manners = ("a {} {}", "an old photograph of a {} {}")
    return [manner.format(*words[::-1]) for *words, manner in product(subjects, colours, manners)][:count]


_IMAGE = {"height": 32, "width": 32}
_COARSE = {"height": 64, "width": 64}  # where the pipeline takes eight pixels a latent for granted
_VIDEO = _IMAGE | {"num_frames": 9}

TWINS = {
    model.name: model
    for model in (
        Model(
            TINY + name,
            TINY + name,
            f"{what}; {RANDOM}",
            steps=8,
            call=call,
            guidance="true_cfg_scale" if "true_cfg_scale" in call else "guidance_scale",
            captions=twin_captions,
            pipeline=pipeline,
            kinds=SEVEN[name].kinds if name in SEVEN else ("k", "v", "a"),
            random_weights=True,
        )
        for name, pipeline, what, call in (
            ("flux.1-dev", "FluxPipeline", "FLUX", _IMAGE | {"guidance_scale": 3.5, "max_sequence_length": 32}),
            (
                "pixart-alpha",
                "PixArtAlphaPipeline",
                "PixArt",
                _IMAGE
                | {"guidance_scale": 4.5, "max_sequence_length": 32}
                | {"use_resolution_binning": False, "clean_caption": False},
            ),
            (
                "sd3",
                "StableDiffusion3Pipeline",
                "Stable Diffusion 3",
                _IMAGE | {"guidance_scale": 7.0, "max_sequence_length": 32},
            ),
            (
                "cogvideox-5b",
                "CogVideoXPipeline",
                "CogVideoX",
                _VIDEO | {"guidance_scale": 6.0, "max_sequence_length": 32},
            ),
            (
                "open-sora",
                "OpenSoraPipeline",
                "Open-Sora",
                _COARSE | {"num_frames": 17, "fps": 24, "guidance_scale": 7.0, "max_sequence_length": 64},
            ),
            (
                "latte-1",
                "LattePipeline",
                "Latte",
                _IMAGE | {"video_length": 4, "guidance_scale": 7.5, "clean_caption": False},
            ),
            (
                "mochi-1-preview",
                "MochiPipeline",
                "Mochi",
                _COARSE | {"num_frames": 7, "guidance_scale": 4.5, "max_sequence_length": 32},
            ),
            (
                "sd3.5",
                "StableDiffusion3Pipeline",
                "Stable Diffusion 3.5 medium: a second attention in some blocks",
                _IMAGE | {"guidance_scale": 4.5, "max_sequence_length": 32},
            ),
            (
                "wan2.1",
                "WanPipeline",
                "Wan 2.1: two calls a step",
                _COARSE | {"num_frames": 9, "guidance_scale": 5.0, "max_sequence_length": 32},
            ),
            (
                "wan2.2",
                "WanPipeline",
                "Wan 2.2: one transformer for the noisy steps, another for the rest",
                _COARSE | {"num_frames": 9, "guidance_scale": 4.0, "guidance_scale_2": 3.0, "max_sequence_length": 32},
            ),
            ("ltx", "LTXPipeline", "LTX", _VIDEO | {"guidance_scale": 3.0, "max_sequence_length": 32}),
            (
                "sana",
                "SanaPipeline",
                "Sana: linear attention",
                _IMAGE
                | {"guidance_scale": 4.5, "max_sequence_length": 32, "complex_human_instruction": None}
                | {"use_resolution_binning": False, "clean_caption": False},
            ),
            (
                "qwen-image",
                "QwenImagePipeline",
                "Qwen-Image: as many text tokens as the prompt has",
                _COARSE | {"true_cfg_scale": 4.0, "negative_prompt": " ", "max_sequence_length": 64},
            ),
            (
                "lumina2",
                "Lumina2Pipeline",
                "Lumina 2: text and image one sequence from the start",
                _COARSE | {"guidance_scale": 4.0, "max_sequence_length": 32, "system_prompt": ""},
            ),
            (
                "z-image",
                "ZImagePipeline",
                "Z-Image: image and text one sequence from the start",
                _IMAGE | {"guidance_scale": 5.0, "max_sequence_length": 32},
            ),
            (
                "stable-diffusion",
                "StableDiffusionPipeline",
                "Stable Diffusion 1: a U-Net, no transformer",
                _IMAGE | {"guidance_scale": 7.5},
            ),
        )
    )
}

MODELS = BUNDLED | SEVEN
"""Every model with trained weights that has a name."""

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find(name: str) -> Model:
    """The model of this name, of the diffusers folder at this path, or of this Hugging Face repository (`owner/name`).

    A repository of the seven gives its entry, with the paper's settings. Whether another one exists is not asked here.

    Raises:
        LookupError: It is none of these; the message lists what there is.
    """
    known = MODELS | TWINS
    if name in known:
        return known[name]
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return Model(folder.resolve().name, str(folder), "a local folder")
    if folder.is_dir():
        raise LookupError(f"{name}: a folder, but not of a diffusers pipeline (it has no model_index.json)")
    if name.startswith(TINY):
        raise LookupError(f"unknown twin {name!r}; known are {', '.join(TWINS)}{_meant(name)}")
    if _REPOSITORY.fullmatch(name):
        return _of_repository(name)
    names = ", ".join(MODELS)
    raise LookupError(
        f"unknown model {name!r}; known are {names}; or give the folder of a diffusers pipeline, a Hugging Face "
        f"repository (owner/name), or {TINY}NAME for a twin with random weights{_meant(name)}"
    )


def _of_repository(repo: str) -> Model:
    wanted = RENAMED.get(repo, repo)
    for model in SEVEN.values():
        if model.repo.lower() == wanted.lower():
            return model
    return Model(repo.split("/")[1], repo, f"Hugging Face repository {repo}", repo=repo)


def _meant(name: str) -> str:
    """A question to add to an error if a known name is close."""
    close = difflib.get_close_matches(name.lower(), [*MODELS, *TWINS], n=2)
    return f"; did you mean {' or '.join(close)}?" if close else ""

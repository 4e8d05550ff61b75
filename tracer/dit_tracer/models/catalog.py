"""The models that dit-trace knows by name, and how each is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_tracer.digits.captions import captions

DIGITS = Path(__file__).parent.parent / "digits"


@dataclass(frozen=True)
class Model:
    """A model by name: where its weights are, and how its pipeline is called by default.

    Args:
        call: Arguments of the pipeline.
        guidance: The argument among them that scales guidance.
        captions: Gives built-in prompts, as many as asked for.
    """

    name: str
    source: str
    about: str
    steps: int = 28
    call: dict[str, Any] = field(default_factory=dict)
    guidance: str = "guidance_scale"
    captions: Callable[[int], list[str]] | None = None


_DIGITS_CALL = {"height": 16, "width": 16, "max_sequence_length": 24, "negative_prompt": ""}

MODELS = {
    model.name: model
    for model in (
        Model(
            "digits-pixart",
            str(DIGITS / "digits-pixart"),
            "bundled; PixArt on 16x16 scenes of digits: self- and cross-attention, guided",
            call=_DIGITS_CALL | {"use_resolution_binning": False, "clean_caption": False, "guidance_scale": 2.0},
            captions=captions,
        ),
        Model(
            "digits-flux",
            str(DIGITS / "digits-flux"),
            "bundled; FLUX on 16x16 scenes of digits: double and single blocks, no guidance",
            call=_DIGITS_CALL | {"true_cfg_scale": 1.0},
            guidance="true_cfg_scale",
            captions=captions,
        ),
    )
}


def find(name: str) -> Model:
    """The model of this name, or of the diffusers folder at this path.

    Raises:
        LookupError: Neither exists; the message lists what does.
    """
    if name in MODELS:
        return MODELS[name]
    folder = Path(name)
    if (folder / "model_index.json").is_file():
        return Model(folder.resolve().name, str(folder), "a local folder")
    if folder.is_dir():
        raise LookupError(f"{name}: a folder, but not of a diffusers pipeline (it has no model_index.json)")
    known = ", ".join(MODELS)
    raise LookupError(f"unknown model {name!r}; known are {known}, or give the folder of a diffusers pipeline")

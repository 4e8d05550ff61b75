"""Reads the published weights of Open-Sora v1.2: safetensors only, and every key must fit."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_tracer.models.opensora_network import STDiT3

CHECKPOINT = "hpcai-tech/OpenSora-STDiT-v3"
CONFIG, WEIGHTS = "config.json", "model*.safetensors"


class CheckpointError(ValueError):
    """Files that are not the weights of this network; the message says how they differ."""

    exit_code = 1


def load_transformer(
    checkpoint: str | Path = CHECKPOINT, torch_dtype: torch.dtype = torch.float32, revision: str | None = None
) -> STDiT3:
    """The network with the weights of a local folder, or of a repository of the hub.

    Raises:
        CheckpointError: There are no weights, or they are of another network.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        folder = Path(snapshot_download(str(checkpoint), revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise CheckpointError(f"{checkpoint}: no {WEIGHTS} in it; other formats are not read")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= {key: weight.to(torch_dtype) for key, weight in load_file(file).items()}
    with torch.device("meta"):
        model = STDiT3(**_sizes(folder / CONFIG))
    fill(model, weights, str(checkpoint))
    return model.eval()


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put weights into a model of the very same keys and shapes.

    Raises:
        CheckpointError: Some differ; one line names how many, and the first of each sort.
    """
    expected = model.state_dict()
    common = expected.keys() & weights.keys()
    faults = {
        "missing": expected.keys() - weights.keys(),
        "unexpected": weights.keys() - expected.keys(),
        "of another shape": {key for key in common if expected[key].shape != weights[key].shape},
    }
    told = [f"{len(keys)} {what} ({min(keys)})" for what, keys in faults.items() if keys]
    if told:
        raise CheckpointError(f"{source}: not the weights of {type(model).__name__}: keys {', '.join(told)}")
    model.load_state_dict(weights, strict=True, assign=True)


def _sizes(config: Path) -> dict[str, Any]:
    """The arguments of the network that a configuration names; it also holds some that only training needs."""
    if not config.is_file():
        return {}
    known = inspect.signature(STDiT3.__init__).parameters
    return {name: value for name, value in json.loads(config.read_text()).items() if name in known}

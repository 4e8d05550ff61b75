"""Real pipelines with tiny random weights, and the numbers that the paper's own recorder measured on them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

GOLD = Path(__file__).parents[1] / "data" / "gold"


@dataclass(frozen=True)
class Gold:
    """One family: its pipeline, the numbers, and the stored inputs and latents."""

    pipeline: Any
    numbers: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    module: Any

    @property
    def num_prompts(self) -> int:
        return len(self.numbers["prompt_seeds"])

    def generate(self, prompt: int, **changes: Any) -> torch.Tensor:
        """Final latents of a prompt."""
        numbers = self.numbers | {"call_kwargs": self.numbers["call_kwargs"] | changes}
        return self.module.run(self.pipeline, numbers, self.tensors, prompt)


def load_gold(family: str) -> Gold:
    spec = importlib.util.spec_from_file_location("load_gold", GOLD / "load_gold.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _, pipeline, numbers, tensors = module.load(family)
    return Gold(pipeline, numbers, tensors, module)


@pytest.fixture(params=["flux", "pixart-alpha"])
def gold(request: pytest.FixtureRequest) -> Gold:
    return load_gold(request.param)


@pytest.fixture
def flux() -> Gold:
    return load_gold("flux")


@pytest.fixture
def pixart() -> Gold:
    return load_gold("pixart-alpha")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """The stored numbers were measured with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

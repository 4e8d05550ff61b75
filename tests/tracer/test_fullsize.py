"""The seven at full size: counts that are known from elsewhere."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_processor import Attention, MochiAttention
from dit_tracer.models.catalog import SEVEN
from dit_tracer.models.fullsize import CONFIGS, config, meta_transformers, on_meta, parameters, probe

CROSS = re.compile(r"(transformer_blocks\.\d+\.attn2|cross_attn)$")

# Self-attention layers, all attention layers, billions of parameters, tokens of the latent at the default size.
KNOWN = {
    "flux.1-dev": (57, 57, 11.90, 4096),
    "pixart-alpha": (28, 56, 0.611, 4096),
    "sd3": (24, 24, 2.03, 4096),
    "cogvideox-5b": (42, 42, 5.57, 3 * 30 * 45),
    "open-sora": (56, 112, 1.208, 15 * 15 * 27),
    "latte-1": (56, 84, 1.057, 16 * 32 * 32),
    "mochi-1-preview": (48, 48, 10.03, 28 * 30 * 53),
}


@cache
def transformer(name: str) -> torch.nn.Module:
    made = meta_transformers(name)
    assert list(made) == ["transformer"]
    return made["transformer"]


def attentions(name: str) -> dict[str, torch.nn.Module]:
    """Attention modules by path; of models whose `attn2` is no cross-attention there is none here."""
    kinds = Attention, MochiAttention, AttentionModuleMixin
    return {path: module for path, module in transformer(name).named_modules() if isinstance(module, kinds)}


def test_each_of_the_seven_has_a_configuration() -> None:
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(SEVEN) == set(KNOWN)
    with pytest.raises(LookupError, match="digits-flux: no configuration at full size"):
        config("digits-flux")


@pytest.mark.parametrize("name", KNOWN)
def test_layers_and_parameters_are_those_published(name: str) -> None:
    own, total, billions, _ = KNOWN[name]
    paths = attentions(name)
    assert (sum(not CROSS.search(path) for path in paths), len(paths)) == (own, total)
    assert parameters(transformer(name)) / 1e9 == pytest.approx(billions, rel=2e-3)
    assert {weight.device.type for weight in transformer(name).parameters()} == {"meta"}


@pytest.mark.parametrize("name", KNOWN)
def test_a_forward_without_weights_visits_every_layer(name: str) -> None:
    module, calls, tokens = transformer(name), [], set()

    def visit(path: str, hidden_states: torch.Tensor) -> None:
        calls.append(path)
        folded = len(hidden_states) // batch
        tokens.add(folded * hidden_states.shape[1])

    arguments = probe(name)
    batch = len(arguments["hidden_states"])
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, named, path=path: visit(path, args[0] if args else named["hidden_states"]), with_kwargs=True
        )
        for path, layer in attentions(name).items()
    ]
    with on_meta():
        output = module(**arguments, return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    assert sorted(calls) == sorted(attentions(name))
    assert batch == (1 if name == "flux.1-dev" else 2)
    # FLUX's single blocks see the text too.
    assert tokens == {KNOWN[name][3]} | ({4096 + 512} if name == "flux.1-dev" else set())
    assert output.is_meta and output.shape[0] == batch


def test_autocast_is_put_back() -> None:
    before = torch.autocast
    with pytest.raises(RuntimeError, match="no"), on_meta():
        raise RuntimeError("no")
    assert torch.autocast is before

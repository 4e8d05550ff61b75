"""Exports of plans run by the real engines, on networks in miniature; what they compute is counted."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dit_formats.plan import LAYERS, Plan, PlanError
from dit_formats.targets import export
from dit_formats.targets.exported import Export, planned
from dit_tracer.calls import parameters, subject
from dit_tracer.counting import Counted, counting
from dit_tracer.engines import ENGINES, EngineError
from dit_tracer.models import tiny
from dit_tracer.models.catalog import find
from dit_tracer.recording.sites import find_attention, find_networks
from zoo.planned import STEPS_RUN, by_layers, by_steps, layers_of, plan_of

REFUSED = (
    ("latte-1", "cache-dit"),
    ("latte-1", "diffusers"),
    ("wan2.1", "diffusers-pab"),
    ("wan2.1", "smoothcache"),
)
PER_LAYER = ("smoothcache", "diffusers-pab", "diffusers-taylorseer")
FIVE = ("flux.1-dev", "pixart-alpha", "sd3", "cogvideox-5b", "mochi-1-preview")


def later(*names: str) -> list[Any]:
    """Further twins, in the longer run of tests."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def generate(pipeline: Any, name: str, **changes: Any) -> torch.Tensor:
    """Final latents of a twin."""
    call = find(f"tiny:{name}").call | {"num_inference_steps": STEPS_RUN, "output_type": "latent"} | changes
    call |= {"generator": torch.Generator().manual_seed(1), "return_dict": False}
    known = parameters(pipeline)
    return pipeline(**subject(pipeline, "a fox"), **{k: v for k, v in call.items() if k in known})[0]


def run(pipeline: Any, name: str, exported: Export) -> list[tuple[Counted, torch.Tensor]]:
    """Two generations with an export at work: what was computed, and the latents."""
    done = []
    with ENGINES[exported.target](pipeline, exported.text):
        for _ in range(2):
            with counting(pipeline) as counted:
                latents = generate(pipeline, name)
            done.append((counted, latents))
    return done


def computed(counted: Counted, exported: Export) -> np.ndarray:
    """Whether a layer was evaluated, as in the export."""
    return np.array([counted.computed(layer) for layer in exported.layers])


@pytest.fixture(scope="module")
def twins() -> dict[str, Any]:
    return {}


@pytest.fixture
def twin(request: pytest.FixtureRequest, twins: dict[str, Any]) -> tuple[str, Any]:
    name = request.param
    if name not in twins:
        twins[name] = tiny.build(name)
    return name, twins[name]


def proven(twin: tuple[str, Any], plan: Plan, target: str) -> Export:
    """An export that computes what it says, twice alike, and leaves the pipeline as it was."""
    name, pipeline = twin
    exported = export(plan, target)
    with counting(pipeline) as before:
        uncached = generate(pipeline, name)
    (first, latents), (second, again) = run(pipeline, name, exported)
    assert (computed(first, exported) == exported.computed).all()
    assert (computed(second, exported) == exported.computed).all()
    assert torch.equal(latents, again) and not torch.equal(latents, uncached)
    assert torch.isfinite(latents).all()
    assert first.attention < before.attention
    with counting(pipeline) as after:
        assert torch.equal(generate(pipeline, name), uncached)
    assert after.by_layer == before.by_layer
    return exported


@pytest.mark.parametrize("twin", [*FIVE, *later("latte-1", "wan2.1", "sana")], indirect=True)
def test_counting_sees_every_layer_in_every_step(twin: tuple[str, Any]) -> None:
    name, pipeline = twin
    with counting(pipeline) as counted:
        generate(pipeline, name)
    calls = 2 if name == "wan2.1" else 1
    assert counted.by_layer == {layer: [calls] * STEPS_RUN for layer in layers_of(pipeline)}
    assert sum(counted.by_step) == counted.attention and len(set(counted.by_step)) == 1
    halves = 2 if name == "mochi-1-preview" else 1  # it attends to each text of the batch apart
    attention = len(find_attention(find_networks(pipeline))) * STEPS_RUN * calls * halves
    assert counted.attention == attention
    assert counted.feed_forward == (len(layers_of(pipeline)) * STEPS_RUN * calls * halves - attention) // halves


@pytest.mark.parametrize("twin", [*FIVE, *later("sd3.5", "wan2.1", "qwen-image", "lumina2", "z-image", "ltx", "sana")],
                         indirect=True)  # fmt: skip
def test_cache_dit_computes_what_its_export_says(twin: tuple[str, Any]) -> None:
    proven(twin, by_steps(twin[1]), "cache-dit")


@pytest.mark.parametrize("twin", [*FIVE, *later("sd3.5", "wan2.1", "qwen-image", "ltx")], indirect=True)
def test_mag_cache_computes_what_its_export_says(twin: tuple[str, Any]) -> None:
    proven(twin, by_steps(twin[1]), "diffusers")


@pytest.mark.parametrize(
    ("twin", "call", "calls"),
    [
        ("flux.1-dev", {"true_cfg_scale": 4.0, "negative_prompt": "grey"}, 2),
        ("wan2.1", {"guidance_scale": 1.0}, 1),
        ("wan2.1", {"guidance_scale": 5.0}, 2),
    ],
    indirect=["twin"],
)
@pytest.mark.parametrize("target", ["cache-dit", "diffusers", "diffusers-taylorseer"])
def test_branches_in_calls_of_their_own_follow_the_plan_alike(
    twin: tuple[str, Any], call: dict[str, Any], calls: int, target: str
) -> None:
    name, pipeline = twin
    exported = export(by_steps(pipeline, call=call), target)
    with ENGINES[target](pipeline, exported.text), counting(pipeline) as counted:
        generate(pipeline, name, **call)
    assert [counted.by_layer[layer] for layer in exported.layers] == (calls * exported.computed).tolist()


@pytest.mark.parametrize(
    "twin", [*FIVE, *later("sd3.5", "latte-1", "open-sora", "z-image", "ltx", "sana")], indirect=True
)
def test_smoothcache_computes_a_plan_of_layers_as_it_is(twin: tuple[str, Any]) -> None:
    plan = by_layers(twin[1])
    exported = proven(twin, plan, "smoothcache")
    assert (exported.computed == planned(plan)).all()


@pytest.mark.parametrize(
    "twin", [*FIVE, *later("sd3.5", "latte-1", "open-sora", "z-image", "ltx", "sana")], indirect=True
)
def test_broadcasting_computes_what_its_export_says(twin: tuple[str, Any]) -> None:
    exported = proven(twin, by_layers(twin[1]), "diffusers-pab")
    assert any("feed-forward" in sentence for sentence in exported.lost)


@pytest.mark.parametrize(
    "twin", [*FIVE, *later("latte-1", "open-sora", "wan2.1", "qwen-image", "z-image", "ltx", "sana")], indirect=True
)
def test_taylorseer_computes_what_its_export_says(twin: tuple[str, Any]) -> None:
    proven(twin, by_layers(twin[1], predictor="linear"), "diffusers-taylorseer")


@pytest.mark.parametrize("twin", ["flux.1-dev", "pixart-alpha"], indirect=True)
def test_cache_dit_predicts_where_the_plan_does(twin: tuple[str, Any]) -> None:
    name, pipeline = twin
    reused, predicted = (export(by_steps(pipeline, predictor=how), "cache-dit") for how in ("reuse", "linear"))
    proven(twin, by_steps(pipeline, predictor="linear"), "cache-dit")
    (_, one), (_, other) = run(pipeline, name, reused)[0], run(pipeline, name, predicted)[0]
    assert not torch.equal(one, other)


@pytest.mark.parametrize("twin", ["pixart-alpha"], indirect=True)
@pytest.mark.parametrize("target", ["cache-dit", "diffusers"])
def test_a_plan_of_layers_loses_what_whole_steps_cannot_say(twin: tuple[str, Any], target: str) -> None:
    pipeline = twin[1]
    rest = [layer for layer in layers_of(pipeline) if "attn2" not in layer]
    cross = [layer for layer in layers_of(pipeline) if "attn2" in layer]
    rows = [("rest", rest, [1, 1, 0, 1, 0, 0, 1, 0]), ("cross", cross, [1, 0, 0, 0, 0, 0, 0, 1])]
    exported = proven(twin, plan_of(pipeline, rows, LAYERS), target)
    assert any("than planned" in sentence for sentence in exported.lost)


@pytest.mark.parametrize(("twin", "target"), REFUSED, indirect=["twin"])
def test_engines_that_mix_branches_or_fail_are_refused(twin: tuple[str, Any], target: str) -> None:
    with pytest.raises(PlanError, match="cannot run Latte|once for each guidance branch"):
        export(by_layers(twin[1]) if target in PER_LAYER else by_steps(twin[1]), target)


@pytest.mark.parametrize("twin", ["latte-1"], indirect=True)
@pytest.mark.parametrize("target", ["cache-dit", "diffusers"])
def test_latte_is_refused_as_the_engines_would_refuse_it(twin: tuple[str, Any], target: str) -> None:
    name, pipeline = twin
    with pytest.raises(PlanError, match="LatteTransformer3DModel"):
        export(by_steps(pipeline), target)
    exported = export(by_steps(tiny.build("pixart-alpha")), target)
    text = exported.text.replace("PixArtTransformer2DModel", "LatteTransformer3DModel")
    with pytest.raises((EngineError, RuntimeError)), ENGINES[target](pipeline, text):
        generate(pipeline, name)
    assert torch.isfinite(generate(pipeline, name)).all()


@pytest.mark.parametrize(
    ("twin", "target"),
    [pair for pair in product(("flux.1-dev", "sd3", "latte-1", "wan2.1"), ENGINES) if pair not in REFUSED],
    indirect=["twin"],
)
def test_the_snippet_does_what_the_file_says(
    twin: tuple[str, Any], target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, _ = twin
    pipeline = tiny.build(name)
    generate(pipeline, name)  # as somebody has who first looks at the uncached image
    exported = export(by_layers(pipeline) if target in PER_LAYER else by_steps(pipeline), target)
    file = tmp_path / "other name.yaml"
    file.write_text(exported.text)
    exec(exported.loading(str(file)), {"pipe": pipeline})
    try:
        with counting(pipeline) as counted:
            generate(pipeline, name)
    finally:
        if target == "cache-dit":
            __import__("cache_dit").disable_cache(pipeline)  # it patches the class
    assert (computed(counted, exported) == exported.computed).all()


@pytest.mark.parametrize("twin", ["pixart-alpha"], indirect=True)
def test_a_file_for_another_network_is_refused(twin: tuple[str, Any]) -> None:
    text = export(by_steps(tiny.build("flux.1-dev")), "diffusers").text
    with pytest.raises(EngineError, match="for FluxTransformer2DModel"), ENGINES["diffusers"](twin[1], text):
        pass


@pytest.mark.parametrize("twin", ["pixart-alpha"], indirect=True)
@pytest.mark.parametrize("target", ENGINES)
def test_all_is_undone_after_an_error(twin: tuple[str, Any], target: str) -> None:
    name, pipeline = twin
    before = generate(pipeline, name)
    call = type(pipeline).__call__
    exported = export(by_layers(pipeline) if target in PER_LAYER else by_steps(pipeline), target)
    with pytest.raises(KeyboardInterrupt), ENGINES[target](pipeline, exported.text), counting(pipeline):
        generate(pipeline, name)
        raise KeyboardInterrupt
    assert type(pipeline).__call__ is call
    assert all("forward" not in vars(module) for module in pipeline.transformer.modules())
    assert torch.equal(generate(pipeline, name), before)


@pytest.mark.parametrize("twin", ["flux.1-dev"], indirect=True)
def test_the_order_of_blocks_is_put_back(twin: tuple[str, Any]) -> None:
    """cache-dit turns it round, and MagCache would take a block in the middle for the first."""
    name, pipeline = twin
    order = [path for path, _ in pipeline.transformer.named_modules()]
    run(pipeline, name, export(by_steps(pipeline), "cache-dit"))
    assert [path for path, _ in pipeline.transformer.named_modules()] == order


@pytest.mark.parametrize(
    ("target", "module"), [("cache-dit", "cache_dit"), ("smoothcache", "SmoothCache"), ("diffusers", "diffusers.hooks")]
)
def test_an_engine_that_is_not_installed_is_named(
    target: str, module: str, twins: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = twins.setdefault("pixart-alpha", tiny.build("pixart-alpha"))
    exported = export(by_steps(pipeline), target)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=f"{module}|needs 0.42"), ENGINES[target](pipeline, exported.text):
        pass

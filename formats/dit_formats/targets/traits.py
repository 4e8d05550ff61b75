"""What other engines make of a class of transformers: measured on networks in miniature, or read in pipelines.

Measured with diffusers 0.42.1 and cache-dit 1.5.3; the tests of the tracer repeat it.
"""

from __future__ import annotations

from dataclasses import dataclass

from dit_formats.plan import Plan, PlanError

STACKS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers", "visual_transformer_blocks")
"""Lists of blocks that engines skip as a whole, as diffusers' hooks name them; refiners and the like are no part."""


@dataclass(frozen=True)
class Traits:
    """One class of transformers.

    Args:
        two_calls: Whether its pipelines call it once for each guidance branch, where there is guidance.
        has_enable_cache: Whether it has diffusers' `enable_cache`, which also clears what was cached when a
            generation ends.
        mag_cache, cache_dit: Why this engine does not work with it; empty where it does.
        tried: Whether exports for it were run, on its network in miniature.
    """

    two_calls: bool = False
    has_enable_cache: bool = True
    mag_cache: str = ""
    cache_dit: str = ""
    tried: bool = True


_UNREGISTERED = "its blocks are not registered in diffusers' hooks (ValueError when it runs)"

TRAITS = {
    "FluxTransformer2DModel": Traits(),
    "PixArtTransformer2DModel": Traits(has_enable_cache=False),
    "SD3Transformer2DModel": Traits(has_enable_cache=False),
    "CogVideoXTransformer3DModel": Traits(),
    "MochiTransformer3DModel": Traits(),
    "LTXVideoTransformer3DModel": Traits(),
    "WanTransformer3DModel": Traits(two_calls=True),
    "QwenImageTransformer2DModel": Traits(two_calls=True),
    "LatteTransformer3DModel": Traits(
        mag_cache="it reshapes its states between spatial and temporal blocks, and MagCache adds what does not fit "
        "(RuntimeError when it runs)",
        cache_dit="cache-dit has no adapter for it",
    ),
    "STDiT3": Traits(
        mag_cache="MagCache finds none of its blocks (spatial_blocks, temporal_blocks) and would skip nothing",
        cache_dit="cache-dit has no adapter for it",
    ),
    "SanaTransformer2DModel": Traits(has_enable_cache=False, mag_cache=_UNREGISTERED),
    "Lumina2Transformer2DModel": Traits(two_calls=True, has_enable_cache=False, mag_cache=_UNREGISTERED),
    "ZImageTransformer2DModel": Traits(has_enable_cache=False, mag_cache=_UNREGISTERED),
}

TWO_CALLS = frozenset(
    """AceStepTransformer1DModel AnyFlowFARTransformer3DModel BriaFibo2Transformer2DModel ChromaTransformer2DModel
    ChronoEditTransformer3DModel CogView4Transformer2DModel Cosmos3OmniTransformer CosmosTransformer3DModel
    Flux2Transformer2DModel GlmImageTransformer2DModel HeliosTransformer3DModel HunyuanVideoFramepackTransformer3DModel
    HunyuanVideoTransformer3DModel Ideogram4Transformer2DModel JoyImageEditTransformer3DModel
    Kandinsky5Transformer3DModel Kandinsky6Transformer3DModel Krea2Transformer2DModel LTX2VideoTransformer3DModel
    LongCatAudioDiTTransformer LongCatImageTransformer2DModel NucleusMoEImageTransformer2DModel
    OvisImageTransformer2DModel QwenImage21Transformer2DModel SkyReelsV2Transformer3DModel WanAnimateTransformer3DModel
    WanVACETransformer3DModel""".split()
)
"""Further classes whose pipelines in diffusers 0.42.1 call them more than once a step; read there, not run."""


def traits_of(plan: Plan) -> Traits:
    """The row of a plan's transformer; for a class that was not tried, what is known of it."""
    name = plan.request.transformer
    return TRAITS.get(name) or Traits(name in TWO_CALLS, tried=False)


def guided(plan: Plan) -> bool:
    """Whether the plan's generation uses classifier-free guidance, which FLUX and others have beside a guidance they
    were taught; True where the plan does not tell."""
    call = plan.request.call
    scale = call.get("true_cfg_scale", call.get("guidance_scale"))
    return scale is None or float(scale) > 1


def calls_twice(plan: Plan) -> bool:
    """Whether a step of the plan's generation calls the network once for each guidance branch."""
    if plan.request.transformer == "FluxTransformer2DModel":
        return "true_cfg_scale" in plan.request.call and guided(plan)
    return traits_of(plan).two_calls and guided(plan)


def component(plan: Plan, target: str) -> str:
    """The one denoising network that the plan's layers are in.

    Raises:
        PlanError: They are in several, and the target counts steps in each of them apart.
    """
    names = {layer.partition(".")[0] for layer in plan.types}
    if len(names) > 1:
        raise PlanError(
            f"{target} counts the steps of {' and '.join(sorted(names))} apart, each from its own first one, so a plan "
            "over all steps does not fit; run it with dit-trace replay"
        )
    return names.pop()


def refuse_two_calls(plan: Plan, target: str, why: str, instead: str) -> None:
    """Refuse a pipeline that calls its network once for each guidance branch."""
    if calls_twice(plan):
        raise PlanError(
            f"{target}: {plan.request.pipeline} calls {plan.request.transformer} once for each guidance branch, and "
            f"{why}; {instead}"
        )

"""MagCache's ratios as diffusers 0.42 (`MagCacheConfig`) and ComfyUI-MagCache (`nodes.py`) take them.

Only the first was run with these numbers. Both take a ratio for each step, the first one being 1.0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from dit_formats.console import plural
from dit_formats.plan import PlanError
from dit_formats.reader import Trace
from dit_formats.targets.traits import TRAITS

from dit_analyzer.plans import magcache
from dit_analyzer.plans.coefficients import FILE, SHARE, Coefficients
from dit_analyzer.plans.made_for import as_json, as_python, name_of, prompts_of, told_of
from dit_analyzer.plans.magcache import MAX_SKIP, RETENTION, THRESHOLD, Ratios
from dit_analyzer.plans.skips import Skips

SHARES = (0.25, 0.5)
THRESHOLDS = (0.03, 0.06, 0.12, 0.24)

DIFFUSERS = f"""\
import json

from diffusers.hooks import MagCacheConfig, apply_mag_cache

with open("{FILE}", encoding="utf-8") as file:
    config = MagCacheConfig(**json.load(file)["config"])
if hasattr(pipe.transformer, "enable_cache"):  # which also tells guidance branches apart
    pipe.transformer.enable_cache(config)
else:
    apply_mag_cache(pipe.transformer, config)
"""
COMFYUI = f"# put the row of {FILE} under SUPPORTED_MODELS_MAG_RATIOS in nodes.py of ComfyUI-MagCache\n"


def write(
    target: str, trace: Trace, *, force: bool = False, monotone: bool = False, share: float = SHARE
) -> Coefficients:
    """The file for one of `FORMS`. There is no fit, so nothing to keep from falling.

    Args:
        force: Write it for a network on which diffusers fails.

    Raises:
        IncompleteError: No stack, or one step only.
        PlanError: Ratios are missing, or diffusers fails on this network.
    """
    fails = _fails(trace) if target == "magcache" else ""
    if fails and not force:
        raise PlanError(f"{trace.path}: MagCache {fails}; --force writes it all the same")
    found = magcache.ratios(trace)
    threshold, chosen = _threshold(found, share)
    return FORMS[target](trace, found, threshold, (*_quality(trace, found), chosen), fails)


def _fails(trace: Trace) -> str:
    """Why diffusers' MagCache does not work with the trace's network; empty where it does, or is not known not to."""
    networks = trace.run.settings.get("transformers")
    classes = [row.get("class") for row in networks.values()] if isinstance(networks, dict) else []
    for name in classes:
        why = TRAITS[name].mag_cache if name in TRAITS else ""
        if why:
            return f"cannot run {name}: {why}"
    return ""


def _diffusers(trace: Trace, found: Ratios, threshold: float, quality: tuple[str, ...], fails: str) -> Coefficients:
    """Arguments of `MagCacheConfig`, the ratios of the branches beside them."""
    config = {
        "threshold": threshold,
        "max_skip_steps": MAX_SKIP,
        "retention_ratio": RETENTION,
        "num_inference_steps": trace.num_steps,
        "mag_ratios": _rounded(found.joint),
    }
    lost = [
        *([f"written by force: MagCache {fails}"] if fails else []),
        "the stack of blocks is skipped as a whole, in all branches alike",
        f"the ratios are for {plural(trace.num_steps, 'step')}: for another number the nearest are taken, unsaid",
    ]
    if len(found.branches) > 1:
        lost += [f"one list for {' and '.join(found.branches)}, whose ratios differ by up to {found.apart:.2g}"]
        lost += ["a pipeline with a call for each branch needs a cache context for each, else steps count twice"]
    by_branch = dict(zip(found.branches, map(_rounded, found.ratios)))
    data = {"config": config, "ratios_by_branch": by_branch, "ditscope": told_of(trace, quality, lost)}
    return Coefficients(as_json(data), ".json", quality, tuple(lost), DIFFUSERS, ran_here=not fails)


def _comfyui(trace: Trace, found: Ratios, threshold: float, quality: tuple[str, ...], fails: str) -> Coefficients:
    """A row of the node's table; guided models have their branches in turns."""
    guided = len(found.branches) > 1
    lost = [
        "the node knows the types of model in its list alone: name the row as the one whose network it is",
        "for flux and chroma it never skips step 11, whatever the ratios say",
        "its inputs end at magcache_thresh 0.3, magcache_K 6 and retention_ratio 0.1 to 0.3",
        f"the ratios are for {plural(trace.num_steps, 'step')}: for another number others are taken, unsaid",
    ]
    lost += [f"{' and '.join(found.branches)} lie in turns, as guided types take them"] if guided else []
    values = _rounded(found.interleaved if guided else found.joint)
    inputs = f"magcache_thresh={threshold:.4g}, retention_ratio={RETENTION}, magcache_K={MAX_SKIP}"
    row = f"SUPPORTED_MODELS_MAG_RATIOS[{name_of(trace)}] = np.array({values})"
    text = as_python(trace, quality, lost, [f"# inputs of the node: {inputs}", row])
    return Coefficients(text, ".py", quality, tuple(lost), COMFYUI, ran_here=False)


FORMS: dict[str, Callable[..., Coefficients]] = {"magcache": _diffusers, "comfyui-magcache": _comfyui}


def _threshold(found: Ratios, share: float) -> tuple[float, str]:
    """The threshold for a share of the steps, or the usual one where none skips so many; and what was chosen."""
    try:
        threshold = float(f"{magcache.threshold_for(found.joint, share):.6g}")
    except ValueError as error:
        return THRESHOLD, f"the file has {magcache.skips(found, THRESHOLD)}; {error}"
    return threshold, f"the file has the threshold for {share:.0%} of the steps: {magcache.skips(found, threshold)}"


def _quality(trace: Trace, found: Ratios) -> list[str]:
    """What the ratios are worth, and how many steps thresholds skip."""
    spread = (found.prompt_std / found.ratios)[:, 1:].max()
    between = f"largest deviation between prompts {spread:.1%}" if np.isfinite(spread) else "one prompt"
    lines = [
        f"{prompts_of(trace)}: {between}, between tokens of one {found.token_std.max():.1%} of the ratio",
        f"what the ratio does not see: 1 - cosine of neighbouring residuals is up to {1 - found.cosine.min():.2g}",
    ]
    told = [magcache.skips(found, threshold) for threshold in THRESHOLDS]
    return lines + [str(one) for one in told + _at_shares(found)]


def _at_shares(found: Ratios) -> list[Skips]:
    """What thresholds for usual shares skip, as far as there are such."""
    told = []
    for share in SHARES:
        try:
            told.append(magcache.skips(found, magcache.threshold_for(found.joint, share)))
        except ValueError:
            break
    return told


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 6) for value in values]

"""What the paper's published scripts compute, beside what they mean to (arXiv 2411.13588; DiTCacheAnalysis@457c316).

`exp_1_varying_prompt.py` takes the coefficient of variation over the first 10 prompts, not the 1000 of the text: the
standard deviation with N degrees of freedom over the mean, averaged over cells; one cell without change makes it NaN.
`exp_2_varying_model.py` keeps a running mean of the same prompts that drops prompt 0: `defects.curve_weights`.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from dit_analyzer.measures.defects import SCRIPT_LAYERS, SCRIPT_PROMPTS, curve_weights
from dit_analyzer.measures.variation import variation


def as_published(view: xr.Dataset, prompts: int = SCRIPT_PROMPTS) -> xr.Dataset:
    """The numbers of the paper's scripts for this trace, and the correct ones.

    Args:
        view: `paper_view`. Its first prompts, up to `prompts`, are those that the scripts would read; with fewer, what
            the scripts would do is done with these.

    Returns:
        Per kind: cv_script, NaN where l1 is 0 or not finite anywhere, as the script's; cv, cv_low and cv_high of all
        prompts, see `variation`; and cv_first, the same correct cv of the first prompts alone, so that of cv_script's
        distance to cv the part of the formula and the part of the few prompts can be told apart.
        (kind, layer, transition): l1_script, the running mean that drops prompt 0, and l1, the mean over all prompts;
        l1_ratio = l1_script / l1; both NaN in layers that the scripts do not read, beyond 30 of CogVideoX-5B.
        Attributes: prompts, of the trace; script_prompts and script_layers, how many the scripts read.

    Raises:
        ValueError: Fewer than two prompts.
    """
    whole = variation(view)
    first = view.isel(prompt=slice(prompts))
    read = SCRIPT_LAYERS.get(str(view.attrs.get("model", "")), view.sizes["layer"])
    l1 = first["l1"].transpose("prompt", "kind", "layer", "transition")
    recorded = first["count"].notnull() if "count" in first else l1.notnull()
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = l1.std("prompt", ddof=0, skipna=False) / l1.mean("prompt", skipna=False)
        there = recorded.any("prompt")
        there = there & (xr.DataArray(range(view.sizes["layer"]), dims="layer") < read)
        lost = (there & ratio.isnull()).any(("layer", "transition"))
        mean = view["l1"].transpose(*l1.dims).mean("prompt", skipna=False)
        script = mean.copy(data=running_mean(l1.values)).where(there)
        return xr.Dataset(
            {
                "cv_script": ratio.where(there).mean(("layer", "transition")).where(~lost),
                "cv_first": variation(first)["cv"],
                **{name: whole[name] for name in ("cv", "cv_low", "cv_high")},
                "l1_script": script,
                "l1": mean,
                "l1_ratio": script / mean.where(mean > 0),
            },
            attrs=view.attrs
            | {
                "prompts": view.sizes["prompt"],
                "script_prompts": first.sizes["prompt"],
                "script_layers": min(read, view.sizes["layer"]),
            },
        )


def running_mean(values: np.ndarray) -> np.ndarray:
    """What the script's running mean comes to, of values (prompt, ...)."""
    return np.tensordot(curve_weights(len(values)), values, 1)

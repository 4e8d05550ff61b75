"""TeaCache's polynomial as its scripts, ComfyUI-TeaCache (`nodes.py`) and vllm-omni (`cache_config`) take it.

Five coefficients, highest power first. None was run with these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dit_formats.console import plural
from dit_formats.errors import IncompleteError
from dit_formats.reader import Trace

from dit_analyzer.plans import teacache
from dit_analyzer.plans.coefficients import FILE, SHARE, Coefficients
from dit_analyzer.plans.made_for import as_json, as_python, name_of, prompts_of, told_of
from dit_analyzer.plans.teacache import FLOOR, Fit, FitError, Pairs, Rule

SHARES = (0.25, 0.5)
THRESHOLDS = (0.1, 0.2, 0.4)
USUAL = 0.2
"""Threshold where none skips the share that is asked for; vllm-omni's default."""

SCRIPT = f"# put the two lines of {FILE} where the forward function of TeaCache4YOUR_MODEL has its own\n"
NODE = f"# put the row of {FILE} under SUPPORTED_MODELS_COEFFICIENTS in nodes.py of ComfyUI-TeaCache\n"
ENGINE = f"""\
import json

from vllm_omni import Omni

with open("{FILE}", encoding="utf-8") as file:
    data = json.load(file)
omni = Omni(model=MODEL, cache_backend=data["cache_backend"], cache_config=data["cache_config"])
"""

LOST = (
    "the stack of blocks is skipped as a whole",
    "one polynomial for all steps and branches; the number of skipped steps differs from prompt to prompt",
    "no step can be forced to be computed, so change points are not kept",
)
LAST = "the last step may be skipped, which TeaCache's own scripts always compute"


@dataclass(frozen=True)
class Form:
    """How a target takes a polynomial.

    Args:
        output: Whose change it predicts there.
        rule: How it skips.
        text: From trace, coefficients, threshold, lines of quality and of what is lost to the content of the file.
        lost: What is lost there besides `LOST`.
    """

    output: str
    rule: Rule
    text: Callable[[Trace, list[float], float, Sequence[str], Sequence[str]], str]
    lost: tuple[str, ...]
    ending: str
    snippet: str


def write(
    target: str, trace: Trace, *, force: bool = False, monotone: bool = False, share: float = SHARE
) -> Coefficients:
    """The file for one of `FORMS`.

    Args:
        force: Write a polynomial that tells too little.
        monotone: Only one that never falls within the range of the trace.

    Raises:
        IncompleteError: No stack or not these sites, or one step only.
        FitError: Too few points; or too little explained, and not forced.
    """
    form = FORMS[target]
    pairs = teacache.pairs(trace, form.output)
    fit = teacache.require(teacache.fit(pairs, monotone=monotone), force=force)
    coefficients = [float(f"{c:.9g}") for c in fit.coefficients]
    threshold, chosen = _threshold(coefficients, pairs, share, form.rule)
    quality = (*_worth(trace, pairs, fit), *_skipping(coefficients, pairs, form.rule), chosen)
    lost = LOST + form.lost + (_branches(pairs) if len(pairs.branches) > 1 else ())
    text = form.text(trace, coefficients, threshold, quality, lost)
    return Coefficients(text, form.ending, quality, lost, form.snippet, ran_here=False)


def _branches(pairs: Pairs) -> tuple[str, ...]:
    names = " and ".join(pairs.branches)
    return (f"steps are counted for {names} apart; code that has them in one batch decides for both at once",)


def _threshold(coefficients: list[float], pairs: Pairs, share: float, rule: Rule) -> tuple[float, str]:
    """The threshold for a share of the steps, or the usual one where none skips so many; and what was chosen."""
    try:
        threshold = float(f"{teacache.threshold_for(coefficients, pairs.x, share, rule):.6g}")
    except ValueError as error:
        return USUAL, f"the file has {teacache.skips(coefficients, pairs.x, USUAL, rule)}; {error}"
    told = teacache.skips(coefficients, pairs.x, threshold, rule)
    return threshold, f"the file has the threshold for {share:.0%} of the steps: {told}"


def _worth(trace: Trace, pairs: Pairs, fit: Fit) -> list[str]:
    """What a polynomial is worth."""
    floor = "" if fit.r_squared >= FLOOR else f", below the floor {FLOOR}: written by force"
    held = f"R^2 {fit.r_squared:.3f}, residual error {fit.rmse:.3g} on held-out prompts{floor}"
    what = f"change of the {fit.output} from that of the modulated input"
    lines = [
        f"{prompts_of(trace)}, {plural(fit.points, 'point')}: {what}",
        f"{held}; R^2 {fit.within:.3f} on all",
    ]
    others = [f"{name} {r:.3f}" for name, r in _other_outputs(trace, fit.output).items()]
    lines += [f"R^2 on held-out prompts if it were of another output: {', '.join(others)}"] if others else []
    return [*lines, _course(pairs, fit)]


def _course(pairs: Pairs, fit: Fit) -> str:
    """Whether it ever falls, and then one that does not."""
    seen = f"between {fit.low:.3g} and {fit.high:.3g}, where the changes of the input lay"
    if fit.monotone:
        return f"never falls and is never negative {seen}"
    other = teacache.fit(pairs, monotone=True)
    listed = ", ".join(f"{c:.9g}" for c in other.coefficients)
    return f"falls or is negative {seen}; one that never does: R^2 {other.r_squared:.3f}, [{listed}]"


def _other_outputs(trace: Trace, taken: str) -> dict[str, float]:
    """R^2 on held-out prompts of polynomials of the other outputs, as far as these were recorded."""
    found = {}
    for name in teacache.OUTPUTS:
        if name != taken:
            try:
                found[name] = teacache.fit(teacache.pairs(trace, name)).r_squared
            except (IncompleteError, FitError):
                continue
    return found


def _skipping(coefficients: list[float], pairs: Pairs, rule: Rule) -> list[str]:
    """How many steps usual thresholds skip, and those for usual shares, as far as there are such."""
    tried = list(THRESHOLDS)
    for share in SHARES:
        try:
            tried.append(teacache.threshold_for(coefficients, pairs.x, share, rule))
        except ValueError:
            break
    return [str(teacache.skips(coefficients, pairs.x, threshold, rule)) for threshold in tried]


def _script(
    trace: Trace, coefficients: list[float], threshold: float, quality: Sequence[str], lost: Sequence[str]
) -> str:
    """As TeaCache's scripts have them in their forward functions."""
    return as_python(trace, quality, lost, [f"coefficients = {coefficients}", f"rel_l1_thresh = {threshold}"])


def _node(
    trace: Trace, coefficients: list[float], threshold: float, quality: Sequence[str], lost: Sequence[str]
) -> str:
    """A row of ComfyUI-TeaCache's table."""
    inputs = f"# inputs of the node: rel_l1_thresh={threshold:.4g}, start_percent=0, end_percent=1"
    row = f"SUPPORTED_MODELS_COEFFICIENTS[{name_of(trace)}] = {coefficients}"
    return as_python(trace, quality, lost, [inputs, row])


def _engine(
    trace: Trace, coefficients: list[float], threshold: float, quality: Sequence[str], lost: Sequence[str]
) -> str:
    """Arguments of vllm-omni's `Omni`."""
    config = {"rel_l1_thresh": threshold, "coefficients": coefficients}
    return as_json({"cache_backend": "tea_cache", "cache_config": config, "ditscope": told_of(trace, quality, lost)})


FORMS = {
    "teacache": Form("residual", Rule(), _script, (), ".py", SCRIPT),
    "comfyui-teacache": Form(
        "residual",
        Rule(last=False),
        _node,
        (LAST, "the node knows the types of model in its list alone: name the row as the one whose network it is"),
        ".py",
        NODE,
    ),
    "vllm-omni": Form(
        "last",
        Rule(last=False, absolute=True),
        _engine,
        (LAST, "a negative value of the polynomial counts as positive", "the network needs an extractor there"),
        ".json",
        ENGINE,
    ),
}

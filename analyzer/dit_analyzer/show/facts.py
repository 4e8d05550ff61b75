"""The page `facts.md`: what can be said of the paper (arXiv 2411.13588) without its models' weights.

Every number on it is counted in the traces or computed by `measures.schedules` and `measures.defects`, except what
the paper itself says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from dit_formats.console import harmless, plural

from dit_analyzer.measures import defects, schedules
from dit_analyzer.measures.axes import noise_levels
from dit_analyzer.members import Member
from dit_analyzer.printed import CONFIGURED, FLUX, PAPER
from dit_analyzer.show.papertables import DASH, billions

SCRIPTS = "xdit-project/DiTCacheAnalysis at 457c316"
MOCHI = "mochi-1-preview"
STEPS = PAPER[FLUX].steps
JUMPS = {28: 16, 56: 34}
"""Steps of FLUX's jump in the paper, by the number of steps (Figures 2 and 9)."""

FAR_OFF = 0.15
"""Share by which a number of parameters is another than printed, beyond rounding."""


def page(members: Sequence[Member]) -> str:
    """The whole page, in Markdown."""
    parts = [
        "# What can be settled without weights",
        "Numbers are counted in the traces of this study or computed from published formulas; nothing here depends on "
        "what a model has learned. Steps of the paper count down, transitions count up from 0.",
        *_models(members),
        *_paper_schedulers(),
        *_study_schedulers(members),
        *_step_counts(),
        *_mochi(members),
        *_scripts(),
    ]
    return "\n\n".join(parts) + "\n"


def _models(members: Sequence[Member]) -> Iterator[str]:
    yield "## Layers and parameters"
    first = {one.model: one for one in reversed(members)}
    rows = [["model", *(f"{what}, {of}" for what in ("layers", "parameters") for of in ("paper", "counted", "here"))]]
    for name in [*PAPER, *sorted(first.keys() - PAPER.keys())]:
        here = (_layers(first[name]), _parameters(first[name])) if name in first else (DASH, DASH)
        said = (str(PAPER[name].layers), f"{PAPER[name].parameters:g} B") if name in PAPER else (DASH, DASH)
        layers, parameters = CONFIGURED.get(name, (0, 0))
        counted = (str(layers), billions(parameters)) if layers else (DASH, DASH)
        rows.append([harmless(name), *(of[place] for place in (0, 1) for of in (said, counted, here))])
    yield table(rows)
    yield (
        "Layers: attention without cross-attention. Paper: its Table 1. Counted: in the network that the published "
        f"configuration builds, without weights. Here: in a trace of this study. {DASH}: not said, or no such trace."
    )
    for name, one in PAPER.items():
        layers, parameters = CONFIGURED[name]
        if layers != one.layers:
            yield f"{name} has {layers} attention layers, not {one.layers}."
        if abs(parameters / 1e9 / one.parameters - 1) > FAR_OFF:
            yield f"{name} has {billions(parameters)} parameters in its transformer, not {one.parameters:g} B."
        if name in first and first[name].attention_layers != layers:
            yield f"{name}: the trace here has {plural(first[name].attention_layers, 'layer')}, not {layers}."


def _layers(one: Member) -> str:
    parts = ", ".join(f"{number} {harmless(kind)}" for kind, number in one.layers.items() if kind != "ff")
    return f"{one.attention_layers} ({parts})" if len(one.layers) > 1 else parts


def _parameters(one: Member) -> str:
    return billions(one.parameters) if one.parameters else DASH


def _paper_schedulers() -> Iterator[str]:
    """What changing FLUX's scheduler for SD3's changed."""
    yield "## How different the two schedulers are"
    shift = schedules.flux_shift()
    flux, sd3, even = (schedules.shifted(STEPS, each) for each in (shift, schedules.SD3_SHIFT, 1.0))
    apart, step = schedules.contrast(flux, sd3)
    clear, _ = schedules.contrast(even, sd3)
    spacing = np.abs(np.diff(flux))
    yield (
        "The paper changes FLUX's scheduler for SD3's. Both are Euler's method for flow matching; FLUX's shifts noise "
        f"levels by exp({np.log(shift):.2f}) = {shift:.3f} at 1024 x 1024, SD3's by {schedules.SD3_SHIFT:.1f}. Over "
        f"{STEPS} steps the two grids differ by at most max abs. d sigma = {apart:.4f}, at step {step}; neighbouring "
        f"levels of FLUX's grid are {spacing.min():.3f} to {spacing.max():.3f} apart. No shift at all, against SD3's, "
        f"would have given {clear:.3f}, {clear / apart:.0f} times as much. Curves that stay as they are when noise "
        "levels hardly change do not show that the scheduler makes no difference."
    )


def _study_schedulers(members: Sequence[Member]) -> Iterator[str]:
    """A row for each trace with another scheduler than the first trace of its model that has as many steps."""
    rows = []
    for one in members:
        same = [other for other in members if (other.model, other.num_steps) == (one.model, one.num_steps)]
        first = min(same, key=lambda other: "scheduler" in other.role)
        if one.scheduler != first.scheduler:
            apart, step = schedules.contrast(*(noise_levels(of.sigmas) for of in (first, one)))
            names = one.name, first.name, f"{one.scheduler_name}; {first.scheduler_name}"
            rows.append([*map(harmless, names), f"{apart:.4f}", str(step)])
    if rows:
        yield "In this study, sigma being sigma / (1 + sigma) where it is not a flow's and exceeds 1:"
        yield table([["trace", "against", "schedulers", "max abs. d sigma", "at step"], *rows])


def _step_counts() -> Iterator[str]:
    yield "## Steps " + " and ".join(f"{step} of {num_steps}" for num_steps, step in JUMPS.items())
    shift = schedules.flux_shift()
    at = {num_steps: schedules.from_paper_step(step, num_steps) for num_steps, step in JUMPS.items()}
    at[STEPS // 2] = at[STEPS] // 2
    yield (
        "That is where the paper finds FLUX's jump. By FLUX's schedule both transitions start at the same noise level, "
        "and so does one of the 14-step run:"
    )
    rows = [["steps", "step of the paper", "transition", "sigma before", "sigma after"]]
    yield table(rows + [_levels(num_steps, transition, shift) for num_steps, transition in at.items()])
    counted = " and ".join(f"{step / num_steps:.3f}" for num_steps, step in JUMPS.items())
    started = " and ".join(f"{at[num_steps] / num_steps:.3f}" for num_steps in JUMPS)
    yield (
        f"As shares of the run they are {counted} in the paper's counting, which numbers a transition by its later "
        f"step, from n - 2 down to 0. They start after {started} of the steps."
    )


def _levels(num_steps: int, transition: int, shift: float) -> list[str]:
    grid = schedules.shifted(num_steps, shift)
    levels = [f"{level:.4f}" for level in grid[transition : transition + 2]]
    return [str(num_steps), str(num_steps - 2 - transition), str(transition), *levels]


def _mochi(members: Sequence[Member]) -> Iterator[str]:
    """What bfloat16 makes of Mochi's first noise levels."""
    yield "## Mochi's first steps"
    num_steps = PAPER[MOCHI].steps
    exact = schedules.linear_quadratic(num_steps)
    rounded = schedules.bfloat16(exact)
    still = schedules.equal_pairs(rounded)
    first = max(still) + 2  # transitions up to the last that stands still, and the one after it
    moves = ", ".join(str(transition) for transition in range(first) if transition not in still)
    yield (
        "The script that the paper ran makes Mochi's noise levels in the precision of the text features, bfloat16. Of "
        f"the first {first} transitions of its {num_steps}-step schedule (linear, then quadratic: sigma from 1 to "
        f"{exact[first]:.3f}), {len(still)} then join two equal levels; {first + 1} levels become "
        f"{len(set(rounded[: first + 1].tolist()))}. The level moves only in transitions {moves}. In float32, "
        f"{len(schedules.equal_pairs(exact.astype(np.float32)))} transitions stand still."
    )
    yield (
        "The paper describes early jumps in its Figure 8, where levels stand still and move by turns. They may come "
        "from this rounding and not from the model; only running the trained model in both precisions settles that."
    )
    for one in members:
        if one.model == MOCHI:
            pairs = len(schedules.equal_pairs(one.sigmas))
            yield f"{harmless(one.name)}: of {one.num_steps - 1} transitions as recorded, {pairs} stand still."


def _scripts() -> Iterator[str]:
    """What the published scripts compute, where that is not what the paper describes."""
    n = defects.SCRIPT_PROMPTS
    weights = defects.curve_weights(n)
    lost = defects.curve_weights(3, missing=[0, 1])
    few, many = (-defects.population_bias(number) for number in (n, 1000))
    float16, bfloat16 = (defects.half_precision_error(bits) for bits in (11, 8))
    yield f"## The published scripts ({SCRIPTS})"
    items = [
        f"`exp_1` and `exp_2` read {n} prompts. The paper speaks of 1000, and of 100 for Mochi. `exp_1` has no Mochi.",
        f"`exp_2` draws a running mean whose factors are one prompt behind: of {n} prompts, prompt 0 gets the weight "
        f"{weights[0]:g}, each other {weights[1]:.3f} instead of {1 / n:g}.",
        "`exp_2` passes over whatever goes wrong with a file. With prompts 0 and 1 missing, of 3, the curve is "
        f"{lost.sum():g} of the third prompt's; with a layer missing it is 0.",
        "`exp_1` takes the population standard deviation. For normal values that is "
        f"{few:.1%} too small at N = {n}, and {many:.2%} at N = 1000.",
        "`exp_1` averages ratios over layers and steps: one cell whose mean is 0 makes the model's number NaN.",
        f"Both read {PAPER['cogvideox-5b'].layers} layers of CogVideoX-5B, whatever was recorded.",
        "The five examples that use diffusers give every prompt the seed 42: variation over prompts is variation at "
        "one noise. How much noise matters was not measured.",
        "The examples take means in the precision of the model. Rounding alone costs up to "
        f"{float16:.2%} in float16 and {bfloat16:.2%} in bfloat16.",
        "Runs with other step counts and with another scheduler have no script, only commented lines of `exp_2`.",
        "`run_experiments.sh` makes no folder for the pictures that the examples save after each prompt.",
        "The patch of Mochi reads `captions1000.txt`; the file is `caption1000.txt`. It looks for finished prompts in "
        "`mochi1/` and writes them to `redundancy/mochi/`.",
    ]
    yield "\n".join(f"- {item}" for item in items)


def table(rows: list[list[str]]) -> str:
    """Rows as a table of Markdown, the first being its header."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

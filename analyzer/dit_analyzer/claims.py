"""What the paper claims (arXiv 2411.13588), each with its test on the traces of a study: `CLAIMS` has a row for each.

A claim is tested on traces of trained weights alone; one that names a model on that model's own. A trace that breaks a
claim about all models refutes it; one that keeps it supports it for its own model and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from dit_analyzer.measures.stability import ALIKE
from dit_analyzer.measures.verdicts import (
    FEWEST,
    REFUTED,
    SUPPORTED,
    UNDERPOWERED,
    Row,
    for_all,
    for_some,
    prompts_needed,
    stands_among,
)
from dit_analyzer.printed import FLUX, PAPER, WORDS
from dit_analyzer.study import Study
from dit_analyzer.trials import (
    FAR,
    LIKE_PRINTED,
    RISE,
    SURE,
    TREND,
    attention_far_above,
    deeper,
    jump,
    models_apart,
    printed_cv,
    prompts_alike,
    runs_alike,
    shape,
    smoother,
)


def for_every_row(rows: Sequence[Row]) -> str:
    """Holds in every case."""
    return for_all(row.verdict for row in rows)


def for_some_row(rows: Sequence[Row]) -> str:
    """Holds in one case or more."""
    return for_some(row.verdict for row in rows)


def for_every_pair(rows: Sequence[Row]) -> str:
    """Holds of every pair of traces, in one kind or more."""
    pairs = dict.fromkeys(row.of for row in rows)
    return for_all(for_some(row.verdict for row in rows if row.of == pair) for pair in pairs)


@dataclass(frozen=True)
class Claim:
    """One claim.

    Args:
        text: Restated in a sentence.
        place: Where the paper has it.
        measure: What the effect is, and where the claim holds.
        margin: The value on one side of which it holds, None where that is no single value.
        test: Rows from a study of trained models.
        join: How the rows' verdicts make one.
        needs: The command of dit-trace that makes what it is tested on.
        factor: Whether effects are logarithms, to be shown as factors.
    """

    text: str
    place: str
    measure: str
    margin: float | None
    test: Callable[[Study], Iterator[Row]]
    join: Callable[[Sequence[Row]], str] = for_every_row
    needs: str = ""
    factor: bool = False


@dataclass(frozen=True)
class Judged:
    """A claim with its rows and its verdict."""

    claim: Claim
    rows: list[Row]

    @property
    def verdict(self) -> str:
        """What the rows say together, those that alone would decide it counted only if they stand among so many."""
        return self.claim.join([self._among(row) for row in self.rows])

    def _among(self, row: Row) -> Row:
        decides = row.verdict == (SUPPORTED if self.claim.join is for_some_row else REFUTED)
        stands = not decides or stands_among(row, self.claim.margin, len(self.rows))
        return row if stands else row._replace(verdict=UNDERPOWERED)


def judged(study: Study) -> list[Judged]:
    """Every claim, tested on the traces of trained models."""
    tested = trained(study)
    return [Judged(claim, [_with_need(claim, row) for row in claim.test(tested)]) for claim in CLAIMS]


def _with_need(claim: Claim, row: Row) -> Row:
    """An underpowered row with what it lacks: how many prompts would do, or that more would not."""
    said = _need(claim, row) if row.verdict == UNDERPOWERED and row.prompts else ""
    return row._replace(note="; ".join(filter(None, (row.note, said))))


def _need(claim: Claim, row: Row) -> str:
    if row.prompts < FEWEST:
        return f"it takes {FEWEST} prompts or more"
    if claim.margin is None:
        return ""
    if np.isnan(row.low):
        return "no interval"
    needed = prompts_needed(row.effect, row.low, row.high, claim.margin, row.prompts)
    return f"about {needed} prompts would tell" if needed else "more prompts hardly help"


def trained(study: Study) -> Study:
    """The study without miniatures of random weights; what is measured is kept for both."""
    return study.of([one for one in study.members if not one.has_random_weights])


_SHAPES = "D between the two curves' shapes, as a factor; {} ×1.16 (0.15 in logarithms)"
_STEPS = "dit-trace study mine.toml -o FOLDER, with several steps"
_SCHEDULERS = "dit-trace study mine.toml -o FOLDER, with a scheduler whose noise levels differ"
_RUNS = "dit-trace run MODEL -p captions.txt -n 32 -o FOLDER/MODEL.trace, for two models or more"


def _named() -> Iterator[Claim]:
    """What the paper says of a model by name."""
    for num_steps, step in ((28, 16), (56, 34)):
        yield Claim(
            f"FLUX.1-dev at {num_steps} steps jumps at step {step}, counted down.",
            "section 4, Figures 2 and 9",
            "posterior that all layers break within one step of it; declared, and upwards",
            None,
            partial(jump, num_steps=num_steps, paper_step=step),
            needs=f"dit-trace run {FLUX} --steps {num_steps} -p captions.txt -n 32 -o FOLDER/{FLUX}-{num_steps}.trace",
        )
    for model, shapes in WORDS.items():
        said = " and ".join(f"{', '.join(k.upper() for k in kinds)} {word}" for word, kinds in _by_word(shapes).items())
        yield Claim(
            f"The curves of {model} over steps: {said}.",
            f"section 4, Figure {PAPER[model].figure}, in this project's words",
            f"share of resampled sets of prompts whose mean over layers gets the same word; {SURE:.0%} or more decides",
            None,
            partial(shape, model=model),
            needs=f"dit-trace run {model} -p captions.txt -n 32 -o FOLDER/{model}.trace",
        )
    for model, one in PAPER.items():
        if one.cv:
            yield Claim(
                f"The CV of {model} over prompts is {', '.join(f'{cv:g}' for cv in one.cv)} % (K, V, A).",
                "Table 2",
                f"corrected CV; within a factor {LIKE_PRINTED} of the printed one",
                None,
                partial(printed_cv, model=model),
                needs=f"dit-trace run {model} -p captions.txt -n 32 -o FOLDER/{model}.trace",
            )


def _by_word(shapes: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, word in shapes.items():
        found.setdefault(word, []).append(kind)
    return found


CLAIMS = (
    Claim(
        "Models differ in how change is spread over the steps.",
        "abstract, section 4",
        _SHAPES.format("holds above") + ", in one kind of one pair or more",
        ALIKE,
        models_apart,
        for_some_row,
        needs=_RUNS,
        factor=True,
    ),
    Claim(
        "There is no pattern common to models: any two of them differ.",
        "abstract",
        _SHAPES.format("holds above") + ", in one kind or more of every pair",
        ALIKE,
        models_apart,
        for_every_pair,
        needs=_RUNS,
        factor=True,
    ),
    Claim(
        "Within a model the curves over steps are stable over prompts.",
        "abstract, section 4, Table 2",
        "CV_shape, how far one prompt's curve is from the mean's shape; holds below 0.15, the largest CV of "
        "Table 2, which the paper calls stable",
        ALIKE,
        prompts_alike,
        needs="dit-trace run MODEL -p captions.txt -n 32 -o FOLDER/MODEL.trace",
    ),
    Claim(
        "Within a model the curves are stable over step counts.",
        "abstract, section 4.4, Figures 9 and 10",
        _SHAPES.format("at the same relative step; holds below"),
        ALIKE,
        partial(runs_alike, role="steps", axis="step"),
        needs=_STEPS,
        factor=True,
    ),
    Claim(
        "Within a model the curves are stable over schedulers, drawn over steps as the paper does.",
        "abstract, section 4.5, Figure 11",
        _SHAPES.format("at the same relative step; holds below"),
        ALIKE,
        partial(runs_alike, role="scheduler", axis="step"),
        needs=_SCHEDULERS,
        factor=True,
    ),
    Claim(
        "The same, as speed over the noise level: what a scheduler cannot move by placing its steps elsewhere.",
        "not in the paper; what its claim may mean",
        _SHAPES.format("at the same noise level; holds below"),
        ALIKE,
        partial(runs_alike, role="scheduler", axis="noise"),
        needs=_SCHEDULERS,
        factor=True,
    ),
    Claim(
        "Deeper layers change more.",
        "section 4",
        f"factor of L1 from input to output; holds above ×{RISE}, where a line explains {TREND:.0%} or more",
        np.log(RISE),
        partial(deeper, quantity="l1"),
        needs="dit-trace run MODEL -p captions.txt -n 32 -o FOLDER/MODEL.trace",
        factor=True,
    ),
    Claim(
        "Deeper layers change more, as a share of what they hold.",
        "not in the paper, which looks at absolute change alone",
        f"factor of relative L1 from input to output; holds above ×{RISE}, where a line explains {TREND:.0%} or more",
        np.log(RISE),
        partial(deeper, quantity="rel_l1"),
        needs="dit-trace run MODEL -p captions.txt -n 32 -o FOLDER/MODEL.trace",
        factor=True,
    ),
    Claim(
        "In some models A changes far more than K and V.",
        "section 4",
        f"the smaller of A/K and A/V; holds above ×{FAR:g}",
        np.log(FAR),
        attention_far_above,
        for_some_row,
        needs="dit-trace run MODEL -p captions.txt -n 32 -o FOLDER/MODEL.trace",
        factor=True,
    ),
    Claim(
        "With fewer steps curves look smoother.",
        "section 4.4, Figure 10",
        "roughness of the run with fewer steps over the other's, each over its own steps; holds below ×1",
        0.0,
        partial(smoother, matched=False),
        needs=_STEPS,
        factor=True,
    ),
    Claim(
        "They are smoother, and not for want of points alone.",
        "not in the paper; what its claim may mean",
        "the same, both at the noise levels of the run with fewer steps; holds below ×1",
        0.0,
        partial(smoother, matched=True),
        needs=_STEPS,
        factor=True,
    ),
    *_named(),
)

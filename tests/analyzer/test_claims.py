"""The paper's claims on made-up studies whose truth is known."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from dit_analyzer.claims import CLAIMS, Claim, Judged, judged
from dit_analyzer.measures.verdicts import NOT_TESTED, REFUTED, SUPPORTED, UNDERPOWERED, Row
from dit_analyzer.members import Member
from dit_analyzer.pages import claim_pages
from dit_analyzer.printed import CONFIGURED, PAPER, WORDS
from dit_analyzer.show import claims
from dit_analyzer.study import Study
from zoo.curves import bend, run, shifted

ONE = Member(
    Path("a"), "a", "one", 28, ("", "{}"), {"joint": 5}, 10, 10, 1, None, True, "exact", shifted(28), figure="S1"
)


def of_the_paper(model: str, **changes: object) -> Member:
    layers, parameters = CONFIGURED[model]
    figure = str(PAPER[model].figure)
    return replace(ONE, model=model, layers={"joint": layers}, parameters=parameters, figure=figure, **changes)


def other(sigma: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(7 * sigma + depth)


def rising(sigma: np.ndarray, depth: np.ndarray) -> np.ndarray:
    return bend(sigma, depth) + depth


def study(*runs: tuple[Member, xr.Dataset]) -> Study:
    members = [replace(one, path=Path(str(place)), name=f"run-{place}") for place, (one, _) in enumerate(runs)]
    views = {(member.path, "exact"): view for member, (_, view) in zip(members, runs)}
    return Study(members, _views=views)


def made(curve=bend, noise: float = 0.05, kinds: str = "kva", **settings) -> xr.Dataset:  # type: ignore[no-untyped-def]
    return run(curve, settings.pop("sigmas", shifted(28)), noise=noise, kinds=kinds, **settings)


def claim(found: list[Judged], words: str) -> Judged:
    (one,) = [each for each in found if words in each.claim.text]
    return one


def test_models_differ_where_their_curves_do_and_not_where_they_are_the_same() -> None:
    two = replace(ONE, model="two")
    differ = judged(study((ONE, made()), (two, made(other, draw=1))))
    assert claim(differ, "Models differ").verdict == claim(differ, "any two").verdict == SUPPORTED
    same = judged(study((ONE, made()), (two, made(draw=1))))
    assert claim(same, "Models differ").verdict == claim(same, "any two").verdict == REFUTED
    three = judged(study((ONE, made()), (two, made(draw=1)), (replace(ONE, model="three"), made(other, draw=2))))
    assert (claim(three, "Models differ").verdict, claim(three, "any two").verdict) == (SUPPORTED, REFUTED)


def test_models_without_a_common_prompt_are_compared_all_the_same() -> None:
    found = judged(study((ONE, made()), (replace(ONE, model="two"), made(other, first=100, draw=1))))
    assert claim(found, "Models differ").verdict == SUPPORTED


def test_a_run_with_other_steps_and_the_same_curve_supports_stability_and_another_curve_refutes_it() -> None:
    less = replace(ONE, num_steps=14, role="steps")
    stable = judged(study((ONE, made(noise=0.02)), (less, made(noise=0.02, sigmas=shifted(14), draw=1))))
    assert claim(stable, "step counts").verdict == SUPPORTED
    moved = judged(study((ONE, made()), (less, made(other, sigmas=shifted(14), draw=1))))
    assert claim(moved, "step counts").verdict == REFUTED


def test_a_scheduler_without_contrast_says_nothing_whatever_the_curves_do() -> None:
    scheduler = replace(ONE, role="scheduler")
    near = shifted(28, 1.1)
    found = claim(judged(study((ONE, made()), (scheduler, made(sigmas=near, draw=1)))), "schedulers, drawn")
    assert found.verdict == UNDERPOWERED and {row.verdict for row in found.rows} == {UNDERPOWERED}
    assert all("max abs. d sigma 0.0" in row.note and "prompts" not in row.note for row in found.rows)


def test_with_contrast_steps_and_noise_levels_are_told_apart() -> None:
    scheduler = replace(ONE, role="scheduler")
    found = judged(study((ONE, made(noise=0.02)), (scheduler, made(noise=0.02, sigmas=shifted(28, 3), draw=1))))
    assert claim(found, "schedulers, drawn").verdict == REFUTED, "the same curve of the noise, met at other steps"
    assert claim(found, "speed over the noise").verdict == SUPPORTED


def test_depth_and_contrast_follow_the_curves() -> None:
    found = judged(study((ONE, made(rising))))
    assert claim(found, "layers change more.").verdict == SUPPORTED
    assert claim(judged(study((ONE, made()))), "layers change more.").verdict == REFUTED
    view = made()
    loud = view.assign(l1=view["l1"] * xr.where(view.kind == "a", 3, 1))
    assert claim(judged(study((ONE, loud))), "A changes far more").verdict == SUPPORTED
    assert claim(judged(study((ONE, view))), "A changes far more").verdict == REFUTED


@pytest.mark.parametrize(("noise", "verdict"), [(0.05, SUPPORTED), (0.6, REFUTED)])
def test_stability_over_prompts_is_that_of_the_shape(noise: float, verdict: str) -> None:
    assert claim(judged(study((ONE, made(noise=noise)))), "stable over prompts").verdict == verdict


def jumping(step: int = 10, sign: float = 1.0) -> xr.Dataset:
    view = made(noise=0.03)
    t = view.transition.values
    log = -0.05 * t + sign * (t >= step) + np.random.default_rng(0).normal(0, 0.03, view["l1"].shape)
    return view.assign(l1=(view["l1"].dims, np.exp(log)))


def test_a_claim_about_a_named_model_needs_that_model_with_trained_weights() -> None:
    words = "at 28 steps jumps"
    flux = of_the_paper("flux.1-dev")
    assert claim(judged(study((flux, jumping()))), words).verdict == SUPPORTED
    assert claim(judged(study((flux, jumping(18)))), words).verdict == REFUTED
    assert (
        claim(judged(study((flux, made(noise=0.02, curve=lambda sigma, depth: 0 * sigma * depth)))), words).verdict
        == REFUTED
    )
    imposter = replace(flux, layers={"joint": 5}, parameters=148_000)
    found = claim(judged(study((imposter, jumping()))), words)
    assert found.verdict == NOT_TESTED and "has 5 layers and 148 k parameters, not 57 and 11.9 B" in found.rows[0].note
    for model in ("one", "tiny:flux.1-dev"):
        assert claim(judged(study((replace(ONE, model=model), jumping()))), words).verdict == NOT_TESTED


@pytest.mark.parametrize(("cv", "verdict"), [(0.05, REFUTED), (0.11, SUPPORTED), (0.3, REFUTED)])
def test_a_cv_is_compared_with_the_printed_one(cv: float, verdict: str) -> None:
    view = made(noise=0.0)
    level = np.exp(np.random.default_rng(0).normal(0, cv, (200, 1, 1, 1)))
    l1 = (view["l1"].dims, view["l1"].mean("prompt").values * level)
    sd3 = of_the_paper("sd3", prompts=200)
    found = claim(
        judged(study((sd3, xr.Dataset({"l1": l1, "rel_l1": l1}, attrs=view.attrs, coords={"kind": list("kva")})))),
        "CV of sd3",
    )
    assert found.verdict == verdict


def test_the_shape_of_a_figure_is_tested_at_its_number_of_steps_alone() -> None:
    words = "The curves of flux.1-dev"
    there = claim(judged(study((of_the_paper("flux.1-dev"), jumping()))), words)
    assert there.verdict == SUPPORTED and {row.kind for row in there.rows} == set("kva")
    elsewhere = replace(of_the_paper("flux.1-dev"), figure="S1", num_steps=9)
    assert claim(judged(study((elsewhere, jumping()))), words).verdict == NOT_TESTED


def row(verdict: str, effect: float, half: float, of: str = "x") -> Row:
    return Row(of, "k", effect, effect - half, effect + half, verdict)


def test_one_case_among_many_decides_only_if_it_stands_with_a_wider_interval() -> None:
    claim_ = replace(CLAIMS[9], margin=0.0)  # holds below 0, in every case
    good = [row(SUPPORTED, -1.0, 0.1)] * 17
    assert Judged(claim_, [row(REFUTED, 0.1, 0.09)]).verdict == REFUTED
    assert Judged(claim_, [row(REFUTED, 0.1, 0.09), *good]).verdict == UNDERPOWERED
    assert Judged(claim_, [row(REFUTED, 0.1, 0.05), *good]).verdict == REFUTED
    some = replace(CLAIMS[0], margin=0.15)
    assert Judged(some, [row(SUPPORTED, 0.25, 0.09)]).verdict == SUPPORTED
    assert Judged(some, [row(SUPPORTED, 0.25, 0.09), *[row(REFUTED, 0.0, 0.1)] * 8]).verdict == UNDERPOWERED


def test_two_models_differ_if_one_kind_does() -> None:
    every = CLAIMS[1]
    pair = [row(SUPPORTED, 0.5, 0.01), row(REFUTED, 0.0, 0.01)]
    assert Judged(every, pair).verdict == SUPPORTED
    assert Judged(every, [*pair, row(REFUTED, 0.0, 0.01, of="y")]).verdict == REFUTED


def test_a_rise_that_a_line_does_not_explain_is_no_support() -> None:
    view = made(rising)
    zigzag = xr.where(view.layer % 2 == 0, 1.0, 20.0)
    found = claim(judged(study((ONE, view.assign(l1=view["l1"] * zigzag)))), "layers change more.")
    assert found.verdict != SUPPORTED
    assert all("no trend" in one.note for one in found.rows if one.verdict == UNDERPOWERED)


def test_random_weights_test_nothing() -> None:
    tiny, two = replace(ONE, model="tiny:sd3"), replace(ONE, model="tiny:latte-1")
    found = judged(study((tiny, made()), (two, made(other)), (replace(tiny, role="steps", num_steps=14), made())))
    assert {one.verdict for one in found} == {NOT_TESTED}


@pytest.mark.parametrize("prompts", [1, 2])
def test_few_prompts_are_underpowered_and_never_a_verdict(prompts: int) -> None:
    few = replace(ONE, prompts=prompts)
    found = judged(study((few, made(prompts=prompts)), (replace(few, model="two"), made(other, prompts=prompts))))
    assert {one.verdict for one in found if one.rows} <= {UNDERPOWERED, NOT_TESTED}
    assert claim(found, "Models differ").verdict == UNDERPOWERED


FLUX = of_the_paper("flux.1-dev")


def test_curves_that_never_change_do_not_refute_a_jump() -> None:
    empty = made().map(xr.zeros_like)
    found = claim(judged(study((FLUX, empty))), "at 28 steps jumps")
    assert found.verdict == NOT_TESTED and all("positive, finite L1" in row.note for row in found.rows)


@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("step", [10, 18])
def test_a_jump_or_a_word_of_one_or_two_prompts_is_no_verdict(prompts: int, step: int) -> None:
    few = jumping(step).isel(prompt=slice(prompts))
    found = judged(study((replace(FLUX, prompts=prompts), few)))
    for words in ("at 28 steps jumps", "curves of flux.1-dev"):
        assert claim(found, words).verdict == UNDERPOWERED
        assert all(row.note.endswith("it takes 3 prompts or more") for row in claim(found, words).rows)


def test_words_of_a_figure_are_those_of_its_setting() -> None:
    words = "curves of flux.1-dev"
    assert claim(judged(study((FLUX, jumping()))), words).verdict == SUPPORTED
    assert claim(judged(study((FLUX, made(rising)))), words).verdict == REFUTED
    elsewhere = claim(judged(study((replace(FLUX, figure="11", role="scheduler"), jumping()))), words)
    assert elsewhere.verdict == NOT_TESTED and elsewhere.rows[0].note == "not the setting of Figure 2"


def test_a_kind_that_was_not_recorded_is_not_tested_and_the_others_are() -> None:
    found = claim(judged(study((FLUX, made(kinds="kv")))), "CV of flux.1-dev")
    assert [(row.kind, row.verdict == NOT_TESTED) for row in found.rows] == [("k", False), ("v", False), ("a", True)]
    assert found.rows[-1].note == "A was not recorded"


def test_schedulers_of_unknown_noise_levels_are_underpowered_however_alike_the_curves() -> None:
    view = made(noise=0.02).drop_vars(["sigma", "sigma_after"])
    found = claim(judged(study((ONE, view), (replace(ONE, role="scheduler"), view))), "schedulers, drawn")
    assert found.verdict == UNDERPOWERED and all("noise levels unknown" in row.note for row in found.rows)


def test_what_a_case_lacks_is_said_and_more_prompts_are_not_denied_where_they_are_what_it_takes() -> None:
    found = judged(study((replace(ONE, prompts=2), made(prompts=2))))
    rows = [row for one in found for row in one.rows if row.verdict == UNDERPOWERED]
    assert rows and all("it takes 3 prompts or more" in row.note and "hardly" not in row.note for row in rows)
    flat = claim(judged(study((ONE, made().isel(layer=[0])))), "layers change more.")
    assert {row.note for row in flat.rows} == {"no line without two layers that differ; no interval"}


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_curves_without_a_value_have_no_verdict(value: float) -> None:
    empty = made().map(lambda array: xr.full_like(array, value))
    found = judged(study((ONE, empty), (replace(ONE, model="two"), made())))
    rows = [row for one in found for row in one.rows if "run-0" in row.of]
    assert rows and {row.verdict for row in rows} <= {UNDERPOWERED, NOT_TESTED}


def test_the_page_names_what_was_tested_and_what_it_would_take() -> None:
    page, table = (content.decode() for content in next(claim_pages(study((ONE, made())))).make())
    assert "None of them is one of the paper's seven models" in page and "`one`" in page
    assert page.count("| **not tested** |") == sum(one.verdict == NOT_TESTED for one in judged(study((ONE, made()))))
    assert "dit-trace run mochi-1-preview" in page and "facts.md" in page
    rows = list(csv.DictReader(io.StringIO(table)))
    assert {int(row["number"]) for row in rows} == set(range(1, len(CLAIMS) + 1))


def test_an_underpowered_case_says_how_many_prompts_would_tell() -> None:
    rows = [Row("x", "k", 0.14, 0.10, 0.18, UNDERPOWERED, "", 10)]
    found = claim(judged(study((ONE, made(noise=0.13, prompts=4)))), "stable over prompts")
    assert all("prompts" in row.note for row in found.rows if row.verdict == UNDERPOWERED)
    shown = claims.page([Judged(replace(CLAIMS[2], text="C"), rows)], [ONE])
    assert "0.14 (0.10 to 0.18)" in shown and "**underpowered** (1 case: 1 underpowered)" in shown


def test_every_model_of_the_paper_has_words_for_its_figure_and_every_claim_a_command() -> None:
    assert WORDS.keys() == PAPER.keys()
    assert all(isinstance(one, Claim) and one.needs.startswith("dit-trace ") for one in CLAIMS)

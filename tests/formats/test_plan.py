"""The file of a cache plan: what is written is read back, and what somebody damaged is refused in one line."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dit_formats.plan import (
    GRANULARITIES,
    LARGEST,
    LAYERS,
    PREDICTORS,
    STEPS,
    Plan,
    PlanError,
    Request,
    Row,
    read_plan,
    to_json,
    write_plan,
)
from hypothesis import given
from hypothesis import strategies as st

REQUEST = Request(
    "flux.1-dev", {"transformer": "00ff"}, None, "FluxPipeline", "FluxTransformer2DModel", "FlowMatch", "0" * 64, 3,
    (900.0, 500.0, 100.0), (0.9, 0.5, 0.1), "bfloat16", {"guidance_scale": 3.5, "num_inference_steps": 3},
)  # fmt: skip
ROWS = Row("self", ("a", "b"), (True, False, True)), Row("ff", ("c",), (True, True, False))
TYPES = {"a": "self", "b": "self", "c": "ff"}
PLAN = Plan(REQUEST, LAYERS, "linear", (0.9, 0.5, 0.1), ROWS, TYPES, {"aim": "total"}, {"error": 0.1, "low": None})


def damaged(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The plan's file with fields replaced, named by path as `request.model`; `...` removes one."""
    data = json.loads(to_json(PLAN))
    for name, value in change.items():
        *parents, last = name.split(".")
        inside = data
        for parent in parents:
            inside = inside[int(parent) if isinstance(inside, list) else parent]
        if value is ...:
            del inside[last]
        else:
            inside[int(last) if isinstance(inside, list) else last] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(PlanError) as error:
        read_plan(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    return str(error.value)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_plan(tmp_path / "deep" / "plan.json", PLAN)
    assert read_plan(tmp_path / "deep" / "plan.json") == PLAN
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["plan.json"]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    steps, number = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    text, real = st.text(max_size=8), st.floats(-1e6, 1e6)
    granularity = draw(st.sampled_from(GRANULARITIES))
    levels = sorted(draw(st.sets(real, min_size=steps, max_size=steps)), reverse=draw(st.booleans()))
    names = sorted(draw(st.sets(text, min_size=number, max_size=number)))
    groups = [names] if granularity in (STEPS, "grid") else [[name] for name in names]
    masks = st.lists(st.booleans(), min_size=steps - 1, max_size=steps - 1)
    rows = tuple(Row(draw(text), tuple(group), (True, *draw(masks))) for group in groups)
    times = tuple(draw(st.lists(real, min_size=steps, max_size=steps)))
    call = draw(st.dictionaries(text, st.none() | st.integers() | real | text | st.lists(st.integers()), max_size=3))
    words = [draw(text) for _ in range(6)]
    request = Request(
        words[0], {words[1]: words[2]}, draw(st.none() | text), *words[2:], steps, times, times, "f", call
    )
    types = {name: draw(text) for name in names}
    return Plan(request, granularity, draw(st.sampled_from(PREDICTORS)), tuple(levels), rows, types)


@given(plans())
def test_any_plan_is_read_back(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> None:
    path = tmp_path_factory.mktemp("any") / "plan.json"
    write_plan(path, plan)
    assert read_plan(path) == plan


def test_names_in_any_script_are_kept_and_even_those_that_are_no_unicode(tmp_path: Path) -> None:
    """A file name that is not UTF-8 comes from Python with lone surrogates."""
    plan = replace(PLAN, request=replace(REQUEST, model="модель-模型 🦊"), made={"trace": "caf\udce9.trace"})
    write_plan(tmp_path / "план.json", plan)
    assert read_plan(tmp_path / "план.json") == plan


def test_a_noise_level_without_signal_is_null_for_json_knows_no_infinity(tmp_path: Path) -> None:
    plan = replace(PLAN, request=replace(REQUEST, sigmas=(np.inf, 0.5, np.nan)), predicted={"cheapest_step": np.inf})
    write_plan(tmp_path / "plan.json", plan)
    data = json.loads((tmp_path / "plan.json").read_text(), parse_constant=pytest.fail)
    assert data["request"]["sigmas"] == [None, 0.5, None] and data["predicted"] == {"cheapest_step": None}
    assert np.isnan(read_plan(tmp_path / "plan.json").request.sigmas).tolist() == [True, False, True]


FIELDS = [*(f"request.{one.name}" for one in fields(Request)), *(f"rows.1.{one.name}" for one in fields(Row))]
TOP = [one.name for one in fields(Plan)]


@pytest.mark.parametrize("name", [*TOP, *FIELDS])
def test_a_missing_field_is_refused(name: str, tmp_path: Path) -> None:
    told = refusal(damaged(tmp_path, {name: ...}))
    assert "other fields" in told if name.startswith("request.") else f"no '{name.split('.')[-1]}'" in told


@pytest.mark.parametrize("name", [*TOP, *FIELDS])
@pytest.mark.parametrize("value", [None, True, 7, 0.5, "text", [], ["text"], [None], {}, {"a": 1}, [[]], "1" * 400])
def test_a_field_of_another_type_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    right = json.loads(to_json(PLAN))
    for part in name.split("."):
        right = right[int(part) if isinstance(right, list) else part]
    free = {"made": dict, "predicted": dict, "request.call": dict, "request.revision": str | None}
    words = str if isinstance(right, str) and name not in ("granularity", "predictor") else ()
    if isinstance(value, free.get(name, words)) or (name == "request.weights" and value == {}):
        assert read_plan(damaged(tmp_path, {name: value}))
    else:
        refusal(damaged(tmp_path, {name: value}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "dit-trace"}, "no plan"),
        ({"version": 2}, "version 2, this version reads up to 1; upgrade ditscope"),
        ({"version": "1"}, "no plan"),
        ({"version": True}, "no plan"),
        ({"rows.0.compute": [0, 1, 1]}, "of which the first is computed"),
        ({"rows.0.compute": [1, 1]}, "row 'self': needs layers, and 3 steps"),
        ({"rows.0.compute": [1, 1, 0, 0]}, "row 'self': needs layers, and 3 steps"),
        ({"rows.0.compute": [1, 2, 0]}, "0 or 1"),
        ({"rows.0.compute": [1, 0.0, 1]}, "0 or 1"),
        ({"rows.0.compute": "101"}, "compute is of another type (str)"),
        ({"rows.0.layers": "ab"}, "layers is of another type (str)"),
        ({"rows.0.layers": []}, "every layer"),
        ({"rows.0.layers": ["a", "a"]}, "every layer stands in one row"),
        ({"rows.0.layers": ["a", "c"]}, "every layer stands in one row"),
        ({"types": {"a": "self"}}, "has a type"),
        ({"rows": []}, "every layer|rows of layers"),
        ({"granularity": "step"}, "has a single row"),
        ({"granularity": "head"}, "'head' or predictor 'linear' is not known"),
        ({"predictor": "cubic"}, "predictor 'cubic' is not known"),
        ({"levels": [0.9, 0.5]}, "must be 3"),
        ({"levels": [0.9, 0.5, 0.5]}, "rise or fall"),
        ({"levels": [0.9, 0.5, 0.6]}, "rise or fall"),
        ({"levels": [0.9, None, 0.1]}, "finite"),
        ({"levels": [1e999, 0.5, 0.1]}, "finite"),
        ({"levels": [10**400, 0.5, 0.1]}, "damaged"),
        ({"request.timesteps": [9, 5]}, "must be 3"),
        ({"request.sigmas": [9, 5]}, "must be 3"),
        ({"request.num_steps": 0}, "must be 0"),
        ({"request.num_steps": 3.0}, "num_steps is of another type"),
        ({"request.colour": "blue"}, "other fields"),
    ],
)  # fmt: skip
def test_a_damaged_plan_is_refused_with_what_is_wrong(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    assert any(one in refusal(damaged(tmp_path, change)) for one in told.split("|"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'"dit-plan"', b"\xff\xfe", b"[" * 100_000, b"\0" * 64])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    assert "dit-analyze plan TRACE writes" in refusal(path)


def test_a_plan_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    text, path = to_json(PLAN), tmp_path / "plan.json"
    for length in range(0, len(text), 7):
        path.write_text(text[:length])
        refusal(path)


def test_a_file_larger_than_any_plan_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with open(path, "wb") as file:
        file.truncate(LARGEST + 1)
    assert f"larger than any plan ({LARGEST + 1} bytes)" in refusal(path)


def test_a_missing_plan_names_the_command_that_writes_one(tmp_path: Path) -> None:
    for path in (tmp_path / "plan.json", tmp_path):
        with pytest.raises(FileNotFoundError, match="dit-analyze plan TRACE writes one"):
            read_plan(path)


def test_a_plan_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(path, PLAN)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        write_plan(path, replace(PLAN, predictor="reuse"))
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    write_plan(path, replace(PLAN, predictor="reuse"), force=True)
    assert read_plan(path).predictor == "reuse"


def test_shares_count_layers_and_steps_where_anything_is_computed() -> None:
    assert PLAN.computed_share == pytest.approx((2 * 2 + 2) / 9)
    assert PLAN.steps_mask.tolist() == [True, True, True] and PLAN.mask.shape == (2, 3)
    assert PLAN.of_layer("b") == (True, False, True)
    with pytest.raises(LookupError, match="no layer d"):
        PLAN.of_layer("d")


def test_a_run_of_one_step_has_a_plan_that_computes_it(tmp_path: Path) -> None:
    request = replace(REQUEST, num_steps=1, timesteps=(1.0,), sigmas=(1.0,))
    plan = Plan(request, STEPS, "reuse", (1.0,), (Row("all", ("a",), (True,)),), {"a": "self"})
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json").computed_share == 1.0
    assert asdict(plan)["made"] == {}

"""Which figure of the paper a trace gives, and what it was run for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dit_analyzer.members import Member, members_of, read_plan, traces_in
from dit_analyzer.printed import PAPER
from dit_formats.errors import TraceError
from dit_formats.pack import pack
from dit_formats.reader import open_trace
from dit_formats.schema import Shard
from dit_formats.study import Study as Plan
from dit_formats.study import StudyRun, write_study
from dit_formats.writer import write_shard

EULER = "FlowMatchEulerDiscreteScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}
FIXED = {"use_dynamic_shifting": False, "shift": 3.0}


@pytest.fixture
def put(tmp_path: Path, shard: Callable[..., Shard]) -> Callable[..., Path]:
    """Write a trace of one prompt into a study folder."""

    def put(name: str, model: str, steps: int, config: dict[str, object] | None = None, kind: str = EULER) -> Path:
        folder = tmp_path / "study" / name
        folder.mkdir(parents=True)
        write_shard(folder, shard(0, steps=steps, model=model, scheduler={"class": kind, "config": config or {}}))
        return folder

    return put


def told(members: list[Member]) -> dict[str, tuple[str, str]]:
    return {one.name: (one.role, one.figure) for one in members}


def test_flux_gives_figures_2_9_10_and_11(put: Callable[..., Path]) -> None:
    paths = [
        put("own.trace", "flux.1-dev", 28, DYNAMIC),
        put("more.trace", "flux.1-dev", 56, DYNAMIC),
        put("fewer.trace", "flux.1-dev", 14, DYNAMIC),
        put("other.trace", "flux.1-dev", 28, FIXED),
    ]
    assert told(members_of(paths)) == {
        "own": ("default", "2"),
        "fewer": ("steps", "10"),
        "more": ("steps", "9"),
        "other": ("scheduler", "11"),
    }


@pytest.mark.parametrize("model", [name for name in PAPER if name != "flux.1-dev"])
def test_each_other_model_gives_its_figure_at_the_papers_steps_alone(put: Callable[..., Path], model: str) -> None:
    paths = put("a.trace", model, PAPER[model].steps), put("b.trace", model, PAPER[model].steps + 1)
    assert told(members_of(paths)) == {"a": ("default", str(PAPER[model].figure)), "b": ("steps", "S1")}


def test_the_papers_figures_are_2_to_8() -> None:
    assert sorted(one.figure for one in PAPER.values()) == list(range(2, 9))


def test_flux_with_sd3s_scheduler_alone_is_figure_11_and_not_2(put: Callable[..., Path]) -> None:
    assert told(members_of([put("a.trace", "flux.1-dev", 28, FIXED)])) == {"a": ("scheduler", "11")}


def test_flux_at_other_settings_than_the_papers_is_numbered_apart(put: Callable[..., Path]) -> None:
    paths = [
        put("a.trace", "flux.1-dev", 30, DYNAMIC),
        put("b.trace", "flux.1-dev", 28, {"shift": 1.0}),
        put("c.trace", "flux.1-dev", 28, {"shift": 3.0}, "FlowMatchHeunDiscreteScheduler"),
    ]
    assert {one.figure for one in members_of(paths)} == {"S1", "S2", "S3"}


def test_twins_are_not_the_papers_models(put: Callable[..., Path]) -> None:
    (one,) = members_of([put("a.trace", "tiny:flux.1-dev", 28, DYNAMIC)])
    assert one.figure == "S1" and one.has_random_weights


def test_of_two_traces_for_one_figure_the_second_is_numbered_apart(put: Callable[..., Path]) -> None:
    paths = put("a.trace", "sd3", 28), put("b.trace", "sd3", 28)
    assert [one.figure for one in members_of(paths)] == ["4", "S1"]


def test_other_models_default_to_what_most_traces_have(put: Callable[..., Path]) -> None:
    paths = [put(f"{n}.trace", "digits-flux", n, {"shift": 1.0}) for n in (3, 4, 6)]
    paths.append(put("other.trace", "digits-flux", 4, FIXED))
    assert {name: role for name, (role, _) in told(members_of(paths)).items()} == {
        "4": "default",
        "3": "steps",
        "6": "steps",
        "other": "scheduler",
    }


def test_of_several_step_counts_the_middle_one_is_the_default(put: Callable[..., Path]) -> None:
    paths = [put(f"{n}.trace", "digits-flux", n) for n in (3, 5, 9)]
    assert [(one.name, one.role) for one in members_of(paths)][0] == ("5", "default")


def test_models_come_in_the_papers_order_and_then_by_name(put: Callable[..., Path]) -> None:
    names = ["zebra", "mochi-1-preview", "digits-flux", "flux.1-dev"]
    paths = [put(f"{place}.trace", name, 3) for place, name in enumerate(names)]
    assert [one.model for one in members_of(paths)] == ["flux.1-dev", "mochi-1-preview", "digits-flux", "zebra"]


def test_a_plan_gives_order_and_roles(put: Callable[..., Path]) -> None:
    paths = [put(f"{name}.trace", "digits-flux", steps) for name, steps in (("a", 3), ("b", 5), ("c", 9))]
    plan = {"c.trace": "default", "a.trace": "steps"}
    assert [(one.name, one.role) for one in members_of(paths, plan)] == [
        ("c", "default"),
        ("a", "steps"),
        ("b", "default"),
    ]


def test_where_the_planned_first_run_is_missing_another_stands_in(put: Callable[..., Path]) -> None:
    paths = [put(f"{name}.trace", "digits-flux", steps) for name, steps in (("fewer", 3), ("more", 9))]
    plan = {"own.trace": "default", "fewer.trace": "steps", "more.trace": "steps"}
    assert sorted(one.role for one in members_of(paths, plan)) == ["default", "steps"]


def test_a_plan_is_read(tmp_path: Path) -> None:
    runs = [StudyRun("m", 4, None, (0,), 1, f"{name}.trace", role) for name, role in (("b", "default"), ("a", "steps"))]
    write_study(tmp_path, Plan("digits", "Digits", tuple(runs)))
    plan, note = read_plan(tmp_path)
    assert list(plan.items()) == [("b.trace", "default"), ("a.trace", "steps")]
    assert note == ""


def test_a_missing_plan_plans_nothing(tmp_path: Path) -> None:
    assert read_plan(tmp_path) == ({}, "")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"runs": 3}', '{"runs": [{"folder": "a"}]}', '{"runs": [1]}',
                                  '{"runs": [{"folder": "a", "role": 1}]}', "[" * 100_000])  # fmt: skip
def test_a_plan_that_is_none_is_said_to_be(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    plan, note = read_plan(tmp_path)
    assert plan == {}
    assert "study.json: not understood" in note and "taken from the traces" in note


def test_folders_and_packed_files_are_found_and_nothing_else(put: Callable[..., Path], tmp_path: Path) -> None:
    one = put("b.trace", "x", 3)
    folder = one.parent
    with open_trace(one) as trace:
        pack(trace, folder / "a.h5")
    (folder / "notes").mkdir()
    (folder / "study.json").write_text("{}")
    assert traces_in(folder) == [folder / "a.h5", one]


def test_a_folder_without_traces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="holds no trace; dit-trace study"):
        traces_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        traces_in(tmp_path / "nowhere")


def test_a_trace_itself_is_no_study(trace_folder: Path) -> None:
    with pytest.raises(TraceError, match="is a trace; name the folder in which it lies"):
        traces_in(trace_folder)


def test_a_trace_beside_its_packed_file_is_refused(put: Callable[..., Path]) -> None:
    one = put("a.trace", "x", 3)
    with open_trace(one) as trace:
        pack(trace, one.with_suffix(".h5"))
    with pytest.raises(TraceError, match="two traces of one name"):
        members_of(traces_in(one.parent))


def test_settings_that_are_not_as_expected_do_no_harm(tmp_path: Path, shard: Callable[..., Shard]) -> None:
    write_shard(tmp_path, shard(0, model=None, scheduler="Euler"))
    (one,) = members_of([tmp_path])
    assert (one.scheduler_name, one.role, one.figure) == ("", "default", "S1")

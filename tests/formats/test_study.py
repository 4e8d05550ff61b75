"""The file that says what a folder of traces was planned to be."""

from __future__ import annotations

import errno
import json
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
from dit_formats.errors import ConflictError, TraceError
from dit_formats.study import NAME, Study, StudyRun, read_study, write_study

RUN = StudyRun("sd3", 28, None, (42, 43), 10, "sd3-28.trace", "default")
STUDY = Study("mine", "A title", (RUN,), {"models": {"sd3": {"steps": [28]}}})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    assert read_study(tmp_path) is None
    write_study(tmp_path / "deep", STUDY)
    assert read_study(tmp_path / "deep") == STUDY
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [NAME]


def test_runs_are_added_and_prompts_only_grow(tmp_path: Path) -> None:
    other = replace(RUN, steps=14, folder="sd3-14.trace", role="steps")
    write_study(tmp_path, STUDY)
    write_study(tmp_path, replace(STUDY, runs=(replace(RUN, prompts=3), other)))
    assert read_study(tmp_path).runs == (RUN, other)
    write_study(tmp_path, replace(STUDY, runs=(replace(RUN, prompts=30),)))
    assert [run.prompts for run in read_study(tmp_path).runs] == [30, 10]


PLAN = """
import sys
from dataclasses import replace
from pathlib import Path
from dit_formats.study import Study, StudyRun, write_study

print(flush=True)
sys.stdin.readline()
for steps in range(20):
    run = StudyRun(sys.argv[2], steps, None, (42,), 10, f"{sys.argv[2]}-{steps}.trace", "steps")
    write_study(Path(sys.argv[1]), Study("mine", "A title", (run,), {}))
"""


def test_processes_that_plan_at_once_lose_no_run(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    commands = [[sys.executable, "-c", PLAN, str(folder), model] for model in ("sd3", "flux", "latte", "mochi")]
    with ExitStack() as running:
        processes = [running.enter_context(Popen(one, stdin=PIPE, stdout=PIPE, text=True)) for one in commands]
        assert [process.stdout.readline() for process in processes] == ["\n"] * 4  # all are ready
        for process in processes:
            process.stdin.close()
        assert [process.wait() for process in processes] == [0] * 4
    assert len({run.folder for run in read_study(folder).runs}) == 80
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_without_locks_a_study_is_planned_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("dit_formats.alone.fcntl.flock", refuse)
    write_study(tmp_path, STUDY)
    assert read_study(tmp_path) == STUDY
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "yours"}, 'name: "mine" there, "yours" now'),
        ({"settings": {"models": {"sd3": {"steps": [14]}}}}, "models.sd3.steps: [28] there, [14] now"),
    ],
)
def test_another_study_is_refused_with_what_differs(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_study(tmp_path, STUDY)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(ConflictError) as error:
        write_study(tmp_path, replace(STUDY, **change))
    assert told in str(error.value)
    assert (tmp_path / NAME).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": "dit-trace"}, "no plan of a study"),
        ({"version": 2}, "version 2, this version reads up to 1; upgrade ditscope"),
        ({"runs": [{"model": "sd3"}]}, "damaged"),
        ({"runs": [vars(RUN) | {"folder": "../other.trace"}]}, "is not beside it"),
        ({"runs": [vars(RUN) | {"steps": "28"}]}, "no whole numbers"),
        ({"runs": 3}, "damaged"),
        ({"title": None}, "of another type"),
    ],
)
def test_file_of_somebody_else_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    write_study(tmp_path, STUDY)
    data = json.loads((tmp_path / NAME).read_text()) | change
    (tmp_path / NAME).write_text(json.dumps(data))
    with pytest.raises(TraceError, match=told):
        read_study(tmp_path)


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"format"')
    with pytest.raises(TraceError, match="not JSON"):
        read_study(tmp_path)

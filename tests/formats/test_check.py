from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from dit_formats.check import check
from dit_formats.schema import Prompt, Run, Shard
from dit_formats.writer import write_failure, write_shard


def test_whole_trace_is_whole(trace_folder: Path) -> None:
    health = check(trace_folder)
    assert (health.shards, health.prompts, health.missing, health.problems, health.exit_code) == (3, 3, 0, [], 0)
    assert health.lines(trace_folder) == [f"{trace_folder}: whole, 3 shards, 3 prompts"]


def test_missing_prompts_are_counted(trace_folder: Path, shard: Callable[..., Shard]) -> None:
    one = shard(3)
    write_shard(trace_folder, replace(one, run=Run(one.run.settings, {"num_prompts": 8})))
    health = check(trace_folder)
    assert (health.missing, health.exit_code) == (4, 4)
    assert "4 of 8 prompts" in health.lines(trace_folder)[-1]


def test_failed_prompt_is_named(trace_folder: Path) -> None:
    note = write_failure(trace_folder, Prompt(3, "hopeless"), "why")
    health = check(trace_folder)
    assert any(str(note) in line for line in health.lines(trace_folder)) and health.exit_code == 4


def test_damage_is_named_and_the_rest_still_looked_at(trace_folder: Path) -> None:
    first, second, _ = sorted(trace_folder.glob("*.h5"))
    first.write_bytes(first.read_bytes()[:1000])
    second.write_bytes(b"")
    health = check(trace_folder)
    assert health.exit_code == 3
    assert [str(first) in health.problems[0], str(second) in health.problems[1]] == [True, True]
    assert health.shards == 1


def test_damage_hides_nothing_else(trace_folder: Path) -> None:
    first, *_ = sorted(trace_folder.glob("*.h5"))
    first.write_bytes(first.read_bytes()[:1000])
    note = write_failure(trace_folder, Prompt(3, "hopeless"), "why")
    health = check(trace_folder)
    assert health.failures == [note] and health.asked >= health.prompts == 2 and health.exit_code == 3


def test_missing_trace_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none")

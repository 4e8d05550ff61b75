"""Claims on prompts, between real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dit_formats.schema import Prompt, Shard
from dit_formats.writer import write_failure, write_shard
from dit_tracer.claims import LEFT, NAME, Claims
from dit_tracer.shards import Shards

HOLD = """
import sys
from pathlib import Path
from dit_formats.schema import Prompt
from dit_tracer.claims import Claims

with Claims(Path(sys.argv[1])) as claims:
    print(claims.take(Prompt(7, "a red bus", 42)), flush=True)
    sys.stdin.read()
"""
BUS = Prompt(0, "a red bus", 42)
OTHER = Prompt(0, "a lake", 42)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed the bus, under another index."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        yield process
        process.kill()


def test_prompt_is_claimed_once_whatever_its_index(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        assert not claims.take(BUS)
        assert claims.take(OTHER)


def test_claims_of_a_killed_process_are_gone(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        holder.kill()
        holder.wait()
        assert claims.take(BUS)
        claims.wait_for_others()


def test_last_process_leaves_no_file(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with Claims(tmp_path) as claims:
        claims.take(OTHER)
    assert os.listdir(tmp_path) == [NAME]
    holder.communicate("")
    assert os.listdir(tmp_path) == []


def test_where_there_can_be_no_claims_everything_is_free(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    with Claims(tmp_path) as claims, claims.first():
        assert claims.take(BUS)
        claims.give_back(BUS)
        claims.wait_for_others()


def test_only_old_leftovers_are_removed(tmp_path: Path) -> None:
    for name, age in (("old", LEFT + 60), ("new", LEFT - 60)):
        path = tmp_path / f".{name}.h5.1.partial"
        path.touch()
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    with Claims(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [NAME, ".new.h5.1.partial"]


def test_shards_hold_a_prompt_under_any_index(trace_folder: Path, shard: Callable[..., Shard]) -> None:
    shards = Shards(trace_folder)
    assert shards.hold(Prompt(2, "prompt 2", 42)) and shards.hold(Prompt(9, "prompt 2", 42))
    assert not shards.hold(Prompt(3, "prompt 3", 42))
    write_shard(trace_folder, shard(3))
    assert not shards.hold(Prompt(3, "prompt 3", 42))
    shards.look()
    assert shards.hold(Prompt(3, "prompt 3", 42))
    assert sum(shards.sizes.values()) == sum(path.stat().st_size for path in trace_folder.iterdir())


def test_equal_hash_is_not_an_equal_prompt(trace_folder: Path) -> None:
    """The name is made to lie, for two texts of one hash are hard to find."""
    stem = Prompt(5, "another", 42).stem
    (trace_folder / f"{Prompt(0, 'prompt 0', 42).stem}.h5").rename(trace_folder / f"000004{stem[6:]}.h5")
    assert not Shards(trace_folder).hold(Prompt(5, "another", 42))


def test_failures_count_from_when_one_began_to_look(tmp_path: Path) -> None:
    write_failure(tmp_path, BUS, "long ago")
    shards = Shards(tmp_path)
    shards.look()
    assert not shards.failed(BUS)
    os.utime(write_failure(tmp_path, BUS, "again"), (1, 1))
    shards.look()
    assert shards.failed(BUS)

"""What launchers say about a process, and the order in which it walks the prompts."""

from __future__ import annotations

import click
import pytest
from dit_formats.errors import ConflictError
from dit_tracer.ranks import Rank, find, one_voice

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "5"}


@pytest.mark.parametrize(
    ("environment", "rank"),
    [
        ({}, Rank()),
        (TORCHRUN, Rank(5, 8, 1, leads=False, tied=True)),
        (TORCHRUN | {"LOCAL_RANK": "0"}, Rank(5, 8, 0, leads=True, tied=True)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Rank()),
        (SRUN, Rank(2, 4, 0, leads=False)),
        (SRUN | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Rank()),
        (SRUN | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "3"}, Rank(2, 3, 0, leads=False)),
        (SRUN | TORCHRUN, Rank(5, 8, 1, leads=False, tied=True)),
        (ARRAY, Rank(4, 5)),
        (ARRAY | {"SLURM_ARRAY_TASK_STEP": "2"}, Rank(2, 5)),
        (ARRAY | SRUN, Rank(4 * 4 + 2, 5 * 4, 0, leads=False)),
        (ARRAY | TORCHRUN, Rank(4 * 8 + 5, 5 * 8, 1, leads=False, tied=True)),
        ({"RANK": "master", "WORLD_SIZE": "2"}, Rank()),
        ({"RANK": "9", "WORLD_SIZE": "2"}, Rank()),
        ({"RANK": "1"}, Rank()),
    ],
)
def test_rank_is_what_the_launcher_says(environment: dict[str, str], rank: Rank) -> None:
    assert find(environment) == rank


@pytest.mark.parametrize("count", [0, 1, 5, 12])
@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_every_process_walks_all_prompts_and_its_own_share_first(processes: int, count: int) -> None:
    orders = [Rank(rank, processes).order(count) for rank in range(processes)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    shares = [list(range(rank, count, processes)) for rank in range(processes)]
    assert [order[: len(share)] for order, share in zip(orders, shares)] == shares


def test_what_all_processes_find_out_is_said_by_the_first() -> None:
    with pytest.raises(ConflictError), one_voice(Rank(0, 2)):
        raise ConflictError("other settings")
    for error, code in ((ConflictError("other settings"), 1), (LookupError("no such"), 2), (click.UsageError("-x"), 2)):
        with pytest.raises(SystemExit) as ended, one_voice(Rank(1, 2, leads=False)):
            raise error
        assert ended.value.code == code


def test_what_one_process_alone_met_is_said_by_it() -> None:
    error = ConflictError("this generation has other layers")
    error.add_note("while 'a red bus' was traced")
    for own in (error, OSError("disk"), KeyError("a bug")):
        with pytest.raises(type(own)), one_voice(Rank(1, 2, leads=False)):
            raise own

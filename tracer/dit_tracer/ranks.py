"""Which of several processes this is, read from what launchers set; the processes never talk to each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import click
from dit_formats.errors import PromptError, TraceError


@dataclass(frozen=True)
class Rank:
    """One of `count` processes that were given one command.

    Args:
        local: Which of those on this machine; it picks the GPU.
        leads: Whether this one speaks for those whose output comes out in one place with its own.
        tied: Whether the launcher ends the others as soon as one fails, as torchrun does.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    leads: bool = True
    tied: bool = False

    def order(self, count: int) -> list[int]:
        """Places of `count` prompts as this process walks them: every place of its own share, then those of the others.

        The shares of others come last place first, so that two processes meet late.

        Example: Rank(1, 2).order(5) gives 1, 3, then 4, 2, 0.
        """
        shares = [range(rank, count, self.count) for rank in range(self.count)]
        others = [shares[(self.rank + further) % self.count] for further in range(1, self.count)]
        return [*shares[self.rank], *(place for share in others for place in reversed(share))]


def find(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that torchrun, accelerate launch or srun gave this process, times that of a SLURM array."""
    tied, (rank, count, local) = _task(environment)
    part, parts = _array(environment)
    # srun brings the output of all machines to one place, torchrun that of each machine.
    leads = local == 0 if tied else rank == 0
    return Rank(part * count + rank, parts * count, local, leads, tied and count > 1)


@contextmanager
def one_voice(rank: Rank) -> Iterator[None]:
    """What is wrong with a command, all its processes find out: the first says it, the others only end with its code.

    An error with a note is about something that one process did alone.
    """
    try:
        yield
    except (click.UsageError, LookupError, FileNotFoundError, TraceError, PromptError) as error:
        if rank.leads or isinstance(error, (KeyError, IndexError)) or hasattr(error, "__notes__"):
            raise
        raise SystemExit(getattr(error, "exit_code", 2)) from error


def _task(environment: Mapping[str, str]) -> tuple[bool, tuple[int, int, int]]:
    """Whether torchrun (or accelerate) started this; rank, number and local rank of the process."""
    rank, count = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank is not None and count is not None and rank < count:
        return True, (rank, count, _number(environment, "LOCAL_RANK") or 0)
    # In a batch script without srun these are set too: it is then the first of several, and does the work of all.
    rank = _number(environment, "SLURM_PROCID")
    count = _number(environment, "SLURM_STEP_NUM_TASKS") or _number(environment, "SLURM_NTASKS")
    if rank is not None and count is not None and rank < count and count > 1:
        return False, (rank, count, _number(environment, "SLURM_LOCALID") or 0)
    return False, (0, 1, 0)


def _array(environment: Mapping[str, str]) -> tuple[int, int]:
    """Which job of a SLURM array this is, from 0, and of how many."""
    job, count = _number(environment, "SLURM_ARRAY_TASK_ID"), _number(environment, "SLURM_ARRAY_TASK_COUNT")
    if job is None or not count:
        return 0, 1
    first, step = _number(environment, "SLURM_ARRAY_TASK_MIN") or 0, _number(environment, "SLURM_ARRAY_TASK_STEP") or 1
    return (job - first) // step % count, count


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdecimal() else None

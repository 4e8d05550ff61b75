"""Walks over prompts beside other processes that do the same, and traces those that nobody else has or had."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from dit_formats.access import ShardFile
from dit_formats.errors import ConflictError, PresentError
from dit_formats.schema import Prompt

from dit_tracer.claims import Claims
from dit_tracer.recording.recorder import Recorder
from dit_tracer.shards import Shards
from dit_tracer.stopping import Stopping
from dit_tracer.work import Task

HOPELESS = 3
"""What this many prompts could not do, and none before them could, the others can hardly."""

REFUSALS = (ValueError, TypeError, AttributeError, LookupError)
"""What pipelines raise for a call that they refuse, whatever the prompt; of this one is enough."""


@dataclass
class Outcome:
    """How many prompts a run traced, how many were there before, and what each failed one said.

    Args:
        present: Those that the trace held already, or that another process was faster with.
        elsewhere: Those that other processes were at when this one had nothing left to do.
        stopped: Why the run ended before everything was done, if it did.
        untried: Those that were given up because the first ones failed in a way that the others would too.
    """

    traced: int = 0
    present: int = 0
    failures: list[str] = field(default_factory=list)
    elsewhere: int = 0
    stopped: str | None = None
    untried: int = 0


class Sharing:
    """Traces prompts, and counts in `outcome`.

    Args:
        record: Records the generation of a task, and calls its last argument between generating and writing.
        founded: Whether the settings of the trace were compared with a shard of it.
    """

    def __init__(
        self,
        recorder: Recorder,
        record: Callable[[Prompt, Task, Callable[[], None]], None],
        claims: Claims,
        stopping: Stopping,
        outcome: Outcome,
        founded: bool,
    ) -> None:
        self._recorder, self._record = recorder, record
        self._claims, self._stopping, self._outcome = claims, stopping, outcome
        self._founded = founded
        self._refused = False
        self._shards = Shards(recorder.path)

    def trace(self, asked: list[tuple[Prompt, Task]]) -> None:
        """All of them, but for those that others are at also when all the rest is done."""
        for _ in range(2):
            others = []
            self._shards.look()
            for place, (prompt, task) in enumerate(asked):
                if self._hopeless:
                    self._outcome.untried = len(asked) - place + len(others)
                    return
                if self._stopping.before_next():
                    return
                if not self._settled(prompt) and not self._try(prompt, task):
                    others.append((prompt, task))
            asked = others
        self._outcome.elsewhere = len(asked)

    def left(self, asked: list[tuple[Prompt, Task]]) -> int:
        """How many of them are neither traced nor failed."""
        self._shards.look()
        return sum(not self._shards.hold(prompt) and not self._shards.failed(prompt) for prompt, _ in asked)

    def _try(self, prompt: Prompt, task: Task) -> bool:
        """Trace a prompt; False if another process is at it."""
        if not self._claims.take(prompt):
            return False
        self._shards.look()
        self._compare()
        if self._settled(prompt):
            self._claims.give_back(prompt)
            return True
        try:
            with self._stopping.one():
                if self._founded:
                    self._record(prompt, task, lambda: None)
                else:
                    self._found(prompt, task)
            self._outcome.traced += 1  # the claim is kept, for the shard may still be on its way to the disk
        except PresentError:
            self._outcome.present += 1
        except (ConflictError, OSError) as error:
            error.add_note(f"while {task.text!r} was traced")
            raise  # not the prompt's fault: other settings, a full disk
        except Exception as error:
            self._fail(task, error)
            self._claims.give_back(prompt)
        return True

    def _settled(self, prompt: Prompt) -> bool:
        """Whether another process traced it, or failed at it, since this one began."""
        present = self._shards.hold(prompt)
        self._outcome.present += present
        return present or self._shards.failed(prompt)

    def _found(self, prompt: Prompt, task: Task) -> None:
        """Record what may be the first shard of the trace: nobody else looks for one until it is there, or given up."""
        with ExitStack() as alone:

            def settle() -> None:
                alone.enter_context(self._claims.first())
                self._shards.look()
                self._compare()

            self._record(prompt, task, settle)
            self._recorder.flush()
        self._founded = True

    def _compare(self) -> None:
        """A shard that appeared since this process found none must be of the same settings."""
        if not self._founded and self._shards.any:
            self._recorder.refuse_others(ShardFile(self._shards.any).run)
            self._founded = True

    def _fail(self, task: Task, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        note = f"{self._recorder.path} has a note; the same command tries again"
        self._outcome.failures.append(f"{task.text!r} failed: {reason}; {note}")
        self._refused = isinstance(error, REFUSALS)
        error.__traceback__ = None  # it holds what the model held
        give_memory_back()

    @property
    def _hopeless(self) -> bool:
        nothing = not self._outcome.traced + self._outcome.present
        return nothing and (self._refused or len(self._outcome.failures) >= HOPELESS)


def give_memory_back() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()

from __future__ import annotations

import threading

import pytest
from dit_formats.errors import PresentError
from dit_tracer.recording.writing import Background, WritingError


def test_jobs_run_in_their_order_and_close_waits_for_all() -> None:
    done: list[int] = []
    writer = Background()
    for number in range(20):
        writer.submit(lambda number=number: done.append(number))
    writer.close()
    assert done == list(range(20))


def test_no_more_than_one_waits() -> None:
    writer, slow, handed_in = Background(), threading.Event(), []

    def submit() -> None:
        for _ in range(3):
            writer.submit(lambda: slow.wait() and None)
            handed_in.append(1)

    submitting = threading.Thread(target=submit)
    submitting.start()
    submitting.join(timeout=0.5)
    assert submitting.is_alive() and len(handed_in) == 1, "the second waits for the first"
    slow.set()
    submitting.join()
    writer.close()
    assert len(handed_in) == 3


def test_error_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer, done = Background(), []
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    writer.submit(lambda: done.append(1))
    writer.close()
    assert done == [1]
    writer.submit(fail)
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_error_of_another_kind_is_not_taken_for_that_of_the_next_prompt() -> None:
    writer = Background()
    writer.submit(lambda: [][0])
    with pytest.raises(WritingError, match="could not be written"):
        writer.close()


def test_prompt_that_is_there_already_is_counted() -> None:
    def late() -> None:
        raise PresentError("there")

    writer = Background()
    writer.submit(late)
    writer.flush()
    assert writer.beaten == 1
    writer.close()

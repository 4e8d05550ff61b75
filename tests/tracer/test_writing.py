from __future__ import annotations

import threading

import pytest
from dit_formats.errors import PresentError
from dit_tracer.recording.writing import Background


def test_jobs_run_in_their_order_and_close_waits_for_all() -> None:
    done: list[int] = []
    writer = Background()
    for number in range(20):
        writer.submit(lambda number=number: done.append(number), 1)
    writer.close()
    assert done == list(range(20))


def test_no_more_than_the_limit_waits() -> None:
    writer, slow, waiting = Background(limit=100), threading.Event(), []

    def submit() -> None:
        for _ in range(4):
            writer.submit(slow.wait, 40)
            waiting.append(1)

    submitting = threading.Thread(target=submit)
    submitting.start()
    submitting.join(timeout=0.5)
    assert submitting.is_alive() and len(waiting) == 2, "two of 40 fit, and the third waits"
    slow.set()
    submitting.join()
    writer.close()


def test_one_that_is_larger_than_the_limit_is_let_in_alone() -> None:
    done: list[int] = []
    writer = Background(limit=100)
    for number in range(3):
        writer.submit(lambda number=number: done.append(number), 500)
    writer.close()
    assert done == [0, 1, 2]


def test_error_is_raised_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    writer, done = Background(), []
    writer.submit(fail, 1)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    writer.submit(lambda: done.append(1), 1)
    writer.close()
    assert done == [1]
    writer.submit(fail, 1)
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_prompt_that_is_there_already_is_counted() -> None:
    def late() -> None:
        raise PresentError("there")

    writer = Background()
    writer.submit(late, 1)
    writer.flush()
    assert writer.beaten == 1
    writer.close()

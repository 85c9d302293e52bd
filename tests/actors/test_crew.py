"""Threads that are kept."""

import threading

import pytest

from actors.crew import Crew


def test_a_thread_that_rests_does_the_next_job() -> None:
    crew, ran = Crew(4), []
    for _ in range(50):
        done = threading.Event()

        def job(done: threading.Event = done) -> None:
            ran.append(threading.get_ident())
            done.set()

        assert crew.run(job)
        assert done.wait(10.0)
    assert len(set(ran)) <= 4
    crew.stop()


def test_who_finds_no_thread_is_told_so_at_once() -> None:
    crew, go, began = Crew(2), threading.Event(), threading.Barrier(3)

    def job() -> None:
        began.wait(10.0)
        assert go.wait(10.0)

    assert crew.run(job)
    assert crew.run(job)
    began.wait(10.0)
    assert not crew.run(job)
    go.set()
    crew.stop()
    assert not crew.run(job)


def test_a_job_that_fails_takes_no_thread_along(caplog: pytest.LogCaptureFixture) -> None:
    crew, done = Crew(1), threading.Event()

    def fails() -> None:
        done.set()
        raise RuntimeError("a fault")

    assert crew.run(fails)
    assert done.wait(10.0)
    done.clear()
    while not crew.run(done.set):  # until the one thread there is has logged the fault, and rests
        pass
    assert done.wait(10.0)
    assert "a call within the host failed" in caplog.text
    crew.stop()

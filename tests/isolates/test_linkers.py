"""Linkers: one start at a time has one, and waits for it no longer than it may."""

import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import Module

from isolates.artifact import Mapped
from isolates.engine import Sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.limits import IsolateLimits
from isolates.linkers import BoundPart, Linkers
from isolates.outcome import Outcome
from tests.isolates.guest_text import compiled_text, handler


class Impatient(Linkers):
    """Tells at once what its caller would have waited for."""

    waits_s: list[float]

    @contextmanager
    def bound(self, parts: Sequence[BoundPart], *, wait_s: float) -> Iterator[int | None]:
        self.waits_s.append(wait_s)
        with super().bound(parts, wait_s=0) as linker:
            yield linker


@pytest.fixture
def one(box: Sandbox) -> Impatient:
    """A single linker for all components with parts."""
    linkers = Impatient(box.engine.ptr(), box.world, linkers_max=1)
    linkers.waits_s = []
    return linkers


@pytest.fixture
def mapped(box: Sandbox, tmp_path: Path) -> Mapped:
    """A guest that has a part, which it does not ask for."""
    path = tmp_path / "guest"
    path.write_bytes(compiled_text(box, handler()))
    return Mapped(box, path, "0" * 64, [Module(box.engine, "(module)")])


@pytest.fixture
def parts(mapped: Mapped) -> Sequence[BoundPart]:
    return mapped.parts


def test_a_linker_is_one_starts_at_a_time(one: Linkers, parts: Sequence[BoundPart]) -> None:
    with one.bound(parts, wait_s=0) as first:
        assert first is not None
        with one.bound(parts, wait_s=0) as second:
            assert second is None
        with one.bound(parts, wait_s=0) as third:
            assert third is None, "who got none gives none back"
    with one.bound(parts, wait_s=0) as fourth:
        assert fourth == first


def test_who_waits_gets_the_one_that_comes_back(box: Sandbox, parts: Sequence[BoundPart]) -> None:
    linkers = Linkers(box.engine.ptr(), box.world, linkers_max=1)
    got: list[int | None] = []

    def wait() -> None:
        with linkers.bound(parts, wait_s=60) as linker:
            got.append(linker)

    waiting = [threading.Thread(target=wait) for _ in range(3)]
    with linkers.bound(parts, wait_s=0) as linker:
        for thread in waiting:
            thread.start()
        assert got == []
    for thread in waiting:
        thread.join()
    assert got == [linker] * 3


def test_a_component_without_parts_waits_for_nobody(one: Linkers, parts: Sequence[BoundPart]) -> None:
    with one.bound(parts, wait_s=0), one.bound((), wait_s=0) as plain, one.bound((), wait_s=0) as again:
        assert plain == again
        assert plain is not None


def test_a_start_that_gets_none_in_its_time_is_shed(
    box: Sandbox, one: Impatient, parts: Sequence[BoundPart], mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the machine that has too much to do: not the worker's fault, and nothing of its own ran."""
    monkeypatch.setattr(box, "linkers", one)
    with one.bound(parts, wait_s=0):
        failed = Isolate.start(box, mapped, IsolateLimits(startup_cpu_ms=400), secrets.token_bytes)
    assert isinstance(failed, StartFailed)
    assert failed.outcome is Outcome.LOAD_SHED
    assert one.waits_s[-1] == 5, "ten times its CPU, and a second"
    started = Isolate.start(box, mapped, IsolateLimits(), secrets.token_bytes)
    assert isinstance(started, Isolate)
    started.close()

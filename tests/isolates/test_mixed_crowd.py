"""Eight threads of guests, good and bad, in one process: every good request is right, and in the end nothing is left.

A thousand requests, some seconds, or as many as ``EVERWARM_CROWD_S=60`` has room for.
"""

import gc
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pytest

from isolates import abi
from isolates.artifact import ArtifactStore, Compiled, Mapped
from isolates.compiler import compile_and_start
from isolates.engine import Sandbox
from isolates.isolate import Finished, Isolate, RunningGuest
from isolates.limits import MIB, IsolateLimits, Verdict
from isolates.outcome import Outcome
from tests.isolates.conftest import ROOT
from tests.local_origin import LocalOrigin, SocketEgress
from tests.scripted_conversation import ScriptedConversation

THREADS = 8
CROWD_S = float(os.environ.get("EVERWARM_CROWD_S", "0"))
#: What each thread asks at least. A number and no time: dice decide who comes, and on a slow machine the same come.
ASKED_EACH_MIN = 130
SEED = 20_260
#: Requests that an isolate serves before its thread starts another one.
REQUESTS_EACH = 20
WORKERS = ("c/hello", *(f"zig/{name}" for name in "hello echo stream fetch trap spin hoard silent".split()))
AMPLE = IsolateLimits(cpu_ms=60_000.0, wall_ms=120_000.0, startup_cpu_ms=5_000.0)
SHORT = replace(AMPLE, cpu_ms=5.0)
SMALL = replace(AMPLE, memory_bytes_max=16 * MIB)

Say = Callable[[random.Random, LocalOrigin], "Request"]


@dataclass
class Request:
    """One request of the crowd, and what has to come of it. ``answer``: None when it is not to be looked at."""

    worker: str
    conversation: ScriptedConversation
    outcome: Outcome = Outcome.OK
    answer: bytes | None = None
    limits: IsolateLimits = AMPLE

    def wrong(self, finished: Finished) -> str | None:
        """What is wrong with how it went, or None."""
        conversation = self.conversation
        if finished.outcome is not self.outcome:
            return f"{self.worker}: {finished.outcome} ({finished.reason}), not {self.outcome}"
        if self.answer is not None and conversation.body != self.answer:
            return f"{self.worker}: answered {conversation.body[:80]!r}, not {self.answer[:80]!r}"
        if conversation.finished != (self.outcome is Outcome.OK):
            return f"{self.worker}: {'whole' if conversation.finished else 'no'} end after {finished.outcome}"
        return None


def _greeting(worker: str, language: str) -> Say:
    def say(dice: random.Random, origin: LocalOrigin) -> Request:
        path = f"/{dice.randrange(1_000_000)}"
        answer = f"hello from {language}\nyou asked for {path}\n".encode()
        return Request(worker, ScriptedConversation(path), answer=answer)

    return say


def _echo(dice: random.Random, origin: LocalOrigin) -> Request:
    body = [dice.randbytes(dice.choice([0, 1, 64, 5_000, 65_536, 100_000])) for _ in range(dice.randrange(6))]
    return Request("zig/echo", ScriptedConversation(method="POST", body=body), answer=b"".join(body))


def _stream(dice: random.Random, origin: LocalOrigin) -> Request:
    answer = b"".join(b"chunk %d\n" % i for i in range(4))
    return Request("zig/stream", ScriptedConversation("/?chunks=4&interval_ms=2"), answer=answer)


def _fetch(query: str, url: str, **options: Any) -> ScriptedConversation:
    return ScriptedConversation(f"/?{query}", headers=(("fetch-url", url.encode()),), **options)


def _fetch_hello(dice: random.Random, origin: LocalOrigin) -> Request:
    return Request("zig/fetch", _fetch("", origin.url("/hello")), answer=b"hello\n")


def _fetch_upload(dice: random.Random, origin: LocalOrigin) -> Request:
    body = [dice.randbytes(dice.choice([1, 3_000, 70_000])) for _ in range(3)]
    return Request("zig/fetch", _fetch("", origin.url("/echo"), method="POST", body=body), answer=b"".join(body))


def _fetch_refused(dice: random.Random, origin: LocalOrigin) -> Request:
    return Request("zig/fetch", _fetch("", origin.refusing_url), answer=b"connection-refused\n")


def _fetch_broken(dice: random.Random, origin: LocalOrigin) -> Request:
    return Request("zig/fetch", _fetch("", origin.url("/break/90000")), Outcome.RESPONSE_STREAM_DISCONNECTED)


def _fetch_and_leave(dice: random.Random, origin: LocalOrigin) -> Request:
    path = dice.choice(["/never", "/stall/1000"])
    return Request("zig/fetch", _fetch("", origin.url(path), client_leaves_after_s=0.01), Outcome.CANCELED)


def _fails(worker: str, outcome: Outcome, limits: IsolateLimits = AMPLE) -> Say:
    return lambda dice, origin: Request(worker, ScriptedConversation(), outcome, b"", limits)


def _hoards(dice: random.Random, origin: LocalOrigin) -> Request:
    return Request("zig/hoard", ScriptedConversation(), Outcome.EXCEEDED_MEMORY, b"", SMALL)


def _leaves(worker: str, path: str) -> Say:
    def say(dice: random.Random, origin: LocalOrigin) -> Request:
        return Request(worker, ScriptedConversation(path, client_leaves_after_s=0.003), Outcome.CANCELED)

    return say


def _body_breaks(dice: random.Random, origin: LocalOrigin) -> Request:
    body = [dice.randbytes(size) for size in (10, 70_000)]
    conversation = ScriptedConversation(method="POST", body=body, body_breaks=True)
    return Request("zig/echo", conversation, Outcome.RESPONSE_STREAM_DISCONNECTED, b"".join(body))


#: What is asked, and how often.
MIX: tuple[tuple[Say, int], ...] = (
    (_greeting("zig/hello", "Zig"), 30), (_greeting("c/hello", "C"), 15), (_echo, 20), (_stream, 8),
    (_fetch_hello, 10), (_fetch_upload, 6), (_fetch_refused, 2), (_fetch_broken, 3), (_fetch_and_leave, 3),
    (_fails("zig/trap", Outcome.EXCEPTION), 6), (_fails("zig/spin", Outcome.EXCEEDED_CPU, SHORT), 4), (_hoards, 2),
    (_fails("zig/silent", Outcome.HUNG), 5), (_leaves("zig/spin", "/"), 3),
    (_leaves("zig/stream", "/?chunks=2&interval_ms=10000"), 3), (_body_breaks, 6),
)  # fmt: skip


class Visitor(threading.Thread):
    """One thread of the crowd with isolates of its own."""

    def __init__(
        self, box: Sandbox, workers: dict[str, Mapped], origin: LocalOrigin, *, seed: int, until_s: float
    ) -> None:
        super().__init__()
        self._box, self._workers, self._origin, self._until_s = box, workers, origin, until_s
        self._dice = random.Random(seed)
        self._isolates: dict[tuple[str, IsolateLimits], Isolate] = {}
        self.seen: Counter[tuple[str, Outcome]] = Counter()
        self.started = 0
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            asked = 0
            while (asked < ASKED_EACH_MIN or time.monotonic() < self._until_s) and not self.wrong:
                asked += 1
                say = self._dice.choices([say for say, _ in MIX], [weight for _, weight in MIX])[0]
                self._ask(say(self._dice, self._origin))
        except BaseException as fault:
            self.wrong.append(f"a fault: {fault!r}")
            raise
        finally:
            for isolate in self._isolates.values():
                isolate.close()

    def _isolate(self, worker: str, limits: IsolateLimits) -> Isolate:
        if (worker, limits) not in self._isolates:
            isolate = Isolate.start(self._box, self._workers[worker], limits, secrets.token_bytes)
            assert isinstance(isolate, Isolate), isolate
            self._isolates[worker, limits] = isolate
            self.started += 1
        return self._isolates[worker, limits]

    def _ask(self, request: Request) -> None:
        isolate, egress = self._isolate(request.worker, request.limits), SocketEgress()
        finished = isolate.run(request.conversation, egress=egress)
        self.seen[request.worker, finished.outcome] += 1
        wrong = request.wrong(finished)
        if not egress.all_closed or isolate.guest.exchanges:
            wrong = f"{request.worker}: an exchange was left open"
        if finished.verdict is not Verdict.KILL and isolate.guest.resources:
            wrong = f"{request.worker}: {isolate.guest.resources} resources after {finished.outcome}"
        if wrong is not None:
            self.wrong.append(wrong)
        egress.join()
        if finished.verdict is not Verdict.KEEP or isolate.requests >= REQUESTS_EACH:
            self._isolates.pop((request.worker, request.limits)).close()


def _descriptors() -> set[str]:
    """What this process has open, by number and kind."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed by now, as the one that was listed with
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found


def _guests_alive() -> list[RunningGuest]:
    gc.collect()
    return [thing for thing in gc.get_objects() if isinstance(thing, RunningGuest)]


@pytest.fixture(scope="module")
def workers(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapped]:
    store = ArtifactStore(tmp_path_factory.mktemp("crowd"))
    mapped = {}
    for worker in WORKERS:
        compiled = compile_and_start((ROOT / "workers" / worker / "worker.wasm").read_bytes(), store, AMPLE)
        assert isinstance(compiled, Compiled), compiled
        mapped[worker] = store.map(box, compiled.component_digest)
    return mapped


def test_a_mixed_crowd_leaves_nothing(box: Sandbox, workers: dict[str, Mapped]) -> None:
    descriptors, threads = _descriptors(), set(threading.enumerate())
    guests, known = len(_guests_alive()), set(abi.GUESTS)
    with LocalOrigin().running() as origin:
        until_s = time.monotonic() + CROWD_S
        crowd = [Visitor(box, workers, origin, seed=SEED + i, until_s=until_s) for i in range(THREADS)]
        for visitor in crowd:
            visitor.start()
        for visitor in crowd:
            visitor.join(CROWD_S + 120)
            assert not visitor.is_alive(), "a guest hangs"
    assert [wrong for visitor in crowd for wrong in visitor.wrong] == []

    seen = sum((visitor.seen for visitor in crowd), Counter())
    print(f"{seen.total()} requests, {sum(visitor.started for visitor in crowd)} isolates: {dict(seen)}")
    assert {worker for worker, _ in seen} == set(WORKERS), "everybody came"
    assert len({outcome for _, outcome in seen}) == 7
    del crowd, visitor
    assert set(abi.GUESTS) == known
    assert len(_guests_alive()) == guests, "who was killed held things, and went with them"
    for thread in set(threading.enumerate()) - threads:
        # The origin does not wait for those of its own whose client has just left.
        thread.join(10)
        assert not thread.is_alive(), thread
    assert _descriptors() <= descriptors

"""Whole isolates: the example workers under their limits, and what is left after each kind of ending."""

import gc
import hashlib
import os
import queue
import secrets
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from isolates import abi
from isolates.artifact import ArtifactStore, Compiled, Mapped
from isolates.compiler import compile_and_start
from isolates.conversation import FieldItems, ResponseHead
from isolates.engine import Sandbox, cause_of
from isolates.isolate import Finished, Isolate, StartFailed
from isolates.limits import MIB, IsolateLimits, Verdict
from isolates.outcome import Outcome
from tests.isolates.conftest import ROOT, Guests, Start, TextGuest
from tests.isolates.guest_text import DROP_BOTH
from tests.scripted_conversation import ScriptedConversation

#: CPU time is read at a tick of 1 ms; the rest is for a machine whose cores have other things to do than to tick.
CPU_OVERSHOOT_MS = 30.0
AMPLE = {"cpu_ms": 60_000.0}


def ask(isolate: Isolate, path: str = "/") -> tuple[Finished, ScriptedConversation]:
    return isolate.run(conversation := ScriptedConversation(path)), conversation


class TestServing:
    def test_hello(self, guests: Guests, start: Start) -> None:
        finished, conversation = ask(start(guests("hello")), "/any?thing")
        assert (finished.outcome, finished.verdict, finished.reason) == (Outcome.OK, Verdict.KEEP, "")
        assert finished.answered
        assert conversation.response is not None
        assert conversation.response.status == 200
        assert conversation.response.headers == (("content-type", b"text/plain"),)
        assert conversation.body == b"hello from Zig\nyou asked for /any\n"
        assert conversation.finished
        assert 0 < finished.usage.cpu_ms <= finished.usage.wall_ms + 1
        assert finished.usage.host_calls == 10

    def test_a_full_collection_is_not_charged_to_the_guest_that_it_meets(self, guests: Guests, start: Start) -> None:
        class Collecting(ScriptedConversation):
            took_ms = 0.0

            def send_head(self, head: ResponseHead) -> None:
                began_ns = time.thread_time_ns()
                gc.collect()
                self.took_ms = (time.thread_time_ns() - began_ns) / 1e6
                super().send_head(head)

        isolate = start(guests("hello"), cpu_ms=20)
        ask(isolate)
        objects: list[list[object]] = [[] for _ in range(1_000_000)]
        finished = isolate.run(conversation := Collecting())
        assert len(objects) == 1_000_000
        assert finished.outcome is Outcome.OK
        assert finished.usage.cpu_ms < 20 < conversation.took_ms

    def test_a_body_streams_through_as_it_comes(self, guests: Guests, start: Start) -> None:
        chunks = [b"", b"a", b"bc" * 700, os.urandom(65_536), os.urandom(70_000), b"end"]
        conversation = ScriptedConversation("/", method="POST", body=chunks, headers=(("content-type", b"x/y"),))
        finished = start(guests("echo"), **AMPLE).run(conversation)
        assert finished.outcome is Outcome.OK
        assert conversation.body == b"".join(chunks)
        assert conversation.finished
        assert conversation.response is not None
        assert conversation.response.headers == (("content-type", b"x/y"),)

    def test_digest(self, guests: Guests, start: Start) -> None:
        body = [os.urandom(40_000) for _ in range(5)]
        conversation = ScriptedConversation("/?digest", method="POST", body=body)
        assert start(guests("echo"), **AMPLE).run(conversation).outcome is Outcome.OK
        digest = hashlib.sha256(b"".join(body)).hexdigest()
        assert conversation.body.decode() == f"sha256={digest} bytes=200000\n"

    def test_ten_megabytes_pass_in_bounded_memory(self, guests: Guests, start: Start) -> None:
        conversation = Flood(chunks=160)
        finished = start(guests("echo"), **AMPLE).run(conversation)
        assert finished.outcome is Outcome.OK
        assert conversation.finished
        assert conversation.returned_bytes == 160 * 65_536
        assert conversation.rss_peak - conversation.rss_first < 24 * MIB

    def test_pieces_of_an_answer_leave_between_the_waits(self, guests: Guests, start: Start) -> None:
        conversation = Observed("/?chunks=4&interval_ms=3")
        finished = start(guests("stream")).run(conversation)
        assert finished.outcome is Outcome.OK
        assert [e for e in conversation.events if e != "flush"] == [
            "head", "chunk 0\n", "wait", "chunk 1\n", "wait", "chunk 2\n", "wait", "chunk 3\n", "finish",
        ]  # fmt: skip
        at = [at_s for at_s, _ in conversation.sent]
        assert all(later - earlier >= 0.003 for earlier, later in pairwise(at))
        assert finished.usage.cpu_ms < finished.usage.wall_ms

    def test_what_is_held_back_leaves_while_the_guest_computes(self, text_guest: TextGuest, start: Start) -> None:
        conversation = Observed()
        spin = "(loop $for-ever (br $for-ever))"
        finished = start(text_guest(body=f"{DROP_BOTH} {spin}"), cpu_ms=40).run(conversation)
        assert finished.outcome is Outcome.EXCEEDED_CPU
        assert conversation.events.count("flush") >= 5, "the tick flushes"

    def test_one_isolate_serves_again_and_again(self, guests: Guests, start: Start) -> None:
        isolate = start(guests("hello"))
        for number in range(50):
            finished, conversation = ask(isolate, f"/{number}")
            assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.KEEP)
            assert conversation.body.endswith(f"/{number}\n".encode())
            assert isolate.guest.resources == 0
        assert isolate.requests == 50

    def test_state_stays_with_its_isolate(self, guests: Guests, start: Start) -> None:
        one, other = start(guests("trap")), start(guests("trap"))
        answers = [ask(i, "/?ok")[1].body for i in (one, one, other, one)]
        assert answers == [b"ok 1\n", b"ok 2\n", b"ok 1\n", b"ok 3\n"]

    def test_one_thread_starts_while_another_closes(self, box: Sandbox, guests: Guests) -> None:
        """A new store gets the address of the one that another thread is just deleting."""
        mapped, wrong = guests("hello"), []
        to_close: queue.Queue[Isolate | None] = queue.Queue(maxsize=2)

        def close() -> None:
            while (isolate := to_close.get()) is not None:
                isolate.close()

        def live() -> None:
            for _ in range(400):
                isolate = Isolate.start(box, mapped, IsolateLimits(cpu_ms=10_000), secrets.token_bytes)
                assert isinstance(isolate, Isolate)
                finished, _ = ask(isolate)
                if finished.outcome is not Outcome.OK:
                    wrong.append(finished)
                to_close.put(isolate)
            to_close.put(None)

        threads = [threading.Thread(target=target) for target in (live, close, live, close)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


class Flood(ScriptedConversation):
    """A long request body that is made as it is pulled; of the response only the size is kept."""

    def __init__(self, chunks: int) -> None:
        super().__init__("/", method="POST")
        self._left = chunks
        self.returned_bytes = self.rss_first = self.rss_peak = 0

    def read_body(self, bytes_max: int) -> bytes | None:
        self._left -= 1
        return os.urandom(min(bytes_max, 65_536)) if self._left >= 0 else None

    def send(self, data: bytes) -> None:
        self.returned_bytes += len(data)
        with open("/proc/self/statm", encoding="ascii") as statm:
            rss = int(statm.read().split()[1]) * 4096
        # The first chunks bring the allocator to its working size.
        if self.returned_bytes <= 20 * 65_536:
            self.rss_first = max(self.rss_first, rss)
        self.rss_peak = max(self.rss_peak, rss)


class Observed(ScriptedConversation):
    """Notes what the host does, in order."""

    def __init__(self, path: str = "/") -> None:
        super().__init__(path)
        self.events: list[str] = []

    def send_head(self, head: object) -> None:
        self.events.append("head")
        super().send_head(head)  # type: ignore[arg-type]

    def send(self, data: bytes) -> None:
        self.events.append(data.decode())
        super().send(data)

    def wait(self, timeout_s: float, *, for_body: bool, **descriptors: Any) -> None:
        if self.events[-1] != "wait":
            self.events.append("wait")
        super().wait(timeout_s, for_body=for_body, **descriptors)

    def flush(self) -> None:
        self.events.append("flush")
        super().flush()

    def finish(self, trailers: FieldItems = ()) -> None:
        self.events.append("finish")
        super().finish(trailers)


@pytest.fixture
def serves_again(guests: Guests, start: Start) -> Iterator[None]:
    """Whatever a test did to its isolates, new ones of the same process and of the same artifacts serve."""
    yield
    assert ask(start(guests("hello")))[0].outcome is Outcome.OK
    assert ask(start(guests("spin"), **AMPLE), "/?rounds=10")[0].outcome is Outcome.OK
    assert ask(start(guests("hoard"), **AMPLE), "/?mib=1")[0].outcome is Outcome.OK


@pytest.mark.usefixtures("serves_again")
class TestEndings:
    @pytest.mark.parametrize("limit_ms", [5.0, 40.0])
    def test_cpu(self, limit_ms: float, guests: Guests, start: Start) -> None:
        finished, conversation = ask(start(guests("spin"), cpu_ms=limit_ms))
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_CPU, Verdict.KILL)
        assert limit_ms <= finished.usage.cpu_ms < limit_ms + CPU_OVERSHOOT_MS
        assert conversation.response is None

    def test_cpu_of_four_at_once(self, guests: Guests, start: Start) -> None:
        isolates = [start(guests("spin"), cpu_ms=30) for _ in range(4)]
        endings: list[Finished] = []
        threads = [threading.Thread(target=lambda i=i: endings.append(ask(i)[0])) for i in isolates]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [f.outcome for f in endings] == [Outcome.EXCEEDED_CPU] * 4
        assert all(30 <= f.usage.cpu_ms < 30 + CPU_OVERSHOOT_MS for f in endings), endings

    def test_waiting_is_not_computing(self, guests: Guests, start: Start) -> None:
        finished, _ = ask(start(guests("stream"), cpu_ms=100), "/?chunks=4&interval_ms=75")
        assert finished.outcome is Outcome.OK
        assert finished.usage.wall_ms >= 225

    def test_memory(self, guests: Guests, start: Start) -> None:
        finished, _ = ask(start(guests("hoard"), memory_bytes_max=32 * MIB, **AMPLE))
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_MEMORY, Verdict.KILL)
        assert finished.reason == "more than 32 MiB of memory"

    def test_memory_is_told_apart_when_other_isolates_come_and_go(self, guests: Guests, start: Start) -> None:
        limits = {"memory_bytes_max": 32 * MIB, **AMPLE}
        large = [start(guests("hoard"), **limits) for _ in range(3)]
        for isolate in large:
            assert ask(isolate, "/?mib=30")[0].outcome is Outcome.OK
        full, trapping = start(guests("hoard"), **limits), start(guests("trap"), **limits)
        assert ask(trapping)[0].outcome is Outcome.EXCEPTION, "others are nearly full, this one is not"
        for isolate in large:
            isolate.close()
        assert ask(full)[0].outcome is Outcome.EXCEEDED_MEMORY, "though the process is smaller than it was"

    def test_memory_is_told_apart_while_others_end_at_the_same_time(self, guests: Guests, start: Start) -> None:
        limits = {"memory_bytes_max": 32 * MIB, **AMPLE}
        kinds = {"hoard": Outcome.EXCEEDED_MEMORY, "trap": Outcome.EXCEPTION}
        seen: list[tuple[str, Outcome]] = []

        def one_after_another(kind: str) -> None:
            for _ in range(25):
                isolate = start(guests(kind), **limits)
                # The traps have company that is nearly full and goes away just then.
                company = start(guests("hoard"), **limits)
                ask(company, "/?mib=30")
                company.close()
                seen.append((kind, ask(isolate)[0].outcome))

        threads = [threading.Thread(target=one_after_another, args=(kind,)) for kind in (*kinds, *kinds)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(seen) == 100
        assert [(kind, outcome) for kind, outcome in seen if outcome is not kinds[kind]] == []

    def test_a_trap_of_a_small_guest_is_no_lack_of_memory(self, guests: Guests, start: Start) -> None:
        assert ask(start(guests("trap"), memory_bytes_max=8 * MIB))[0].outcome is Outcome.EXCEPTION

    def test_a_trap(self, guests: Guests, start: Start) -> None:
        isolate = start(guests("trap"))
        assert ask(isolate, "/?ok")[0].verdict is Verdict.KEEP
        finished, conversation = ask(isolate)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        assert finished.reason == "wasm trap: wasm `unreachable` instruction executed"
        assert not finished.answered
        assert conversation.response is None

    def test_endless_recursion(self, text_guest: TextGuest, start: Start) -> None:
        recursion = "(func $f (param i32) (result i32) (i32.add (call $f (local.get 0)) (i32.const 1)))"
        finished, _ = ask(start(text_guest(core_items=recursion, body="(drop (call $f (i32.const 0)))"), **AMPLE))
        assert (finished.outcome, finished.reason) == (Outcome.EXCEPTION, "wasm trap: call stack exhausted")

    def test_no_answer(self, guests: Guests, start: Start) -> None:
        finished, _ = ask(start(guests("silent")))
        assert (finished.outcome, finished.verdict) == (Outcome.HUNG, Verdict.CONDEMN)

    def test_wall_time_while_it_waits(self, guests: Guests, start: Start) -> None:
        finished, conversation = ask(start(guests("stream"), wall_ms=300), "/?chunks=2&interval_ms=10000")
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEEDED_WALL_TIME, Verdict.KILL)
        assert 300 <= finished.usage.wall_ms < 5_000
        assert conversation.body == b"chunk 0\n"
        assert not conversation.finished

    def test_wall_time_while_it_computes(self, guests: Guests, start: Start) -> None:
        finished, _ = ask(start(guests("spin"), wall_ms=40, **AMPLE))
        assert finished.outcome is Outcome.EXCEEDED_WALL_TIME

    @pytest.mark.parametrize(("worker", "path"), [("stream", "/?chunks=2&interval_ms=10000"), ("spin", "/")])
    def test_a_client_that_goes_away(self, worker: str, path: str, guests: Guests, start: Start) -> None:
        conversation = ScriptedConversation(path, client_leaves_after_s=0.03)
        finished = start(guests(worker), **AMPLE).run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.CANCELED, Verdict.KILL)
        assert finished.usage.wall_ms < 5_000

    def test_a_request_body_that_breaks_off_breaks_off_the_answer(self, guests: Guests, start: Start) -> None:
        conversation = ScriptedConversation("/", method="POST", body=[b"part"], body_breaks=True)
        isolate = start(guests("echo"))
        finished = isolate.run(conversation)
        assert (finished.outcome, finished.verdict) == (Outcome.RESPONSE_STREAM_DISCONNECTED, Verdict.KEEP)
        assert conversation.body == b"part"
        assert not conversation.finished, "a broken body never looks whole"
        assert isolate.guest.resources == 0
        assert isolate.run(ScriptedConversation("/", method="POST", body=[b"next"])).outcome is Outcome.OK

    def test_a_request_body_that_breaks_off_before_the_answer(self, guests: Guests, start: Start) -> None:
        conversation = ScriptedConversation("/?digest", method="POST", body=[b"part"], body_breaks=True)
        finished = start(guests("echo")).run(conversation)
        assert finished.outcome is Outcome.EXCEPTION
        assert conversation.response is None


class TestStarting:
    def started(self, box: Sandbox, mapped: Mapped, **limits: float) -> Isolate | StartFailed:
        return Isolate.start(box, mapped, IsolateLimits(**limits), secrets.token_bytes)  # type: ignore[arg-type]

    def test_the_cpu_of_a_start_is_measured_and_limited(self, box: Sandbox, guests: Guests, start: Start) -> None:
        isolate = start(guests("slow_start"), startup_cpu_ms=5_000)
        assert isolate.start_cpu_ms > 20
        finished, _ = ask(isolate)
        assert finished.outcome is Outcome.OK
        assert finished.usage.cpu_ms < isolate.start_cpu_ms, "the first request does not pay for the start"
        failed = self.started(box, guests("slow_start"), startup_cpu_ms=10)
        assert isinstance(failed, StartFailed)
        assert failed.outcome is Outcome.EXCEEDED_CPU
        assert failed.reason == "it used more than its 10 ms of startup CPU."

    @pytest.mark.parametrize(
        ("items", "pages", "outcome", "reason"),
        [("(func $s unreachable) (start $s)", "1", Outcome.EXCEPTION, "wasm trap: wasm `unreachable` instruction"),
         ("", "600", Outcome.EXCEEDED_MEMORY, "it needs more than its 32 MiB of memory, or more than one."),
         ("(memory $second 1)", "1", Outcome.EXCEEDED_MEMORY, "it needs more than its 32 MiB of memory, or more than"),
         ("(func $s (loop $l (br_if $l (i32.ge_s (memory.grow (i32.const 16)) (i32.const 0)))) unreachable) (start $s)",
          "1", Outcome.EXCEEDED_MEMORY, "it needs more than its 32 MiB"),
         ("(func $memory_limit unreachable) (func $s call $memory_limit) (start $s)", "1", Outcome.EXCEPTION,
          "wasm trap: wasm `unreachable` instruction")],
    )  # fmt: skip
    def test_a_start_that_fails_says_why_and_leaves_nothing(
        self, items: str, pages: str, outcome: Outcome, reason: str, box: Sandbox, text_guest: TextGuest
    ) -> None:
        before = set(abi.GUESTS)
        mapped = text_guest(core_items=items, pages=pages)
        failed = self.started(box, mapped, memory_bytes_max=32 * MIB, startup_cpu_ms=10_000)
        assert isinstance(failed, StartFailed)
        assert (failed.outcome, failed.reason[: len(reason)]) == (outcome, reason)
        assert set(abi.GUESTS) == before

    def test_a_start_that_exits_says_so(self, box: Sandbox, text_guest: TextGuest) -> None:
        imports = """(import "wasi:cli/exit@0.2.0" (instance $exit
            (export "exit" (func (param "status" (result))))))"""
        mapped = text_guest(
            imports=imports,
            lowered='(core func $exit (canon lower (func $exit "exit")))',
            functions="exit (param i32)",
            core_items="(func $s (call $exit (i32.const 0))) (start $s)",
        )
        failed = self.started(box, mapped)
        assert isinstance(failed, StartFailed)
        assert (failed.outcome, failed.reason) == (Outcome.EXCEPTION, "it ended itself before its first request.")


class TestCause:
    @pytest.mark.parametrize(
        ("message", "cause"),
        [
            ("error while executing at wasm backtrace:\n    0:   0x10b6 - <unknown>!<wasm function 22>\n\nCaused by:\n"
             "    wasm trap: wasm `unreachable` instruction executed\n", "wasm trap: wasm `unreachable` instruction"
             " executed"),
            ("error while executing at wasm backtrace:\n    0:     0x5d - m!f\n                    at /src/lib.rs:1\n\n"
             "Caused by:\n    0: it was\n    1: that\n\nStack backtrace:\n   0: main\n             at /root/x.rs:3\n",
             "that"),
            ("resource limit exceeded: memory count too high at 2", "resource limit exceeded: memory count too high at"
             " 2"),
            ("error while executing at wasm backtrace:\n    0:     0x5d - m!f", "error while executing at wasm"
             " backtrace:"),
            ("", "it trapped"),
            ("    0:   0x10b6 - f", "it trapped"),
            ("x" * 1_000, "x" * 300),
        ],
    )  # fmt: skip
    def test_the_cause_without_frames_and_without_the_host(self, message: str, cause: str) -> None:
        assert cause_of(message) == cause


TOOLCHAINS = Path(os.environ.get("EVERWARM_TOOLCHAIN_DIR", ROOT / ".everwarm" / "toolchains"))


@pytest.mark.toolchain
@pytest.mark.parametrize("worker", ["js/hello-js", "python/hello-python"])
def test_engines_of_other_languages(worker: str, box: Sandbox) -> None:
    """A JavaScript and a Python worker, built by their own toolchains, each twenty times on one isolate.

    The compiled artifact stays beside the toolchain: compiling an engine of 10-20 MB takes half a minute.
    """
    from everwarm.build import build
    from everwarm.build.toolchain import JAVASCRIPT, PYTHON, is_installed

    toolchain = JAVASCRIPT if worker.startswith("js") else PYTHON
    if not is_installed(toolchain, TOOLCHAINS):
        pytest.skip(f"{toolchain.title} is not installed; `everwarm build workers/{worker}` installs it")
    built = build(ROOT / "workers" / worker, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=print)
    store = ArtifactStore(TOOLCHAINS / "artifacts")
    if not store.sound(built.sha256):
        compiled = compile_and_start(built.component.read_bytes(), store, IsolateLimits(startup_cpu_ms=10_000))
        assert isinstance(compiled, Compiled), compiled
    isolate = Isolate.start(
        box, store.map(box, built.sha256), IsolateLimits(startup_cpu_ms=5_000, cpu_ms=5_000), secrets.token_bytes
    )
    assert isinstance(isolate, Isolate), isolate
    kept = []
    for number in range(20):
        finished, conversation = ask(isolate, f"/{number}")
        assert (finished.outcome, finished.verdict) == (Outcome.OK, Verdict.KEEP), (finished, conversation.body)
        assert f'"/{number}"'.encode() in conversation.body
        kept.append(isolate.guest.resources)
    assert len(set(kept[1:])) == 1, "an engine may keep handles, but not more with each request"
    body = [os.urandom(30_000) for _ in range(4)]
    echo = ScriptedConversation("/echo", method="POST", body=body)
    assert isolate.run(echo).outcome is Outcome.OK
    assert echo.body == b"".join(body)
    isolate.close()

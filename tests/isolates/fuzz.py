"""Guests made by dice against the host, in a process of their own: it must not die, hang, or be at fault.

    python -m tests.isolates.fuzz [--seed N | --first N --seeds COUNT] [--show]

prints each seed before it runs, what it came to, and exits with 1 at the first that broke a promise; a seed that takes
longer than ``HANGS_AFTER_S`` ends the process with the stacks of its threads. ``--show`` prints the component's text.
Whatever a seed does, it does again: dice decide, and no socket, file or thread takes part.
"""

import argparse
import faulthandler
import gc
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from wasmtime import Module, WasmtimeError, wat2wasm
from wasmtime.component import Component

from actors.store_file import StoreFile
from isolates import abi
from isolates.artifact import Mapped
from isolates.brevity import Brevity
from isolates.compiler import prepared
from isolates.component_value import GuestTrap
from isolates.conversation import BodyLost, ConversationLost, FieldItems, ResponseHead
from isolates.egress import AnswerLost, ErrorCode, Outgoing, OutgoingHead, OutgoingTimeouts
from isolates.engine import Sandbox
from isolates.isolate import Finished, Isolate, StartFailed
from isolates.limits import MIB, IsolateLimits, Verdict
from isolates.outcome import Outcome
from isolates.stores import StoreAsked, StoreTold
from tests.isolates.fuzz_component import Program
from tests.isolates.fuzz_world import RecordedWorld
from tests.scripted_conversation import ScriptedConversation

#: Far beyond what the limits of a few requests come to: the rest is for a machine with other work to do.
HANGS_AFTER_S = 20.0
LIVES = 3
_WALL_MS = 80.0

_ENDINGS = frozenset({
    Outcome.OK, Outcome.EXCEPTION, Outcome.EXCEEDED_CPU, Outcome.EXCEEDED_MEMORY, Outcome.EXCEEDED_WALL_TIME,
    Outcome.CANCELED, Outcome.HUNG, Outcome.RESPONSE_STREAM_DISCONNECTED,
})  # fmt: skip
_CODES: tuple[ErrorCode, ...] = (
    ("connection-refused", None), ("DNS-error", ("NXDOMAIN", 3)), ("internal-error", "why"),
    ("TLS-alert-received", (40, None)), ("HTTP-response-body-size", 7), ("HTTP-request-header-size", ("x", None)),
)  # fmt: skip


class Fault(Exception):
    """A promise of the host that a guest broke."""


class DicedConversation(ScriptedConversation):
    """A client that sends what it likes, waits, breaks off and leaves, and that minds when it is spoken to too late."""

    def __init__(self, dice: random.Random) -> None:
        chunks = [dice.randbytes(dice.choice([0, 1, 63, 64, 65, 999, 70_000])) for _ in range(dice.randrange(6))]
        super().__init__(
            dice.choice(["/", "/a?b=c", "/é"]),
            method=dice.choice(["GET", "POST", "HEAD", "PURGE"]),
            headers=(("accept", b"*/*"), ("x-raw", bytes(range(128, 256)))) if dice.random() < 0.5 else (),
            body=chunks,
            body_breaks=dice.random() < 0.2,
            trailers=(("x-end", b"1"),) if dice.random() < 0.3 else None,
        )
        #: After how many uses nobody listens any more.
        self._uses_left = dice.randrange(60) if dice.random() < 0.25 else 1_000_000
        self._dice = dice
        self._ready = True
        self._stalls = dice.random() < 0.02
        self.over = False

    def _used(self) -> None:
        if self.over:
            raise Fault("the conversation was used after its request")
        self._uses_left -= 1

    def _spoken(self) -> None:
        self._used()
        if self._uses_left <= 0:
            raise ConversationLost

    def body_ready(self) -> bool:
        self._used()
        self._ready = self._ready or (not self._stalls and self._dice.random() < 0.3)
        return self._ready

    def read_body(self, bytes_max: int) -> bytes | None:
        if not self.body_ready():
            return b""
        if not 1 <= bytes_max <= 65_536:
            raise Fault(f"read_body of {bytes_max} bytes")
        self._ready = self._dice.random() < 0.6
        return super().read_body(bytes_max)

    def wait(self, timeout_s: float, *, for_body: bool, **descriptors: Any) -> None:
        self._spoken()
        if timeout_s < 0 or timeout_s != timeout_s:
            raise Fault(f"a wait of {timeout_s} s")
        if for_body and not self._stalls:
            self._ready = self._dice.random() < 0.8
            return
        super().wait(timeout_s, for_body=for_body, **descriptors)

    def inform(self, head: ResponseHead) -> None:
        self._spoken()
        super().inform(head)

    def send_head(self, head: ResponseHead) -> None:
        self._spoken()
        super().send_head(head)

    def send(self, data: bytes) -> None:
        self._spoken()
        super().send(data)

    def finish(self, trailers: FieldItems = ()) -> None:
        self._used()
        super().finish(trailers)

    def flush(self) -> None:
        self._spoken()

    def listening(self) -> bool:
        if self.over:
            raise Fault("the conversation was used after its request")
        return self._uses_left > 0


class DicedOutgoing:
    """An exchange that answers, or not, as it likes. Its descriptor is always readable and writable."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._descriptor = os.eventfd(1)
        self._looks_left = dice.choice([0, 0, 0, 0, 1, 3, 3, 20, 1_000_000])
        self._answers = dice.random() < 0.8
        self._code: ErrorCode = dice.choice(_CODES)
        self._takes_left = dice.choice([0, 2, 1_000_000])
        self._pieces_left = dice.choice([0, 1, 5, 50])
        self._end = dice.choice(["whole", "whole", "lost", "told"])
        self.closed = False
        self.finished = False

    def _open(self) -> None:
        if self.closed:
            raise Fault("an exchange was used after it was closed")

    def fileno(self) -> int:
        self._open()
        return self._descriptor

    def wait_for_room(self, readable: set[int], writable: set[int]) -> None:
        writable.add(self.fileno())

    def writable(self) -> bool:
        self._open()
        return self._dice.random() < 0.7

    def send(self, data: bytes) -> bool:
        self._open()
        if self.finished:
            raise Fault("the request's body went on after its end")
        self._takes_left -= 1
        return self._takes_left >= 0

    def finish(self) -> None:
        self._open()
        if self.finished:
            raise Fault("a second end of the request's body")
        self.finished = True

    def head(self) -> ResponseHead | ErrorCode | None:
        self._open()
        self._looks_left -= 1
        if self._looks_left >= 0:
            return None
        return ResponseHead(200, (("x-raw", b"\xff"),)) if self._answers else self._code

    def body_ready(self) -> bool:
        self._open()
        return self._dice.random() < 0.6

    def read_body(self, bytes_max: int) -> bytes | None:
        self._open()
        if not 1 <= bytes_max <= 65_536:
            raise Fault(f"read_body of {bytes_max} bytes")
        if self._dice.random() < 0.3:
            return b""
        self._pieces_left -= 1
        if self._pieces_left >= 0:
            return self._dice.randbytes(min(bytes_max, self._dice.choice([1, 64, 5_000, 65_536])))
        if self._end == "lost":
            raise BodyLost
        if self._end == "told":
            raise AnswerLost(self._code)
        return None

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self._descriptor)


class DicedEgress:
    """A way out that refuses some."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.opened: list[DicedOutgoing] = []

    def open(self, head: OutgoingHead, timeouts: OutgoingTimeouts) -> Outgoing | ErrorCode:
        if self._dice.random() < 0.15:
            return self._dice.choice(_CODES)
        self.opened.append(DicedOutgoing(self._dice))
        return self.opened[-1]


class OneStore:
    """The same key-value store under each name: dice find no other."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    def begin(self, store: str, asked: StoreAsked) -> StoreTold:
        return self._file.carry_out("store", asked)


class Fuzz:
    """Runs seeds, and counts what they came to."""

    def __init__(self, folder: Path, world: type[RecordedWorld] = RecordedWorld) -> None:
        self._folder = folder
        self._file = StoreFile(folder / "stores.sqlite")
        self._stores = OneStore(self._file)
        self._box = Sandbox(world.made)
        assert isinstance(self._box.world, RecordedWorld)
        self.world = self._box.world
        self.endings: Counter[str] = Counter()
        #: How often each host function was called, by guests that did not fail to start.
        self.host_calls = 0
        self.traps: Counter[str] = Counter()

    def close(self) -> None:
        """No more seeds."""
        self._file.close()

    def program(self, seed: int) -> Program:
        return Program(self.world, seed)

    def run(self, seed: int) -> None:
        """One seed in both shapes. Raises ``Fault``."""
        program = self.program(seed)
        component = bytes(wat2wasm(program.text))
        shape, _ = prepared(component)
        shapes: list[tuple[str, bytes, list[Module]]] = [("plain", component, [])]
        if shape is not None:
            parts = [Module(self._box.engine, part.binary) for part in shape.parts]
            shapes.append(("prepared", shape.skeleton, parts))
        elif program.well_known:
            raise Fault("a component of well-known parts was not understood")
        for name, skeleton, parts in shapes:
            try:
                artifact = bytes(Component(self._box.engine, skeleton).serialize())
            except WasmtimeError as broken:
                if name == "prepared" and not program.well_known:
                    continue  # such a component runs as it came: ``compile_and_start``
                raise Fault(f"does not compile: {str(broken)[:2_000]}") from broken
            path = self._folder / name
            path.unlink(missing_ok=True)
            path.write_bytes(artifact)
            mapped = Mapped(self._box, path, "0" * 64, parts, prepared=name == "prepared")
            # Compiling takes longer than running: several lives among different clients.
            for life in range(LIVES):
                dice = random.Random(LIVES * seed + life)
                mapped.brevity = Brevity(call_us=0.0, request_ms=0.0) if dice.random() < 0.3 else Brevity()
                self._live(program, mapped, dice, name)

    def _live(self, program: Program, mapped: Mapped, dice: random.Random, shape: str) -> None:
        limits = IsolateLimits(
            cpu_ms=dice.choice([2.0, 20.0]),
            startup_cpu_ms=10.0,
            wall_ms=_WALL_MS,
            wait_until_ms=dice.choice([10.0, _WALL_MS]),
            memory_soft_bytes=2 * MIB,
            memory_bytes_max=16 * MIB,
            log_bytes_max=dice.choice([100, 65_536]),
            resources_max=dice.choice([8, 64, 1_024, 1_024]),
            headers_max=dice.choice([2, 256, 256]),
            subrequests_max=dice.choice([1, 50, 50]),
            connections_max=dice.choice([1, 6]),
        )
        before = set(abi.GUESTS)
        isolate = Isolate.start(self._box, mapped, limits, dice.randbytes, stores=self._stores)
        if isinstance(isolate, StartFailed):
            self._ended(f"start: {isolate.outcome}", isolate.outcome, isolate.reason, None)
        else:
            try:
                for _ in range(program.requests + dice.randrange(2)):
                    if self._request(program, isolate, dice).verdict is not Verdict.KEEP:
                        break
            finally:
                isolate.close()
        if set(abi.GUESTS) != before:
            raise Fault(f"{shape}: a closed isolate is still known")

    def _request(self, program: Program, isolate: Isolate, dice: random.Random) -> Finished:
        conversation = DicedConversation(dice)
        egress = DicedEgress(dice)
        try:
            finished = isolate.run(conversation, egress=egress)
        finally:
            conversation.over = True
        guest = isolate.guest
        self.host_calls += finished.usage.host_calls
        self._ended(str(finished.outcome), finished.outcome, finished.reason, guest.fault)
        if guest.exchanges or not all(outgoing.closed for outgoing in egress.opened):
            raise Fault("an exchange outlived its request")
        if guest.held_bytes < 0 or guest.filled or guest.conversation is not None:
            raise Fault(f"left of the request: {guest.held_bytes} bytes held, {len(guest.filled)} filled")
        if len(guest._table) > isolate.limits.resources_max or len(guest.logs) > 4_096:
            raise Fault("a table is larger than its cap")
        returned = finished.verdict is not Verdict.KILL
        if (
            program.tidy
            and isolate.requests <= program.requests
            and returned
            and guest.fault is None
            and guest.resources
        ):
            raise Fault(f"a guest that dropped everything still has {list(guest._table.values())}")
        if finished.outcome is Outcome.OK and not conversation.finished:
            raise Fault("a good answer without an end")
        if conversation.finished and finished.outcome is Outcome.HUNG:
            raise Fault("an answer that was given counts as none")
        return finished

    def _ended(self, label: str, outcome: Outcome, reason: str, fault: BaseException | None) -> None:
        self.endings[label] += 1
        if outcome is Outcome.EXCEPTION:
            self.traps[reason[:60]] += 1
        at_fault = fault is not None and not isinstance(fault, GuestTrap | ConversationLost)
        if outcome not in _ENDINGS or at_fault:
            raise Fault(f"{outcome}: {reason}") from fault
        if "/" in reason and str(Path.cwd()) in reason:
            raise Fault(f"a host path in {reason}")


def _descriptors() -> set[str]:
    """What is open, by number and kind."""
    links = (Path("/proc/self/fd") / number for number in os.listdir("/proc/self/fd"))
    return {f"{link.name} {link.readlink()}" for link in links if link.exists()}


def main(arguments: list[str]) -> int:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args(arguments)
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    descriptors = _descriptors()
    with tempfile.TemporaryDirectory() as folder:
        fuzz = Fuzz(Path(folder))
        for seed in seeds:
            print("seed", seed, flush=True)
            faulthandler.dump_traceback_later(HANGS_AFTER_S, exit=True)
            if options.show:
                print(fuzz.program(seed).text)
            try:
                fuzz.run(seed)
            except Exception:
                print(f"again: python -m tests.isolates.fuzz --seed {seed}", flush=True)
                raise
            faulthandler.cancel_dump_traceback_later()
        fuzz.close()
    gc.collect()
    left = _descriptors() - descriptors
    if left:
        raise Fault(f"left open: {left}")
    for counted in (fuzz.endings, fuzz.traps):
        print(*(f"{count:6} {name}" for name, count in counted.most_common(30)), sep="\n")
    never = sorted({f"{f.interface}#{f.name}" for f in fuzz.world.functions} - fuzz.world.called.keys())
    print("never entered:", *never)
    print(f"done: {fuzz.host_calls} host calls")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

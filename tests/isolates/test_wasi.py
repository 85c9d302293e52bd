"""The host functions, as the plain functions they are, and a few guests that look at the host from inside."""

import time
from typing import Any

import pytest

from isolates.component_value import GuestTrap
from isolates.conversation import BodyLost
from isolates.engine import Sandbox
from isolates.isolate import Finished
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.isolates.conftest import Start, TextGuest
from tests.isolates.guest_text import DROP_BOTH, IN_LIBC
from tests.isolates.host_functions import Functions, guest_for
from tests.scripted_conversation import ScriptedConversation


class TestPoll:
    def test_timers(self, box: Sandbox) -> None:
        clocks, poll = Functions(box, "clocks/monotonic-clock"), Functions(box, "io/poll")
        guest = guest_for()
        past, near, far = (clocks["subscribe-duration"](guest, ns) for ns in (0, 2_000_000, 10**15))
        assert poll["[method]pollable.ready"](guest, past)
        assert not poll["[method]pollable.ready"](guest, far)
        assert poll["poll"](guest, [far, past]) == [1]
        began_ns = time.monotonic_ns()
        assert poll["poll"](guest, [near, far]) == [0]
        assert time.monotonic_ns() >= near.at_ns > began_ns - 2_000_000
        poll["[method]pollable.block"](guest, clocks["subscribe-instant"](guest, guest.monotonic_ns + 1_000_000))
        assert clocks["subscribe-duration"](guest, 2**64 - 1).at_ns == 2**64 - 1

    @pytest.mark.parametrize("count", [0, 1_025])
    def test_the_number_of_pollables_has_bounds(self, count: int, box: Sandbox) -> None:
        guest = guest_for()
        timer = Functions(box, "clocks/monotonic-clock")["subscribe-duration"](guest, 0)
        with pytest.raises(GuestTrap):
            Functions(box, "io/poll")["poll"](guest, [timer] * count)

    def test_waiting_ends_with_the_wall_time_and_with_the_client(self, box: Sandbox) -> None:
        far = Functions(box, "clocks/monotonic-clock")["subscribe-duration"](guest_for(), 10**13)
        for guest, outcome in (
            (guest_for(ScriptedConversation(), wall_ms=5), Outcome.EXCEEDED_WALL_TIME),
            (guest_for(None, wall_ms=5), Outcome.EXCEEDED_WALL_TIME),
            (guest_for(ScriptedConversation(client_leaves_after_s=0.005)), Outcome.CANCELED),
        ):
            with pytest.raises(GuestTrap):
                Functions(box, "io/poll")["poll"](guest, [far])
            assert guest.ended is outcome


class TestTheRest:
    def test_random_has_a_cap(self, box: Sandbox) -> None:
        guest = guest_for()
        for interface, name in (
            ("random/random", "get-random-bytes"),
            ("random/insecure", "get-insecure-random-bytes"),
        ):
            draw = Functions(box, interface)[name]
            assert [len(draw(guest, n)) for n in (0, 1, 65_536)] == [0, 1, 65_536]
            with pytest.raises(GuestTrap):
                draw(guest, 65_537)
        assert 0 <= Functions(box, "random/random")["get-random-u64"](guest) < 2**64
        assert len(Functions(box, "random/insecure-seed")["insecure-seed"](guest)) == 2

    def test_by_default_there_is_no_environment(self, box: Sandbox) -> None:
        environment = Functions(box, "cli/environment")
        answers = [environment[n](guest_for()) for n in ("get-environment", "get-arguments", "initial-cwd")]
        assert answers == [[], [], None]

    def test_a_versions_variables_are_the_environment(self, box: Sandbox) -> None:
        guest = guest_for()
        guest.variables = (("A", "1"), ("B", "zwei"))
        get_environment = Functions(box, "cli/environment")["get-environment"]
        assert get_environment(guest) == [("A", "1"), ("B", "zwei")]
        get_environment(guest).clear()
        assert get_environment(guest) == [("A", "1"), ("B", "zwei")]

    def test_there_are_no_files_and_no_network(self, box: Sandbox) -> None:
        guest = guest_for()
        assert Functions(box, "filesystem/preopens")["get-directories"](guest) == []
        network = Functions(box, "sockets/instance-network")["instance-network"](guest)
        lookup = Functions(box, "sockets/ip-name-lookup")["resolve-addresses"]
        assert lookup(guest, network, "localhost").value == "access-denied"
        for protocol in ("tcp", "udp"):
            create = Functions(box, f"sockets/{protocol}-create-socket")[f"create-{protocol}-socket"]
            assert create(guest, "ipv4").value == "access-denied"

    def test_output_becomes_log_lines_up_to_a_cap(self, box: Sandbox, streams: Functions) -> None:
        guest = guest_for(ScriptedConversation(), log_bytes_max=200)
        out, err = (Functions(box, f"cli/{n}")[f"get-{n}"](guest) for n in ("stdout", "stderr"))
        write = streams["[method]output-stream.blocking-write-and-flush"]
        write(guest, out, b"one \xff\n")
        write(guest, err, b"")
        write(guest, err, b"two")
        write(guest, out, b"x" * 1_000)
        write(guest, out, b"never seen")
        assert [(line.stream, line.text) for line in guest.logs] == [
            ("stdout", "one \ufffd\n"), ("stderr", "two"), ("stdout", "x" * 72),
        ]  # fmt: skip
        assert guest.log_truncated

    def test_a_log_written_byte_by_byte_is_bounded_in_pieces_too(self) -> None:
        guest = guest_for(log_bytes_max=64 * 1024)
        for i in range(5_000):
            guest.log("stderr" if i % 2 else "stdout", "x")
        assert len(guest.logs) == 1_024
        assert guest.log_truncated

    def test_a_line_that_is_written_in_pieces_is_one(self) -> None:
        guest = guest_for()
        for text in ("a ", "line", "\n", "and one more", "\n", "x" * 4_096, "y"):
            guest.log("stdout", text)
        assert [line.text for line in guest.logs] == ["a line\n", "and one more\n", "x" * 4_096, "y"]


def run(start: Start, guest: Any, **limits: float) -> Finished:
    finished: Finished = start(guest, **limits).run(ScriptedConversation())
    return finished


class TestFromInside:
    """The same, seen by guests of machine code."""

    def test_clocks_stand_still_while_a_guest_computes(self, text_guest: TextGuest, start: Start) -> None:
        """It reads the clocks, counts to three million, reads them again, and traps when one has moved."""
        guest = text_guest(
            imports="""(import "wasi:clocks/monotonic-clock@0.2.0" (instance $mono (export "now" (func (result u64)))))
                (import "wasi:clocks/wall-clock@0.2.0" (instance $wall
                    (type $datetime-shape (record (field "seconds" u64) (field "nanoseconds" u32)))
                    (export "datetime" (type $datetime (eq $datetime-shape)))
                    (export "now" (func (result $datetime)))))""",
            lowered=f"""(core func $mono (canon lower (func $mono "now")))
                (core func $wall (canon lower (func $wall "now") {IN_LIBC}))""",
            functions="mono (result i64)\nwall (param i32)",
            core_items="""(func $count (local $i i32) (loop $l
                (local.set $i (i32.add (local.get $i) (i32.const 1)))
                (br_if $l (i32.lt_u (local.get $i) (i32.const 3000000)))))""",
            body=f"""{DROP_BOTH}
                (i64.store (i32.const 64) (call $mono)) (call $wall (i32.const 16))
                (call $count)
                (call $wall (i32.const 32))
                (if (i64.ne (call $mono) (i64.load (i32.const 64))) (then unreachable))
                (if (i64.ne (i64.load (i32.const 16)) (i64.load (i32.const 32))) (then unreachable))
                (if (i32.ne (i32.load (i32.const 24)) (i32.load (i32.const 40))) (then unreachable))
                (if (i64.eqz (i64.load (i32.const 64))) (then unreachable))""",
        )
        isolate = start(guest, cpu_ms=60_000)
        seen = []
        for _ in range(2):
            assert isolate.run(ScriptedConversation()).outcome is Outcome.HUNG
            seen.append(isolate.guest.monotonic_ns)
        assert seen[0] < seen[1], "between requests time goes on"

    def test_exit_is_an_end_that_is_logged(self, text_guest: TextGuest, start: Start) -> None:
        guest = text_guest(
            imports='(import "wasi:cli/exit@0.2.0" (instance $exit (export "exit" (func (param "status" (result))))))',
            lowered='(core func $exit (canon lower (func $exit "exit")))',
            functions="exit (param i32)",
            body="(call $exit (i32.const 1))",
        )
        finished = run(start, guest)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL)
        assert [line.text for line in finished.logs] == ["the worker called exit (failure)"]

    def test_too_many_random_bytes_trap(self, text_guest: TextGuest, start: Start) -> None:
        guest = text_guest(
            imports="""(import "wasi:random/random@0.2.0" (instance $random
                (export "get-random-bytes" (func (param "len" u64) (result (list u8))))))""",
            lowered=f'(core func $random (canon lower (func $random "get-random-bytes") {IN_LIBC}))',
            functions="random (param i64 i32)",
            body=f"{DROP_BOTH} (call $random (i64.const 65537) (i32.const 16))",
        )
        finished = run(start, guest)
        assert (finished.outcome, finished.reason) == (
            Outcome.EXCEPTION, "more than 65536 random bytes in one call",
        )  # fmt: skip

    def test_a_client_that_leaves_while_the_body_is_read_cancels(self, guests: Any, start: Start) -> None:
        class Leaving(ScriptedConversation):
            def read_body(self, bytes_max: int) -> bytes | None:
                self.wait(0.0, for_body=True)
                raise BodyLost

        conversation = Leaving("/", method="POST", client_leaves_after_s=0.0)
        finished = start(guests("echo"), cpu_ms=1_000).run(conversation)
        assert finished.outcome is Outcome.CANCELED

"""A real host with real guests, asked over its socket."""

import asyncio
import errno
import gc
import hashlib
import shutil
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from complete_servers import Compiled, Got, HeldBody, Pieces, collect, request, upload, wait_until

from actors.connection import Frame, LinkBroken, frame
from actors.exchange import Ended, Load, Request
from actors.host_conversation import LinkSocket
from actors.host_watch import WatchLimits
from actors.isolate_desk import DeskLimits
from actors.isolate_host import HostLimits, IsolateHost
from actors.link import LinkAnswer, Links
from actors.mapped_code import MappedCodeLimits
from actors.residency import ResidencyLimits
from actors.wire import ENDED, REQUEST
from actors.worker import Reuse
from isolates.artifact import ArtifactStore
from isolates.isolate import StartFailed
from isolates.outcome import Outcome
from tracing.trace import Attr, SpanName
from tracing.wire import decode_spans

MIB = 1 << 20


@dataclass
class Asked:
    """A host and a client of it."""

    host: IsolateHost
    path: str
    compiled: Compiled
    notices: list[str]
    links: Links = field(default_factory=Links)

    def request(
        self, worker: str, path: str = "/", method: str = "GET", version: str = "", **fields: object
    ) -> Request:
        """A request as a Server makes it: with version and code. Limits are plenty unless the test is about them."""
        digest = self.compiled.workers[worker].component_digest if worker in self.compiled.workers else worker
        limits = {"cpu_ms": 10_000, "wall_ms": 10_000, **fields.pop("limits", {})}  # type: ignore[dict-item]
        return request(
            worker, path, method, version=version or f"v-{worker}", component_digest=digest, limits=limits, **fields
        )

    async def begin(self, asked: Request, body: Pieces | HeldBody | None = None) -> LinkAnswer:
        return await self.links.exchange(self.path, asked, body or Pieces())

    async def ask(self, worker: str, path: str = "/", **fields: object) -> Got:
        return await collect(await self.begin(self.request(worker, path, **fields)))  # type: ignore[arg-type]

    async def statistic(self, name: str, value: object) -> None:
        """Wait until a counter of the host has a value."""

        async def reached() -> bool:
            return self.host.statistics()[name] == value

        await wait_until(reached, f"{name} is {value}: {self.host.statistics()}")

    async def last_notice(self, notice: str) -> None:
        """Wait until this is the last that the host said of itself: it counts first, and tells then."""

        async def told() -> bool:
            return self.notices[-1:] == [notice]

        await wait_until(told, f"{notice} is the last notice: {self.notices}")

    async def told(self, *notices: str) -> None:
        """Wait until this is all that the host said of itself: of what it starts ahead it tells after it counts."""

        async def all_told() -> bool:
            return len(self.notices) >= len(notices)

        await wait_until(all_told, f"{len(notices)} notices: {self.notices}")
        assert self.notices == list(notices)


Make = Callable[..., Asked]


@pytest.fixture
def make(zig: Compiled, tmp_path: Path) -> Iterator[Make]:
    sockets = Path(tempfile.mkdtemp(prefix="ew-"))
    made: list[Asked] = []

    def one(residency: ResidencyLimits | None = None, limits: HostLimits | None = None) -> Asked:
        store = ArtifactStore(tmp_path / "code")
        zig.install(store)
        notices: list[str] = []
        host = IsolateHost(
            "host",
            sockets / "h.sock",
            tmp_path / "code",
            server="server-1",
            tell_server=lambda kind, payload: notices.append(payload.decode()) if kind is Frame.NOTICE else None,
            residency_limits=residency,
            limits=limits,
        )
        asked = Asked(host, host.start(), zig, notices)
        made.append(asked)
        return asked

    yield one
    for asked in made:
        asked.host.stop()
    shutil.rmtree(sockets)


def play(scenario: Awaitable[None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario

    asyncio.run(bounded())


# ----------------------------------------------------------------------------------------------------- good answers


def test_hello_and_the_kinds_of_start(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        got = await there.ask("hello", "/a?b")
        assert got.body == b"hello from Zig\nyou asked for /a\n"
        assert got.served is not None
        assert (got.served.status, got.served.start_type, got.served.server) == (200, "cold", "server-1")
        assert (got.ended.outcome, got.whole) == (Outcome.OK, True)
        again = await there.ask("hello")
        assert again.served is not None
        assert again.served.start_type == "warm"
        await there.links.tell(there.path, Frame.PREWARM, REQUEST.encode(there.request("echo")))
        await there.statistic("isolates", 2)
        await there.statistic("warm_versions", ["v-echo", "v-hello"])
        ahead = await there.ask("echo")
        assert ahead.served is not None
        assert ahead.served.start_type == "prewarm"
        await there.told("warm v-hello", "warm v-echo")
        assert there.host.statistics()["cold_starts"] == {"first-ever": 1}

    play(scenario())


@pytest.mark.parametrize("path", ["/", "/?digest"])
def test_a_mebibyte_is_pulled_through(make: Make, path: str) -> None:
    async def scenario() -> None:
        there, data = make(), bytes(range(256)) * (MIB // 256)
        fields, rest = upload(data)
        got = await collect(await there.begin(there.request("echo", path, "POST", **fields), rest))
        assert (got.ended.outcome, got.whole) == (Outcome.OK, True)
        digest = f"sha256={hashlib.sha256(data).hexdigest()} bytes={MIB}\n".encode()
        assert got.body == (data if path == "/" else digest)

    play(scenario())


def test_a_stream_arrives_while_it_is_made(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        slow = await there.begin(there.request("stream", "/?chunks=2&interval_ms=9000"))
        assert await slow.served() is not None
        assert await slow.read() == b"chunk 0\n"
        assert not slow.ready()  # the guest still waits to make the next
        slow.cancel()
        answer = await there.begin(there.request("stream", "/?chunks=3&interval_ms=100"))
        assert await answer.served() is not None
        pieces = [piece async for piece in _rest(answer)]
        assert b"".join(pieces) == b"chunk 0\nchunk 1\nchunk 2\n"
        ended = await answer.ended()
        assert (ended.outcome, answer.whole) == (Outcome.OK, True)
        assert ended.wall_ms >= 200
        assert ended.cpu_ms < ended.wall_ms / 2  # waiting is not charged

    async def _rest(answer: LinkAnswer):  # type: ignore[no-untyped-def]
        while (piece := await answer.read()) is not None:
            yield piece

    play(scenario())


def test_many_at_once_are_all_answered_by_siblings(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        many = [there.ask("stream", "/?chunks=3&interval_ms=20") for _ in range(20)]
        for got in await asyncio.gather(*many):
            assert (got.ended.outcome, got.body) == (Outcome.OK, b"chunk 0\nchunk 1\nchunk 2\n")
        seen = there.host.statistics()
        assert seen["outcomes"] == {"ok": 20}
        assert 2 <= int(str(seen["isolates"])) <= ResidencyLimits().siblings_max
        await there.statistic("running", 0)

    play(scenario())


def test_the_last_word_tells_what_happened(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        got = await there.ask("hello")
        (report,) = got.ended.spans
        spans = decode_spans(report)
        assert isinstance(spans, list)
        assert {SpanName.MAP, SpanName.INSTANTIATE, SpanName.HANDLER} <= {span.name for span in spans}
        (handler,) = (span for span in spans if span.name is SpanName.HANDLER)
        assert handler.attributes[Attr.START_TYPE] == "cold"
        assert handler.attributes[Attr.OUTCOME] == "ok"
        assert (got.ended.load.isolates, got.ended.load.running) == (1, 0)
        assert got.ended.load != Load()

    play(scenario())


# -------------------------------------------------------------------------------------------------------- bad guests


def test_each_request_has_its_own_limits_whoever_the_isolate_was_started_for(make: Make) -> None:
    """Workers call each other under limits that their callers lower: the same isolate serves all of them."""

    async def scenario() -> None:
        there = make()
        for few, many in ((20, 10_000), (10_000, 20)):
            await there.ask("spin", "/?rounds=1", version=f"v-{few}", limits={"cpu_ms": few})
            got = await there.ask("spin", "/?rounds=60000", version=f"v-{few}", limits={"cpu_ms": many})
            assert got.ended.start_type == "warm"
            assert got.ended.outcome is (Outcome.OK if many > few else Outcome.EXCEEDED_CPU)
        await there.ask("stream", "/?chunks=1", limits={"wall_ms": 10_000})
        got = await there.ask("stream", "/?chunks=100&interval_ms=50", limits={"wall_ms": 200})
        assert (got.ended.outcome, got.ended.start_type) == (Outcome.EXCEEDED_WALL_TIME, "warm")

    play(scenario())


@pytest.mark.parametrize(
    ("worker", "path", "limits", "outcome"),
    [
        ("trap", "/", {}, Outcome.EXCEPTION),
        ("silent", "/", {}, Outcome.HUNG),
        ("spin", "/", {"cpu_ms": 20}, Outcome.EXCEEDED_CPU),
        ("hoard", "/", {"memory_hard_bytes": 32 * MIB}, Outcome.EXCEEDED_MEMORY),
        ("stream", "/?chunks=100&interval_ms=50", {"wall_ms": 200}, Outcome.EXCEEDED_WALL_TIME),
        ("slow_start", "/", {"startup_cpu_ms": 5}, Outcome.EXCEEDED_CPU),
    ],
)
def test_a_guest_that_misbehaves_ends_alone(
    make: Make, worker: str, path: str, limits: dict[str, int], outcome: Outcome
) -> None:
    async def scenario() -> None:
        there = make()
        got = await there.ask(worker, path, limits=limits)
        assert (got.ended.outcome, got.whole) == (outcome, False)
        assert "/" not in got.ended.reason
        fine = await there.ask("hello")
        assert fine.ended.outcome is Outcome.OK
        again = await there.ask(worker, path, limits=limits)
        assert again.ended.outcome is outcome
        await there.statistic("running", 0)

    play(scenario())


def test_a_torn_isolate_is_never_seen_again(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        for expected in (b"ok 1\n", b"ok 2\n"):
            assert (await there.ask("trap", "/?ok")).body == expected
        assert (await there.ask("trap")).ended.outcome is Outcome.EXCEPTION
        fresh = await there.ask("trap", "/?ok")
        assert fresh.body == b"ok 1\n"
        assert fresh.served is not None
        assert fresh.served.start_type == "cold"
        assert there.host.statistics()["cold_starts"] == {"first-ever": 1, "condemned": 1}
        await there.told("warm v-trap", "cold v-trap", "warm v-trap")

    play(scenario())


def test_code_that_is_not_here(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        for digest in ("ab" * 32, "../../etc/passwd"):
            got = await there.ask(digest)
            assert (got.served, got.ended.outcome) == (None, Outcome.INTERNAL_ERROR)
            assert "/" not in got.ended.reason
            assert digest not in got.ended.reason
        assert there.host.statistics()["isolates"] == 0

    play(scenario())


# ------------------------------------------------------------------------------------------------- leaving, waiting


def test_a_client_that_leaves_stops_a_guest_that_computes(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        answer = await there.begin(there.request("spin"))
        await there.statistic("running", 1)
        answer.cancel()
        await there.statistic("outcomes", {"canceled": 1})  # and not for the CPU that it used
        await there.statistic("running", 0)
        await there.statistic("connections", 0)
        assert (await there.ask("hello")).ended.outcome is Outcome.OK

    play(scenario())


@pytest.mark.parametrize("path", ["/?chunks=10000&interval_ms=10", "/?chunks=2&interval_ms=10000"])
def test_a_client_that_leaves_stops_a_guest_that_waits(make: Make, path: str) -> None:
    async def scenario() -> None:
        there = make()
        answer = await there.begin(there.request("stream", path))
        assert await answer.served() is not None
        answer.cancel()
        await there.statistic("running", 0)

    play(scenario())


def test_a_client_that_leaves_stops_a_guest_that_waits_for_its_body(make: Make) -> None:
    async def scenario() -> None:
        there, body = make(), HeldBody()
        answer = await there.begin(there.request("echo", "/?digest", "POST", body_complete=False), body)
        reading = asyncio.create_task(collect(answer))
        await body.asked.wait()
        answer.cancel()
        await there.statistic("running", 0)
        assert (await reading).ended.outcome in (Outcome.CANCELED, Outcome.INTERNAL_ERROR)

    play(scenario())


def test_a_late_piece_of_a_body_does_not_meet_the_next_request(make: Make) -> None:
    """The guest ended while its pull was on its way; the connection goes on, without that piece."""
    there = make()
    connected = socket.socket(socket.AF_UNIX)
    connected.connect(there.path)
    link = LinkSocket(connected)

    def ended() -> Ended:
        while True:
            received = link.receive(10.0)
            assert received is not None
            if received[0] is Frame.ENDED:
                return ENDED.decode(received[1])

    # As long as a guest may take to its first read, on a machine with much else to do.
    impatient = there.request("echo", "/?digest", "POST", body_complete=False, limits={"wall_ms": 500})
    link.send(frame(Frame.REQUEST, REQUEST.encode(impatient)))
    assert link.receive(10.0) == (Frame.STARTED, b"")
    assert link.receive(10.0) == (Frame.PULL, (65_536).to_bytes(4))
    assert ended().outcome is Outcome.EXCEEDED_WALL_TIME
    link.send(frame(Frame.BODY, b"late"))
    link.send(frame(Frame.REQUEST, REQUEST.encode(there.request("hello"))))
    assert ended().outcome is Outcome.OK
    link.close()


def test_a_line_that_is_full_sheds_and_goes_on(make: Make) -> None:
    async def scenario() -> None:
        there = make(ResidencyLimits(siblings_max=1, queue_max=2))
        spinning = await there.begin(there.request("spin"))
        await there.statistic("running", 1)
        waiting = [asyncio.create_task(there.ask("spin", "/?rounds=1")) for _ in range(2)]
        await there.statistic("queued", 2)
        shed = await there.ask("spin", "/?rounds=1")
        assert (shed.served, shed.ended.outcome) == (None, Outcome.LOAD_SHED)
        assert (await there.ask("hello")).ended.outcome is Outcome.OK  # another worker has a line of its own
        spinning.cancel()
        for got in await asyncio.gather(*waiting):
            assert got.ended.outcome is Outcome.OK
            assert got.served is not None
            assert got.served.queue_ms > 0
        assert there.host.statistics()["queued"] == 0

    play(scenario())


def test_nobody_waits_in_line_for_ever(make: Make) -> None:
    async def scenario() -> None:
        there = make(ResidencyLimits(siblings_max=1), HostLimits(desk=DeskLimits(queue_s_max=0.05)))
        spinning = await there.begin(there.request("spin"))
        await there.statistic("running", 1)
        got = await there.ask("spin", "/?rounds=1")
        assert got.ended.outcome is Outcome.LOAD_SHED
        assert there.host.statistics()["queued"] == 0
        spinning.cancel()
        await there.statistic("running", 0)

    play(scenario())


def test_a_version_that_is_dropped_leaves_and_comes_back_cold(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        await there.ask("hello")
        there.host.desk.drop_version("v-hello")
        assert there.host.statistics()["isolates"] == 0
        await there.last_notice("cold v-hello")
        got = await there.ask("hello")
        assert got.served is not None
        assert got.served.start_type == "cold"
        assert there.host.statistics()["cold_starts"] == {"first-ever": 1, "deploy": 1}

    play(scenario())


def test_each_request_of_a_single_shot_version_meets_a_fresh_isolate(make: Make) -> None:
    """``trap`` counts its requests: whoever is not the first in its isolate would see another number."""

    async def scenario() -> None:
        there, once = make(), Reuse(single_shot=True)
        types = []
        for number in range(6):
            got = await there.ask("trap", "/?ok", reuse=once)
            assert got.body == b"ok 1\n"
            assert got.served is not None
            types.append(got.served.start_type)
            await there.statistic("spares", 1)
            await there.statistic("used_up", number + 1)
            # The first start and each spare: there was always one for the next request.
            await there.told(*["warm v-trap"] * (number + 2))
        assert types == ["cold"] + ["preload"] * 5
        seen = there.host.statistics()
        assert (seen["isolates"], seen["cold_starts"]) == (1, {"first-ever": 1})
        assert seen["starts"] == {"cold": 1, "preload": 6}

    play(scenario())


def test_a_crowd_at_a_single_shot_version_shares_nothing(make: Make) -> None:
    async def scenario() -> None:
        there, once = make(), Reuse(max_requests=1)
        for _ in range(3):
            answers = await asyncio.gather(*(there.ask("trap", "/?ok", reuse=once) for _ in range(12)))
            assert {got.body for got in answers} == {b"ok 1\n"}
        await there.statistic("used_up", 36)
        await there.statistic("running", 0)

        async def spare() -> bool:
            return there.host.statistics()["spares"] != 0

        await wait_until(spare, "one is started ahead of the next request")
        spares = there.host.statistics()["spares"]
        assert isinstance(spares, int)
        assert spares <= ResidencyLimits().spares_per_version_max

    play(scenario())


def test_an_isolate_ends_after_as_many_requests_as_it_may_serve(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        bodies = [(await there.ask("trap", "/?ok", reuse=Reuse(max_requests=2))).body for _ in range(5)]
        assert bodies == [b"ok 1\n", b"ok 2\n", b"ok 1\n", b"ok 2\n", b"ok 1\n"]
        await there.statistic("cold_starts", {"first-ever": 1, "condemned": 2})

    play(scenario())


def test_an_isolate_that_nobody_uses_is_let_go(make: Make) -> None:
    async def scenario() -> None:
        there = make(limits=HostLimits(watch=WatchLimits(every_s=0.01)))
        await there.ask("echo")
        await there.ask("hello", reuse=Reuse(idle_s=1))
        await there.statistic("expired", 1)
        assert there.host.statistics()["warm_versions"] == ["v-echo"]
        await there.last_notice("cold v-hello")

    play(scenario())


def test_a_house_that_is_full_evicts_what_is_idle(make: Make) -> None:
    async def scenario() -> None:
        there = make(ResidencyLimits(isolates_max=2))
        for number in range(5):
            assert (await there.ask("hello", version=f"v{number}")).ended.outcome is Outcome.OK
        seen = there.host.statistics()
        assert (seen["isolates"], seen["evictions"]) == (2, 3)

        async def told() -> bool:
            return sum(notice.startswith("cold ") for notice in there.notices) == 3

        await wait_until(told, "each that was evicted is told")

    play(scenario())


def test_the_last_word_tells_what_the_isolate_costs(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        got = await there.ask("hello")
        assert 0 < got.ended.start_cost_ms < 10_000
        assert 0 < got.ended.isolate_bytes < 128 * MIB
        assert (got.ended.load.residence_s, got.ended.load.nearly_full) == (0.0, False)
        missing = await there.ask("ab" * 32)
        assert (missing.ended.start_cost_ms, missing.ended.isolate_bytes) == (0.0, 0)

    play(scenario())


def test_the_load_tells_how_long_isolates_live_and_what_guests_use(make: Make) -> None:
    async def scenario() -> None:
        there = make(ResidencyLimits(isolates_max=1), HostLimits(watch=WatchLimits(every_s=0.01)))
        for number in range(3):
            await there.ask("hello", version=f"v{number}")
        spinning = await there.begin(there.request("spin", version="v3"))
        await there.statistic("running", 1)

        async def computes() -> bool:
            return there.host.watch.load().cpu_load > 0.1

        await wait_until(computes, "the CPU of a guest that still runs is counted")
        assert 0 < there.host.watch.load().residence_s < 20
        spinning.cancel()
        await there.statistic("running", 0)

    play(scenario())


def test_a_home_keeps_its_place_and_a_prewarm_that_was_never_used_is_counted(make: Make) -> None:
    async def scenario() -> None:
        there = make(ResidencyLimits(isolates_max=1))
        there.host.desk.prewarm(there.request("echo"))
        await there.statistic("warm_versions", ["v-echo"])
        await there.told("warm v-echo")
        await there.ask("hello", at_home=True)
        assert there.host.statistics()["wasted"] == {"prewarm": 1}
        there.host.desk.prewarm(there.request("echo"))
        seen = there.host.statistics()
        assert (seen["prewarms_declined"], seen["warm_versions"]) == (1, ["v-hello"])
        await there.last_notice("unstarted v-echo")

    play(scenario())


def mapped_files(code: Path) -> set[str]:
    """The files of compiled code that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if str(code) in line and line.endswith(".cwasm")}


def test_evicted_isolates_leave_their_code_mapped_within_bounds(make: Make, tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = HostLimits(desk=DeskLimits(mapped_code=MappedCodeLimits(idle_max=2)))
        there = make(ResidencyLimits(isolates_max=1), limits)
        for worker in ("hello", "echo", "hello", "echo"):
            assert (await there.ask(worker)).ended.outcome is Outcome.OK
        code = there.host.statistics()["code"]
        assert isinstance(code, dict)
        assert (code["from_file"], code["from_mapped"], code["idle"]) == (2, 2, 1)
        for _ in range(3):
            for worker in ("hello", "echo", "trap", "stream"):
                await there.ask(worker, "/?ok&chunks=1")
        gc.collect()
        assert len(mapped_files(tmp_path)) <= 3  # one in use, two idle
        code = there.host.statistics()["code"]
        assert isinstance(code, dict)
        assert (code["mapped"], code["idle"]) == (3, 2)

    play(scenario())


def test_a_host_that_is_short_of_memory_lets_go_of_code_after_isolates(make: Make) -> None:
    async def scenario() -> None:
        there = make(ResidencyLimits(memory_bytes_max=1), HostLimits(watch=WatchLimits(every_s=0.01)))
        await there.ask("hello")
        await there.statistic("isolates", 0)

        async def put_away() -> bool:
            code = there.host.statistics()["code"]
            assert isinstance(code, dict)
            return bool(code["mapped"] == 0 and code["put_away"] >= 1)

        await wait_until(put_away, "no code is mapped")
        assert (await there.ask("hello")).ended.outcome is Outcome.OK

    play(scenario())


def test_nonsense_ends_its_link_alone(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        reader, writer = await asyncio.open_unix_connection(there.path)
        writer.write(frame(Frame.REQUEST, b"nonsense"))
        assert await reader.read() == b""
        writer.close()
        assert (await there.ask("hello")).ended.outcome is Outcome.OK

    play(scenario())


def test_a_host_that_stops_is_gone_for_its_clients(make: Make) -> None:
    async def scenario() -> None:
        there = make()
        answer = await there.begin(there.request("stream", "/?chunks=10000&interval_ms=10"))
        assert await answer.served() is not None
        there.host.stop()
        while await answer.read() is not None:
            pass
        assert (await answer.ended()).outcome is Outcome.INTERNAL_ERROR
        assert not answer.whole
        with pytest.raises(LinkBroken):
            await there.begin(there.request("hello"))
        await there.statistic("running", 0)

    play(scenario())


def test_a_sibling_that_fails_to_start_leaves_the_version_warm(make: Make) -> None:
    """Or the Server would send elsewhere what has an isolate here, and forget who refused it."""

    async def scenario() -> None:
        there = make()
        spinning = await there.begin(there.request("spin"))
        await there.statistic("running", 1)
        living = there.host.desk._living
        start = living.start
        living.start = lambda number, recipe: StartFailed(Outcome.EXCEEDED_MEMORY, "no")  # type: ignore[method-assign]
        failed = await there.ask("spin", "/?rounds=1")
        assert failed.ended.outcome is Outcome.EXCEEDED_MEMORY
        living.start = start  # type: ignore[method-assign]
        await there.last_notice("warm v-spin")
        spinning.cancel()

    play(scenario())


def _bare_host(directory: Path, tell_server: Callable[[Frame, bytes], None]) -> IsolateHost:
    """A host that was not started."""
    return IsolateHost(
        "host",
        directory / "h.sock",
        directory / "code",
        server="server-1",
        tell_server=tell_server,
        limits=HostLimits(watch=WatchLimits(every_s=0.001)),
    )


def test_a_host_without_file_descriptors_takes_connections_again(tmp_path: Path) -> None:
    host = _bare_host(tmp_path, lambda kind, payload: None)
    ours, theirs = socket.socketpair()

    class Listener:
        """Two times there is no file descriptor; then a client comes, and then it is over."""

        accepts = 0

        def accept(self) -> tuple[socket.socket, str]:
            self.accepts += 1
            if self.accepts == 3:
                return theirs, ""
            host._stopping = self.accepts > 3
            raise OSError(errno.EMFILE, "Too many open files")

    host._listener = listener = Listener()  # type: ignore[assignment]
    host._accept()
    assert listener.accepts == 4
    ours.close()


def test_a_measurement_that_fails_is_not_the_last(tmp_path: Path) -> None:
    reports: list[bytes] = []
    done = threading.Event()

    def tell(kind: Frame, payload: bytes) -> None:
        reports.append(payload)
        if len(reports) == 1:
            raise RuntimeError("a bug")
        done.set()

    host = _bare_host(tmp_path, tell)
    host.watch.begin()
    assert done.wait(10)
    host.watch.stop()

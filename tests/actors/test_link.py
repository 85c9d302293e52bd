"""Frames in all sizes, and real links over real Unix sockets."""

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from complete_servers import HeldBody, Pieces, collect, request, upload, wait_until
from hypothesis import given
from hypothesis import strategies as st

from actors.connection import FRAME_BYTES_MAX, HEADER, RECEIVED_BYTES_MAX, Frame, FrameReader, LinkBroken, frame
from actors.exchange import Ended, Request, Served
from actors.hosts import HostAnswer
from actors.link import Answer, LinkAnswer, Links, LinkServer, PulledBody, Reply
from isolates.conversation import BodyLost
from isolates.outcome import Outcome

FRAMES = st.lists(st.tuples(st.sampled_from(Frame), st.binary(max_size=50)), max_size=6)
SERVED = Served(200, (("x", b"y"),), "server-1", "warm", 0.0, 0.0)
OK = Ended(Outcome.OK)
Handler = Callable[[Request, PulledBody, Reply], Awaitable[None]]


# ----------------------------------------------------------------------------------------------------------- frames


@given(FRAMES)
def test_frames_whole_and_byte_by_byte(frames: list[tuple[Frame, bytes]]) -> None:
    data = b"".join(frame(kind, payload) for kind, payload in frames)
    assert FrameReader().feed(data) == frames
    slow = FrameReader()
    assert [item for byte in data for item in slow.feed(bytes([byte]))] == frames


@given(FRAMES, st.binary(max_size=200), st.integers(1, 7))
def test_junk_behind_frames_breaks_the_link_or_waits_for_more(
    frames: list[tuple[Frame, bytes]], junk: bytes, step: int
) -> None:
    data = b"".join(frame(kind, payload) for kind, payload in frames) + junk
    reader, read = FrameReader(), []
    try:
        for start in range(0, len(data), step):
            read += reader.feed(data[start : start + step])
    except LinkBroken:
        pass
    if step == 1:
        assert read[: len(frames)] == frames


def test_the_largest_frame_and_one_more_byte() -> None:
    largest = frame(Frame.DATA, bytes(FRAME_BYTES_MAX))
    assert FrameReader().feed(largest) == [(Frame.DATA, bytes(FRAME_BYTES_MAX))]
    with pytest.raises(LinkBroken, match=str(FRAME_BYTES_MAX + 1)):
        FrameReader().feed(HEADER.pack(FRAME_BYTES_MAX + 1, Frame.DATA))  # by its header, before any of it is held


def test_a_frame_of_no_known_kind() -> None:
    with pytest.raises(LinkBroken, match="kind 99"):
        FrameReader().feed(HEADER.pack(0, 99))


# ------------------------------------------------------------------------------------------------------------ links


@asynccontextmanager
async def serving(on_request: Handler, notices: list[tuple[Frame, bytes]] | None = None) -> AsyncIterator["World"]:
    directory = Path(tempfile.mkdtemp(prefix="ew-"))
    heard = notices if notices is not None else []
    server = LinkServer(on_request, lambda kind, payload: heard.append((kind, payload)))
    links = Links()
    try:
        async with asyncio.timeout(10):
            await server.start(directory / "s.sock")
            yield World(server, links, str(directory / "s.sock"))
    finally:
        links.close()
        await server.stop()
        shutil.rmtree(directory)


class World:
    def __init__(self, server: LinkServer, links: Links, path: str) -> None:
        self.server, self.links, self.path = server, links, path

    async def begin(self, asked: Request, body: Pieces | HeldBody | None = None) -> LinkAnswer:
        return await self.links.exchange(self.path, asked, body or Pieces())


async def echo(asked: Request, body: PulledBody, reply: Reply) -> None:
    reply.head(SERVED)
    if asked.body_first:
        await reply.data(asked.body_first)
    while (data := await body.read(1 << 20)) is not None:
        await reply.data(data)
    reply.end()
    reply.ended(OK)


async def hello(asked: Request, body: PulledBody, reply: Reply) -> None:
    reply.head(SERVED)
    await reply.data(asked.head.path.encode())
    reply.end()
    reply.ended(OK)


def test_the_socket_is_this_users_alone() -> None:
    async def play() -> None:
        async with serving(hello) as world:
            assert os.stat(world.path).st_mode & 0o777 == 0o600

    asyncio.run(play())


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 1_000_000])
def test_a_body_is_pulled_and_comes_back(size: int) -> None:
    async def play() -> None:
        async with serving(echo) as world:
            data = bytes(size)
            fields, rest = upload(data)
            got = await collect(await world.begin(request("w", method="POST", **fields), rest))
            assert (got.served, got.whole, got.ended) == (SERVED, True, OK)
            assert got.body == data

    asyncio.run(play())


def test_a_body_that_nobody_pulls_is_not_sent() -> None:
    async def play() -> None:
        async with serving(hello) as world:
            body = Pieces(bytes(100_000))
            got = await collect(await world.begin(request("w", body_complete=False), body))
            assert (got.body, body.read_bytes) == (b"/", 0)

    asyncio.run(play())


def test_a_body_that_breaks_off_is_lost_at_the_other_end() -> None:
    async def tell(asked: Request, body: PulledBody, reply: Reply) -> None:
        assert await body.read(100) == b"some"
        with pytest.raises(BodyLost):
            await body.read(100)
        reply.ended(Ended(Outcome.EXCEPTION, "lost"))

    async def play() -> None:
        async with serving(tell) as world:
            answer = await world.begin(request("w", body_complete=False), Pieces(b"some", breaks=True))
            got = await collect(answer)
            assert (got.served, got.ended.reason) == (None, "lost")

    asyncio.run(play())


def test_a_slow_reader_holds_the_sender_back() -> None:
    piece, pieces = bytes(65_536), 400
    sent = 0

    async def flood(asked: Request, body: PulledBody, reply: Reply) -> None:
        nonlocal sent
        reply.head(SERVED)
        for _ in range(pieces):
            await reply.data(piece)
            sent += len(piece)
        reply.end()
        reply.ended(OK)

    async def play() -> None:
        async with serving(flood) as world:
            answer = await world.begin(request("w"))
            assert await answer.served() == SERVED
            connection = answer._connection
            assert connection is not None

            async def held_back() -> bool:
                return connection._paused

            await wait_until(held_back, "the reader is full")
            for _ in range(200):  # turns in which a sender that nothing holds back would go on
                await asyncio.sleep(0)
            # What was received, the two buffers of the kernel, and the sender's own.
            assert sent < RECEIVED_BYTES_MAX + (1 << 20)
            assert connection._queued_bytes < 2 * RECEIVED_BYTES_MAX
            size = 0
            while (data := await answer.read()) is not None:
                size += len(data)
            assert (size, answer.whole, await answer.ended()) == (pieces * len(piece), True, OK)

    asyncio.run(play())


def test_a_connection_is_used_again_after_every_ending() -> None:
    async def end_as_asked(asked: Request, body: PulledBody, reply: Reply) -> None:
        outcome = Outcome(asked.head.path[1:])
        if outcome is Outcome.OK:
            await hello(asked, body, reply)
        elif outcome is Outcome.RESPONSE_STREAM_DISCONNECTED:
            reply.head(SERVED)
            await reply.data(b"half")
            reply.ended(Ended(outcome))
        else:
            reply.ended(Ended(outcome))

    async def play() -> None:
        async with serving(end_as_asked) as world:
            for outcome in [*Outcome, *Outcome]:
                got = await collect(await world.begin(request("w", f"/{outcome.value}", body_complete=False)))
                assert got.ended.outcome is outcome
                assert got.whole == (outcome is Outcome.OK)
                assert world.server.requests == 1

    asyncio.run(play())


def test_requests_at_once_have_connections_of_their_own() -> None:
    async def play() -> None:
        async with serving(hello) as world:
            answers = [await world.begin(request("w", f"/{i}")) for i in range(Links.IDLE_MAX + 8)]
            got = await asyncio.gather(*(collect(answer) for answer in answers))
            assert [g.body for g in got] == [f"/{i}".encode() for i in range(len(answers))]

            async def few() -> bool:
                return world.server.requests == Links.IDLE_MAX

            await wait_until(few, "the surplus is closed")

    asyncio.run(play())


def test_a_cancel_reaches_the_server() -> None:
    running, stopped = asyncio.Event(), asyncio.Event()

    async def wait_for_ever(asked: Request, body: PulledBody, reply: Reply) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            stopped.set()
            raise

    async def play() -> None:
        async with serving(wait_for_ever) as world:
            answer = await world.begin(request("w"))
            await running.wait()
            answer.cancel()
            await stopped.wait()
            assert (await answer.ended()).outcome is Outcome.CANCELED
            answer.cancel()

            async def none() -> bool:
                return world.server.requests == 0

            await wait_until(none, "the connection is gone")

    asyncio.run(play())


def test_a_server_that_goes_in_the_middle_is_an_internal_error() -> None:
    async def half(asked: Request, body: PulledBody, reply: Reply) -> None:
        reply.head(SERVED)
        await reply.data(b"half of i")
        raise LinkBroken("the process died")

    async def play() -> None:
        async with serving(half) as world:
            got = await collect(await world.begin(request("w")))
            assert not got.whole
            assert got.ended.outcome is Outcome.INTERNAL_ERROR

    asyncio.run(play())


@pytest.mark.parametrize("reads", ["not accepted", "nothing", "some", "all"])
def test_whether_a_request_was_read_is_known_when_its_reader_dies(reads: str) -> None:
    """The kernel tells it, of a process that was killed while it was stopped, too."""

    async def whole() -> None:
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
            path = f"{directory}/server.sock"
            listening.bind(path)
            listening.listen()
            asked, again = request("worker", "/", "POST"), []

            async def once_more(lost: Request) -> Answer:
                again.append(lost)
                raise LinkBroken("nobody else")

            sent = await Links().exchange(path, asked, HeldBody())
            answer = HostAnswer(sent, asked, once_more, mute=path)
            serving = asyncio.create_task(answer.served())
            if reads != "not accepted":
                connection, _ = listening.accept()
                with connection:
                    whole = HEADER.unpack(connection.recv(HEADER.size, socket.MSG_PEEK))[0] + HEADER.size
                    read = {"nothing": 0, "some": whole - 1, "all": whole}[reads]
                    assert len(connection.recv(read)) == read
            listening.close()
            async with asyncio.timeout(10.0):
                assert await serving is None
            assert (sent.lost, sent.unread) == (True, reads != "all")
            assert len(again) == (reads != "all")  # it may run again, though it is a POST
            assert not any(lost.lost_with for lost in again)

    asyncio.run(whole())


def test_a_server_that_reads_nothing_is_not_asked_for_ever() -> None:
    """It has no place for one more connection: it closes each at once."""

    async def whole() -> None:
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listening:
            path, links, tries = f"{directory}/server.sock", Links(), 0
            listening.bind(path)
            listening.listen()

            async def ask(asked: Request) -> LinkAnswer:
                nonlocal tries
                tries += 1
                answer = await links.exchange(path, asked, HeldBody())
                listening.accept()[0].close()
                return answer

            asked = request("worker", "/", "POST")
            async with asyncio.timeout(10.0):
                assert await HostAnswer(await ask(asked), asked, ask, mute=path).served() is None
            assert tries == 1 + 5

    asyncio.run(whole())


def test_nobody_listens() -> None:
    async def play() -> None:
        async with serving(hello) as world:
            path = world.path + ".gone"
            with pytest.raises(LinkBroken) as broken:
                await world.links.exchange(path, request("w"), Pieces())
            assert path not in str(broken.value)

    asyncio.run(play())


def test_an_idle_connection_that_went_away_is_not_used() -> None:
    async def play() -> None:
        async with serving(hello) as world:
            await collect(await world.begin(request("w")))
            await world.server.stop()
            os.unlink(world.path)
            (idle,) = world.links._idle[world.path]

            async def gone() -> bool:
                return idle.closed

            await wait_until(gone, "the client has seen it")
            with pytest.raises(LinkBroken):
                await world.begin(request("w"))

    asyncio.run(play())


def test_notices_have_no_reply_and_nonsense_ends_the_link() -> None:
    notices: list[tuple[Frame, bytes]] = []

    async def play() -> None:
        async with serving(hello, notices) as world:
            await world.links.tell(world.path, Frame.NOTICE, b"warm v1")
            await world.links.tell(world.path, Frame.PREWARM, b"...")

            async def heard() -> bool:
                return notices == [(Frame.NOTICE, b"warm v1"), (Frame.PREWARM, b"...")]

            await wait_until(heard, "both notices")
            assert world.server.requests == 1
            await world.links.tell(world.path, Frame.REQUEST, b"nonsense")

            async def closed() -> bool:
                return world.server.requests == 0

            await wait_until(closed, "the link is closed")
            assert (await collect(await world.begin(request("w")))).ended == OK

    asyncio.run(play())


def test_a_request_that_ends_beside_its_upload_ends_the_upload_too() -> None:
    """The role that relays a body reads it in a task of its own, which must not outlive the request."""
    relays: list[asyncio.Task[bytes | None]] = []

    async def early(asked: Request, body: PulledBody, reply: Reply) -> None:
        if not asked.body_complete:
            relays.append(asyncio.create_task(body.read(100)))
            await asyncio.sleep(0)  # it begins to read
        await hello(asked, body, reply)

    async def play() -> None:
        async with serving(early) as world:
            body = HeldBody()
            answer = await world.begin(request("w", body_complete=False), body)
            assert (await collect(answer)).ended == OK
            with pytest.raises(BodyLost):
                await relays[0]
            assert (await collect(await world.begin(request("w")))).ended == OK

    asyncio.run(play())


def test_a_pull_is_not_an_answer_that_is_ready() -> None:
    async def play() -> None:
        async with serving(echo) as world:
            body = HeldBody()
            answer = await world.begin(request("w", body_complete=False), body)
            assert await answer.served() == SERVED
            connection = answer._connection
            assert connection is not None

            async def pulled() -> bool:
                return bool(connection._frames)

            await wait_until(pulled, "the pull is here")
            assert not answer.ready()  # who asks would wait for a client that waits for the head
            body.go.set()
            assert (await finish(answer)).whole

    async def finish(answer: LinkAnswer) -> LinkAnswer:
        while await answer.read() is not None:
            pass
        await answer.ended()
        return answer

    asyncio.run(play())

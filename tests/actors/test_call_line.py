"""Direct lines over real sockets: who may call, what comes back, and what is known when a line breaks."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import ray.exceptions

from actors.call_line import (
    CallFailed,
    CallLine,
    CallLineServer,
    LineLost,
    LineOffer,
    _CalledEnd,
    decode_offer,
    encode_offer,
)
from actors.connection import FRAME_BYTES_MAX, HEADER, Frame, frame
from actors.line_pulse import LinePulse, PulseLimits
from actors.peer import OFFER, PeerFailed, PeerLost, RayPeer

LOOPBACK = "127.0.0.1"


@dataclass
class Home:
    """What is called: it notes each call, and can be kept waiting."""

    called: list[bytes] = field(default_factory=list)
    finished: list[bytes] = field(default_factory=list)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def calls(self) -> dict[str, Callable[[bytes], Awaitable[bytes]]]:
        return {"echo": self.echo, "wait": self.wait, "serve": self.wait, "fail": self.fail, "grow": self.grow}

    async def echo(self, payload: bytes) -> bytes:
        self.called.append(payload)
        return payload

    async def wait(self, payload: bytes) -> bytes:
        self.called.append(payload)
        await self.may_answer.wait()
        self.finished.append(payload)
        return payload

    async def fail(self, payload: bytes) -> bytes:
        raise KeyError("a bug")

    async def grow(self, payload: bytes) -> bytes:
        return bytes(int(payload))


Scenario = Callable[[Home, CallLineServer, LineOffer], Coroutine[Any, Any, None]]


def play(scenario: Scenario, greeting_s_max: float = 5.0) -> None:
    async def whole() -> None:
        home = Home()
        server = CallLineServer(home.calls, greeting_s_max, heard_only=frozenset({"serve"}))
        offer = await server.start(LOOPBACK)
        try:
            async with asyncio.timeout(30.0):
                await scenario(home, server, offer)
        finally:
            await server.stop()

    asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    """Wait for what follows in the same process, within the scenario's time."""
    while not true():  # noqa: ASYNC110  # what is waited for tells nobody
        await asyncio.sleep(0.001)


async def raw(offer: LineOffer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A connection that speaks frames by hand, and the challenge it was greeted with."""
    reader, writer = await asyncio.open_connection(offer.address, offer.port)
    length, kind = HEADER.unpack(await reader.readexactly(HEADER.size))
    assert kind == Frame.CHALLENGE
    return reader, writer, await reader.readexactly(length)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    with suppress(ConnectionResetError):
        assert await reader.read() == b""
    return True


def test_calls_come_back_to_whoever_made_them_in_any_order() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line = await CallLine.open(offer)
        waiting = asyncio.create_task(line.call("wait", b"first"))
        payloads = [bytes([i % 251]) * i for i in range(500)]
        assert await asyncio.gather(*(line.call("echo", p) for p in payloads)) == payloads
        assert not waiting.done()
        home.may_answer.set()
        assert await waiting == b"first"
        large = random.Random(1).randbytes(FRAME_BYTES_MAX - 1_024)
        assert await line.call("echo", large) == large
        assert server.lines == 1
        line.close()
        await until(lambda: server.lines == 0)

    play(scenario)


def test_a_method_that_raises_and_one_that_is_not_there_are_failures_and_the_line_lives_on() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line = await CallLine.open(offer)
        for method, payload in (("fail", b""), ("nothing", b""), ("grow", b"2000000")):
            with pytest.raises(CallFailed):
                await line.call(method, payload)
        assert await line.call("echo", b"still") == b"still"

    play(scenario)


def test_whoever_does_not_know_the_secret_calls_nothing() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        with pytest.raises(LineLost) as lost:
            await CallLine.open(msgspec.structs.replace(offer, secret=bytes(32)))
        assert lost.value.sent is False
        assert server.lines == 0
        assert await (await CallLine.open(offer)).call("echo", b"") == b""
        assert home.called == [b""]

    play(scenario)


def test_a_caller_that_meets_somebody_else_sends_nothing() -> None:
    """Another process got the port: it does not know the secret, and learns no request."""

    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        stranger = CallLineServer(home.calls)
        taken = await stranger.start(LOOPBACK)
        try:
            with pytest.raises(LineLost):
                await CallLine.open(msgspec.structs.replace(offer, port=taken.port))
        finally:
            await stranger.stop()

    play(scenario)


@pytest.mark.parametrize(
    "sent",
    [
        frame(Frame.CALL, bytes(8) + b"\x04echo"),
        frame(Frame.PROOF, bytes(64)),
        frame(Frame.PROOF, bytes(63)),
        frame(Frame.PROOF),
        frame(Frame.RETURNED, bytes(8)),
        frame(Frame.REQUEST),
        b"\xff\xff\xff\xff\x20",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_said_out_of_turn_ends_the_connection(sent: bytes) -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        reader, writer, _ = await raw(offer)
        writer.write(sent)
        assert await is_closed(reader)
        writer.close()
        assert not home.called
        assert server.lines == 0

    play(scenario)


def test_random_bytes_never_become_a_call() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        for seed in range(100):
            reader, writer, _ = await raw(offer)
            print(f"seed {seed}")
            writer.write(random.Random(seed).randbytes(200))
            writer.write_eof()
            assert await is_closed(reader)
            writer.close()
        assert not home.called
        assert server.lines == 0

    play(scenario)


def test_a_proof_is_good_for_one_connection() -> None:
    """What somebody overheard on one connection opens no other: the challenge is another one."""

    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        class Overheard(CallLine):
            proof = b""

            def _send(self, kind: Frame, *parts: bytes) -> None:
                if kind is Frame.PROOF:
                    type(self).proof = b"".join(parts)
                super()._send(kind, *parts)

        (await Overheard.open(offer)).close()
        reader, writer, _ = await raw(offer)
        writer.write(frame(Frame.PROOF, Overheard.proof))
        assert await is_closed(reader)
        writer.close()

    play(scenario)


def test_strangers_have_little_time_and_little_room() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        ours = await CallLine.open(offer)
        connected = [await raw(offer) for _ in range(CallLineServer.STRANGERS_MAX)]
        reader, writer = await asyncio.open_connection(offer.address, offer.port)
        assert await is_closed(reader)  # one too many
        writer.close()
        assert await ours.call("echo", b"one of us") == b"one of us"
        for reader, writer, _ in connected:
            assert await is_closed(reader)  # their time is over
            writer.close()
        assert await (await CallLine.open(offer)).call("echo", b"again") == b"again"

    play(scenario, greeting_s_max=1.0)


def test_what_was_under_way_when_the_line_broke_may_have_been_carried_out() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line = await CallLine.open(offer)
        waiting = [asyncio.create_task(line.call("wait", bytes([i]))) for i in range(10)]
        await until(lambda: len(home.called) == 10)
        for end in list(server._lines):
            end.close()
        for ended in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(ended, LineLost)
            assert ended.sent
        with pytest.raises(LineLost) as lost:
            await line.call("echo", b"late")
        assert lost.value.sent is False
        assert not home.finished
        home.may_answer.set()  # what has begun comes to its end, as it does when Ray loses a caller
        await until(lambda: len(home.finished) == 10)
        assert b"late" not in home.called

    play(scenario)


def test_what_is_only_for_its_caller_ends_with_the_line() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        gone, stays = await CallLine.open(offer), await CallLine.open(offer)
        for name, line in (("serve", gone), ("wait", gone), ("serve", stays)):
            asyncio.create_task(line.call(name, f"{name} {line is gone}".encode())).add_done_callback(
                lambda task: task.exception()
            )
        await until(lambda: len(home.called) == 3)
        gone.close()
        await until(lambda: server.lines == 1 and len(server._running) == 2)
        home.may_answer.set()
        await until(lambda: len(home.finished) == 2)
        assert sorted(home.finished) == [b"serve False", b"wait True"]

    play(scenario)


def test_a_caller_that_leaves_frees_its_place_and_the_answer_meets_nobody() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line = await CallLine.open(offer)
        waiting = asyncio.create_task(line.call("wait", b"gone"))
        await until(lambda: home.called == [b"gone"])
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not line._calls
        home.may_answer.set()
        await until(lambda: home.finished == [b"gone"])
        assert await line.call("echo", b"next") == b"next"

    play(scenario)


def test_the_kernel_watches_both_ends() -> None:
    """A machine that is gone acknowledges nothing; a busy process's kernel does."""

    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line = await CallLine.open(offer)
        await until(lambda: server.lines == 1)
        (called,) = server._lines
        for end in (line, called):
            assert end._transport is not None
            sock = end._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3_000
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 1

    play(scenario)


QUICK = PulseLimits(look_every_s=0.01, doubt_s=0.05, silent_s=0.5)
DOUBTFUL = PulseLimits(look_every_s=0.01, doubt_s=0.05, silent_s=60.0)


def test_a_process_that_is_stopped_is_doubted_soon_and_given_up_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernel acknowledges what it is sent; it reads nothing."""

    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line, other = await CallLine.open(offer), await CallLine.open(offer)
        line._pulse, other._pulse = LinePulse(QUICK), LinePulse(QUICK)
        assert await line.call("echo", b"well") == b"well"
        slow = asyncio.create_task(other.call("wait", b"a slow guest"))
        await until(lambda: b"a slow guest" in home.called)
        monkeypatch.setattr(_CalledEnd, "data_received", lambda end, data: None)
        waiting = asyncio.create_task(line.call("wait", b"unread"))
        await until(lambda: line.is_in_doubt)
        assert not waiting.done()
        with pytest.raises(LineLost) as lost:
            await waiting
        assert lost.value.sent
        assert b"unread" not in home.called
        with pytest.raises(LineLost):
            await slow
        monkeypatch.undo()

    play(scenario)


def test_a_guest_may_take_its_time() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        line = await CallLine.open(offer)
        line._pulse = LinePulse(QUICK)
        heard: list[Frame] = []
        waiting = asyncio.create_task(line.call("wait", b"slow"))

        def received(kind: Frame, payload: bytes) -> None:
            heard.append(kind)
            CallLine._received(line, kind, payload)

        line._received = received  # type: ignore[method-assign]
        # Asked at every second look: by then it would have been given up three times.
        await until(lambda: len(heard) >= 3 * QUICK.silent_s / QUICK.look_every_s / 2)
        assert set(heard) == {Frame.HERE}
        assert not waiting.done()
        home.may_answer.set()
        assert await waiting == b"slow"

    play(scenario)


def test_nobody_listens() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        await server.stop()
        with pytest.raises(LineLost):
            await CallLine.open(offer)

    play(scenario)


def test_an_offer_survives_the_way_and_does_not_print_its_secret() -> None:
    offer = LineOffer(LOOPBACK, 1, b"the secret of this role, 32 bytes", ("serve",))
    assert decode_offer(encode_offer(offer)) == offer
    assert decode_offer(encode_offer(None)) is None
    assert "secret" not in repr(offer)
    with pytest.raises(msgspec.DecodeError):
        decode_offer(b"\x01")


class Actor:
    """An actor handle in this process that offers a line, and notes what is called through it."""

    def __init__(self, home: Home, offer: LineOffer) -> None:
        self.call = self
        self.away = False
        self.through_ray: list[str] = []
        self.offer = offer
        self._home = home

    def options(self, **_: Any) -> "Actor":
        return self

    async def remote(self, method: str, payload: bytes) -> bytes:
        self.through_ray.append(method)
        if self.away:
            raise ray.exceptions.RayActorError
        if method in ("probe", OFFER):
            return encode_offer(self.offer) if method == OFFER else b""
        return await self._home.calls[method](payload)


async def direct_peer(home: Home, offer: LineOffer) -> tuple[RayPeer, Actor]:
    """A peer whose line is open."""
    actor = Actor(home, msgspec.structs.replace(offer, methods=("echo", "wait", "fail")))
    peer = RayPeer("server-2/shard", actor)
    assert await peer.call("echo", b"before the line") == b"before the line"
    await until(lambda: peer._line is not None)
    assert actor.through_ray == ["echo", OFFER] or actor.through_ray == [OFFER, "echo"]
    actor.through_ray.clear()
    return peer, actor


def test_a_peer_is_called_directly_once_its_line_is_open() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        peer, actor = await direct_peer(home, offer)
        assert await peer.call("echo", b"directly") == b"directly"
        with pytest.raises(PeerFailed):
            await peer.call("fail")
        assert not actor.through_ray
        assert await peer.call("grow", b"7") == bytes(7)  # nobody offered it on the line
        assert len(await peer.call("echo", bytes(FRAME_BYTES_MAX))) == FRAME_BYTES_MAX  # too large for a frame
        assert actor.through_ray == ["grow", "echo"]
        assert peer.counts == {"direct": 2, "through_ray": 3}

    play(scenario)


def test_a_line_that_breaks_is_a_lost_peer_until_ray_says_that_it_is_there() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        peer, actor = await direct_peer(home, offer)
        actor.away = True
        waiting = asyncio.create_task(peer.call("wait", b"under way"))
        await until(lambda: b"under way" in home.called)
        for end in list(server._lines):
            end.close()
        with pytest.raises(PeerLost) as lost:
            await waiting
        assert lost.value.delivered is None
        for _ in range(3):
            with pytest.raises(PeerLost) as lost:
                await peer.call("echo", b"away")
            assert lost.value.delivered is False
        assert b"away" not in home.called
        actor.away = False
        await until(lambda: not peer._away)
        assert await peer.call("echo", b"back") == b"back"
        await until(lambda: peer._line is not None and peer._line.is_open)
        actor.through_ray.clear()
        assert await peer.call("echo", b"directly") == b"directly"
        assert not actor.through_ray

    play(scenario)


def test_a_peer_in_doubt_is_sent_no_request_and_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not sent was certainly not delivered, so it runs elsewhere; what has no other way waits for its end."""

    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        actor = Actor(home, offer)
        peer = RayPeer("server-2/shard", actor)
        await peer.call("echo", b"")
        await until(lambda: peer._line is not None)
        assert peer._line is not None
        peer._line._pulse = LinePulse(DOUBTFUL)
        with monkeypatch.context() as stopped:
            stopped.setattr(_CalledEnd, "data_received", lambda end, data: None)
            waiting = asyncio.create_task(peer.call("wait", b"under way"))
            await until(lambda: peer._line is not None and peer._line.is_in_doubt)
            with pytest.raises(PeerLost) as lost:
                await peer.call("serve", b"not sent")
            assert lost.value.delivered is False
            reading = asyncio.create_task(peer.call("echo", b"the rest of a body"))
        home.may_answer.set()  # it goes on; what it did not read is lost in this fake of a stopped process
        assert await peer.call("echo", b"heard again") == b"heard again"
        assert not peer._line.is_in_doubt
        assert await peer.call("serve", b"sent") == b"sent"
        assert b"not sent" not in home.called
        assert await reading == b"the rest of a body"
        assert not waiting.done()
        waiting.cancel()

    play(scenario)


def test_a_peer_whose_line_can_not_be_opened_is_called_through_ray() -> None:
    async def scenario(home: Home, server: CallLineServer, offer: LineOffer) -> None:
        await server.stop()
        actor = Actor(home, offer)
        peer = RayPeer("server-2/shard", actor)
        for i in range(20):
            assert await peer.call("echo", bytes([i])) == bytes([i])
            assert peer._opening is not None
            await peer._opening
        assert peer.counts == {"direct": 0, "through_ray": 20}
        assert actor.through_ray.count(OFFER) == 1  # asked again after a second, not with each call

    play(scenario)

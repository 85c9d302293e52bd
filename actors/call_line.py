"""Direct lines: calls of one role by another over a TCP connection of their own, many at a time.

A call between two actors passes four threads of Ray's and two of its queues in each direction, which is most of what a
request to another machine takes. Two roles that have met through Ray therefore open a line, and what is on a request's
path goes over it: the same calls, by method name with ``bytes``, and the same ends. Ray stays where peers meet, where
everything else goes, and what is called while there is no line (``peer.py``).

Frames (``connection.py``); the caller connects, and the one that is called speaks first:

    caller ◄─ CHALLENGE  32 random bytes
           ─► PROOF      32 random bytes of its own, and a proof over both
           ◄─ PROOF      the other proof over both                      after it, in any order and many at a time:
           ─► CALL       id, method, payload      ◄─ RETURNED id, bytes  |  RAISED id, text
           ─► ASK        are you there?           ◄─ HERE

**Who may call.** The one that is called makes a secret when it starts and tells it, with its address, over Ray alone; a
proof is an HMAC of the challenges under it. So both ends know that the other belongs to the cluster. What follows is
no more secret on its way than Ray's own calls, which are in the clear as well. A cluster whose Ray uses TLS opens no
lines (``peer.py``).

**What a loss says.** The process at the other end is gone, the network between is cut, or nothing was acknowledged for
3 s, which the kernel looks after even while a process is busy, or the process at the other end has said nothing for 4 s
while it owed an answer (``line_pulse.py``): each call that is under way is lost, and may have been carried out. TCP
breaks no call in between: a line is whole or gone. The one that was called finishes what it has begun,
but for calls that are worth nothing without their caller (``heard_only``): a request whose sender is gone is one whose
client is gone.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, cast

import msgspec

from actors.connection import FRAME_BYTES_MAX, HEADER, Frame, FrameReader, LinkBroken
from actors.line_pulse import LinePulse, Pulse

_log = logging.getLogger("everwarm.call_line")

_CALL = struct.Struct("!QB")  # id, length of the method's name
_ID = struct.Struct("!Q")
_NONCE_BYTES = 32
_PROOF_BYTES = hashlib.sha256().digest_size
#: Until both ends know each other: two round trips and the turn of a busy event loop.
_GREETING_S_MAX = 5.0
#: Nothing is acknowledged for so long: the machine is gone, or the way to it. Below the 5 s after which a silent server
#: is taken out of the ring, and above what a network in good health loses.
_SILENT_MS_MAX = 3_000


class LineLost(Exception):
    """The line broke. ``sent``: whether the call had gone out, so that it may have been carried out."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class CallFailed(Exception):
    """The method at the other end raised. The text is for our own logs."""


class LineOffer(msgspec.Struct, frozen=True):
    """Where and how a role is called directly. ``secret`` is told over Ray alone, and printed nowhere."""

    address: str
    port: int
    secret: bytes
    methods: tuple[str, ...]

    def __repr__(self) -> str:
        return f"LineOffer({self.address}:{self.port}, {', '.join(self.methods)})"


_OFFER_ENCODER = msgspec.msgpack.Encoder()
_OFFER_DECODER = msgspec.msgpack.Decoder(LineOffer)


def encode_offer(offer: LineOffer | None) -> bytes:
    """An offer as bytes; a role that is called through Ray alone offers nothing."""
    return b"" if offer is None else _OFFER_ENCODER.encode(offer)


def decode_offer(data: bytes) -> LineOffer | None:
    """What a role offers. ``ValueError`` for anything else."""
    return _OFFER_DECODER.decode(data) if data else None


def _proof(secret: bytes, who: bytes, challenges: bytes) -> bytes:
    return hmac.digest(secret, who + challenges, "sha256")


def _watch_the_way(sock: socket.socket) -> None:
    """Have the kernel break a connection whose other end does not acknowledge, with calls under way or without."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _SILENT_MS_MAX // 1_000)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_MS_MAX)


class _End(asyncio.Protocol):
    """One end of a line: frames as they come."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._can_write = asyncio.Event()
        self._can_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have the interface and not the base class

    def data_received(self, data: bytes) -> None:
        try:
            for kind, payload in self._reader.feed(data):
                self._received(kind, payload)
        except (LinkBroken, struct.error, UnicodeDecodeError) as nonsense:
            _log.warning("a line is closed: %s", nonsense)
            self.close()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def connection_lost(self, fault: Exception | None) -> None:
        self._transport = None
        self._can_write.set()
        self._lost()

    @property
    def is_open(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None

    def close(self) -> None:
        """End the line."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._can_write.set()
            self._lost()

    def _send(self, kind: Frame, *parts: bytes) -> None:
        if self._transport is not None:
            self._transport.write(b"".join((HEADER.pack(sum(map(len, parts)), kind), *parts)))

    def _received(self, kind: Frame, payload: bytes) -> None:
        raise NotImplementedError

    def _lost(self) -> None:
        """The line is closed. Called again when the connection is."""
        raise NotImplementedError


class CallLine(_End):
    """The calling end."""

    #: Calls under way on one line. A home refuses long before; beyond it something does not end.
    CALLS_MAX = 4_096

    def __init__(self, offer: LineOffer) -> None:
        super().__init__()
        self.methods = frozenset(offer.methods)
        self._secret = offer.secret
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._challenge = b""
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._last_id = 0
        self._pulse = LinePulse()
        self._looking: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, offer: LineOffer) -> "CallLine":
        """A line to the role that made ``offer``. ``LineLost`` when there is no way, or somebody else is there."""
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_INET6 if ":" in offer.address else socket.AF_INET)
        sock.setblocking(False)
        _watch_the_way(sock)
        line = cls(offer)
        try:
            async with asyncio.timeout(_GREETING_S_MAX):
                await loop.sock_connect(sock, (offer.address, offer.port))
                await loop.create_connection(lambda: line, sock=sock)
                await line._greeted
        except (OSError, TimeoutError, LineLost) as nobody:
            sock.close()
            line.close()
            raise LineLost(f"no line to {offer.address}:{offer.port}: {type(nobody).__name__}", sent=False) from nobody
        except BaseException:
            sock.close()
            line.close()
            raise
        return line

    async def call(self, method: str, payload: bytes) -> bytes:
        """Call one of the ``methods``. ``LineLost`` when it broke, ``CallFailed`` when the method raised."""
        if len(self._calls) >= self.CALLS_MAX:
            raise CallFailed(f"{len(self._calls)} calls are under way")
        self._last_id += 1
        call_id = self._last_id
        name = method.encode()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[call_id] = answer
        try:
            if not self._can_write.is_set():
                await self._can_write.wait()
            if not self.is_open:
                raise LineLost("the line is closed", sent=False)
            self._send(Frame.CALL, _CALL.pack(call_id, len(name)), name, payload)
            self._begin_looking()
            return await answer
        finally:
            del self._calls[call_id]
            if not self._calls:
                self._pulse.owes_nothing()

    @property
    def is_in_doubt(self) -> bool:
        """Whether the other end may be gone: what can go elsewhere had better."""
        return self._pulse.pulse is Pulse.IN_DOUBT

    def data_received(self, data: bytes) -> None:
        self._pulse.heard(asyncio.get_running_loop().time())
        super().data_received(data)

    def _begin_looking(self) -> None:
        loop = asyncio.get_running_loop()
        self._pulse.called(loop.time())
        if self._looking is None:
            self._looking = loop.call_later(self._pulse.limits.look_every_s, self._look)

    def _look(self) -> None:
        """Whether the other end is there, while it owes an answer."""
        loop, self._looking = asyncio.get_running_loop(), None
        if self._pulse.pulse is Pulse.IDLE or not self.is_open:
            return
        match self._pulse.look(loop.time()):
            case Pulse.ASKED:
                self._send(Frame.ASK)
            case Pulse.SILENT:
                _log.warning("the other end of a line is silent")
                self.close()
                return
        self._looking = loop.call_later(self._pulse.limits.look_every_s, self._look)

    def _received(self, kind: Frame, payload: bytes) -> None:
        if kind in (Frame.RETURNED, Frame.RAISED):
            if not self._greeted.done():
                raise LinkBroken("an answer before the greeting")
            answer = self._calls.get(_ID.unpack_from(payload)[0])
            if answer is None or answer.done():
                return  # whoever called has left
            rest = payload[_ID.size :]
            if kind is Frame.RETURNED:
                answer.set_result(rest)
            else:
                answer.set_exception(CallFailed(rest.decode(errors="replace")))
        elif kind is Frame.HERE and self._greeted.done():
            pass  # that something came says it
        elif kind is Frame.CHALLENGE and not self._challenge and len(payload) == _NONCE_BYTES:
            self._challenge = payload
            self._send(Frame.PROOF, self._nonce, _proof(self._secret, b"caller", payload + self._nonce))
        elif kind is Frame.PROOF and self._challenge and not self._greeted.done():
            if not hmac.compare_digest(payload, _proof(self._secret, b"called", self._challenge + self._nonce)):
                raise LinkBroken("somebody else is there")
            self._greeted.set_result(None)
        else:
            raise LinkBroken(f"a frame {kind.name} out of turn")

    def _lost(self) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(LineLost("the line broke", sent=False))
            self._greeted.exception()  # looked at here: perhaps nobody waits for it any more
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(LineLost("the line broke", sent=True))
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None


class _CalledEnd(_End):
    """The called end of one line: it runs each call in a task."""

    def __init__(self, server: "CallLineServer") -> None:
        super().__init__()
        self._server = server
        self._nonce = secrets.token_bytes(_NONCE_BYTES)
        self._known = False
        self._late: asyncio.TimerHandle | None = None
        self._running = 0
        self._heard_only: set[asyncio.Task[None]] = set()  # of those that run

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._server.admits(self):
            self.close()
            return
        self._late = asyncio.get_running_loop().call_later(self._server.greeting_s_max, self.close)
        self._send(Frame.CHALLENGE, self._nonce)

    def _received(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.CALL and self._known:
            call_id, length = _CALL.unpack_from(payload)
            name_end = _CALL.size + length
            method = payload[_CALL.size : name_end].decode()
            task = self._begin(call_id, method, payload[name_end:])
            if task is not None and method in self._server.heard_only:
                self._heard_only.add(task)
                task.add_done_callback(self._heard_only.discard)
        elif kind is Frame.ASK and self._known:
            self._send(Frame.HERE)
        elif kind is Frame.PROOF and not self._known and len(payload) == _NONCE_BYTES + _PROOF_BYTES:
            challenges = self._nonce + payload[:_NONCE_BYTES]
            if not hmac.compare_digest(payload[_NONCE_BYTES:], self._server.proof(b"caller", challenges)):
                raise LinkBroken("a caller that does not know the secret")
            self._known = True
            self._server.knows(self)
            if self._late is not None:
                self._late.cancel()
            self._send(Frame.PROOF, self._server.proof(b"called", challenges))
        else:
            raise LinkBroken(f"a frame {kind.name} out of turn")

    def _begin(self, call_id: int, method: str, payload: bytes) -> "asyncio.Task[None] | None":
        if self._running >= CallLine.CALLS_MAX:
            self._send(Frame.RAISED, _ID.pack(call_id), b"too many calls are under way")
            return None
        self._running += 1
        return self._server.begin(self._run(call_id, method, payload))

    async def _run(self, call_id: int, method: str, payload: bytes) -> None:
        """Run one call to its end."""
        try:
            answer = await self._server.run(method, payload)
            if len(answer) > FRAME_BYTES_MAX - _ID.size:
                raise ValueError(f"an answer of {len(answer)} bytes does not fit a line")
            await self._can_write.wait()
            self._send(Frame.RETURNED, _ID.pack(call_id), answer)
        except Exception as failed:
            _log.exception("%s failed", method)
            self._send(Frame.RAISED, _ID.pack(call_id), repr(failed).encode()[:1_024])
        finally:
            self._running -= 1

    def _lost(self) -> None:
        if self._late is not None:
            self._late.cancel()
        for task in self._heard_only:
            task.cancel()
        self._server.gone(self)


class CallLineServer:
    """Lets other roles call ``calls`` directly."""

    #: A line from each Server and each ShardServer of 2,000 machines.
    LINES_MAX = 4_096
    #: Whoever connects and proves nothing has ``greeting_s_max``; more than this at once are no roles of ours.
    STRANGERS_MAX = 64

    def __init__(
        self,
        calls: Mapping[str, Callable[[bytes], Awaitable[bytes]]],
        greeting_s_max: float = _GREETING_S_MAX,
        heard_only: frozenset[str] = frozenset(),
    ) -> None:
        """``heard_only``: methods that are cancelled when the line of their caller breaks."""
        self._calls = dict(calls)
        self.heard_only = heard_only
        self.greeting_s_max = greeting_s_max
        self._secret = secrets.token_bytes(32)
        self._strangers: set[_CalledEnd] = set()
        self._lines: set[_CalledEnd] = set()
        self._running: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def start(self, address: str) -> LineOffer:
        """Listen on any port of ``address``; what others need to call."""
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            _watch_the_way(sock)  # those that are accepted have it from this one
            sock.bind((address, 0))
            self._server = await asyncio.get_running_loop().create_server(lambda: _CalledEnd(self), sock=sock)
        except BaseException:
            sock.close()
            raise
        return LineOffer(address, sock.getsockname()[1], self._secret, tuple(self._calls))

    async def stop(self) -> None:
        """Stop listening, end all lines, and cancel what runs."""
        if self._server is not None:
            self._server.close()
        for end in [*self._strangers, *self._lines]:
            end.close()
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    @property
    def lines(self) -> int:
        """Lines that are open."""
        return len(self._lines)

    # What its ends ask.

    def admits(self, end: _CalledEnd) -> bool:
        """Whether there is a place for one more that connects."""
        if len(self._strangers) >= self.STRANGERS_MAX or len(self._lines) >= self.LINES_MAX:
            return False
        self._strangers.add(end)
        return True

    def knows(self, end: _CalledEnd) -> None:
        """It is one of ours."""
        self._strangers.discard(end)
        self._lines.add(end)

    def gone(self, end: _CalledEnd) -> None:
        """It is closed."""
        self._strangers.discard(end)
        self._lines.discard(end)

    def proof(self, who: bytes, challenges: bytes) -> bytes:
        """What only somebody with the secret can say."""
        return _proof(self._secret, who, challenges)

    def begin(self, call: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run a call on the side; its line bounds how many."""
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, method: str, payload: bytes) -> bytes:
        """Run one of the methods."""
        return await self._calls[method](payload)

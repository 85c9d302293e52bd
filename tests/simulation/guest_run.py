"""One request as guest code sees it, at the host's end of a link: it does what the request's behaviour says.

As ``host_conversation.py`` has it: output is held back until the guest waits, the body comes in pulls, and a client
that leaves is noticed by whoever computes, waits or reads for it.
"""

import asyncio
from typing import TYPE_CHECKING

from actors.connection import Connection, Frame, LinkBroken, frame
from actors.exchange import WINDOW_BYTES_MAX, Request, Served, StartType
from actors.wire import SERVED
from isolates.outcome import Outcome
from tests.simulation.guest import Reading, download_of, first_line, upload_of
from tests.simulation.journal import Story

if TYPE_CHECKING:
    from tests.simulation.host import SimulatedHost


class ClientLeft(Exception):
    """Nobody wants the answer any more."""


class BodyBroke(Exception):
    """The rest of the request body will not come."""


class GuestRun:
    """One request as guest code sees it, and its end of the link."""

    def __init__(
        self,
        host: "SimulatedHost",
        connection: Connection,
        request: Request,
        story: Story,
        start_type: StartType,
        queue_ms: float,
    ) -> None:
        self._host = host
        self._loop = host._loop
        self._connection = connection
        self._request = request
        self._story = story
        self._start_type = start_type
        self._queue_ms = queue_ms
        self._held: list[bytes] = []
        self._upload = upload_of(request.worker, request.request_id, story.upload_bytes) if story.upload_bytes else b""
        self._unread = request.body_first
        self._complete = request.body_complete
        self.read_bytes = 0
        self._whole = False

    def take_held(self) -> bytes:
        held = b"".join(self._held)
        self._held.clear()
        return held

    async def run(self) -> Outcome:
        """Do what the request says. ``ClientLeft`` when nobody waits for it any more; ``BodyBroke``, which is the
        guest's exception, when the rest of its body does not come."""
        host, request, story = self._host, self._request, self._story
        behaviour = story.behaviour
        seconds = behaviour.runs_s
        if behaviour.cpu_bound:
            seconds = host.time_of(seconds)
            host._on_cpu += 1
        try:
            await self._pause(seconds)
        finally:
            host._on_cpu -= behaviour.cpu_bound
        if behaviour.reading is Reading.PART:
            await self._read()
        elif behaviour.reading is Reading.ALL:
            while await self._read() is not None:
                pass
        if behaviour.ends is not Outcome.OK and not behaviour.after_head:
            return behaviour.ends
        served = Served(200, (), host.machine, self._start_type.value, self._queue_ms, 1.0)
        self._held.append(frame(Frame.HEAD, SERVED.encode(served)))
        self._held.append(frame(Frame.DATA, first_line(request.worker, request.version, request.request_id)))
        if behaviour.reading is Reading.ECHO:
            while (data := await self._read()) is not None:
                self._held.append(frame(Frame.DATA, data))
                await self._flush()
        if behaviour.pieces:
            whole = download_of(request.worker, request.request_id, behaviour.pieces * behaviour.piece_bytes)
            for i in range(behaviour.pieces):
                if behaviour.pause_s:
                    await self._pause(behaviour.pause_s)
                piece = whole[i * behaviour.piece_bytes : (i + 1) * behaviour.piece_bytes]
                self._held.append(frame(Frame.DATA, piece))
        if behaviour.ends is not Outcome.OK:
            return behaviour.ends
        if behaviour.reading is Reading.LATE:
            await self._flush()
            while await self._read() is not None:
                pass
        self._whole = True
        self._held.append(frame(Frame.END))
        return Outcome.OK

    async def _flush(self) -> None:
        if self._held:
            if self._connection.closed or self._connection.transport is None:
                raise ClientLeft
            self._connection.transport.write(self.take_held())
            try:
                await self._connection.drain()
            except LinkBroken:
                raise ClientLeft from None

    async def _pause(self, seconds: float) -> None:
        """Compute or wait; whoever waits for the answer may leave meanwhile."""
        await self._flush()
        waiting: asyncio.Future[None] = self._loop.create_future()

        def gone() -> None:
            if not waiting.done():
                waiting.set_exception(ClientLeft())

        def over() -> None:
            if not waiting.done():
                waiting.set_result(None)

        if self._connection.closed:
            raise ClientLeft
        self._connection.on_closed = gone
        timer = self._loop.call_later(seconds, over)
        try:
            await waiting
        finally:
            timer.cancel()
            self._connection.on_closed = None

    async def _read(self) -> bytes | None:
        if not self._unread and not self._complete:
            await self._pull()
        data, self._unread = self._unread, b""
        if not data:
            if self.read_bytes != self._story.upload_bytes:
                self._host._journal.broken(
                    f"{self._request.request_id}: its guest sees the end of its body after {self.read_bytes} bytes of "
                    f"{self._story.upload_bytes}"
                )
            return None
        if data != self._upload[self.read_bytes : self.read_bytes + len(data)]:
            self._host._journal.broken(
                f"{self._request.request_id}: its guest reads {data[:40]!r} at {self.read_bytes}"
            )
        self.read_bytes += len(data)
        self._story.read_bytes = self.read_bytes
        return data

    async def _pull(self) -> None:
        await self._flush()
        connection = self._connection
        try:
            connection.send(Frame.PULL, WINDOW_BYTES_MAX.to_bytes(4))
            kind, payload = await connection.receive()
        except LinkBroken:
            raise ClientLeft from None
        if kind is Frame.BODY:
            self._unread = payload
        elif kind is Frame.BODY_END:
            self._complete = True
        else:
            raise BodyBroke

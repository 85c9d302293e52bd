"""Requests of driver programs: submitted in one call, answered in as many as the answer needs.

A driver calls ``submit`` with a request that is whole and gets the head and the first piece of the answer; the rest, if
there is one, it reads with ``read``. The Server is the edge for such a request, so the root of its trace is made here.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from actors.capability import Exports
from actors.exchange import Capability, Chunk, Ended, Outcome, Request, Served, status_of
from actors.link import Answer, BodySource
from actors.side_work import SideWork
from actors.stage import is_error, root_attributes
from actors.view import encode_plain
from actors.wire import CAPABILITY, CHUNK, REQUEST, SERVED
from tracing.recorder import NO_PARENT, Recorder
from tracing.trace import Attr, Role, Span, SpanName, parse_traceparent
from tracing.wire import Malformed, decode_spans

_log = logging.getLogger("everwarm.submission")

#: A driver that does not read its answer for this long has ended.
_UNREAD_S = 30.0

Answering = Callable[[Request, BodySource, Recorder], Awaitable[tuple[Answer, Request | None, str]]]


class NoBody:
    """The body of a request that came whole."""

    async def read(self, bytes_max: int) -> bytes | None:
        return None


class Submissions:
    """The drivers' requests of one Server."""

    def __init__(
        self,
        server: str,
        *,
        answer: Answering,
        report: Callable[[list[Span]], None],
        side: SideWork,
        entropy: Callable[[int], bytes],
        over: Callable[[Request, Ended], None],
    ) -> None:
        """``answer`` finds version and place and sends, as for any request; ``report`` takes a whole trace, and
        ``over`` hears how each ended."""
        self._server = server
        self._answer = answer
        self._report = report
        self._side = side
        self._entropy = entropy
        self._over = over
        self._out: Exports[Submitted] = Exports(f"{server}/server")
        self._beginning = 0  # submitted, and not answered yet
        self._leaves = False

    def __len__(self) -> int:
        return len(self._out)

    @property
    def owes(self) -> int:
        """Drivers' requests that are not over."""
        return len(self._out) + self._beginning

    def leave(self) -> None:
        """Take no more of them: whoever comes hears that this server leaves, and that nothing ran."""
        self._leaves = True

    async def submit(self, payload: bytes) -> bytes:
        """A driver's request, whole in one call. Answers plain data: served, chunk, rest, trace_id; or ``leaves``."""
        if self._leaves:
            return encode_plain({"leaves": True})
        self._beginning += 1
        try:
            return await self._submit(payload)
        finally:
            self._beginning -= 1

    async def _submit(self, payload: bytes) -> bytes:
        submitted, served, trace_id = await self._begin(REQUEST.decode(payload), NoBody())
        try:
            chunk = await submitted.next()
            rest = None if chunk.ended is not None else self._out.mint(submitted)
        except BaseException:
            submitted.answer.cancel()  # nobody will ever read the rest
            raise
        if rest is not None:
            self._side.begin(self._forget_unread(submitted, rest))
        return encode_plain(
            {
                "served": None if served is None else SERVED.encode(served),
                "chunk": CHUNK.encode(chunk),
                "rest": None if rest is None else CAPABILITY.encode(rest),
                "trace_id": trace_id,
            }
        )

    async def run(self, request: Request, body: BodySource) -> Ended:
        """A request of the Server's own, to its end. What it answers is nobody's."""
        submitted, _, _ = await self._begin(request, body)
        try:
            while (chunk := await submitted.next()).ended is None:
                pass
            return chunk.ended
        finally:
            submitted.answer.cancel()  # nothing, when it is over

    async def _begin(self, request: Request, body: BodySource) -> "tuple[Submitted, Served | None, str]":
        """Send a request that begins here, with the root of its trace; also the head, and the trace's id."""
        recorder = Recorder.under(request.traceparent, self._server, Role.SERVER, self._entropy)
        root_id = recorder.new_id()
        # Of a driver that is itself traced; otherwise the trace starts here.
        given = parse_traceparent(request.traceparent)
        parent = NO_PARENT if given is None else given.span_id
        recorder.context = replace(recorder.context.child(root_id), sampled=True)
        began_ns = time.time_ns()
        request = replace(request, traceparent=recorder.context.traceparent(), edge=self._server)
        answer, _, home = await self._answer(request, body, recorder)
        try:
            served = await answer.served()
        except BaseException:
            answer.cancel()
            raise
        if served is not None:
            served = replace(served, home=home)

        def root(ended: Ended) -> None:
            self._over(request, ended)
            ended = replace(ended, home=home, hop=ended.server not in ("", self._server))
            status = served.status if served is not None else status_of(ended.outcome).status
            attributes = root_attributes(request, served, ended, status)
            spans = [span for report in ended.spans for span in spans_of(report)]
            attributes[Attr.STAGES] = len(spans) + len(recorder.spans) + 1
            recorder.span(
                SpanName.REQUEST, began_ns, time.time_ns(), attributes, span_id=root_id, parent=parent,
                error=is_error(ended.outcome),
            )  # fmt: skip
            self._report([*spans, *recorder.spans])

        return Submitted(answer, root), served, recorder.context.trace_id

    async def read(self, payload: bytes) -> bytes:
        """The next chunk of a driver's answer."""
        rest = CAPABILITY.decode(payload)
        submitted = self._out.resolve(rest.key)
        if submitted is None:
            return CHUNK.encode(Chunk(lost=True, ended=Ended(Outcome.CANCELED)))
        chunk = await submitted.next()
        if chunk.ended is not None and self._out.resolve(rest.key) is not None:
            self._out.release(rest)
        return CHUNK.encode(chunk)

    async def cancel(self, payload: bytes) -> bytes:
        """The driver does not want the rest."""
        rest = CAPABILITY.decode(payload)
        submitted = self._out.resolve(rest.key)
        if submitted is not None:
            submitted.answer.cancel()
            self._out.release(rest)
        return b""

    async def _forget_unread(self, submitted: "Submitted", rest: Capability) -> None:
        """A driver that ended does not say so: end what it has not read for a while."""
        while self._out.resolve(rest.key) is submitted:
            await asyncio.sleep(_UNREAD_S / 4)
            if time.monotonic() - submitted.read_at_s > _UNREAD_S and self._out.resolve(rest.key) is submitted:
                submitted.answer.cancel()
                self._out.release(rest)


class Submitted:
    """A driver's answer between two of its calls."""

    def __init__(self, answer: Answer, on_ended: Callable[[Ended], None]) -> None:
        self.answer = answer
        self._on_ended = on_ended
        self.read_at_s = time.monotonic()
        self._body_over = False

    async def next(self) -> Chunk:
        """The next piece, or how it ended."""
        self.read_at_s = float("inf")
        try:
            if not self._body_over:
                data = await self.answer.read()
                if data is not None:
                    return Chunk(data)
                self._body_over = True
            ended = await self.answer.ended()
            self._on_ended(ended)
            return Chunk(end=self.answer.whole, ended=replace(ended, spans=()))
        finally:
            self.read_at_s = time.monotonic()


def spans_of(report: bytes) -> list[Span]:
    """The spans of a report; none, and a line in the log, when it is not one."""
    spans = decode_spans(report)
    if isinstance(spans, Malformed):
        _log.error("a report of spans was refused: %s", spans.reason)
        return []
    return spans

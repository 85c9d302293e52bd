"""Request trees on complete servers: workers that are bound to each other, drivers, and what traces and tails tell."""

import json
from typing import Any

from complete_servers import CompleteServers, request, wait_until

from actors.bindings import Bindings, ServiceBinding
from actors.view import decode_plain, encode_plain
from actors.wire import CHUNK, REQUEST, SERVED
from tracing.trace import Attr, Span, SpanName
from tracing.wire import decode_spans


def bound(**services: str) -> Bindings:
    """Service bindings by name."""
    return Bindings(services=tuple(ServiceBinding(name, worker) for name, worker in services.items()))


async def spans_at(cluster: CompleteServers, edge: int, stages: int) -> list[Span]:
    """The spans of the one trace that came in at a server, once as many stages have told."""
    found: list[Span] = []

    async def told() -> bool:
        (latest,) = decode_plain(await cluster[edge].server._traces.traces(encode_plain({"limit": 1}))) or [None]
        if latest is None:
            return False
        report = await cluster[edge].server._traces.trace(encode_plain({"trace_id": latest["trace_id"]}))
        spans = decode_spans(report)
        assert isinstance(spans, list)
        found[:] = spans
        return sum(span.name == SpanName.REQUEST for span in spans) == stages

    await wait_until(told, f"{stages} stages have told")
    return found


async def drive(cluster: CompleteServers, edge: int, worker: str, path: str) -> tuple[int, bytes]:
    """A driver's request, which makes the root of its trace; status and body."""
    server = cluster[edge].server
    answer = decode_plain(await server._submissions.submit(REQUEST.encode(request(worker, path))))
    chunk = CHUNK.decode(answer["chunk"])
    body = chunk.data
    while chunk.ended is None:
        chunk = CHUNK.decode(await server._submissions.read(answer["rest"]))
        body += chunk.data
    return SERVED.decode(answer["served"]).status, body


async def heard(cluster: CompleteServers, edge: int, tail: str, times: int = 1) -> list[list[dict[str, Any]]]:
    """What a tail worker (``zig/tail``) was told by a server so far, at least so many times: its own log."""
    desk = cluster[edge].server._traces
    found: list[list[dict[str, Any]]] = []

    async def told() -> bool:
        found.clear()
        for summary in decode_plain(await desk.traces(encode_plain({"limit": 100}))):
            spans = decode_spans(await desk.trace(encode_plain({"trace_id": summary["trace_id"]})))
            assert isinstance(spans, list)
            for span in spans:
                if span.name == SpanName.HANDLER and span.attributes[Attr.WORKER] == tail:
                    found.append(json.loads("".join(str(event.attributes[Attr.LOG_TEXT]) for event in span.events)))
        return len(found) >= times

    await wait_until(told, f"{tail} has heard {times} times")
    return found

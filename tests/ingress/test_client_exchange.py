"""What an edge tells of a request when it is over, and to whom."""

import secrets
from collections.abc import MutableMapping
from typing import Any

import pytest

from actors.exchange import Ended, Outcome, Request, RequestHead
from ingress.client_exchange import ClientExchange, ExchangeLimits
from tracing.sampling import RequestFacts
from tracing.trace import Attr, Span, TraceContext, parse_traceparent

REQUEST = Request("r1", "shop", RequestHead("GET", "https", "shop.localhost", "/"), "")


class Edge:
    """An ingress that keeps traces or not, as it is told, and remembers what it was given."""

    name = "server-1"
    server = "server.sock"
    entropy = staticmethod(secrets.token_bytes)

    def __init__(self, keeps: bool, traces: bool = True) -> None:
        self._keeps = keeps
        self.traces = traces
        self.kept: list[Span] = []
        self.endings: list[Outcome] = []

    def wants_trace(self, facts: RequestFacts) -> bool:
        return self._keeps

    def keep_trace(self, spans: list[Span]) -> None:
        self.kept += spans

    def ended(self, request: Request, ended: Ended, began_ns: int) -> None:
        self.endings.append(ended.outcome)


async def receive() -> MutableMapping[str, Any]:
    raise AssertionError("nothing is read")


async def send(message: MutableMapping[str, Any]) -> None:
    raise AssertionError("nothing is sent")


@pytest.mark.parametrize(
    ("keeps", "called", "sampled"),
    [(True, False, [None]), (True, True, [None]), (False, True, [False]), (False, False, [])],
)
def test_a_root_is_told_if_it_is_kept_or_if_it_has_stages_below(
    keeps: bool, called: bool, sampled: list[bool | None]
) -> None:
    edge = Edge(keeps)
    exchange = ClientExchange(edge, REQUEST, None, 1, receive, send, ExchangeLimits())  # type: ignore[arg-type]
    exchange._tell(None, Ended(Outcome.OK, server="server-1", called=called), 200)
    assert [span.attributes.get(Attr.SAMPLED) for span in edge.kept] == sampled
    assert edge.endings == [Outcome.OK]


@pytest.mark.parametrize("traces", [True, False])
@pytest.mark.parametrize("clients", [True, False])
def test_whether_there_is_a_trace_is_not_its_clients_to_say(traces: bool, clients: bool) -> None:
    edge = Edge(True, traces)
    given = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", clients)
    exchange = ClientExchange(edge, REQUEST, given, 1, receive, send, ExchangeLimits())  # type: ignore[arg-type]
    sent = parse_traceparent(exchange._request.traceparent)
    assert sent is not None
    assert (sent.trace_id, sent.sampled) == (given.trace_id, traces)
    exchange._tell(None, Ended(Outcome.OK, server="server-1", called=True), 200)
    assert [span.parent_span_id for span in edge.kept] == ([given.span_id] if traces else [])
    assert edge.endings == [Outcome.OK]

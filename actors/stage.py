"""What the root of a trace says of a request. Pure.

The root is made by whoever got the request from outside: the ingress, or a Server for a driver's request. Both say
the same things.
"""

from actors.exchange import Ended, Request, Served
from isolates.outcome import Outcome
from tracing.redaction import redact_query
from tracing.trace import Attr, AttributeValue


def root_attributes(request: Request, served: Served | None, ended: Ended, status: int) -> dict[str, AttributeValue]:
    """The attributes of a request's root span; secrets in the query are redacted."""
    path, _, query = request.head.path.partition("?")
    attributes: dict[str, AttributeValue] = {
        Attr.WORKER: request.worker,
        Attr.REQUEST_ID: request.request_id,
        Attr.OUTCOME: ended.outcome.value,
        Attr.CPU_MS: round(ended.cpu_ms, 3),
        Attr.HTTP_METHOD: request.head.method,
        Attr.HTTP_STATUS: status,
        Attr.URL_SCHEME: request.head.scheme,
        Attr.URL_PATH: path[:2048],
        Attr.SERVER_ADDRESS: request.head.authority[:255],
    }
    if query:
        attributes[Attr.URL_QUERY] = redact_query(query)[:2048]
    if served is not None:
        attributes[Attr.SERVER] = served.server
        attributes[Attr.START_TYPE] = served.start_type
        attributes[Attr.QUEUE_MS] = round(served.queue_ms, 3)
        attributes[Attr.HOP] = served.hop
        if served.home:
            attributes[Attr.HOME] = served.home
        if served.refused:
            attributes[Attr.REFUSED] = served.refused
    elif ended.server:
        attributes[Attr.SERVER] = ended.server
        attributes[Attr.HOP] = ended.hop
        if ended.home:
            attributes[Attr.HOME] = ended.home
        if ended.start_type:
            attributes[Attr.START_TYPE] = ended.start_type
            attributes[Attr.QUEUE_MS] = round(ended.queue_ms, 3)
    return attributes


def is_error(outcome: Outcome) -> bool:
    """Whether an ending makes its span an error: what the client or the worker's owner would call a failure."""
    return outcome not in (Outcome.OK, Outcome.CANCELED)


def server_timing(served: Served | None, ended: Ended | None = None) -> bytes:
    """The ``server-timing`` header: start type, queue and CPU time, where it ran, and how it got there.

    For an answer without a head, what its ending tells; a start type of ``none`` says that no guest was reached.
    """
    if served is None:
        ended = ended or Ended(Outcome.INTERNAL_ERROR)
        served = Served(
            0, (), ended.server, ended.start_type or "none", ended.queue_ms, ended.cpu_ms, ended.home, ended.hop
        )
    parts = [
        f'start;desc="{served.start_type}"',
        f"queue;dur={served.queue_ms:.2f}",
        f"cpu;dur={served.cpu_ms:.2f}",
    ]
    if served.server:
        parts.append(f'server;desc="{served.server}"')
    if served.home:
        parts.append(f'home;desc="{served.home}"')
    if served.hop:
        parts.append("hop")
    if served.refused:
        parts.append(f'refused;desc="{served.refused}"')
    return ", ".join(parts).encode()

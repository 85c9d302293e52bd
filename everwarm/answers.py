"""What a cluster answers to programs: values, and the errors that they can act on."""

from dataclasses import dataclass, field

from actors.exchange import Chunk, Ended, Outcome, Request, Served, status_of


class EverwarmError(Exception):
    """Something a caller can act on; the message says what."""


class NotRunning(EverwarmError):
    """There is no cluster to connect to."""


class DeployFailed(EverwarmError):
    """A deploy was refused. ``code`` for programs; the message says why and what to do."""

    def __init__(self, code: str, message: str, advice: str) -> None:
        super().__init__(f"{message} {advice}".strip())
        self.code, self.advice = code, advice
        self.message = message


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. ``outcome`` is how the request ended; unless it is ``ok``, status and body are the platform's."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    outcome: str
    server: str = ""
    home: str = ""
    start_type: str = ""
    hop: bool = False
    refused: str = ""
    queue_ms: float = 0.0
    cpu_ms: float = 0.0
    request_id: str = ""
    trace_id: str = ""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Deployment:
    """A worker that was deployed."""

    worker: str
    version: str
    component_digest: str
    component_bytes: int
    artifact_bytes: int
    own_bytes: int  # of it, what no other worker of the same engine has
    startup_cpu_ms: float
    servers: list[str]
    late: list[str]  # servers that did not have the code when it was switched to; they get it
    plan: str
    missing: list[str] = field(default_factory=list)  # workers that it is bound to, and that are not deployed
    unset_secrets: list[str] = field(default_factory=list)  # that it names, and that have no value
    phases: list[tuple[str, float]] = field(default_factory=list)
    why_late: dict[str, str] = field(default_factory=dict)
    cordon: str = "default"  # who shares a host process with it


def response_of(request: Request, served: Served | None, chunk: Chunk, body: bytes, trace_id: str) -> Response:
    ended = chunk.ended or Ended(Outcome.INTERNAL_ERROR)
    if served is None:
        failure = status_of(ended.outcome)
        text = f"{failure.status} {failure.code}: {failure.text}\n"
        return Response(
            failure.status, (("content-type", "text/plain; charset=utf-8"),), text.encode(), ended.outcome.value,
            server=ended.server, home=ended.home, start_type=ended.start_type, hop=ended.hop, queue_ms=ended.queue_ms,
            cpu_ms=ended.cpu_ms, request_id=request.request_id, trace_id=trace_id,
        )  # fmt: skip
    return Response(
        served.status,
        tuple((name, value.decode("latin-1")) for name, value in served.headers),
        body,
        ended.outcome.value,
        server=served.server,
        home=served.home,
        start_type=served.start_type,
        hop=served.hop,
        refused=served.refused,
        queue_ms=served.queue_ms,
        cpu_ms=ended.cpu_ms,
        request_id=request.request_id,
        trace_id=trace_id,
    )

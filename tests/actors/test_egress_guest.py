"""All of the way: a real guest in a real host, its machine's way out, and an origin on loopback."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from complete_servers import Compiled, Got, Pieces, collect, request, upload, wait_until
from http_origin import Origin
from msgspec import structs

from actors.egress import EgressServer
from actors.egress_policy import LOOP_HEADER, EgressPolicy, parse_rule
from actors.exchange import Request
from actors.isolate_host import IsolateHost
from actors.link import LinkAnswer, Links
from isolates.artifact import ArtifactStore
from isolates.outcome import Outcome
from tracing.trace import SpanName, parse_traceparent
from tracing.wire import decode_spans

TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@dataclass
class Machine:
    """A host with its way out, and a client of the host."""

    host: IsolateHost
    egress: EgressServer
    origin: Origin
    path: str
    digest: str
    links: Links = field(default_factory=Links)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.origin.port}{path}"

    def request(
        self, *urls: str, method: str = "GET", headers: tuple[tuple[str, bytes], ...] = (), **fields: Any
    ) -> Request:
        limits = {"cpu_ms": 10_000, "wall_ms": 10_000}
        made = request("fetch", "/", method, version="v", component_digest=self.digest, limits=limits, **fields)
        asked = (("fetch-url", " ".join(urls).encode()), *headers)
        return structs.replace(made, head=replace(made.head, headers=asked), traceparent=TRACE)

    async def begin(self, asked: Request, body: Pieces | None = None) -> LinkAnswer:
        return await self.links.exchange(self.path, asked, body or Pieces())

    async def ask(self, *urls: str, **fields: Any) -> Got:
        return await collect(await self.begin(self.request(*urls, **fields)))


@asynccontextmanager
async def machine(zig: Compiled, directory: Path) -> AsyncIterator[Machine]:
    sockets = Path(tempfile.mkdtemp(prefix="ew-"))
    zig.install(ArtifactStore(directory / "code"))
    egress = EgressServer(EgressPolicy(added=(parse_rule("127.0.0.1"),)))
    host = IsolateHost(
        "host", sockets / "h.sock", directory / "code", server="server-1",
        tell_server=lambda kind, payload: None, egress_socket=sockets / "e.sock",
    )  # fmt: skip
    try:
        async with asyncio.timeout(30), Origin() as origin:
            await egress.start(sockets / "e.sock")
            digest = zig.workers["fetch"].component_digest
            made = Machine(host, egress, origin, host.start(), digest)
            yield made
            made.links.close()
    finally:
        host.stop()
        await egress.stop()
        shutil.rmtree(sockets)


def test_a_guest_asks_and_its_trace_goes_on(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with machine(zig, tmp_path) as there:
            got = await there.ask(there.url("/headers"))
            assert got.served is not None
            assert (got.served.status, got.ended.outcome) == (200, Outcome.OK)
            seen = dict(map(tuple, json.loads(got.body)))
            context = parse_traceparent(seen["traceparent"])
            assert context is not None
            (spans,) = [decode_spans(data) for data in got.ended.spans]
            assert isinstance(spans, list)
            handler = next(span for span in spans if span.name is SpanName.HANDLER)
            assert (context.trace_id, context.span_id) == (handler.trace_id, handler.span_id)
            assert handler.trace_id in TRACE
            assert seen[LOOP_HEADER] == "15"

    asyncio.run(scenario())


def test_a_circle_of_workers_ends(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with machine(zig, tmp_path) as there:
            got = await there.ask(there.url("/hello"), headers=((LOOP_HEADER, b"0"),))
            assert got.body == b"loop-detected\n"
            assert there.origin.requests == []

    asyncio.run(scenario())


def test_a_body_goes_through_guest_and_origin_and_back(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with machine(zig, tmp_path) as there:
            data = bytes(range(256)) * 8_192
            fields, rest = upload(data)
            asked = there.request(there.url("/echo"), method="POST", **fields)
            got = await collect(await there.begin(asked, rest))
            assert (got.whole, got.ended.outcome) == (True, Outcome.OK)
            assert got.body == data

    asyncio.run(scenario())


def test_many_at_once_and_what_is_denied(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with machine(zig, tmp_path) as there:
            got = await there.ask(*[there.url("/hello")] * 8)
            assert (len(got.body.splitlines()), len(there.origin.requests)) == (8, 8)
            assert (await there.ask("http://10.0.0.1/")).body == b"destination-IP-prohibited\n"
            assert (await there.ask("http://10.0.0.1:22/")).body == b"destination-IP-prohibited\n"
            assert (await there.ask(there.url("/cut"))).body == b"connection-terminated\n"
            assert there.egress.statistics()["open"] == 0

    asyncio.run(scenario())


def test_a_client_that_leaves_is_noticed_by_the_origin(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with machine(zig, tmp_path) as there:
            answer = await there.begin(there.request(there.url("/silent")))

            async def asked() -> bool:
                return there.origin.requests == ["GET /silent"]

            async def gone() -> bool:
                return there.origin.gone["/silent"] == 1

            await wait_until(asked, "the origin has it")
            answer.cancel()
            await wait_until(gone, "the origin has noticed")

    asyncio.run(scenario())

"""Metrics as a scraper reads them: over HTTP, of a complete server, after real requests."""

import asyncio
import http.client
import os
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from complete_servers import Compiled, CompleteServers, Machine, request
from prometheus_text import read
from tracing_receiver import OtlpReceiver

from actors.metrics_desk import MetricsDesk
from actors.metrics_endpoint import MetricsEndpoint
from actors.peer import LocalPeer
from actors.view import decode_plain, encode_plain
from tracing.export_metrics import OtlpMetrics


def get(address: str, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers.get("content-type", ""), body


def desk_of(cluster: CompleteServers, machine: Machine, exporter: OtlpMetrics | None = None) -> MetricsDesk:
    """The desk of a machine, as its composition root makes it: here all roles are of one process."""

    async def host_statistics(payload: bytes) -> bytes:
        return encode_plain(machine.host.statistics())

    async def own() -> bytes:
        plain = decode_plain(await machine.server.statistics())
        return encode_plain({**plain, "egress": machine.egress.statistics(), "pid": os.getpid()})

    cluster.peers.known[f"{machine.name}/host"] = LocalPeer({"statistics": host_statistics})
    return MetricsDesk(
        machine.name, own=own, peers=cluster.peers, others=lambda: ("host", "shard", "ingress"), exporter=exporter
    )


@asynccontextmanager
async def listening(text: Callable[[], Awaitable[str]]):
    endpoint = MetricsEndpoint(text)
    try:
        yield await endpoint.start("127.0.0.1", 0)
    finally:
        await endpoint.stop()


def test_a_scrape_tells_what_happened(zig: Compiled, tmp_path: Path) -> None:
    async def scenario() -> None:
        with OtlpReceiver() as receiver:
            async with asyncio.timeout(30), CompleteServers(tmp_path, 2, zig.directory) as cluster:
                hello = await cluster.deploy_at(1, "hello")
                spin = await cluster.deploy_at(1, "spin", cpu_ms=20)
                for _ in range(3):
                    await cluster[2].ask(request(hello))
                await cluster[1].ask(request(spin))
                await cluster[1].configure(in_flight_max=0)
                await cluster[2].ask(request(hello))
                desk = desk_of(cluster, cluster[1], OtlpMetrics(receiver.url, "server-1"))
                async with listening(desk.text) as address:
                    status, kind, text = await asyncio.to_thread(get, address)
                assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
                found = read(text)
                ended = found["everwarm_invocations_total"]
                assert ended.value(host="host", outcome="ok") == 3
                assert ended.value(host="host", outcome="exceededCpu") == 1
                assert found["everwarm_admissions_total"].value() == 3
                assert found["everwarm_refusals_total"].value(reason="busy") == 1
                assert found["everwarm_cold_starts_total"].value(host="host", cause="first-ever") == 2
                assert found["everwarm_queue_time_seconds"].value("_count", host="host") == 4
                assert found["everwarm_guest_cpu_time_seconds_total"].value(host="host") > 0.019
                assert found["everwarm_isolates"].value(host="host", state="idle") == 1
                assert found["everwarm_workers"].value() == 2
                assert found["everwarm_process_memory_bytes"].value(role="server") > 1 << 20
                up = found["everwarm_role_up"]
                assert [up.value(role=role) for role in ("server", "host", "shard", "ingress")] == [1, 1, 1, 0]
                assert hello not in text
                away = await desk_of(cluster, cluster[2]).text()
                assert read(away)["everwarm_offers_refused_total"].value() == 1
                await desk.close()
            # The same numbers by OTLP, under OpenTelemetry's names.
            points = {(p.name, p.attributes.get("outcome")): p for p in receiver.requests[0].points}
            assert points["everwarm.invocations", "ok"].value == 3
            assert points["everwarm.invocations", "ok"].resource["service.instance.id"] == "server-1"
            assert sum(points["everwarm.queue.time", None].value[1]) == 4

    asyncio.run(scenario())


def test_a_crowd_of_scrapers_asks_the_roles_once(tmp_path: Path) -> None:
    asked = 0

    async def scenario() -> None:
        async def own() -> bytes:
            nonlocal asked
            asked += 1
            return encode_plain({"requests": asked})

        cluster = CompleteServers(tmp_path, 1)
        desk = MetricsDesk("server-1", own=own, peers=cluster.peers, others=lambda: ("ingress",))
        texts = await asyncio.gather(*(desk.text() for _ in range(50)))
        assert len(set(texts)) == asked == 1
        cluster.control.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/", "GET", 404), ("/metrics/x", "GET", 404), ("/metrics", "POST", 405)]
)
def test_there_is_one_path_and_it_is_read_only(path: str, method: str, status: int) -> None:
    async def scenario() -> None:
        async def text() -> str:
            raise AssertionError("nobody asked for it")

        async with listening(text) as address:
            assert (await asyncio.to_thread(get, address, path, method))[0] == status

    asyncio.run(scenario())


def test_a_fault_is_told_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async def text() -> str:
            raise RuntimeError("/a/path of ours")

        async with listening(text) as address:
            status, _, body = await asyncio.to_thread(get, address)
        assert status == 500
        assert "path" not in body

    asyncio.run(scenario())
    assert "metrics were not gathered" in caplog.text


def test_a_port_that_is_taken_is_an_error() -> None:
    async def scenario() -> None:
        async def text() -> str:
            return ""

        async with listening(text) as address:
            with pytest.raises(OSError, match="in use"):
                await MetricsEndpoint(text).start("127.0.0.1", int(address.rpartition(":")[2]))

    asyncio.run(scenario())

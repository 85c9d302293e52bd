"""Routes over a real TLS edge, with real servers and guests behind it, and without Ray."""

import asyncio
import secrets
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
from complete_servers import Compiled, CompleteServers, component, wait_until
from https_client import Answer, Connection, fetch

from actors.link import Links
from ingress.authority import LocalAuthority
from ingress.ingress import Ingress, IngressLimits


def an_edge(cluster: CompleteServers, directory: Path, limits: IngressLimits | None = None) -> Ingress:
    """An edge before the first server, with an authority of its own in ``directory``."""
    return Ingress(
        "server-1",
        address="127.0.0.1",
        port=0,
        server_socket=cluster[1].server_socket,
        links=Links(),
        authority=LocalAuthority.open(directory / "authority"),
        certificates=None,
        entropy=secrets.token_bytes,
        limits=limits,
    )


def test_a_deploys_routes_are_served_with_their_certificates(zig: Compiled, tmp_path: Path) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        edge = an_edge(cluster, tmp_path)
        port = await edge.start()
        trusted = ssl.create_default_context(cafile=str(tmp_path / "authority" / "ca.pem"))

        async def asked(host: str, path: str = "/", *, server_name: str | None = None) -> Answer:
            return await asyncio.to_thread(fetch, trusted, port, host, path, server_name=server_name)

        async def routed(*hosts: str) -> None:
            async def there() -> bool:
                return all(edge._routes.pattern_of(host) for host in hosts)

            await wait_until(there, f"{hosts} are routed")

        try:
            routes = ("shop.example.com/*", "*.shop.example.com")
            job = await cluster.deploy("hello", component("hello"), routes=routes, cpu_ms=10_000)
            assert job["error"] is None, job
            job = await cluster.deploy("echo", component("echo"), routes=("shop.example.com/api/*",), cpu_ms=10_000)
            assert job["error"] is None, job
            await routed("shop.example.com", "a.shop.example.com", "echo.localhost")

            # Each handshake checks the certificate against the name that was asked for.
            for host in ("shop.example.com", "SHOP.example.com", "a.shop.example.com", "hello.localhost"):
                answer = await asked(f"{host}:{port}", "/cart?x=1", server_name=host.lower())
                assert (answer.status, answer.body) == (200, b"hello from Zig\nyou asked for /cart\n")
            assert b"hello from Zig" not in (await asked("shop.example.com", "/api/v1")).body
            assert (await asked("shop.example.com", "/apis")).body.startswith(b"hello from Zig")
            # A connection is for a name, and a request on it may be for another: it is the request's that counts.
            assert (await asked("nobody.example.com", server_name="shop.example.com")).status == 404
            with pytest.raises(ssl.SSLCertVerificationError):
                await asked("nobody.example.com")

            refused = await cluster.deploy("thief", component("hello"), routes=("a.example", "shop.example.com"))
            assert refused["error"]["message"] == "routes: shop.example.com leads to another worker"
            job = await cluster.deploy("hello", component("hello"), routes=("new.example.com",), cpu_ms=10_000)
            assert job["error"] is None, job
            await routed("new.example.com")
            assert (await asked("new.example.com")).status == 200
            assert (await asked("shop.example.com", "/cart", server_name="new.example.com")).status == 404
            assert (await asked("shop.example.com", "/api/v1")).status == 200
        finally:
            await edge.stop()

    on_one_server(scenario, zig, tmp_path)


@pytest.mark.parametrize("asks", [True, False], ids=["asks once more", "is silent"])
def test_an_edge_that_drains_loses_no_request_of_a_kept_connection(zig: Compiled, tmp_path: Path, asks: bool) -> None:
    """Who asks once more hears that it was the last time; who does not is closed upon; who comes is refused."""

    async def scenario(cluster: CompleteServers) -> None:
        edge = an_edge(cluster, tmp_path, IngressLimits(last_requests_s=50.0 if asks else 0.1))
        port = await edge.start()
        trusted = ssl.create_default_context(cafile=str(tmp_path / "authority" / "ca.pem"))
        job = await cluster.deploy("hello", component("hello"), cpu_ms=10_000)
        assert job["error"] is None, job
        kept = await asyncio.to_thread(Connection, trusted, port, "localhost")

        async def post() -> Answer:
            return await asyncio.to_thread(kept.fetch, "hello.localhost", method="POST", body=b"1")

        async def served() -> bool:
            return (await post()).status == 200

        async def refused() -> bool:
            try:
                (await asyncio.to_thread(Connection, trusted, port, "localhost")).close()
            except OSError:
                return True
            return False

        await wait_until(served, "hello is routed")
        draining = asyncio.create_task(edge.drain(50.0))
        await wait_until(refused, "the edge takes no new client")
        if asks:
            last = await post()
            assert (last.status, last.headers["connection"]) == (200, "close")
        async with asyncio.timeout(15.0):  # TLS would wait 30 s for the goodbye of a client that is silent
            await draining
        kept.close()

    on_one_server(scenario, zig, tmp_path)


def on_one_server(
    scenario: Callable[[CompleteServers], Coroutine[None, None, None]], zig: Compiled, directory: Path
) -> None:
    async def whole() -> None:
        async with asyncio.timeout(60), CompleteServers(directory / "cluster", 1, zig.directory) as cluster:
            await scenario(cluster)

    (directory / "cluster").mkdir()
    asyncio.run(whole())

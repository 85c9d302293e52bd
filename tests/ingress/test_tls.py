"""Real handshakes on loopback, on asyncio's own loop and on uvloop, with the authority as the only trust anchor."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from ingress.authority import LocalAuthority
from ingress.routes import Routes
from ingress.tls import CertificateStore, TlsLimits, server_context

ROUTES = Routes({"hello.example.com": "hello", "*.wild.example.com": "wild", "hello.localhost": "hello"})
DAY_S = 86_400


@pytest.fixture
def authority(tmp_path: Path) -> LocalAuthority:
    return LocalAuthority.open(tmp_path / "ca")


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    def run(scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await asyncio.wait_for(scenario(), 10)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())

    return run


class Listener:
    """An echo server behind `server_context`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def __aenter__(self) -> Listener:
        self._server = await asyncio.start_server(self._echo, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async def greet(self, context: ssl.SSLContext, host: str | None) -> ssl.SSLObject:
        """A handshake for `host` and a line there and back; the client's end of it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context, server_hostname=host or "")
        try:
            writer.write(b"hello\n")
            assert await reader.readline() == b"hello\n"
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return connection
        finally:
            writer.transport.abort()


def client(authority: LocalAuthority) -> ssl.SSLContext:
    """A strict client that trusts the authority and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.certificate_pem.decode())
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def unchecked(authority: LocalAuthority) -> ssl.SSLContext:
    context = client(authority)
    context.check_hostname = False
    return context


def names(connection: ssl.SSLObject) -> set[str]:
    certificate = connection.getpeercert()
    assert certificate is not None
    return {str(entry[1]) for entry in certificate["subjectAltName"]}


def serial(connection: ssl.SSLObject) -> str:
    certificate = connection.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def put(path: Path, authority: LocalAuthority, name: str) -> None:
    """An operator's file, renamed into place as certificate tools do."""
    issued = authority.issue(name)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(issued.chain_pem + issued.key_pem)
    temporary.replace(path)


def test_each_name_gets_its_certificate_and_the_hook_hears_it(
    authority: LocalAuthority, run: Callable[..., None]
) -> None:
    heard: list[str] = []
    store = CertificateStore(authority, ROUTES.pattern_of)

    async def scenario() -> None:
        async with Listener(server_context(store, heard.append)) as listener:
            for host in ("hello.example.com", "hello.localhost", "a.wild.example.com", "b.wild.example.com"):
                connection = await listener.greet(client(authority), host)
                assert connection.version() == "TLSv1.3"
                assert connection.selected_alpn_protocol() == "http/1.1"
                assert connection.compression() is None
                assert names(connection) == {ROUTES.pattern_of(host)}
            stranger = await listener.greet(unchecked(authority), "stranger.example.org")
            assert names(stranger) >= {"localhost", "127.0.0.1"}
            with pytest.raises(ssl.SSLCertVerificationError):
                await listener.greet(client(authority), "stranger.example.org")
            assert "localhost" in names(await listener.greet(client(authority), "127.0.0.1"))
            assert "localhost" in names(await listener.greet(unchecked(authority), None))

    run(scenario)
    assert heard[:4] == ["hello.example.com", "hello.localhost", "a.wild.example.com", "b.wild.example.com"]
    assert heard[4:] == ["stranger.example.org"] * 2
    # Two hosts below one wildcard cost one certificate; strangers none. Two more are default ones.
    assert store.statistics().issued == 3 + 2
    assert store.statistics().contexts == 3


def test_tls_1_2_is_served_and_older_ones_are_not(authority: LocalAuthority, run: Callable[..., None]) -> None:
    store = CertificateStore(authority, ROUTES.pattern_of)

    async def scenario() -> None:
        async with Listener(server_context(store, lambda _: None)) as listener:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                last, old = client(authority), client(authority)
                last.maximum_version = ssl.TLSVersion.TLSv1_2
                old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
                old.set_ciphers("ALL:@SECLEVEL=0")
                weak = client(authority)
                weak.maximum_version = ssl.TLSVersion.TLSv1_2
                weak.set_ciphers("AES128-SHA:ECDHE-ECDSA-AES128-SHA")
            connection = await listener.greet(last, "hello.example.com")
            assert connection.version() == "TLSv1.2"
            assert names(connection) == {"hello.example.com"}
            cipher = connection.cipher()
            assert cipher is not None
            assert cipher[0].startswith("ECDHE-")
            for refused in (old, weak):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await listener.greet(refused, "hello.example.com")

    run(scenario)


def test_a_hook_or_a_choice_that_raises_breaks_no_handshake(
    authority: LocalAuthority, run: Callable[..., None]
) -> None:
    def failing_hook(host: str) -> None:
        raise RuntimeError(host)

    def failing_routes(host: str) -> str | None:
        if host == "broken.example.com":
            raise KeyError(host)
        return ROUTES.pattern_of(host)

    store = CertificateStore(authority, failing_routes)

    async def scenario() -> None:
        async with Listener(server_context(store, failing_hook)) as listener:
            assert names(await listener.greet(client(authority), "hello.example.com")) == {"hello.example.com"}
            assert "localhost" in names(await listener.greet(unchecked(authority), "broken.example.com"))

    run(scenario)
    assert (store.statistics().hook_failures, store.statistics().selection_failures) == (2, 1)


def test_the_operators_files_come_first_and_a_changed_one_is_picked_up(
    authority: LocalAuthority, tmp_path: Path, run: Callable[..., None]
) -> None:
    directory = tmp_path / "certificates"
    directory.mkdir()
    put(directory / "hello.example.com.pem", authority, "hello.example.com")
    put(directory / "_.wild.example.com.pem", authority, "*.wild.example.com")
    put(directory / "unrouted.example.com.pem", authority, "unrouted.example.com")
    clock = [1_000.0]
    store = CertificateStore(authority, ROUTES.pattern_of, directory, lambda: clock[0])

    async def scenario() -> None:
        async with Listener(server_context(store, lambda _: None)) as listener:

            async def seen(host: str) -> str:
                return serial(await listener.greet(client(authority), host))

            first = await seen("hello.example.com")
            assert await seen("a.wild.example.com") == await seen("b.wild.example.com") != first
            await seen("unrouted.example.com")
            assert store.statistics().file_loads == 3

            put(directory / "hello.example.com.pem", authority, "hello.example.com")
            assert await seen("hello.example.com") == first  # within the interval
            clock[0] += 11
            second = await seen("hello.example.com")
            assert second != first

            (directory / "hello.example.com.pem").write_text("-----BEGIN CERTIFICATE-----\nhalf")
            clock[0] += 11
            assert await seen("hello.example.com") == second  # the last good one
            assert store.statistics().file_failures == 1

            (directory / "hello.example.com.pem").unlink()
            clock[0] += 11
            assert await seen("hello.example.com") != second  # the authority's own

    run(scenario)
    assert store.statistics().selection_failures == 0


def test_a_broken_file_of_a_routed_name_is_covered_by_the_authority(authority: LocalAuthority, tmp_path: Path) -> None:
    (tmp_path / "hello.example.com.pem").write_text("junk")
    (tmp_path / "long.example.com.pem").write_bytes(bytes(300_000))
    store = CertificateStore(authority, ROUTES.pattern_of, tmp_path)
    assert store.context_for("hello.example.com") is not store.context_for(None)
    assert store.context_for("long.example.com") is store.context_for(None)
    assert store.statistics().file_failures == 2


@pytest.mark.parametrize("host", ["../ca/ca", "..", "/etc/passwd", "a/b", "*.example.com", "é", "\0", "a" * 5_000])
def test_junk_names_no_file(authority: LocalAuthority, tmp_path: Path, host: str) -> None:
    store = CertificateStore(authority, lambda _: pytest.fail("asked"), tmp_path)
    assert store.context_for(host) is store.context_for(None)


def test_certificates_are_renewed_in_time(authority: LocalAuthority, tmp_path: Path) -> None:
    clock = [1_800_000_000.0]
    ageing = LocalAuthority.open(tmp_path / "other", lambda: clock[0])
    store = CertificateStore(ageing, ROUTES.pattern_of, None, lambda: clock[0])
    first, default = store.context_for("hello.example.com"), store.context_for(None)
    clock[0] += 59 * DAY_S
    assert (store.context_for("hello.example.com"), store.context_for(None)) == (first, default)
    clock[0] += 2 * DAY_S
    assert store.context_for("hello.example.com") is not first
    assert store.context_for(None) is not default


def test_the_cache_is_bounded_and_keeps_what_is_used(authority: LocalAuthority) -> None:
    store = CertificateStore(authority, lambda host: host, limits=TlsLimits(contexts_max=3))
    default = store.context_for(None)
    used = store.context_for("used.example")
    for number in range(5):
        store.context_for(f"{number}.example")
        assert store.context_for("used.example") is used
    assert store.statistics().contexts == 3
    assert store.context_for(None) is default


def hello_for(name: bytes) -> bytes:
    """A real ClientHello in which the server name is `name`, whatever its bytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    placeholder = "x" * (len(name) - len(".example")) + ".example"
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=placeholder)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read().replace(placeholder.encode(), name)


@pytest.mark.parametrize("name", [b"../../../etc/passwd", b"a b c d e f g h i", b"*.wild.example.com"])
def test_junk_in_a_client_hello_gets_the_default_and_no_hook(authority: LocalAuthority, name: bytes) -> None:
    heard: list[str] = []
    store = CertificateStore(authority, ROUTES.pattern_of)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = server_context(store, heard.append).wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(hello_for(name))
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    assert connection.context is store.context_for(None)
    assert heard == []
    assert store.statistics().selection_failures == 0

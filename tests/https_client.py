"""A plain HTTPS client for tests: the standard library's, over a real socket, trusting one authority."""

import http.client
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def timing(self) -> dict[str, str]:
        """``server-timing`` as names and values: ``{"start": "warm", "server": "server-2", "hop": ""}``."""
        parts = [part.strip().partition(";") for part in self.headers["server-timing"].split(",")]
        return {name: value.partition("=")[2].strip('"') for name, _, value in parts}


def fetch(
    tls: ssl.SSLContext,
    port: int,
    host: str,
    path: str = "/",
    *,
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
    server_name: str | None = None,
) -> Answer:
    """One request over a new connection. ``server_name``: for the TLS handshake, if it is not ``host``."""
    connection = Connection(tls, port, server_name or host)
    try:
        return connection.fetch(host, path, method=method, body=body, headers=headers)
    finally:
        connection.close()


class Connection:
    """A connection that is kept between requests."""

    def __init__(self, tls: ssl.SSLContext, port: int, server_name: str) -> None:
        self._inner = http.client.HTTPSConnection("127.0.0.1", port, timeout=30)
        plain = socket.create_connection(("127.0.0.1", port), 30)
        self._inner.sock = tls.wrap_socket(plain, server_hostname=server_name)

    def fetch(
        self,
        host: str,
        path: str = "/",
        *,
        method: str = "GET",
        body: bytes | Iterable[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        chunked = body is not None and not isinstance(body, bytes)
        sent = {"host": host, **(headers or {})}
        if chunked:
            sent["transfer-encoding"] = "chunked"
        self._inner.request(method, path, body=body, headers=sent, encode_chunked=chunked)
        answer = self._inner.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def close(self) -> None:
        self._inner.close()

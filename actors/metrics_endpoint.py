"""Where Prometheus reads a machine's metrics: plain HTTP, one path, on loopback unless configured.

There is no login. What it tells has no worker's name and no client's address in it, but how much runs here is nobody's
business beyond the operator's; guests do not get here, whatever the operator lets them reach (``egress_policy``).
"""

import logging
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import uvicorn

from actors.side_work import SideWork
from tracing.metrics import CONTENT_TYPE

_log = logging.getLogger("everwarm.metrics")

PATH: Final = "/metrics"
#: Connections at a time; a scraper has one, and keeps it. Beyond it the answer is 503.
_CONNECTIONS_MAX: Final = 32
#: A scraper's request has some 300 bytes.
_HEAD_BYTES_MAX: Final = 8 * 1024

_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class MetricsEndpoint:
    """One listening socket. ``text`` makes what is answered."""

    def __init__(self, text: Callable[[], Awaitable[str]]) -> None:
        self._text = text
        self._uvicorn: uvicorn.Server | None = None
        self._side = SideWork("metrics")
        self.address = ""

    async def start(self, address: str, port: int) -> str:
        """Listen; returns ``address:port`` as it is then. With port 0 it is a free one. ``OSError``: it is taken."""
        listening = socket.create_server(
            (address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET, backlog=_CONNECTIONS_MAX
        )
        config = uvicorn.Config(
            self._serve,
            http="h11",  # the one whose heads have a bound
            h11_max_incomplete_event_size=_HEAD_BYTES_MAX,
            ws="none",
            lifespan="off",
            interface="asgi3",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS_MAX,
            timeout_keep_alive=75,
        )
        self._uvicorn = uvicorn.Server(config)
        config.load()
        self._uvicorn.lifespan = config.lifespan_class(config)
        await self._uvicorn.startup(sockets=[listening])
        self._side.begin(self._uvicorn.main_loop())
        self.address = f"[{address}]" if ":" in address else address
        self.address += f":{listening.getsockname()[1]}"
        return self.address

    async def stop(self) -> None:
        """Stop listening."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
            self._uvicorn.force_exit = True
            await self._uvicorn.shutdown()
        await self._side.stop()

    async def _serve(self, scope: MutableMapping[str, Any], receive: object, send: _Send) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        if scope["path"] != PATH:
            await _answer(send, 404, f"Metrics are at {PATH}\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, "Metrics are read, with GET.\n")
        else:
            try:
                text = await self._text()
            except Exception:
                _log.exception("metrics were not gathered")
                await _answer(send, 500, "The metrics could not be gathered; the log of the Server says why.\n")
                return
            await _answer(send, 200, text, CONTENT_TYPE)


async def _answer(send: _Send, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
    body = text.encode()
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

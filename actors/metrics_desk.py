"""MetricsDesk: one machine's metrics. It asks the machine's roles for their counters when somebody wants to know.

It lives in the Server's process, off every request's path: whoever scrapes makes each role tell its statistics once,
and at most once a second, however many scrape. A role that is away is missing, and ``everwarm_role_up`` says so.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from actors.machine_metrics import Told, families, pid_of
from actors.peer import PeerFailed, PeerLost, Peers
from actors.process_usage import usage_of_all
from actors.view import decode_plain
from tracing.export_metrics import OtlpMetrics
from tracing.metrics import Family, prometheus_text

_log = logging.getLogger("everwarm.metrics")

#: Numbers are this fresh at least: scrapers come every few seconds, and a crowd of them costs no more than one.
FRESH_S: Final = 1.0
#: A role that takes longer counts as away for this time. A scraper waits ten seconds, most of them.
_ASK_S_MAX: Final = 2.0
#: How often they go to an OTLP backend. The default of OpenTelemetry's SDKs is a minute; a scraper comes as often as
#: this.
EXPORT_EVERY_S: Final = 15.0

#: How a role tells its statistics.
Tell = Callable[[], Awaitable[bytes]]


class MetricsDesk:
    """Where a machine's metrics are had from."""

    def __init__(
        self,
        server: str,
        *,
        own: Tell,
        peers: Peers,
        others: Callable[[], Sequence[str]],
        exporter: OtlpMetrics | None = None,
    ) -> None:
        """``own``: of the Server itself; ``others``: the roles of this machine that are asked beside it, as of now."""
        self._server = server
        self._own = own
        self._peers = peers
        self._others = others
        self._exporter = exporter
        self._lock = asyncio.Lock()
        self._gathered: list[Family] = []
        self._gathered_s = -FRESH_S

    async def text(self) -> str:
        """Everything in Prometheus's text format."""
        return prometheus_text(await self.gather())

    async def gather(self) -> list[Family]:
        """Everything, at most ``FRESH_S`` old."""
        async with self._lock:
            if time.monotonic() - self._gathered_s >= FRESH_S:
                others = self._others()
                told = await asyncio.gather(self._ask("server"), *(self._ask(role) for role in others))
                roles = dict(zip(("server", *others), told, strict=True))
                usage = usage_of_all({pid for told in roles.values() if (pid := pid_of(told))})
                self._gathered = families(self._server, roles, usage)
                self._gathered_s = time.monotonic()
            return self._gathered

    async def _ask(self, role: str) -> Told:
        try:
            async with asyncio.timeout(_ASK_S_MAX):
                if role == "server":
                    payload = await self._own()
                else:
                    payload = await (await self._peers.get(f"{self._server}/{role}")).call("statistics")
        except (PeerLost, PeerFailed, TimeoutError) as away:
            _log.info("%s/%s does not tell its statistics: %s", self._server, role, away or "it took too long")
            return None
        told: dict[str, Any] = decode_plain(payload)
        return told

    async def export(self) -> None:
        """Send everything to the backend again and again, until this is cancelled. Nothing without a backend."""
        while self._exporter is not None:
            await asyncio.sleep(EXPORT_EVERY_S)
            await self._send(self._exporter)

    async def close(self) -> None:
        """Send the last numbers."""
        if self._exporter is not None:
            await self._send(self._exporter)
            await asyncio.to_thread(self._exporter.close, 2.0)

    async def _send(self, exporter: OtlpMetrics) -> None:
        try:
            exporter.export(await self.gather(), time.time_ns())
        except Exception:
            _log.exception("metrics were not exported")  # and the next ones are tried

"""Connections to addresses that the policy has judged, with TLS for the name that was asked for.

A name is looked up once. What is judged are addresses, and a judged address is what is connected to; nothing here
hands a name to something that would look it up again. The certificate has to be the name's, whatever the address.
"""

import asyncio
import errno
import socket
import ssl
from ipaddress import ip_address
from typing import Final

import certifi
import httpcore

from actors.egress_http import TERMINATED, ExchangeFailed
from actors.egress_names import Lookup
from actors.egress_policy import NOT_FOUND, PROHIBITED, EgressPolicy, Target
from isolates.egress import ErrorCode

#: Of a name's permitted addresses those that are tried, so that a list of dead ones ends within the connect timeout.
_ADDRESSES_TRIED: Final = 4


class Connector:
    """Makes connections for all workers of a machine."""

    def __init__(self, policy: EgressPolicy, lookup: Lookup, authorities_pem: str = "") -> None:
        """``authorities_pem``: certificate authorities that are trusted beside the public ones."""
        self._policy = policy
        self._lookup = lookup
        self._backend = httpcore.AnyIOBackend()
        self._tls = ssl.create_default_context(cafile=certifi.where())
        self._tls.set_alpn_protocols(["h2", "http/1.1"])
        if authorities_pem:
            self._tls.load_verify_locations(cadata=authorities_pem)

    async def connect(self, worker: str, target: Target, connect_s: float) -> tuple[httpcore.AsyncNetworkStream, bool]:
        """A connection to ``target``, and whether it speaks HTTP/2. ``ExchangeFailed`` says why there is none."""
        until_s = asyncio.get_running_loop().time() + connect_s
        addresses = await self._addresses(worker, target, connect_s)
        stream = await self._tcp(target, addresses, until_s)
        if target.scheme != "https":
            return stream, False
        try:
            stream = await stream.start_tls(self._tls, target.host, _left(until_s))
        except asyncio.CancelledError:
            await stream.aclose()  # which httpcore does after an error only
            raise
        except httpcore.ConnectTimeout as late:
            raise ExchangeFailed(("connection-timeout", None)) from late
        except httpcore.ConnectError as broken:
            raise ExchangeFailed(_tls_code(broken)) from broken
        return stream, stream.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"

    async def _addresses(self, worker: str, target: Target, connect_s: float) -> tuple[str, ...]:
        """The addresses that may be connected to. Asked for once: what is judged here is what is used."""
        if target.address is not None:
            found = [target.host]
        else:
            try:
                async with asyncio.timeout(connect_s):
                    found = await self._lookup(worker, target.host, target.port)
            except TimeoutError as late:
                raise ExchangeFailed(("DNS-timeout", None)) from late
            except socket.gaierror as unknown:
                raise ExchangeFailed(_name_code(unknown)) from unknown
            except (OSError, UnicodeError) as wrong:
                raise ExchangeFailed(("DNS-error", (None, None))) from wrong
        permitted = self._policy.permitted(target, found)
        usable = [a for a in permitted if self._policy.adds(target, a) or not _is_own(a)]
        if not usable:
            raise ExchangeFailed(PROHIBITED if found else NOT_FOUND)
        return tuple(usable[:_ADDRESSES_TRIED])

    async def _tcp(self, target: Target, addresses: tuple[str, ...], until_s: float) -> httpcore.AsyncNetworkStream:
        fault: Exception | None = None
        for i, address in enumerate(addresses):
            try:
                return await self._backend.connect_tcp(address, target.port, _left(until_s) / (len(addresses) - i))
            except (httpcore.ConnectTimeout, httpcore.ConnectError) as failed:
                fault = failed
        raise ExchangeFailed(_connect_code(fault)) from fault


def _left(until_s: float) -> float:
    return max(0.001, until_s - asyncio.get_running_loop().time())


def _is_own(address: str) -> bool:
    """Whether it is this machine's own address: then the kernel would come from it as well. Sends nothing."""
    family = socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return False  # no way there; the attempt says so
        return str(probe.getsockname()[0]) == address


def _causes(fault: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while fault is not None and len(found) < 8:
        found.append(fault)
        fault = fault.__cause__ or fault.__context__
    return found


def _name_code(fault: socket.gaierror) -> ErrorCode:
    if fault.errno == socket.EAI_AGAIN:
        return ("DNS-timeout", None)
    unknown = fault.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
    return ("DNS-error", ("NXDOMAIN" if unknown else None, None))


def _connect_code(fault: BaseException | None) -> ErrorCode:
    if isinstance(fault, httpcore.ConnectTimeout):
        return ("connection-timeout", None)
    for cause in _causes(fault):
        if isinstance(cause, ConnectionRefusedError):
            return ("connection-refused", None)
        if isinstance(cause, OSError) and cause.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
            return ("destination-IP-unroutable", None)
    return ("destination-unavailable", None)


def _tls_code(fault: BaseException) -> ErrorCode:
    for cause in _causes(fault):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ("TLS-certificate-error", None)
        if isinstance(cause, ssl.SSLError):
            reason = cause.reason or ""
            alert = reason.partition("_ALERT_")[2].lower().replace("_", " ")
            return ("TLS-alert-received", (None, alert)) if alert else ("TLS-protocol-error", None)
    return TERMINATED

"""TLS at the edge: a certificate for each host name, and the hook that hears the name first. The only file with `ssl`.

How it fits together. The listening socket has one SSLContext. Inside each handshake, when the ClientHello is read,
OpenSSL calls back with the server name; the callback puts the right certificate's context in place of the listening
one, and tells `on_server_name`, which is how a worker is warming up before the handshake is done.

Rules that hold:
- The callback runs on the event loop between two reads of everybody's sockets. It may spend a millisecond on a name's
  first certificate and never waits.
- An exception that leaves it would break this client's handshake, so none does: failures are counted
  (`CertificateStore.statistics`) and the client gets the default certificate.
- The version, the ciphers and tickets are the listening context's; ALPN and the certificate come from the context
  that is put in its place. Both are built by the same function, so it does not matter which is asked.

A name's certificate is looked for in this order: the operator's file `<host>.pem`, the operator's wildcard file
`_.<parent>.pem`, the local authority if the routes know the name, the default. The authority issues for *patterns* that
the routes know: strangers can make up hosts without end, but no patterns, so they can not make us sign.

Files and leaves are replaced while connections live: a context in use stays alive through its connections.
One store belongs to one event loop; it is not for several threads.
"""

from __future__ import annotations

import os
import ssl
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ingress.authority import Issued
from ingress.routes import normal_host

_ALPN: Final = ["http/1.1"]
# TLS 1.2 with forward secrecy and authenticated encryption only; TLS 1.3's suites are all of that kind.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_DEFAULT_NAMES: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class TlsLimits:
    """Bounds on one store."""

    contexts_max: int = 1_000  # an SSLContext with its certificate is some 30 KB outside Python's heap: 30 MB
    recheck_s: float = 10.0  # an operator's renewed file is picked up within this; one stat() a name and interval
    pem_bytes_max: int = 256 * 1024  # a chain of a dozen certificates has 20 KB; no file is read without end


_LIMITS: Final = TlsLimits()


@dataclass(frozen=True, slots=True)
class TlsStatistics:
    contexts: int  # in the cache now
    issued: int  # by the local authority
    file_loads: int
    file_failures: int  # unreadable, or no chain with its key; the last good one is kept
    selection_failures: int  # the default certificate was given instead
    hook_failures: int  # on_server_name raised


@dataclass(slots=True)
class _Entry:
    context: ssl.SSLContext
    check_at_s: float  # for a file: when to look at it again; for an issued one: when to issue the next
    signature: tuple[int, int, int] | None  # of the file it came from: inode, size, mtime in ns


class Authority(Protocol):
    """Who issues certificates: `LocalAuthority`, or a `Delegate` of one."""

    def issue(self, host_name: str, *more: str) -> Issued:
        """A new key and certificate, within about a millisecond and without waiting for anybody."""


class CertificateStore:
    """Contexts by host name. `now_s` gives Unix time."""

    def __init__(
        self,
        authority: Authority,
        pattern_of: Callable[[str], str | None],
        directory: Path | None = None,
        now_s: Callable[[], float] = time.time,
        limits: TlsLimits = _LIMITS,
        own_names: tuple[str, ...] = (),
    ) -> None:
        """`pattern_of(host)` is the routed pattern that `host` falls under, or None (see `Routes.pattern_of`).

        `directory` holds the operator's own PEM files, each a chain with its key: `<host>.pem`, `_.<parent>.pem`.
        `own_names` are in the default certificate, beside those of loopback.
        """
        self._default_names = tuple(dict.fromkeys((*_DEFAULT_NAMES, *own_names)))
        self._authority = authority
        self._pattern_of = pattern_of
        self._directory = directory
        self._now_s = now_s
        self._limits = limits
        # Least recently used first. Keys: a file's name, or "issued:" and a pattern.
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._default: _Entry | None = None  # kept apart, so that no crowd of names evicts it
        self._issued = 0
        self._file_loads = 0
        self._file_failures = 0
        self._selection_failures = 0
        self._hook_failures = 0

    def context_for(self, host: str | None) -> ssl.SSLContext:
        """The context with the best certificate for `host`; the default one for None and for unknown names.

        Raises OSError or ssl.SSLError only if not even the default can be made.
        """
        name = None if host is None else normal_host(host)
        if name is not None:
            found = self._from_files(name) or self._from_authority(name)
            if found is not None:
                return found
        return self._default_context()

    def new_default_context(self) -> ssl.SSLContext:
        """A context with the default certificate that nobody else has, so that a callback may be set on it."""
        return self._issue(*self._default_names).context

    def statistics(self) -> TlsStatistics:
        return TlsStatistics(
            contexts=len(self._entries),
            issued=self._issued,
            file_loads=self._file_loads,
            file_failures=self._file_failures,
            selection_failures=self._selection_failures,
            hook_failures=self._hook_failures,
        )

    def count_selection_failure(self) -> None:
        self._selection_failures += 1

    def count_hook_failure(self) -> None:
        self._hook_failures += 1

    def __repr__(self) -> str:
        return f"<CertificateStore {self.statistics()}>"

    def _from_files(self, name: str) -> ssl.SSLContext | None:
        if self._directory is None:
            return None
        # `name` is a normal host: no slash, no empty label, so it can not point outside of the directory.
        _, dot, parent = name.partition(".")
        for file_name in (f"{name}.pem", f"_.{parent}.pem") if dot else (f"{name}.pem",):
            found = self._from_file(self._directory / file_name)
            if found is not None:
                return found
        return None

    def _from_file(self, path: Path) -> ssl.SSLContext | None:
        entry = self._entries.get(path.name)
        now_s = self._now_s()
        if entry is not None and now_s < entry.check_at_s:
            self._entries.move_to_end(path.name)
            return entry.context
        try:
            status = path.stat()
        except OSError:
            self._entries.pop(path.name, None)  # taken away by the operator
            return None
        signature = (status.st_ino, status.st_size, status.st_mtime_ns)
        if entry is None or entry.signature != signature:
            try:
                if status.st_size > self._limits.pem_bytes_max:
                    raise OSError("too long")
                context = _certified_context(path.read_bytes())
            except (OSError, ssl.SSLError, ValueError):
                # Perhaps half written. The last good one serves on, and the file is looked at again soon.
                self._file_failures += 1
                if entry is None:
                    return None
                entry.check_at_s = now_s + self._limits.recheck_s
                return entry.context
            self._file_loads += 1
            entry = _Entry(context, 0.0, signature)
        entry.check_at_s = now_s + self._limits.recheck_s
        return self._keep(path.name, entry)

    def _from_authority(self, name: str) -> ssl.SSLContext | None:
        pattern = self._pattern_of(name)
        if pattern is None:
            return None
        key = f"issued:{pattern}"
        entry = self._entries.get(key)
        if entry is None or self._now_s() >= entry.check_at_s:
            entry = self._issue(pattern)
        return self._keep(key, entry)

    def _default_context(self) -> ssl.SSLContext:
        if self._default is None or self._now_s() >= self._default.check_at_s:
            self._default = self._issue(*self._default_names)
        return self._default.context

    def _issue(self, name: str, *more: str) -> _Entry:
        issued = self._authority.issue(name, *more)
        self._issued += 1
        return _Entry(_certified_context(issued.chain_pem + issued.key_pem), issued.renew_at_s, None)

    def _keep(self, key: str, entry: _Entry) -> ssl.SSLContext:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._limits.contexts_max:
            self._entries.popitem(last=False)
        return entry.context


def server_context(store: CertificateStore, on_server_name: Callable[[str], None]) -> ssl.SSLContext:
    """The context to listen with.

    `on_server_name(host)` is called inside each handshake that names a host, known or not, with its normal spelling.
    It must return at once; what it raises is counted and forgotten.
    """

    def choose(ssl_socket: ssl.SSLObject | ssl.SSLSocket, server_name: str | None, _listening: ssl.SSLContext) -> None:
        try:
            ssl_socket.context = store.context_for(server_name)
        except Exception:  # whatever it is, this client still gets the listening context's certificate
            store.count_selection_failure()
        if server_name is None:
            return
        try:
            host = normal_host(server_name)
            if host is not None:
                on_server_name(host)
        except Exception:
            store.count_hook_failure()

    listening = store.new_default_context()
    listening.sni_callback = choose
    return listening


def _certified_context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(_ALPN)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    with _as_file(pem) as path:
        # An encrypted key fails: without a password given, OpenSSL would stop the event loop to ask the terminal.
        context.load_cert_chain(path, password="")
    return context


@contextmanager
def _as_file(pem: bytes) -> Iterator[str]:
    """A path that reads as `pem`: `ssl` loads keys from files only. On Linux it is memory, and no disk sees the key."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(pem)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:  # 0600, and gone after the block
            file.write(pem)
            file.flush()
            yield file.name

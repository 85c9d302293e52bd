"""A peer's server: started on a free loopback port, asked, and ended with everything that it started."""

import os
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: An answer takes milliseconds; jco's first one takes seconds, and a hang is what this is for.
_ANSWER_TIMEOUT_S = 30.0
#: An answer of a hello is some hundred bytes; a body beyond this is something else.
_ANSWER_BYTES_MAX = 1 << 20
_END_TIMEOUT_S = 5.0


class PeerFailed(Exception):
    """A peer did not do what it is asked; the message says what, in one line."""


def free_port() -> int:
    """A loopback port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Asking:
    """One open HTTP/1.1 connection, with as little of a client as there can be around it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None
        self._buffer = b""

    def get(self, path: str = "/") -> bytes:
        """The answer's body, chunked or not, as it came. ``PeerFailed`` unless its status is 200."""
        try:
            return self._get(path)
        except OSError as broken:
            self.close()
            raise PeerFailed(f"no answer: {broken}") from broken

    def _get(self, path: str) -> bytes:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=_ANSWER_TIMEOUT_S)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffer = b""
        self._socket.sendall(b"GET %s HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n\r\n" % (path.encode(), self._port))
        head, fields = self._head()
        if b"content-length" in fields:
            body = self._take(int(fields[b"content-length"]))
        elif fields.get(b"transfer-encoding") == b"chunked":
            body = self._until(b"0\r\n\r\n")
        else:
            raise PeerFailed("an answer without a length")
        if fields.get(b"connection", b"").lower() == b"close":
            self.close()
        if not head.startswith(b"HTTP/1.1 200"):
            raise PeerFailed(f"it answered {head[:60].decode('latin-1')!r}")
        return body

    def _head(self) -> tuple[bytes, dict[bytes, bytes]]:
        status, *lines = self._until(b"\r\n\r\n").split(b"\r\n")
        pairs = (line.partition(b":") for line in lines if line)
        return status, {name.lower(): value.strip() for name, _, value in pairs}

    def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            self._receive()
        return self._cut(at + len(end))

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._receive()
        return self._cut(size)

    def _cut(self, size: int) -> bytes:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _receive(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(65536)
        if not data or len(self._buffer) > _ANSWER_BYTES_MAX:
            raise ConnectionError("the connection ended within an answer, or the answer never does")
        self._buffer += data

    def median_ms(self, requests: int, path: str = "/") -> float:
        """The median time of an answer to so many equal requests."""
        times_s = []
        for _ in range(requests):
            began = time.perf_counter()
            self.get(path)
            times_s.append(time.perf_counter() - began)
        return statistics.median(times_s) * 1e3

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


@dataclass(frozen=True, slots=True)
class Server:
    """A peer that listens."""

    pid: int
    asking: Asking


@contextmanager
def serving(command: list[str], port: int, *, start_timeout_s: float) -> Iterator[Server]:
    """Start ``command``, wait until it listens at ``port``, and end it afterwards, whatever happened.

    It gets a session of its own, so that what it starts itself ends with it: the signal goes to that process group,
    which nobody else is in. ``PeerFailed`` when it ends early or does not listen in time.
    """
    with tempfile.TemporaryDirectory(prefix="everwarm-peer-") as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, cwd=scratch, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        asking = Asking(port)
        try:
            _wait_until_it_listens(process, port, log, start_timeout_s)
            yield Server(process.pid, asking)
        finally:
            asking.close()
            _end(process)


def _wait_until_it_listens(process: "subprocess.Popen[bytes]", port: int, log: Path, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if process.poll() is not None:
            said = (log.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
            raise PeerFailed(f"it ended at its start: {said[:200]}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        time.sleep(0.05)
    raise PeerFailed(f"it does not listen after {timeout_s:g} s")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the group to end, and then end it. A peer's child may outlive the peer, so the last signal always goes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

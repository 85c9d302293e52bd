"""A client on a machine: asks workers over HTTPS at several machines' addresses. Standard library only; prints JSON.

    python https_client.py wait CA PORT SECONDS WORKER@ADDRESS...           until each has answered 200
    python https_client.py load CA PORT SECONDS RATE WORKER@ADDRESS...      so many requests a second, whoever is slow

``load`` sends by the clock and not when the last one is over: a machine that is slow gets no fewer requests. It keeps
connections, as clients do, and repeats nothing.
"""

import http.client
import json
import socket
import ssl
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

#: Nobody waits longer for an answer; what took so long is a failure.
_ANSWER_S = 30.0
#: At once: a machine that does not answer holds its requests for so long, at 50 a second.
_THREADS = 512
#: To each address at first. More are made when answers take longer than this many requests need to come by.
_CONNECTIONS = 16


@dataclass(frozen=True)
class Edge:
    """Where a worker is asked."""

    tls: ssl.SSLContext
    worker: str
    port: int
    address: str

    def connect(self) -> http.client.HTTPSConnection:
        """A connection to this address, for any worker: a worker's name in the handshake would start its isolate."""
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=_ANSWER_S)
        plain = socket.create_connection((self.address, self.port), _ANSWER_S)
        connection.sock = self.tls.wrap_socket(plain, server_hostname="localhost")
        return connection

    def ask(self, connection: http.client.HTTPSConnection) -> tuple[int, str]:
        """Ask the worker over a connection to its address: status, and ``server-timing`` of the answer."""
        connection.request("GET", "/", headers={"host": f"{self.worker}.localhost"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("server-timing") or ""


def wait(edges: list[Edge], seconds: float) -> int:
    """0 when all have answered 200. Says after how many seconds each did."""
    began = time.monotonic()
    answered: dict[str, float] = {}
    why = ""
    while len(answered) < len(edges) and time.monotonic() - began < seconds:
        for edge in edges:
            if edge.address not in answered:
                try:
                    connection = edge.connect()
                    status, _ = edge.ask(connection)
                    connection.close()
                    if status == 200:
                        answered[edge.address] = round(time.monotonic() - began, 2)
                    else:
                        why = f"{edge.address}: status {status}"
                except (OSError, http.client.HTTPException) as failed:
                    why = f"{edge.address}: {type(failed).__name__}: {failed}"
        time.sleep(0.1)
    print(json.dumps({"answered_s": answered, "why_not": why if len(answered) < len(edges) else ""}))
    return 0 if len(answered) == len(edges) else 1


def load(edges: list[Edge], seconds: float, rate: float) -> int:
    """Says of each request when it was sent, where, what came, after how long, and where it ran."""
    # Before the clock starts, or its first second would be one of handshakes.
    one_each = {edge.address: edge for edge in edges}
    idle = {address: [edge.connect() for _ in range(_CONNECTIONS)] for address, edge in one_each.items()}
    began, lock = time.monotonic(), threading.Lock()
    seen: list[dict[str, object]] = []

    def one(edge: Edge, sent: float) -> None:
        with lock:
            connection = idle[edge.address].pop() if idle[edge.address] else None
        said: dict[str, object] = {"sent_s": round(sent - began, 3), "address": edge.address, "worker": edge.worker}
        try:
            if connection is None:
                connection = edge.connect()
            status, timing = edge.ask(connection)
            said |= {"status": status, "timing": timing}
            with lock:
                idle[edge.address].append(connection)
        except (OSError, http.client.HTTPException) as failed:
            said |= {"status": 0, "why": f"{type(failed).__name__}: {failed}"}
            if connection is not None:
                connection.close()
        said["took_s"] = round(time.monotonic() - sent, 3)
        seen.append(said)

    with ThreadPoolExecutor(_THREADS) as threads:
        for number in range(int(seconds * rate)):
            due = began + number / rate
            time.sleep(max(0.0, due - time.monotonic()))
            threads.submit(one, edges[number % len(edges)], due)
    print(json.dumps(seen))
    return 0


def main(arguments: list[str]) -> int:
    """The exit status."""
    what, ca, port, seconds, *rest = arguments
    tls = ssl.create_default_context(cafile=ca)
    rate = float(rest.pop(0)) if what == "load" else 0.0
    edges = [Edge(tls, worker, int(port), address) for worker, _, address in (place.partition("@") for place in rest)]
    return load(edges, float(seconds), rate) if what == "load" else wait(edges, float(seconds))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

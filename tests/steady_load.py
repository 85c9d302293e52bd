"""A steady load of real clients, for tests that change a cluster under it: a bounded number of threads, each with its
own workers and a connection to every edge, one request at a time.

A worker belongs to one client, so it never has two requests at once: whatever starts cold was not a sibling. A client
does what clients of HTTP do: when an edge that is *going* closes on it, it goes to another one; it repeats a request
that is safe to repeat, and does not one that is not.
"""

import random
import ssl
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPException

from https_client import Answer, Connection


@dataclass(frozen=True)
class Seen:
    """One request: when it was sent (monotonic), by which edge, and what came of it."""

    sent_s: float
    took_s: float
    worker: str
    via: str
    method: str
    status: int  # 0: no answer
    start: str = ""
    server: str = ""
    home: str = ""
    why: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200


class SteadyLoad:
    """Clients that ask until they are stopped."""

    #: Of each client between two requests: eight clients are then some 200 requests a second, half of two cores.
    PAUSE_S = 0.02

    def __init__(self, tls: ssl.SSLContext, ports: dict[str, int], workers: list[str], clients: int, seed: int) -> None:
        self._tls = tls
        self.ports = dict(ports)
        #: Edges that may close on their clients at any time.
        self.going: set[str] = set()
        self.seen: list[Seen] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(workers[i::clients], seed + i), daemon=True)
            for i in range(clients)
        ]

    def __enter__(self) -> "SteadyLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(40)
            assert not thread.is_alive(), "a client hangs"

    def since(self, mark: int) -> list[Seen]:
        """What was seen after ``mark``, which is ``len(seen)`` of that moment."""
        return self.seen[mark:]

    def wait_for(self, more: int, within_s: float = 30.0) -> None:
        """Until so many more requests are over."""
        enough, until_s = len(self.seen) + more, time.monotonic() + within_s
        while len(self.seen) < enough:
            assert time.monotonic() < until_s, (
                f"of {more}, {enough - len(self.seen)} are missing: {tally(self.seen[-100:])}"
            )
            threading.Event().wait(0.02)

    # ------------------------------------------------------------------------------------------------- one client

    def _client(self, workers: list[str], seed: int) -> None:
        dice = random.Random(seed)
        connections: dict[str, Connection] = {}
        while not self._stop.wait(self.PAUSE_S):
            method = "POST" if dice.randrange(4) == 0 else "GET"
            self.seen.append(self._request(connections, dice.choice(workers), dice.choice([*self.ports]), method))
        for connection in connections.values():
            connection.close()

    def _request(self, connections: dict[str, Connection], worker: str, via: str, method: str) -> Seen:
        sent_s = time.monotonic()
        for _ in range(3):
            connected = False
            try:
                if via not in connections:
                    # By the plain name: a worker's name in the handshake would start its isolate.
                    connections[via] = Connection(self._tls, self.ports[via], "localhost")
                connected = True
                answer = self._asked(connections[via], worker, method)
                if answer.headers.get("connection") == "close":
                    connections.pop(via).close()
                timing = answer.timing
                why = "" if answer.status == 200 else answer.body.decode(errors="replace")[:200]
                return Seen(
                    sent_s, time.monotonic() - sent_s, worker, via, method, answer.status, timing["start"],
                    timing.get("server", ""), timing.get("home", ""), why,
                )  # fmt: skip
            except (OSError, HTTPException) as broken:
                why = f"{type(broken).__name__}: {broken}"
            connection = connections.pop(via, None)
            if connection is not None:
                connection.close()
            if via not in self.going or (connected and method != "GET"):
                break
            via = next(edge for edge in self.ports if edge not in self.going)
        return Seen(sent_s, time.monotonic() - sent_s, worker, via, method, 0, why=why)

    @staticmethod
    def _asked(connection: Connection, worker: str, method: str) -> Answer:
        body = b"" if method == "POST" else None
        return connection.fetch(f"{worker}.localhost", "/", method=method, body=body)


def tally(seen: list[Seen]) -> str:
    """What was seen, in short, for a test's output."""
    starts = Counter(one.start for one in seen if one.ok)
    slowest = max((one.took_s for one in seen), default=0.0)
    failed = [one for one in seen if not one.ok]
    return f"{len(seen)} requests, starts {dict(starts)}, slowest {slowest:.2f} s, failed {len(failed)} {failed[:5]}"

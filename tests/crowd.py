"""A crowd of clients: good requests, bad workers and clients that leave, mixed by a seed."""

import asyncio
import collections
import random
import ssl
from dataclasses import dataclass

CLIENTS = 16
REQUESTS_EACH = 30
UPLOAD = bytes(range(256)) * 1200  # 300 KB: more than a window, so the rest is pulled

#: worker, path, body, how often, and what a client that stays gets
MIX = (
    ("hello", "/x", None, 50, "200"),
    ("echo", "/?digest", UPLOAD, 12, "200"),
    ("stream", "/?chunks=5&interval_ms=5", None, 12, "200"),
    ("spin", "/", None, 8, "503"),
    ("hoard", "/", None, 4, "503"),
    ("trap", "/", None, 7, "500"),
    ("silent", "/", None, 7, "500"),
)
LEAVES_ONE_IN = 7


@dataclass(frozen=True)
class Seen:
    """One answer: of which worker, and its status or what happened instead."""

    worker: str
    status: str


async def ask(port: int, tls: ssl.SSLContext, worker: str, path: str, body: bytes | None, leaves_after_s: float) -> str:
    """One request over a new connection; its status, or ``left``."""
    host = f"{worker}.localhost"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=host)
    try:
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        if body is not None:
            head += f"content-length: {len(body)}\r\n"
        writer.write(head.encode() + b"\r\n" + (body or b""))
        if leaves_after_s:
            await asyncio.sleep(leaves_after_s)  # a client leaves by the clock, wherever its request is by then
            writer.transport.abort()
            return "left"
        data = await asyncio.wait_for(reader.read(), 30)
        return data.split(b" ", 2)[1].decode() if data else "empty"
    finally:
        writer.close()


async def crowd(ports: dict[str, int], tls: ssl.SSLContext, seed: int) -> collections.Counter[Seen]:
    """All clients at once; what each of their requests came to."""
    dice = random.Random(seed)
    plans = [
        [
            (
                dice.choice(sorted(ports.values())),
                dice.choices(MIX, weights=[weight for *_, weight, _ in MIX])[0],
                dice.random() * 0.05 if dice.randrange(LEAVES_ONE_IN) == 0 else 0.0,
            )
            for _ in range(REQUESTS_EACH)
        ]
        for _ in range(CLIENTS)
    ]
    seen: collections.Counter[Seen] = collections.Counter()

    async def client(plan: list) -> None:
        for port, (worker, path, body, _, _), leaves_after_s in plan:
            seen[Seen(worker, await ask(port, tls, worker, path, body, leaves_after_s))] += 1

    await asyncio.gather(*(client(plan) for plan in plans))
    return seen

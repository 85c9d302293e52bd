"""Orders for the owner from other machines: whoever asks waits here until it is done. In the ControlPlane's process.

The owner listens on a socket, which only its own machine reaches (``owner``), and it is no actor that others could
call. So it comes and asks what there is to do.
"""

import asyncio
from collections import deque

#: Orders that wait or are under way.
ORDERS_MAX = 8
#: An order that nobody takes for so long: there is no owner.
TAKEN_S_MAX = 10.0
#: Longer than a server may take to come or to go, after those that were asked for before it.
ANSWERED_S_MAX = 600.0


class OrderRefused(Exception):
    """Nobody will carry out an order; the message says why."""


class OrderBook:
    """Orders in turn, each with the place where its answer goes."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()
        self._orders: dict[int, tuple[bytes, asyncio.Future[None], asyncio.Future[bytes]]] = {}
        self._last = 0
        self._come = asyncio.Condition()

    async def put(self, order: bytes) -> bytes:
        """Have an order carried out: its answer. ``OrderRefused`` when there are too many, or nobody takes it."""
        if len(self._orders) >= ORDERS_MAX:
            raise OrderRefused("Too many orders are waiting.")
        loop = asyncio.get_running_loop()
        self._last += 1
        number, taken, answer = self._last, loop.create_future(), loop.create_future()
        self._orders[number] = (order, taken, answer)
        try:
            async with self._come:
                self._waiting.append(number)
                self._come.notify()
            try:
                await asyncio.wait_for(taken, TAKEN_S_MAX)
                return bytes(await asyncio.wait_for(answer, ANSWERED_S_MAX))
            except TimeoutError as nobody:
                raise OrderRefused("The process that owns the cluster does not answer; see the head.") from nobody
        finally:
            del self._orders[number]

    async def take(self) -> tuple[int, bytes]:
        """The next order, and its number for ``answer``. Waits for one."""
        async with self._come:
            while True:
                await self._come.wait_for(lambda: self._waiting)
                number = self._waiting.popleft()
                if number in self._orders:  # else whoever asked has left
                    order, taken, _ = self._orders[number]
                    if not taken.done():
                        taken.set_result(None)
                    return number, order

    def answer(self, number: int, answer: bytes) -> None:
        """An order is carried out, or is not, as the answer says."""
        found = self._orders.get(number)
        if found is not None and not found[2].done():
            found[2].set_result(answer)

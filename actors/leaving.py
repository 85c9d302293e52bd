"""What a Server finishes last when it leaves, home to nothing and without an edge: what began here and nowhere else.

A driver's request is carried by the Server that the driver chose, and its answer is read from there. The tails of a
request tree are called from where its outermost stage was sent. Both would be lost with the process.
"""

import asyncio
from collections.abc import Callable

from actors.peer import Calls

#: How often it looks whether something is left.
_LEFT_EVERY_S = 0.05


class Leaving:
    """One Server's end. ``refuse`` has drivers go to other servers from then on; ``owes`` counts what is not over."""

    def __init__(self, refuse: Callable[[], None], owes: Callable[[], int]) -> None:
        self._refuse = refuse
        self._owes = owes
        self.calls: Calls = {"finish": self.finish}

    async def finish(self, payload: bytes = b"") -> bytes:
        """Take no driver's request any more, and answer when nothing is owed. Whoever calls has a limit."""
        self._refuse()
        while self._owes():  # noqa: ASYNC110 - it ends in several places, and once in a Server's life
            await asyncio.sleep(_LEFT_EVERY_S)
        return b""

"""What must not end the gathering of traces."""

import asyncio

from actors.trace_desk import TraceDesk
from tests.simulation.virtual_loop import play


class Collector:
    """A collector whose first look fails."""

    def __init__(self) -> None:
        self.ticks = 0

    def tick(self, now_s: float) -> list[object]:
        self.ticks += 1
        if self.ticks == 1:
            raise RuntimeError("a bug")
        return []


def test_a_look_that_fails_is_not_the_last() -> None:
    async def scenario() -> None:
        desk = TraceDesk(None, lambda url, headers: None)  # type: ignore[arg-type, return-value]
        desk._collector = collector = Collector()  # type: ignore[assignment]
        gathering = asyncio.create_task(desk.gather())
        await asyncio.sleep(1.05)
        assert collector.ticks == 10
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)

    play(scenario())

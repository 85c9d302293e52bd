"""Work that a role does on the side of its requests: prewarms, introductions, the gathering of traces.

A task that nobody holds may be collected while it waits, and one that fails unseen is a bug unseen. Both are taken
care of here, with a bound.
"""

import asyncio
import logging
from collections.abc import Coroutine

_log = logging.getLogger("everwarm.side_work")


class SideWork:
    """The tasks of one role."""

    #: Prewarms come at 200 a second and take milliseconds; drivers' answers that are not read yet wait the longest.
    #: Beyond this something does not end, and new work is dropped rather than added to it.
    TASKS_MAX = 8_192

    def __init__(self, role: str) -> None:
        self._role = role
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def begin(self, work: Coroutine[object, None, None]) -> None:
        """Start ``work``; nobody waits for it. A failure goes to the log."""
        if len(self._tasks) >= self.TASKS_MAX:
            work.close()
            _log.error("%s has %d tasks on the side, and drops a new one", self._role, len(self._tasks))
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("work of %s failed", self._role, exc_info=task.exception())

    async def stop(self) -> None:
        """Cancel all of it and wait until it is gone."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

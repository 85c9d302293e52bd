"""Bells: file descriptors by which one thread wakes another that waits in a call of the kernel, for sockets as well.

Who rings has changed what it tells of before; who waits says so (``listen``), then looks, and then waits. So a change
is never missed, and where nobody waits nothing is rung. A bell may ring for nothing: that costs one look.
"""

import os
from contextlib import suppress


class Bell:
    """A file descriptor that one thread rings and another waits for."""

    __slots__ = ("_descriptor", "_rung", "_waited_for")

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._rung = False
        self._waited_for = False

    def fileno(self) -> int:
        return self._descriptor

    def ring(self) -> None:
        """There may be something new. After the change that it is for."""
        if self._waited_for and not self._rung:
            os.eventfd_write(self._descriptor, 1)
            self._rung = True

    def listen(self) -> None:
        """From here on it is waited for. Before the last look."""
        self._waited_for = True

    def quiet(self) -> None:
        """It is not waited for any more."""
        self._waited_for = False
        if self._rung:
            with suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)
            self._rung = False

    def close(self) -> None:
        """Not to be used any more."""
        os.close(self._descriptor)


class Bells:
    """Bells that nobody uses: making one and closing it are four calls of the kernel for each call between guests."""

    #: As many as the callees of one host that run at once need.
    IDLE_MAX = 256

    def __init__(self) -> None:
        self._idle: list[Bell] = []

    def take(self) -> Bell:
        """One of them, or a new one. ``OSError`` when the process has no more descriptors."""
        try:
            bell = self._idle.pop()
        except IndexError:
            return Bell()
        bell.quiet()
        return bell

    def give_back(self, bell: Bell) -> None:
        """Both threads are done with it."""
        if len(self._idle) < self.IDLE_MAX:
            self._idle.append(bell)
        else:
            bell.close()

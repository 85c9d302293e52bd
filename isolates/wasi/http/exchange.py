"""One outgoing request of a guest, from ``handle`` to its end.

An exchange *waits* as long as the request has all the connections it may have, then it is *connected* (``outgoing``),
then it is *over*: its answer was read to the end, it failed, or the guest lets go of it. Whatever ends it closes what
was opened and gives its place to the one that waits longest. ``Guest.exchanges`` has all that are not over, so that
nothing survives the request, however that ends.

The exchange is on three sides of the guest: the request's body is written to it, its answer is waited for, the answer's
body is read from it. Each side waits for the same file descriptor, and asks again after every wait; no side is told.
"""

import time

from isolates.conversation import ResponseHead
from isolates.egress import ErrorCode, Outgoing, OutgoingHead, OutgoingTimeouts
from isolates.guest import Guest
from isolates.wasi.http.request_body import RequestBody
from isolates.wasi.io import Wait

#: The longest that an exchange waits for its turn, if the guest did not ask for less time to connect. A guest that
#: holds all connections itself and waits for one more would wait for ever; half of the default wall-time limit leaves
#: it the time to answer without.
TURN_S_MAX = 15.0
#: Why a side of an exchange finds it over when nothing failed: the guest has let go of another side, or its request has
#: ended.
_LET_GO: ErrorCode = ("connection-terminated", None)


class Exchange:
    """One outgoing request. Used by the guest's thread."""

    __slots__ = ("_answer", "_gives_up_at_s", "_guest", "_head", "_timeouts", "body", "ended_by", "outgoing", "over")

    def __init__(self, guest: Guest, head: OutgoingHead, timeouts: OutgoingTimeouts, body: RequestBody) -> None:
        self._guest = guest
        self._head = head
        self._timeouts = timeouts
        self._answer: ResponseHead | ErrorCode | None = None
        turn_s = TURN_S_MAX if timeouts.connect_s is None else min(timeouts.connect_s, TURN_S_MAX)
        self._gives_up_at_s = time.monotonic() + turn_s
        self.outgoing: Outgoing | None = None
        self.over = False
        self.ended_by: ErrorCode = _LET_GO
        self.body = body
        body.exchange = self
        guest.exchanges.append(self)
        _connect_next(guest)

    def connect(self) -> None:
        """Its turn has come."""
        opened = self._guest.egress.open(self._head, self._timeouts)
        if isinstance(opened, tuple):
            self.close(opened)
        else:
            self.outgoing = opened
            self.push()

    @property
    def waits(self) -> bool:
        """Whether it has no connection yet."""
        return self.outgoing is None and not self.over

    def look(self) -> ResponseHead | ErrorCode | None:
        """The answer's head, why there is none, or None as long as neither is known. Never waits."""
        if self._answer is None:
            if self.waits:
                self._look_for_a_place()
            else:
                self.push()
            if self._answer is None and self.outgoing is not None:
                known = self.outgoing.head()
                if isinstance(known, tuple):
                    self.close(known)
                else:
                    self._answer = known
        return self._answer

    def _look_for_a_place(self) -> None:
        # One that has failed without its guest having looked gives its place away here.
        for other in tuple(self._guest.exchanges):
            if not other.waits:
                other.look()
        if self.waits and time.monotonic() >= self._gives_up_at_s:
            self.close(("connection-limit-reached", None))

    def push(self) -> None:
        """Let the request's body go as far as it goes without waiting."""
        self.body.push()

    def close(self, code: ErrorCode | None = None) -> None:
        """Give everything back. ``code``: what went wrong, for every side that asks. Safe to call twice."""
        if self.over:
            return
        self.over = True
        self.ended_by = code or _LET_GO
        if self._answer is None:
            self._answer = self.ended_by
        outgoing, self.outgoing = self.outgoing, None
        guest = self._guest
        if self in guest.exchanges:
            guest.exchanges.remove(self)
        self.body.over(code)
        if outgoing is not None:
            outgoing.close()
            _connect_next(guest)

    # ------------------------------------------------------------------------------------------------- what to wait for

    def wait_for_answer(self, wait: Wait) -> None:
        """Until ``look`` may know more."""
        if self._answer is not None:
            wait.at_most(0.0)
        elif self.outgoing is not None:
            wait.readable.add(self.outgoing.fileno())
        else:
            wait.at_most(self._gives_up_at_s - time.monotonic())
            for other in self._guest.exchanges:
                if other.outgoing is not None and other._answer is None:
                    wait.readable.add(other.outgoing.fileno())

    def wait_to_read(self, wait: Wait) -> None:
        """Until there may be more of the answer's body."""
        if self.outgoing is None:
            wait.at_most(0.0)
        else:
            wait.readable.add(self.outgoing.fileno())

    def wait_to_write(self, wait: Wait) -> None:
        """Until there may be room for more of the request's body."""
        if self.over or not self.body.open:
            wait.at_most(0.0)
        else:
            # An answer, or that there will be none, can come before there is room.
            if self._answer is None:
                self.wait_for_answer(wait)
            if self.outgoing is not None:
                self.outgoing.wait_for_room(wait.readable, wait.writable)

    def wait_to_push(self, wait: Wait) -> None:
        """Until more of what is held may go; nothing when nothing is held."""
        if self.outgoing is not None and self.body.held:
            self.outgoing.wait_for_room(wait.readable, wait.writable)


def _connect_next(guest: Guest) -> None:
    """Connect those that wait, the longest first, while there is a place."""
    for exchange in tuple(guest.exchanges):
        if sum(not e.waits for e in guest.exchanges) >= guest.limits.connections_max:
            return
        if exchange.waits:
            exchange.connect()


def begin(guest: Guest, head: OutgoingHead, timeouts: OutgoingTimeouts, body: RequestBody) -> Exchange | ErrorCode:
    """Send a request, or say why it is refused. Does not wait."""
    if guest.conversation is None:
        # Start-up code runs once for all clients and nobody waits for it; no request is there to be charged.
        return "HTTP-request-denied", None
    if guest.subrequests >= guest.limits.subrequests_max:
        guest.log("stderr", f"more than {guest.limits.subrequests_max} outgoing requests in one request")
        return "HTTP-request-denied", None
    guest.subrequests += 1
    exchange = Exchange(guest, head, timeouts, body)
    return exchange.ended_by if exchange.over else exchange

"""The host's side of one isolate: what the guest holds, what it may still use, and how it ended.

One ``Guest`` lives as long as its isolate. Everything a guest can name, fill or repeat is in here with a cap: the
resource table, the headers, the log. It lives on the host's side, so it outlives a torn isolate: logs and usage of a
killed request can still be told.

**Time stands still while guest code runs.** Every clock shows the time of the last input or output; a tight loop
reads one value. ``io_happened`` is the only place where time moves.

**Ending a guest.** A host function or the epoch tick calls ``end(outcome)``, which raises ``GuestTrap`` after noting
why. The first reason stays.
"""

import logging
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NoReturn

from isolates.component_value import GuestTrap, Scratch
from isolates.conversation import Conversation, ConversationLost, FieldItems
from isolates.egress import Denied, Egress
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.stores import NoStores, Stores

if TYPE_CHECKING:
    from isolates.wasi.http.exchange import Exchange

_log = logging.getLogger(__name__)

#: What one piece of log counts at least, because each is an object of that size for the host: bounds a guest that
#: writes byte by byte to 4,096 pieces of the default 256 KiB.
_LOG_PIECE_BYTES_MIN = 64
#: What is written in pieces is one line up to this; as much as an event of a span shows.
_LOG_LINE_CHARS_MAX = 4_096


class LogLine:
    """One piece of a guest's stdout or stderr, an event of its stage."""

    __slots__ = ("at_ns", "stream", "text")

    def __init__(self, at_ns: int, stream: str, text: str) -> None:
        self.at_ns, self.stream, self.text = at_ns, stream, text


class Guest:
    """One isolate as the host functions see it. Used by one thread at a time."""

    def __init__(self, limits: IsolateLimits, entropy: Callable[[int], bytes]) -> None:
        self.limits = limits
        self.entropy = entropy
        #: The version's variables: the guest's environment.
        self.variables: tuple[tuple[str, str], ...] = ()
        #: The key-value stores that the version binds, and operations on them that this request tried.
        self.stores: Stores = NoStores()
        self.store_operations = 0
        self.scratch = Scratch()
        self.fault: BaseException | None = None
        self.ended: Outcome | None = None
        self.conversation: Conversation | None = None
        self.egress: Egress = Denied()
        self.response: Any = None
        self.host_calls = 0
        #: Outgoing requests that this request tried, and those of them that are open or wait for their turn.
        self.subrequests = 0
        self.exchanges: list[Exchange] = []
        #: Body bytes that wait in this process until they may go, of all bodies of the request.
        self.held_bytes = 0
        #: What was read of a stream and is about to be handed over: see ``wasi.bulk``. At most one read.
        self.filled = b""
        self.logs: list[LogLine] = []
        self._log_bytes = 0
        self.log_truncated = False
        self._table: dict[int, Any] = {}
        self._last_rep = 0
        self.deadline_s = float("inf")
        self.io_happened()

    # ------------------------------------------------------------------------------------------ resource table

    def lend(self, thing: Any) -> int:
        """Put a thing into the table and return its number, which the guest's handle stands for."""
        if len(self._table) >= self.limits.resources_max:
            raise GuestTrap(f"more than {self.limits.resources_max} live resources")
        # Numbers are used again only after 2**32 lends; one request cannot get there under its CPU limit.
        self._last_rep = (self._last_rep + 1) & 0xFFFF_FFFF
        self._table[self._last_rep] = thing
        return self._last_rep

    def borrowed(self, rep: int) -> Any:
        """The thing behind a borrowed handle."""
        return self._table[rep]

    def take(self, rep: int) -> Any:
        """The thing behind an owned handle that the guest gave away."""
        return self._table.pop(rep)

    def dropped(self, rep: int) -> None:
        """The guest dropped its handle: forget the thing, telling it when it wants to know."""
        thing = self._table.pop(rep, None)
        on_drop = getattr(thing, "on_drop", None)
        if on_drop is not None:
            on_drop()

    @property
    def resources(self) -> int:
        """How many resources the guest holds."""
        return len(self._table)

    # ---------------------------------------------------------------------------------------------------- time

    def io_happened(self) -> None:
        """Let the guest's clocks move to now."""
        self.monotonic_ns = time.monotonic_ns()
        self.wall_ns = time.time_ns()

    def wait(
        self,
        timeout_s: float,
        *,
        for_body: bool = False,
        readable: Collection[int] = (),
        writable: Collection[int] = (),
    ) -> None:
        """Wait outside guest code, at most until the wall-time limit, and let the clocks move on.

        ``readable`` and ``writable`` are file descriptors that end the wait, as the request's body does.
        """
        began = time.monotonic()
        left_s = self.deadline_s - began
        if left_s <= 0:
            self.end(Outcome.EXCEEDED_WALL_TIME)
        conversation = self.conversation
        if conversation is None:
            # Start-up code has nobody to talk to; it may wait for a timer within its wall-time limit.
            time.sleep(max(0.0, min(timeout_s, left_s)))
        else:
            try:
                conversation.wait(
                    max(0.0, min(timeout_s, left_s)),
                    for_body=for_body,
                    readable=tuple(readable),
                    writable=tuple(writable),
                )
            except ConversationLost:
                self.end(Outcome.CANCELED)
        self.io_happened()
        if time.monotonic() >= self.deadline_s:
            self.end(Outcome.EXCEEDED_WALL_TIME)

    # ------------------------------------------------------------------------------------------------- endings

    def end(self, outcome: Outcome) -> NoReturn:
        """Stop the guest with ``outcome``, from inside a host function. Does not return."""
        if self.ended is None:
            self.ended = outcome
        raise GuestTrap(outcome.value)

    def response_is_whole(self, trailers: FieldItems = ()) -> None:
        """The response is complete. The client need not wait any longer, and the guest may go on for a while."""
        if self.conversation is not None:
            self.conversation.finish(trailers)
        self.deadline_s = min(self.deadline_s, time.monotonic() + self.limits.wait_until_ms / 1_000)

    def log(self, stream: str, text: str) -> None:
        """Keep a piece of stdout or stderr, up to ``log_bytes_max`` a request; the rest is dropped and marked so.

        What does not end a line is joined with what follows it.
        """
        room = self.limits.log_bytes_max - self._log_bytes
        if room <= 0:
            self.log_truncated = True
            return
        kept = text[:room]
        self.log_truncated |= len(kept) < len(text)
        self._log_bytes += max(len(kept), _LOG_PIECE_BYTES_MIN)
        last = self.logs[-1] if self.logs else None
        begun = last is not None and last.stream == stream and not last.text.endswith("\n")
        if last is not None and begun and len(last.text) + len(kept) <= _LOG_LINE_CHARS_MAX:
            last.text += kept  # an engine writes a line and its end by themselves
            return
        self.logs.append(LogLine(time.time_ns(), stream, kept))

    def begin(self, conversation: Conversation | None, *, wall_ms: float, egress: Egress | None = None) -> None:
        """Forget the last request and take the next (None: start-up code). Without ``egress`` there is no way out."""
        self.conversation = conversation
        self.egress = egress or Denied()
        self.subrequests = 0
        self.store_operations = 0
        self.response = None
        self.fault = None
        self.ended = None
        self.host_calls = 0
        self.logs = []
        self._log_bytes = 0
        self.log_truncated = False
        self.deadline_s = time.monotonic() + wall_ms / 1_000
        self.io_happened()

    def leave(self) -> None:
        """The request is over. What the guest keeps of it must not touch the next one, nor keep its bytes, nor keep a
        connection open."""
        self.conversation = None
        self.filled = b""
        self.egress = Denied()
        exchanges, self.exchanges = self.exchanges, []
        for exchange in exchanges:
            try:
                exchange.close()
            except Exception:
                # All the others must be closed too; this one's fault is the operator's to read.
                _log.exception("an outgoing request could not be closed")
        for thing in self._table.values():
            request_over = getattr(thing, "request_over", None)
            if request_over is not None:
                request_over()
        # Not at the next beginning: what start-up code has written is held still when the first request comes.
        self.held_bytes = 0

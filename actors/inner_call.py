"""A call between two guests of one host process: what one writes the other reads, in memory.

    caller's thread    Outgoing  ◄──── head, answer ────  Conversation    callee's thread
                                  ───── body, gone ────►

Each end is used by its own thread, which waits for the other one in a call of the kernel, together with sockets: a
``Bell`` is readable when there may be something new. Where nobody waits, nothing is rung: each call of the kernel gives
the GIL up, and to the very thread that is about to run. Every field is written by one of the two threads only, as its
comment says.

Nothing grows without a bound: a caller's body waits for its reader at ``HELD_BYTES_MAX``, and so does an answer. As on
a link (``host_conversation``), an answer is held back until its guest waits, 64 KiB are held or it ends, and once it is
whole its reader may leave.
"""

import select
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from actors.bells import Bell, Bells
from actors.exchange import Ended, status_of
from actors.nested_answer import OUTCOME_HEADER, status_for_caller
from actors.stage_calls import stripped
from isolates.conversation import BodyLost, ConversationLost, FieldItems, RequestHead, ResponseHead
from isolates.egress import AnswerLost, ErrorCode

#: Of a body, either way: two pieces of what a guest may write at once.
HELD_BYTES_MAX = 128 * 1024
_PIECE_BYTES_MAX = 64 * 1024
#: A reader that takes nothing for this long is gone, as on a link.
_STALLED_S = 30.0
_BROKEN_OFF: ErrorCode = ("HTTP-response-incomplete", None)


class Pipe:
    """Bytes on their way from one thread to another."""

    __slots__ = ("pieces", "put_bytes", "taken_bytes", "whole")

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.put_bytes = 0  # written by the writer, as is ``whole``
        self.taken_bytes = 0  # written by the reader
        #: Nothing follows.
        self.whole = False

    @property
    def held_bytes(self) -> int:
        """What was put in and not taken yet."""
        return self.put_bytes - self.taken_bytes

    def has_room(self, bytes_: int) -> bool:
        """Whether so much may be put in now. One piece always may."""
        held_bytes = self.held_bytes
        return not held_bytes or held_bytes + bytes_ <= HELD_BYTES_MAX

    def put(self, data: bytes) -> None:
        """Add a piece."""
        self.put_bytes += len(data)
        self.pieces.append(data)

    def take(self, bytes_max: int) -> bytes:
        """A piece, or a part of it; nothing when there is none."""
        if not self.pieces:
            return b""
        data = self.pieces[0]
        if len(data) > bytes_max:
            self.pieces[0], data = data[bytes_max:], data[:bytes_max]
        else:
            self.pieces.popleft()
        self.taken_bytes += len(data)
        return data


class InnerCall:
    """One call. Made by the caller's thread; ``outgoing`` is its end of it, ``conversation`` the callee's.

    Both threads let go of it, in any order, and its bells are given back with the last of them.
    """

    def __init__(self, head: RequestHead, bells: Bells) -> None:
        self.head = head
        self.bells = bells
        self.body, self.answer = Pipe(), Pipe()
        self.answer_head: ResponseHead | None = None  # written by the callee
        self.ended: Ended | None = None  # written by the callee
        #: The caller wants nothing more of it.
        self.gone = False  # written by the caller
        self.caller_bell, self.callee_bell = bells.take(), bells.take()
        #: Made when the caller first has to wait for room.
        self.room_bell: Bell | None = None  # written by the caller
        self._holds = [0, 1]
        self.outgoing = InnerOutgoing(self)
        self.conversation = InnerConversation(self)

    @property
    def is_answered(self) -> bool:
        """Whether its caller has all that it will read, or is about to."""
        return self.gone or self.answer.whole

    def end(self, ended: Ended) -> None:
        """The callee is over: the last word of its thread."""
        self.ended = ended
        self.caller_bell.ring()
        if self.room_bell is not None:
            self.room_bell.ring()
        self.let_go()

    def let_go(self) -> None:
        """One of the two threads is done with it; each says so once."""
        if self._holds.pop() == 0:
            for bell in (self.caller_bell, self.callee_bell, self.room_bell):
                if bell is not None:
                    self.bells.give_back(bell)


class InnerOutgoing:
    """The caller's end: an ``Outgoing``."""

    __slots__ = ("_call", "_closed", "_has_head", "_page")

    def __init__(self, call: InnerCall) -> None:
        self._call = call
        self._closed = False
        self._has_head = False
        #: What stands for an ending without a head.
        self._page: Pipe | None = None

    def fileno(self) -> int:
        call = self._call
        call.caller_bell.listen()
        if self._has_news:
            call.caller_bell.ring()
        return call.caller_bell.fileno()

    @property
    def _has_news(self) -> bool:
        call = self._call
        if call.ended is not None or call.answer.whole or call.answer.pieces:
            return True
        return call.answer_head is not None and not self._has_head

    # ------------------------------------------------------------------------------------------------ request body

    def writable(self) -> bool:
        call = self._call
        if call.room_bell is not None:
            call.room_bell.quiet()
        return call.ended is not None or call.body.has_room(_PIECE_BYTES_MAX)

    def wait_for_room(self, readable: set[int], writable: set[int]) -> None:
        call = self._call
        if call.room_bell is None:
            call.room_bell = call.bells.take()
        call.room_bell.listen()
        if call.ended is not None or call.body.has_room(_PIECE_BYTES_MAX):
            call.room_bell.ring()
        readable.add(call.room_bell.fileno())

    def send(self, data: bytes) -> bool:
        call = self._call
        if call.ended is not None or self._closed:
            return False
        call.body.put(data)
        call.callee_bell.ring()
        return True

    def finish(self) -> None:
        if not self._closed:
            self._call.body.whole = True
            self._call.callee_bell.ring()

    # ------------------------------------------------------------------------------------------------------ answer

    def head(self) -> ResponseHead | ErrorCode | None:
        call = self._call
        call.caller_bell.quiet()
        ended = call.ended  # before the look at what has come: all that it wrote, it wrote before
        self._has_head = call.answer_head is not None or ended is not None
        if call.answer_head is not None or ended is None:
            return call.answer_head
        if self._page is None:
            self._page = Pipe()
            self._page.put(status_of(ended.outcome).text.encode() + b"\n")
            self._page.whole = True
        return ResponseHead(
            status_for_caller(ended.outcome),
            ((OUTCOME_HEADER, ended.outcome.value.encode()), ("content-type", b"text/plain; charset=utf-8")),
        )

    def body_ready(self) -> bool:
        call = self._call
        if self._page is not None:
            return True
        call.caller_bell.quiet()
        return bool(call.answer.pieces) or call.answer.whole or call.ended is not None

    def read_body(self, bytes_max: int) -> bytes | None:
        call = self._call
        answer = self._page or call.answer
        over = call.ended is not None or answer.whole  # before the look at what has come
        whole = answer.whole
        data = answer.take(bytes_max)
        if data:
            if not self._closed and call.ended is None:
                call.callee_bell.ring()
            return data
        if not over:
            return b""
        if whole:
            return None
        raise AnswerLost(_BROKEN_OFF)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._call.gone = True
            self._call.callee_bell.ring()
            self._call.let_go()


class InnerConversation:
    """The callee's end: a ``Conversation``."""

    def __init__(self, call: InnerCall) -> None:
        self._call = call
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._whole = False
        self._held_head: ResponseHead | None = None
        self.status: int | None = None
        self.body_read_bytes = 0
        self.body_sent_bytes = 0

    @property
    def head(self) -> RequestHead:
        return self._call.head

    # ------------------------------------------------------------------------------------------------ request body

    def body_ready(self) -> bool:
        call = self._call
        return bool(call.body.pieces) or call.body.whole or call.gone

    def read_body(self, bytes_max: int) -> bytes | None:
        call = self._call
        whole, gone = call.body.whole, call.gone  # before the look at what has come
        data = call.body.take(bytes_max)
        if data:
            self.body_read_bytes += len(data)
            if call.room_bell is not None:
                call.room_bell.ring()
            return data
        if whole:
            return None
        if gone:
            raise BodyLost
        return b""

    def trailers(self) -> FieldItems | None:
        return None  # an outgoing request has none

    # ---------------------------------------------------------------------------------------------------- waiting

    def wait(
        self, timeout_s: float, *, for_body: bool, readable: Sequence[int] = (), writable: Sequence[int] = ()
    ) -> None:
        self.flush()
        call = self._call
        if for_body and self.body_ready():
            return
        bell = call.callee_bell
        events = dict.fromkeys(readable, select.POLLIN)
        for descriptor in writable:
            events[descriptor] = events.get(descriptor, 0) | select.POLLOUT
        if for_body or not self._whole:
            # Else nobody is waited for: the caller of a whole answer may leave.
            events[bell.fileno()] = select.POLLIN
            bell.listen()
            if call.gone or (for_body and self.body_ready()):
                bell.ring()
        poll = select.poll()
        for descriptor, event in events.items():
            poll.register(descriptor, event)
        poll.poll(timeout_s * 1e3)
        bell.quiet()
        if not self.listening():
            raise ConversationLost

    def listening(self) -> bool:
        return self._whole or not self._call.gone

    # ---------------------------------------------------------------------------------------------------- response

    def inform(self, head: ResponseHead) -> None:
        pass  # dropped, as on every other way

    def send_head(self, head: ResponseHead) -> None:
        self.status = head.status
        self._held_head = ResponseHead(head.status, stripped(head.headers))

    def send(self, data: bytes) -> None:
        if not data:
            return
        self.body_sent_bytes += len(data)
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes >= _PIECE_BYTES_MAX:
            self.flush()

    def finish(self, trailers: FieldItems = ()) -> None:
        self._whole = True

    def flush(self) -> None:
        call = self._call
        if self._held_head is None and not self._held and self._whole == call.answer.whole:
            return
        if self._held_head is not None:
            call.answer_head, self._held_head = self._held_head, None
        held, self._held, self._held_bytes = self._held, [], 0
        for data in held:
            if not call.answer.has_room(len(data)):
                self._wait_for_room(len(data))
            call.answer.put(data)
        call.answer.whole = self._whole
        if not call.gone:
            call.caller_bell.ring()
        elif not self._whole:
            raise ConversationLost

    def _wait_for_room(self, bytes_: int) -> None:
        """Until there is room for so much of the answer. ``ConversationLost`` when its reader has gone, or stands."""
        call = self._call
        call.caller_bell.ring()
        poll = select.poll()
        poll.register(call.callee_bell.fileno(), select.POLLIN)
        while True:
            call.callee_bell.listen()
            if call.gone or call.answer.has_room(bytes_):
                break
            if not poll.poll(_STALLED_S * 1e3):
                raise ConversationLost
            call.callee_bell.quiet()
        call.callee_bell.quiet()
        if call.gone and not self._whole:
            raise ConversationLost

    def pass_on(self) -> None:
        """The guest is over: what it wrote last goes to whoever still reads. Safe to call again."""
        with suppress(ConversationLost):
            self.flush()

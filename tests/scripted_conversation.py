"""A conversation in memory: the request body is given beforehand, the response is collected.

It behaves like the real one in what matters to a guest: the body arrives in the chunks it was given in, only when it
is pulled; ``BodyLost`` and ``ConversationLost`` happen where the test says; nothing is sent after ``finish``. What the
real one drops because the edge cannot send it is kept here: informational heads and trailers.
"""

import select
import time
from collections.abc import Sequence

from isolates.conversation import BodyLost, ConversationLost, FieldItems, RequestHead, ResponseHead


class ScriptedConversation:
    def __init__(
        self,
        path: str = "/",
        *,
        method: str = "GET",
        headers: tuple[tuple[str, bytes], ...] = (),
        body: list[bytes] | None = None,
        body_breaks: bool = False,
        trailers: FieldItems | None = None,
        client_leaves_after_s: float = float("inf"),
    ) -> None:
        self.head = RequestHead(method, "https", "test.localhost", path, headers)
        self._chunks = list(body or [])
        self._breaks = body_breaks
        self._trailers = trailers
        self._leaves_at = time.monotonic() + client_leaves_after_s
        self.informed: list[ResponseHead] = []
        self.response: ResponseHead | None = None
        self.trailers_sent: FieldItems = ()
        self.sent: list[tuple[float, bytes]] = []
        self.finished = False
        self.pulled_bytes = 0

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.sent)

    def body_ready(self) -> bool:
        return True

    def read_body(self, bytes_max: int) -> bytes | None:
        if not self._chunks:
            if self._breaks:
                raise BodyLost
            return None
        chunk = self._chunks.pop(0)
        if len(chunk) > bytes_max:
            self._chunks.insert(0, chunk[bytes_max:])
            chunk = chunk[:bytes_max]
        self.pulled_bytes += len(chunk)
        return chunk

    def trailers(self) -> FieldItems | None:
        return None if self._chunks else self._trailers

    def wait(
        self, timeout_s: float, *, for_body: bool, readable: Sequence[int] = (), writable: Sequence[int] = ()
    ) -> None:
        left_s = self._leaves_at - time.monotonic()
        poll = select.poll()
        for descriptor in {*readable, *writable}:
            events = select.POLLIN * (descriptor in readable) | select.POLLOUT * (descriptor in writable)
            poll.register(descriptor, events)
        poll.poll(1e3 * max(0.0, min(timeout_s, left_s)))
        if not self.listening():
            raise ConversationLost

    def inform(self, head: ResponseHead) -> None:
        assert self.response is None, "too late to inform"
        self.informed.append(head)

    def send_head(self, head: ResponseHead) -> None:
        assert self.response is None, "a second head"
        self.response = head

    def send(self, data: bytes) -> None:
        assert self.response is not None, "body before head"
        assert not self.finished, "body after the end"
        self.sent.append((time.monotonic(), data))

    def finish(self, trailers: FieldItems = ()) -> None:
        assert not self.finished, "a second end"
        self.finished = True
        self.trailers_sent = trailers

    def flush(self) -> None:
        if not self.listening():
            raise ConversationLost

    def listening(self) -> bool:
        return time.monotonic() < self._leaves_at

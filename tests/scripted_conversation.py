"""A conversation in memory: the request body is given beforehand, the response is collected.

It behaves like the real one in what matters to a guest: the body arrives in the chunks it was given in, only when it
is pulled; ``BodyLost`` and ``ConversationLost`` happen where the test says; nothing is sent after ``finish``.
"""

import threading
import time

from isolates.conversation import BodyLost, ConversationLost, RequestHead, ResponseHead


class ScriptedConversation:
    def __init__(
        self,
        path: str = "/",
        *,
        method: str = "GET",
        headers: tuple[tuple[str, bytes], ...] = (),
        body: list[bytes] | None = None,
        body_breaks: bool = False,
        client_leaves_after_s: float = float("inf"),
    ) -> None:
        self.head = RequestHead(method, "https", "test.localhost", path, headers)
        self._chunks = list(body or [])
        self._breaks = body_breaks
        self._leaves_at = time.monotonic() + client_leaves_after_s
        self.response: ResponseHead | None = None
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

    def wait(self, timeout_s: float, *, for_body: bool) -> None:
        left_s = self._leaves_at - time.monotonic()
        threading.Event().wait(max(0.0, min(timeout_s, left_s)))
        if not self.listening():
            raise ConversationLost

    def send_head(self, head: ResponseHead) -> None:
        assert self.response is None, "a second head"
        self.response = head

    def send(self, data: bytes) -> None:
        assert self.response is not None, "body before head"
        assert not self.finished, "body after the end"
        self.sent.append((time.monotonic(), data))

    def finish(self) -> None:
        assert not self.finished, "a second end"
        self.finished = True

    def flush(self) -> None:
        if not self.listening():
            raise ConversationLost

    def listening(self) -> bool:
        return time.monotonic() < self._leaves_at

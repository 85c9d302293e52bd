"""A conversation in memory, as light as one can be: what is timed is the isolate and not its other end."""

import select
import time
from collections.abc import Sequence

from isolates.conversation import FieldItems, RequestHead, ResponseHead


class LightConversation:
    """One request whose body is given beforehand; the answer is collected. Nobody ever leaves."""

    __slots__ = ("_chunks", "finished", "head", "response", "sent")

    def __init__(self, path: str = "/", *, method: str = "GET", chunks: tuple[bytes, ...] = ()) -> None:
        self.head = RequestHead(method, "https", "benchmark.localhost", path)
        self._chunks = list(reversed(chunks))
        self.response: ResponseHead | None = None
        self.sent: list[bytes] = []
        self.finished = False

    @property
    def body(self) -> bytes:
        """The answer's body so far."""
        return b"".join(self.sent)

    def body_ready(self) -> bool:
        """All of it is here."""
        return True

    def read_body(self, bytes_max: int) -> bytes | None:
        """The next chunk as it was given, or its first ``bytes_max`` bytes."""
        if not self._chunks:
            return None
        chunk = self._chunks.pop()
        if len(chunk) > bytes_max:
            self._chunks.append(chunk[bytes_max:])
            chunk = chunk[:bytes_max]
        return chunk

    def trailers(self) -> FieldItems | None:
        """None."""
        return None

    def wait(
        self, timeout_s: float, *, for_body: bool, readable: Sequence[int] = (), writable: Sequence[int] = ()
    ) -> None:
        """Wait for a guest's timer, or for what it waits for outside; its body is here."""
        if readable or writable:
            select.select(readable, writable, (), 0.0 if for_body else timeout_s)
        elif not for_body:
            time.sleep(timeout_s)

    def inform(self, head: ResponseHead) -> None:
        """Dropped."""

    def send_head(self, head: ResponseHead) -> None:
        """Keep it."""
        self.response = head

    def send(self, data: bytes) -> None:
        """Keep it."""
        self.sent.append(data)

    def finish(self, trailers: FieldItems = ()) -> None:
        """The answer is whole."""
        self.finished = True

    def flush(self) -> None:
        """Nothing is held back."""

    def listening(self) -> bool:
        """Always."""
        return True

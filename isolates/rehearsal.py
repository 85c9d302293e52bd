"""A first request before the first request.

An engine does much at its first request that it never does again: it compiles the functions on the way, builds its
classes, fills its caches. That takes milliseconds, and dirties some 150 pages of the isolate's memory that it would
otherwise share with all others. So workers that this project's own build makes can be *rehearsed* at deploy: the glue
around the worker answers a few requests by itself, without calling the worker, and the state that this leaves becomes
the state in which isolates begin (``snapshot``).

Whoever builds such a component vouches for it with a mark, a custom section: that its glue knows a rehearsal by its
authority and keeps the worker's code out of it; that its code changes no tables and drops no segments; and that nothing
which must differ between isolates (random numbers, the environment) is settled in a rehearsal. The mark is a promise
about the component itself, so one that lies harms only its own worker.

The authority is in the domain ``.invalid`` (RFC 6761), which no client's request can reach a worker by.
"""

from isolates.conversation import RequestHead, ResponseHead
from isolates.immortal import LIST_BYTES_MAX
from isolates.wasm_binary import COMPONENT_PREAMBLE, CUSTOM, NotUnderstood, Reader, name, section, sections

MARK = b"everwarm-rehearsal"
#: The mark of a build whose glue also lists its interpreter's objects when it is asked to (``immortal``).
LISTING_MARK = b"everwarm-objects"
AUTHORITY = "rehearsal.invalid"
#: Twice round, so that what the second request of a kind does is settled too. A piece of body is as long as a host's.
REHEARSALS = (("/text", b""), ("/json", b""), ("/body", b"r" * 1_000), ("/stream", b"r" * 70_000)) * 2


def marked(component: bytes, *marks: bytes) -> bytes:
    """The component with the mark, and ``marks`` beside it, for builds whose glue keeps its promise."""
    for mark in (MARK, *marks):
        if not is_marked(component, mark):
            component += section(CUSTOM, name(mark))
    return component


def is_marked(component: bytes, mark: bytes = MARK) -> bool:
    """Whether the component's build vouches for its rehearsal, or for what ``mark`` says."""
    try:
        custom = (payload for number, payload in sections(component, COMPONENT_PREAMBLE) if number == CUSTOM)
        return any(Reader(payload).name() == mark for payload in custom)
    except NotUnderstood:
        return False


class Rehearsal:
    """One rehearsed request: a conversation with nobody."""

    #: Of an answer is kept what the longest that anybody looks at has; the rest of a longer one is dropped.
    KEPT_BYTES_MAX = LIST_BYTES_MAX

    def __init__(self, path: str, body: bytes) -> None:
        headers = (("host", AUTHORITY.encode()), ("accept", b"*/*"), ("user-agent", b"rehearsal"))
        self.head = RequestHead("POST" if body else "GET", "https", AUTHORITY, path, headers)
        self.answered: ResponseHead | None = None
        self.finished = False
        self.body = bytearray()
        self._unread = body

    def body_ready(self) -> bool:
        """Always: all of it is here."""
        return True

    def read_body(self, bytes_max: int) -> bytes | None:
        """The next piece of the body."""
        piece, self._unread = self._unread[:bytes_max], self._unread[bytes_max:]
        return piece or None

    def trailers(self) -> tuple[tuple[str, bytes], ...] | None:
        """None were sent."""
        return None

    def wait(self, timeout_s: float, **until: object) -> None:
        """Nothing comes that is not here already."""

    def inform(self, head: ResponseHead) -> None:
        """Nobody hears it."""

    def send_head(self, head: ResponseHead) -> None:
        """The answer's head."""
        self.answered = head

    def send(self, data: bytes) -> None:
        """Keep it: most of it nobody looks at."""
        self.body += data[: self.KEPT_BYTES_MAX - len(self.body)]

    def finish(self, trailers: object = ()) -> None:
        """The answer is whole."""
        self.finished = True

    def flush(self) -> None:
        """Nothing is held back."""

    def listening(self) -> bool:
        """Always."""
        return True

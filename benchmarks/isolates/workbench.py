"""What a measurement works with: this process's sandbox, the guests that were prepared, and how isolates are asked."""

import secrets
import statistics
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from benchmarks.isolates.conversation import LightConversation
from benchmarks.isolates.guests import Prepared
from isolates.artifact import ArtifactStore, Compiled, Mapped
from isolates.engine import Sandbox, sandbox
from isolates.isolate import Finished, Isolate, StartFailed
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome

#: What the guests get: room enough that no limit is what is measured, where none is meant.
LIMITS = IsolateLimits(cpu_ms=10_000, startup_cpu_ms=5_000)


class NotHere(Exception):
    """This machine lacks what a measurement needs; the message says what, in one line."""


class WrongAnswer(Exception):
    """A guest did not do what it is measured at, so there is no figure."""


class Workbench:
    """One measurement's surroundings, in a process that does nothing else."""

    def __init__(self, store: Path, guests: dict[str, Prepared], *, quick: bool) -> None:
        self._directory = store
        self._guests = guests
        self._quick = quick

    @cached_property
    def box(self) -> Sandbox:
        """This process's sandbox, made when it is first wanted: threads that it starts are born into what was set up
        before, such as the cores they may use."""
        return sandbox()

    @cached_property
    def _store(self) -> ArtifactStore:
        return ArtifactStore(self._directory)

    def samples(self, count: int, *, quick: int) -> int:
        """How many runs to make: ``count``, or in a quick run ``quick``."""
        return quick if self._quick else count

    def component(self, guest: str) -> bytes:
        """The guest as its toolchain made it."""
        return Path(self._guests[guest].component).read_bytes()

    def copy_compiled(self, guest: str, target: ArtifactStore) -> Compiled:
        """Install the guest, as it was compiled, in another store."""
        compiled = self._store.compiled(self._guests[guest].digest)
        assert compiled is not None, "a guest that was prepared"
        for piece in compiled.pieces:
            target.install_piece(piece, self._store.piece_path(piece.source_digest).read_bytes())
        target.install(compiled)
        return compiled

    def folder(self, guest: str) -> str:
        """Which worker it is, as its folder is called: ``c/hello``."""
        return "/".join(Path(self._guests[guest].component).parent.parts[-2:])

    def mapped(self, guest: str) -> Mapped:
        """The guest's artifact, mapped once in this process."""
        return self._store.map(self.box, self._guests[guest].digest)

    def mapping(self, guest: str) -> Callable[[], Mapped]:
        """A function that maps the artifact anew, as a process does that has not seen it."""
        box, store, digest = self.box, ArtifactStore(self._directory), self._guests[guest].digest
        return lambda: store.map(box, digest)

    def mapping_beside(self, guest: str, neighbour: str) -> Callable[[], Callable[[], Mapped]]:
        """Functions that map the artifact anew in a process that keeps ``neighbour`` mapped, and the engine with it."""
        box, store, digest = self.box, ArtifactStore(self._directory), self._guests[guest].digest
        kept = store.map(box, self._guests[neighbour].digest)

        def prepare() -> Callable[[], Mapped]:
            assert kept.digest != digest
            store.forget(digest)
            return lambda: store.map(box, digest)

        return prepare

    def start(self, mapped: Mapped, limits: IsolateLimits = LIMITS) -> Isolate:
        """A new isolate. ``WrongAnswer`` when it does not start."""
        isolate = Isolate.start(self.box, mapped, limits, secrets.token_bytes)
        if isinstance(isolate, StartFailed):
            raise WrongAnswer(f"an isolate did not start: {isolate.reason}")
        return isolate

    def ask(self, isolate: Isolate, path: str = "/") -> LightConversation:
        """One GET, whose answer is looked at."""
        conversation = LightConversation(path)
        expect_answer(isolate.run(conversation), conversation)
        return conversation


def expect_answer(finished: Finished, conversation: LightConversation) -> None:
    """``WrongAnswer`` unless the request ended well, with status 200 and all of its body."""
    response = conversation.response
    if finished.outcome is not Outcome.OK or response is None or response.status != 200 or not conversation.finished:
        raise WrongAnswer(f"a guest ended with {finished.outcome}: {finished.reason or conversation.body[:200]!r}")


def median_ms(runs: int, run: Callable[[], object]) -> float:
    """The median time of one call of ``run``, of ``runs`` calls."""
    times_s = []
    for _ in range(runs):
        began = time.perf_counter()
        run()
        times_s.append(time.perf_counter() - began)
    return statistics.median(times_s) * 1e3

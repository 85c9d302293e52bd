"""What stages of a request tree tell about themselves and each other, for its tail workers. Pure.

These values travel to the machine that keeps the tree's ``flow``. A caller speaks of its callees as it saw them, a
stage of itself as it was; what is made of both is the flow's.
"""

from dataclasses import dataclass, replace
from typing import Final

from isolates.outcome import Outcome

#: What a line of log weighs beside its text; an event with empty lines has a bound, too.
_LINE_BYTES: Final = 64
_URL_CHARS_MAX: Final = 2_048
_EXCEPTION_CHARS_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Stage:
    """Who holds the flow: a call, by the id that its caller gave it. ``run``: 0, and one more each time that it is run
    again after a loss. ``under``: the stages under whose layers it runs. ``tails`` and the namespaces out of which it
    ``dispatches`` are its version's own."""

    stage: str
    parent: str
    worker: str
    version: str = ""
    machine: str = ""
    run: int = 0
    under: tuple[str, ...] = ()
    chosen_by: str = ""
    tails: tuple[str, ...] = ()
    dispatches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a guest's log, or a piece of its stdout or stderr. ``at_ms``: unix time on its machine."""

    at_ms: int
    level: str
    text: str


@dataclass(frozen=True, slots=True)
class Ending:
    """How a stage ended, and what it was. Times are of the machine where it ran: never subtract them from others'."""

    outcome: Outcome
    cpu_ms: float = 0.0
    wall_ms: float = 0.0
    start_type: str = ""
    cold_cause: str = ""
    at_ms: int = 0
    method: str = ""
    url: str = ""
    status: int | None = None
    exception: str = ""
    lines: tuple[Line, ...] = ()
    truncated: bool = False

    @property
    def log_bytes(self) -> int:
        """What its lines weigh."""
        return sum(_LINE_BYTES + len(line.text) for line in self.lines)

    def cut(self, bytes_max: int) -> "Ending":
        """With as many of its first lines as weigh at most that, and marked if something is missing."""
        kept: list[Line] = []
        for line in self.lines:
            bytes_max -= _LINE_BYTES + len(line.text)
            if bytes_max < 0:
                break
            kept.append(line)
        exception, url = self.exception[:_EXCEPTION_CHARS_MAX], self.url[:_URL_CHARS_MAX]
        whole = len(kept) == len(self.lines) and (exception, url) == (self.exception, self.url)
        return replace(
            self, lines=tuple(kept), exception=exception, url=url, truncated=self.truncated or not whole
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its caller saw it. ``ending``: None when the caller did not wait for it. ``ran``: false when no guest
    was reached (shed, no such worker), so that nobody else will tell."""

    stage: Stage
    ending: Ending | None = None
    ran: bool = True


@dataclass(frozen=True, slots=True)
class Report:
    """A stage is over, everything of it. ``calls``: all that it made, answered or not."""

    stage: Stage
    ending: Ending
    calls: tuple[Call, ...] = ()

"""What a host remembers of versions beyond their isolates: what starts cost, why the next is cold, who failed. Pure.

A failed start is remembered for seconds, so that a broken worker costs one start in a while and not one a request. The
rest is remembered for as long as there is place, and what was not needed for longest is forgotten.
"""

from collections import OrderedDict
from dataclasses import dataclass

from actors.exchange import ColdCause


@dataclass(frozen=True, slots=True)
class PastLimits:
    """Bounds of what is remembered."""

    #: Versions, some 300 bytes each.
    versions_max: int = 65_536
    failure_remembered_s: float = 3.0
    #: How much one start counts in what is usual: some twenty back.
    usual_step: float = 0.05


@dataclass(frozen=True, slots=True)
class Failure:
    """A start that failed: ``why`` is the host's word, for those who wait for nothing else."""

    until_s: float
    why: object


@dataclass(frozen=True, slots=True)
class Cost:
    """What an isolate of a version was, when last measured: ``start_ms`` to start it, ``bytes_`` that it holds."""

    start_ms: float
    bytes_: int


class PastStarts:
    """The memory of one host."""

    def __init__(self, limits: PastLimits) -> None:
        self.limits = limits
        self._failures: dict[str, Failure] = {}
        self._causes: OrderedDict[str, ColdCause] = OrderedDict()
        self._costs: OrderedDict[str, Cost] = OrderedDict()
        self._usual_ms = 1.0

    def failed(self, version: str, why: object, now_s: float) -> None:
        """A start of ``version`` failed."""
        if len(self._failures) >= self.limits.versions_max:
            self._failures.clear()
        self._failures[version] = Failure(now_s + self.limits.failure_remembered_s, why)

    def failure(self, version: str, now_s: float) -> Failure | None:
        """The failed start of ``version`` that is still remembered."""
        failure = self._failures.get(version)
        if failure is not None and failure.until_s <= now_s:
            del self._failures[version]
            return None
        return failure

    def gone(self, version: str, cause: ColdCause) -> None:
        """The last isolate of ``version`` went: ``cause`` is that of its next cold start."""
        self._causes[version] = cause
        if len(self._causes) > self.limits.versions_max:
            self._causes.popitem(last=False)

    def cause(self, version: str, hint: ColdCause) -> ColdCause:
        """Why ``version`` must be started now; ``hint`` when it was never here. Asked once for each start."""
        return self._causes.pop(version, hint)

    def measured(self, version: str, start_ms: float, bytes_: int) -> None:
        """An isolate of ``version`` was measured. ``bytes_`` 0: its memory was not."""
        self._usual_ms += self.limits.usual_step * (start_ms - self._usual_ms)
        before = self._costs.pop(version, None)
        self._costs[version] = Cost(start_ms, bytes_ or (before.bytes_ if before is not None else 0))
        if len(self._costs) > self.limits.versions_max:
            self._costs.popitem(last=False)

    def cost(self, version: str) -> Cost | None:
        """What an isolate of ``version`` was, if one ever was."""
        return self._costs.get(version)

    def expected(self, version: str) -> Cost:
        """The same; one that never was here is taken for one like the others, of unknown size (0)."""
        return self._costs.get(version) or Cost(self._usual_ms, 0)

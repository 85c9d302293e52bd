"""Which finished traces are kept.

What is worth looking at is always kept: starts that were not warm, failures, refusals, hops, slow ones. Of the rest
the first few of each second, so that an idle cluster shows everything, and of what is left a ratio. The ratio goes by
the trace id, so that two collectors that see parts of one trace agree without talking.

Nothing is kept without end: failures come in floods, and a client may choose trace ids. One ceiling is above all.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tracing.summary import TraceSummary

_ALWAYS_STARTS = frozenset({"cold", "prewarm"})


@dataclass(frozen=True, slots=True)
class SamplingRates:
    """`steady_per_s`: of the unremarkable, kept each second before the ratio is asked (50: more than one can read).

    `ratio` of the rest, 0 to 1 (0.01: 100 of 10,000 requests a second). `slow_ms`: slower than this is remarkable
    (250 ms is felt). `ceiling_per_s`: of all, remarkable or not (500 traces of ten spans are about 2 MB/s of OTLP).
    A bucket holds two seconds of its rate: requests come in bursts.
    """

    steady_per_s: float = 50.0
    ratio: float = 0.01
    slow_ms: float = 250.0
    ceiling_per_s: float = 500.0
    burst_s: float = 2.0


class Sampler:
    """Answers once for each finished trace. `now_s` is any clock that does not run backwards."""

    def __init__(self, rates: SamplingRates = SamplingRates()) -> None:
        self._rates = rates
        self._steady = _Bucket(rates.steady_per_s, rates.burst_s)
        self._ceiling = _Bucket(rates.ceiling_per_s, rates.burst_s)

    def __repr__(self) -> str:
        return f"<Sampler steady={self._steady.level:.1f} ceiling={self._ceiling.level:.1f}>"

    def remarkable(self, summary: TraceSummary) -> bool:
        """True when a trace is kept for what it is, not by chance."""
        return (
            summary.start_type in _ALWAYS_STARTS
            or summary.error
            or (summary.outcome is not None and summary.outcome != "ok")
            or summary.refused is not None
            or summary.hop
            or summary.duration_ms > self._rates.slow_ms
        )

    def keep(self, summary: TraceSummary, now_s: float) -> bool:
        """True when this trace is to be kept."""
        wanted = self.remarkable(summary) or self._steady.take(now_s) or self._by_ratio(summary.trace_id)
        return wanted and self._ceiling.take(now_s)

    def _by_ratio(self, trace_id: str) -> bool:
        # Hashed: not every client draws its ids at random.
        digest = hashlib.blake2b(trace_id.encode("ascii", "replace"), digest_size=7).digest()
        return int.from_bytes(digest, "big") < self._rates.ratio * 2**56


class _Bucket:
    def __init__(self, per_s: float, burst_s: float) -> None:
        self._per_s = per_s
        # A rate below one in two seconds still lets one through when its time has come.
        self._capacity = max(per_s * burst_s, 1.0) if per_s > 0 else 0.0
        self.level = self._capacity
        self._filled_s: float | None = None

    def take(self, now_s: float) -> bool:
        if self._filled_s is not None:
            self.level = min(self._capacity, self.level + max(0.0, now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s if self._filled_s is None else max(self._filled_s, now_s)
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True

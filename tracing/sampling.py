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
from tracing.token_bucket import TokenBucket

_ALWAYS_STARTS = frozenset({"cold", "prewarm"})


@dataclass(frozen=True, slots=True)
class SamplingRates:
    """`steady_per_s`: of the unremarkable, kept each second before the ratio is asked (20: more than one can read;
    what is kept costs its machine some tenths of a millisecond, most of which is the exporter's).

    `ratio` of the rest, 0 to 1 (0.01: 100 of 10,000 requests a second). `slow_ms`: slower than this is remarkable
    (250 ms is felt). `ceiling_per_s`: of all, remarkable or not (500 traces of ten spans are about 2 MB/s of OTLP).
    A bucket holds two seconds of its rate: requests come in bursts.
    """

    steady_per_s: float = 20.0
    ratio: float = 0.01
    slow_ms: float = 250.0
    ceiling_per_s: float = 500.0
    burst_s: float = 2.0


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """What an edge knows of a request before anybody reads its spans."""

    trace_id: str
    start_type: str | None
    outcome: str | None
    refused: str | None
    hop: bool
    error: bool
    duration_ms: float


Facts = TraceSummary | RequestFacts


class Sampler:
    """Answers once for each finished trace. `now_s` is any clock that does not run backwards."""

    def __init__(self, rates: SamplingRates = SamplingRates()) -> None:
        self._rates = rates
        self._steady = TokenBucket(rates.steady_per_s, rates.burst_s)
        self._ceiling = TokenBucket(rates.ceiling_per_s, rates.burst_s)

    def __repr__(self) -> str:
        return f"<Sampler steady={self._steady.level:.1f} ceiling={self._ceiling.level:.1f}>"

    def remarkable(self, facts: Facts) -> bool:
        """True when a trace is kept for what it is, not by chance."""
        return (
            facts.start_type in _ALWAYS_STARTS
            or facts.error
            or (facts.outcome is not None and facts.outcome != "ok")
            or bool(facts.refused)
            or facts.hop
            or facts.duration_ms > self._rates.slow_ms
        )

    def keep(self, facts: Facts, now_s: float) -> bool:
        """True when this trace is to be kept."""
        wanted = self.remarkable(facts) or self._steady.take(now_s) or in_ratio(facts.trace_id, self._rates.ratio)
        return wanted and self._ceiling.take(now_s)


class TreeSampler:
    """Answers once for each finished tree whose root an edge has judged already, by what it saw of the root alone.

    What the edge wanted stays. What it did not want is kept if a stage below is remarkable: its own start was cold, or
    it failed; then the edge's ceiling has not counted it, so that there is another one.
    """

    def __init__(self, rates: SamplingRates = SamplingRates()) -> None:
        self._roots = Sampler(rates)
        self._ceiling = TokenBucket(rates.ceiling_per_s, rates.burst_s)

    def remarkable(self, facts: TraceSummary) -> bool:
        """True when a tree is kept for what it is, not by chance."""
        return self._roots.remarkable(facts)

    def keep(self, facts: TraceSummary, now_s: float) -> bool:
        """True when this tree is to be kept."""
        return facts.sampled or (self.remarkable(facts) and self._ceiling.take(now_s))


def in_ratio(trace_id: str, ratio: float) -> bool:
    """Whether a trace is among that share of all: whoever asks, wherever, gets the same answer."""
    # Hashed: not every client draws its ids at random.
    digest = hashlib.blake2b(trace_id.encode("ascii", "replace"), digest_size=7).digest()
    return int.from_bytes(digest, "big") < ratio * 2**56

"""What a replay found: figures, their bounds, a table for people, one JSON line. Pure."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.replay.client import Sample
from benchmarks.replay.counters import group
from benchmarks.replay.site import Half
from benchmarks.warmth.report import columns, ratio, share

Number = int | float


@dataclass(frozen=True, slots=True)
class Found:
    """Both halves, and what was asked for."""

    asked: dict[str, Number | str]
    sharded: Half
    unsharded: Half


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure is held to; ``text`` says it."""

    figure: str
    text: str
    met: Callable[[dict[str, Number | None]], bool | None]


#: Different reasons of failed requests that are shown.
_FAULTS_SHOWN_MAX = 10
#: A sharded request may take so much longer than the Ray call that it needs.
_BEYOND_RAY_MS = 1.0


def _within_ray(figures: dict[str, Number | None]) -> bool | None:
    sharded, call = figures["sharded_p50_ms"], figures["ray_call_p50_ms"]
    return None if sharded is None or call is None else sharded <= call + _BEYOND_RAY_MS


BOUNDS = (
    Bound("cold_ratio", "at least 5", lambda figures: (figures["cold_ratio"] or 0) >= 5),
    Bound("failed", "0", lambda figures: figures["failed"] == 0),
    Bound("sharded_p50_ms", "at most ray_call_p50_ms + 1", _within_ray),
)


def figures(found: Found) -> dict[str, Number | None]:
    """The figures of the whole. None: there was no such request."""
    ours, theirs = found.sharded, found.unsharded
    warm_away = [s.latency_ms for s in ours.samples if s.start_type == "warm" and s.hop]
    warm_here = [s.latency_ms for s in ours.samples if s.start_type == "warm" and not s.hop]
    return {
        "cold_ratio": ratio(cold_starts(theirs), cold_starts(ours)),
        "eviction_ratio": ratio(theirs.counts["host.evictions"], ours.counts["host.evictions"]),
        "failed": sum(sample.failed for half in (ours, theirs) for sample in half.samples),
        "sharded_p50_ms": quantile(warm_away, 0.5),
        "ray_call_p50_ms": quantile(ours.ray_call_ms, 0.5),
        "local_p50_ms": quantile(warm_here, 0.5),
        "sharded_share": share(ours.counts["server.sharded.answered"], ours.counts["ingress.requests"]),
        "cold_seen_ratio": ratio(_cold_seen(theirs), _cold_seen(ours)),
    }


def cold_starts(half: Half) -> int:
    """Isolates that hosts started because a request stood there, by their own count."""
    return half.counts["host.starts.cold"]


def _cold_seen(half: Half) -> int:
    return sum(sample.start_type == "cold" for sample in half.samples)


def quantile(values: Sequence[float], q: float) -> float | None:
    """The value below which a share ``q`` lies; None of nothing."""
    if not values:
        return None
    return statistics.quantiles(values, n=100, method="inclusive")[round(q * 100) - 1] if len(values) > 1 else values[0]


def by_way(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Latencies of good answers by start type, and whether they were sharded; the most frequent first."""
    found: dict[str, list[float]] = {}
    for sample in samples:
        if not sample.failed:
            way = "sharded" if sample.hop else "refused" if sample.refused else "here"
            found.setdefault(f"{sample.start_type} {way}", []).append(sample.latency_ms)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


# ------------------------------------------------------------------------------------------------------ for programs


def json_line(found: Found) -> str:
    """All of it."""
    values = figures(found)
    return json.dumps(
        {
            **{name: _rounded(value) for name, value in values.items()},
            "bounds_met": {bound.figure: bound.met(values) for bound in BOUNDS},
            "asked": found.asked,
            "sharded": _plain(found.sharded),
            "unsharded": _plain(found.unsharded),
        }
    )


def _plain(half: Half) -> dict[str, Any]:
    late_ms = [sample.late_ms for sample in half.samples]
    return {
        "requests": len(half.samples),
        "failed": sum(sample.failed for sample in half.samples),
        "faults": _faults(half),
        "cold_starts": cold_starts(half),
        "cold_by_cause": group(half.counts, "host.cold_starts"),
        "evictions": half.counts["host.evictions"],
        "isolates": half.isolates,
        "counters": dict(sorted(half.counts.items())),
        "latencies_ms": {
            way: {"count": len(ms), "p50": _rounded(quantile(ms, 0.5)), "p99": _rounded(quantile(ms, 0.99))}
            for way, ms in by_way(half.samples).items()
        },
        "late_p99_ms": _rounded(quantile(late_ms, 0.99)),
        "ray_call_ms": {
            "count": len(half.ray_call_ms),
            "bytes": half.offer_bytes,
            "p50": _rounded(quantile(half.ray_call_ms, 0.5)),
            "p99": _rounded(quantile(half.ray_call_ms, 0.99)),
        },
        "breakdown_ms": {part: _rounded(ms) for part, ms in half.breakdown_ms.items()},
        "deploy_s": round(half.deploy_s, 1),
        "load_s": round(half.load_s, 1),
    }


def _faults(half: Half) -> list[str]:
    return sorted({sample.fault for sample in half.samples if sample.failed})[:_FAULTS_SHOWN_MAX]


def _rounded(value: Number | None) -> Number | None:
    return round(value, 3) if isinstance(value, float) else value


# -------------------------------------------------------------------------------------------------------- for people


def table(found: Found) -> str:
    """Both halves beside each other, then latencies, then the figures and whether they are in their bounds."""
    asked = ", ".join(f"{name} {value}" for name, value in found.asked.items())
    values = figures(found)
    verdicts = {bound.figure: bound for bound in BOUNDS}
    lines = [asked, "", *columns([("the system's counters", "sharding", "no sharding"), *_counters(found)]), ""]
    lines += [*columns([("the client's view, ms", "count", "p50", "p99"), *_latencies(found)]), ""]
    if found.sharded.breakdown_ms:
        parts = [(part, f"{ms:.2f}") for part, ms in found.sharded.breakdown_ms.items()]
        lines += [*columns([("a sharded warm request, ms", "p50"), *parts]), ""]
    rows = [("figure", "value", "bound", "met")]
    for name, value in values.items():
        bound = verdicts.get(name)
        rows.append((name, _text(value), bound.text if bound else "", _met(bound.met(values)) if bound else ""))
    faults = [f"failed: {fault}" for half in (found.sharded, found.unsharded) for fault in _faults(half)]
    return "\n".join([*lines, *columns(rows), *faults])


def _counters(found: Found) -> list[tuple[str, ...]]:
    halves = (found.sharded, found.unsharded)
    rows: list[tuple[str, ...]] = [
        ("requests at the edges", *(f"{half.counts['ingress.requests']:,}" for half in halves)),
        ("failed (by the client)", *(f"{sum(s.failed for s in half.samples):,}" for half in halves)),
        ("cold starts", *(f"{cold_starts(half):,}" for half in halves)),
        *_grouped(halves, "host.cold_starts", "  "),
        ("evictions", *(f"{half.counts['host.evictions']:,}" for half in halves)),
        ("isolates at the end", *(f"{half.isolates:,}" for half in halves)),
        ("offered to homes", *(f"{half.counts['server.sharded.offered']:,}" for half in halves)),
        ("  answered there", *(f"{half.counts['server.sharded.answered']:,}" for half in halves)),
        ("  refused", *(f"{half.counts['server.sharded.refused']:,}" for half in halves)),
        *_grouped(halves, "shard.refusals", "    "),
        ("started ahead", *(f"{half.counts['host.starts.prewarm'] + half.counts['host.starts.preload']:,}"
                            for half in halves)),
        *_grouped(halves, "server.prewarms.begun", "  asked for: "),
        ("  declined, the house being full", *(f"{half.counts['host.prewarms_declined']:,}" for half in halves)),
        ("  gone unused", *(f"{sum(group(half.counts, 'host.wasted').values()):,}" for half in halves)),
    ]  # fmt: skip
    return rows


def _grouped(halves: Sequence[Half], prefix: str, indent: str) -> list[tuple[str, ...]]:
    names: dict[str, None] = {}
    for half in halves:
        names.update(dict.fromkeys(group(half.counts, prefix)))
    return [(f"{indent}{name}", *(f"{half.counts[f'{prefix}.{name}']:,}" for half in halves)) for name in names]


def _latencies(found: Found) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for title, half in (("sharding", found.sharded), ("no sharding", found.unsharded)):
        ways = {**by_way(half.samples), "one Ray call, meanwhile": list(half.ray_call_ms)}
        rows += [
            (f"{title}: {way}", f"{len(ms):,}", _text(quantile(ms, 0.5)), _text(quantile(ms, 0.99)))
            for way, ms in ways.items()
        ]
    return rows


def _text(value: Number | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _met(met: bool | None) -> str:
    return "not measured" if met is None else "yes" if met else "NO"

"""What came of the replays, as figures, as a table for people, and as one JSON line. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.warmth.cluster import Cause
from benchmarks.warmth.least import Least
from benchmarks.warmth.replay import Run

Number = int | float
#: Cloudflare reports that sharding cut evictions to a tenth ("Eliminating Cold Starts 2: shard and conquer", 2025).
PUBLISHED_RATIO = 10.0


@dataclass(frozen=True)
class Found:
    """All that a command found. ``ours``: the whole product. ``on_request``: the same without starts at deploy.
    ``roomy``: with memory for all; None when it was not run."""

    trace: str
    servers: int
    slots: int
    memory_mb: int | None
    seed: int
    form: str
    first_touches: int
    least: Least | None
    runs: Sequence[Run]
    ours: Run
    on_request: Run
    unsharded: Run
    roomy: Run | None


def ratio(theirs: float, ours: float) -> float:
    """How many times fewer; none counts as one, so that the figure is finite and never too good."""
    return theirs / max(ours, 1)


def figures(found: Found) -> dict[str, Number | None]:
    """The figures of the whole: bounds are for these."""
    ours, bare, theirs = found.ours, found.on_request, found.unsharded
    return {
        "cold_ratio": ratio(theirs.cold_starts, ours.cold_starts),
        "eviction_ratio": ratio(theirs.evictions, ours.evictions),
        "cold_ratio_without_deploy_prewarm": ratio(theirs.cold_starts, bare.cold_starts),
        "eviction_ratio_without_deploy_prewarm": ratio(theirs.evictions, bare.evictions),
        "sharded_share": share(ours.sharded, ours.requests),
        "load_max_over_mean": ours.load_max_over_mean,
        "cold_over_bound": ratio(bare.cold_starts, found.first_touches),
        "warm_share": 1.0 - share(ours.cold_starts, ours.requests),
        "warm_share_with_deploy_prewarm": None
        if found.roomy is None
        else 1.0 - share(found.roomy.cold_starts, found.roomy.requests),
    }


_NOTES = (
    "cold_ratio, eviction_ratio: unsharded / everwarm; none counts as one",
    "sharded_share, load_max_over_mean (CPU seconds by server), warm_share: everwarm",
    "cold_over_bound: everwarm with nothing started at deploy / first touches, which bound whoever starts on request",
    "warm_share_with_deploy_prewarm: everwarm where memory holds every worker",
)


def share(part: float, whole: float) -> float:
    """0 of nothing."""
    return part / whole if whole else 0.0


def table(found: Found) -> str:
    """A line for each policy, then the figures."""
    memory = f"{found.slots} slots" if found.memory_mb is None else f"{found.memory_mb:,} MB"
    runs = [*found.runs, *([found.roomy] if found.roomy else [])]
    lines = [
        f"{found.trace}: {found.ours.requests:,} requests on {found.servers} servers with {memory} each, seed "
        f"{found.seed}, {found.form} form; first touches {found.first_touches:,}",
        "",
        *columns([_HEADS, *[_row(run, found) for run in runs]]),
    ]
    if found.least is not None:
        lines.append(
            f"nobody who starts on request has fewer than {found.least.cold:,} cold and {found.least.evictions:,} "
            "evictions (MIN, knowing the future, with all memory as one)"
        )
    lines += ["", *columns([(name, _figure(value)) for name, value in figures(found).items()]), "", *_NOTES]
    if found.unsharded is not found.ours:
        times = ratio(found.unsharded.evictions, found.ours.evictions) / PUBLISHED_RATIO
        lines.append(
            f"published for sharding: evictions / {PUBLISHED_RATIO:g}; here {times:,.3g} times that, on another trace"
        )
    return "\n".join(lines)


_HEADS = (
    "policy", "cold", "of a million", "first", "evicted", "spilled", "not here", "evictions", "sharded",
    "load max/mean", "prewarms", "wasted", "denied", "isolates",
)  # fmt: skip


def _row(run: Run, found: Found) -> tuple[str, ...]:
    causes = [f"{run.cold.get(cause, 0):,}" for cause in _CAUSES]
    return (
        run.policy,
        f"{run.cold_starts:,}",
        f"{1e6 * share(run.cold_starts, run.requests):,.1f}",
        *causes,
        f"{run.evictions:,}",
        f"{share(run.sharded, run.requests):.1%}",
        f"{run.load_max_over_mean:.2f}",
        f"{run.prewarms:,}",
        f"{run.prewarms_wasted:,}",
        f"{run.prewarms_denied:,}",
        f"{run.isolates:,}",
    )


_CAUSES = (Cause.FIRST_TOUCH, Cause.EVICTED, Cause.SPILLED, Cause.ELSEWHERE)


def json_line(found: Found) -> str:
    """The same for programs."""
    ours = found.ours
    rounded = {name: None if value is None else round(value, 7) for name, value in figures(found).items()}
    runs = [*found.runs, *([found.roomy] if found.roomy else [])]
    return json.dumps(
        {
            "trace": found.trace,
            "servers": found.servers,
            "slots": found.slots,
            "memory_mb": found.memory_mb,
            "seed": found.seed,
            "form": found.form,
            "requests": ours.requests,
            "first_touches": found.first_touches,
            "least_cold": None if found.least is None else found.least.cold,
            **rounded,
            "cold": ours.cold_starts,
            "cold_by_cause": _by_cause(ours),
            "evictions": ours.evictions,
            "prewarms": ours.prewarms,
            "prewarms_wasted": ours.prewarms_wasted,
            "prewarms_denied": ours.prewarms_denied,
            "policies": {run.policy: _plain(run, found) for run in runs},
        }
    )


def _by_cause(run: Run) -> dict[str, int]:
    return {cause.value: run.cold.get(cause, 0) for cause in _CAUSES}


def _plain(run: Run, found: Found) -> dict[str, Number | dict[str, int]]:
    return {
        "cold": run.cold_starts,
        "cold_by_cause": _by_cause(run),
        "warm_share": round(1.0 - share(run.cold_starts, run.requests), 7),
        "cold_over_bound": round(ratio(run.cold_starts, found.first_touches), 4),
        "cold_ratio": round(ratio(found.unsharded.cold_starts, run.cold_starts), 4),
        "eviction_ratio": round(ratio(found.unsharded.evictions, run.evictions), 4),
        "evictions": run.evictions,
        "sharded_share": round(share(run.sharded, run.requests), 5),
        "load_max_over_mean": round(run.load_max_over_mean, 4),
        "prewarms": run.prewarms,
        "prewarms_wasted": run.prewarms_wasted,
        "prewarms_denied": run.prewarms_denied,
        "isolates": run.isolates,
    }


def _figure(value: Number | None) -> str:
    return "-" if value is None else f"{value:,.7g}"


def columns(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the cells below each other, numbers to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]

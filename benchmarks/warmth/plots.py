"""The figures of a replay, drawn: a PNG for each question."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display is needed

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.warmth.cluster import Cause
from benchmarks.warmth.replay import Run
from benchmarks.warmth.report import PUBLISHED_RATIO, Found, ratio, share

_COLORS = {
    Cause.FIRST_TOUCH: "#8c8c8c",
    Cause.EVICTED: "#c44e52",
    Cause.SPILLED: "#dd8452",
    Cause.ELSEWHERE: "#4c72b0",
}
_BAR = "#4c72b0"


def draw(found: Found, directory: Path) -> list[Path]:
    """All plots, in ``directory``, which is made if need be."""
    directory.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Axes, Found], None]] = {
        "cold_by_cause": _cold_by_cause,
        "cold_over_bound": _cold_over_bound,
        "evictions": _evictions,
        "fewer_than_unsharded": _fewer,
        "sharded_share": _sharded,
        "load": _load,
        "memory": _memory,
        "cold_over_time": _cold_over_time,
    }
    drawn = []
    for name, plot in plots.items():
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.subplots()
        plot(axes, found)
        axes.set_title(f"{found.trace}, {found.servers} servers: {axes.get_title()}")
        drawn.append(directory / f"{found.trace}_{found.servers}_{name}.png")
        figure.savefig(drawn[-1], dpi=110)
    return drawn


def _bars(axes: Axes, runs: Sequence[Run], values: Sequence[float], *, log: bool = False) -> None:
    axes.barh([run.policy for run in runs], values, color=_BAR, log=log)
    axes.invert_yaxis()
    for row, value in enumerate(values):
        axes.text(value, row, f" {value:,.4g}", va="center", fontsize=8)


def _cold_by_cause(axes: Axes, found: Found) -> None:
    axes.set_title("cold requests of a million, by cause")
    left = [0.0] * len(found.runs)
    for cause, color in _COLORS.items():
        values = [1e6 * share(run.cold.get(cause, 0), run.requests) for run in found.runs]
        axes.barh([run.policy for run in found.runs], values, left=left, color=color, label=cause.value)
        left = [done + value for done, value in zip(left, values, strict=True)]
    axes.set_xscale("symlog", linthresh=100)  # a stack on a logarithmic axis shows the whole, and who begins it
    axes.invert_yaxis()
    axes.legend(fontsize=8)


def _cold_over_bound(axes: Axes, found: Found) -> None:
    axes.set_title("cold requests over first touches")
    _bars(axes, found.runs, [ratio(run.cold_starts, found.first_touches) for run in found.runs], log=True)
    axes.axvline(1.0, color="black", linewidth=1, label="first touches: the least without starts ahead")
    axes.legend(fontsize=8)


def _evictions(axes: Axes, found: Found) -> None:
    axes.set_title("evictions")
    _bars(axes, found.runs, [max(run.evictions, 1) for run in found.runs], log=True)


def _fewer(axes: Axes, found: Found) -> None:
    axes.set_title("times fewer evictions than unsharded")
    _bars(axes, found.runs, [ratio(found.unsharded.evictions, run.evictions) for run in found.runs], log=True)
    axes.axvline(PUBLISHED_RATIO, color="#c44e52", linestyle="--", label="published for sharding, on another trace")
    axes.legend(fontsize=8)


def _sharded(axes: Axes, found: Found) -> None:
    axes.set_title("share of requests that ran where they did not arrive")
    _bars(axes, found.runs, [share(run.sharded, run.requests) for run in found.runs])


def _load(axes: Axes, found: Found) -> None:
    axes.set_title("CPU seconds of servers, sorted, over their mean")
    for run in found.runs:
        mean = sum(run.cpu_s) / len(run.cpu_s) or 1.0
        axes.plot(
            range(1, len(run.cpu_s) + 1), sorted((cpu / mean for cpu in run.cpu_s), reverse=True), label=run.policy
        )
    axes.set_yscale("log")
    axes.set_xlabel("server")
    axes.legend(fontsize=8)


def _memory(axes: Axes, found: Found) -> None:
    axes.set_title("isolates in the cluster")
    for run in found.runs:
        axes.plot([p.at_s / 3600 for p in run.course], [p.isolates for p in run.course], label=run.policy)
    axes.set_xlabel("hours")
    axes.legend(fontsize=8)


def _cold_over_time(axes: Axes, found: Found) -> None:
    axes.set_title("cold requests so far, of a million so far")
    for run in found.runs:
        axes.plot(
            [p.at_s / 3600 for p in run.course],
            [max(1e6 * share(p.cold, p.requests), 0.1) for p in run.course],
            label=run.policy,
        )
    axes.set_yscale("log")
    axes.set_xlabel("hours")
    axes.legend(fontsize=8)

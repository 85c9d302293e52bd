"""Real traces of the Azure Functions Dataset 2019 as requests of workers, minute by minute.

The files and their loader lie beside the repository, in ``../shared/traces``, and are not part of it. The position of a
request inside its minute is not known and drawn evenly, with a seed; so is the server where it arrives.
"""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

#: Where the traces lie, seen from the repository.
TRACES_DIR = Path(__file__).resolve().parents[2] / ".." / "shared" / "traces"
_T3 = "azure2019_8h_500f.npz"
_T2 = "azure2019_14dsum_profiles_6874f.npz"
#: Seed of the sample of T2: the one whose figures its README gives. `--seed` does not change the trace.
_T2_SEED = 1

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class TraceAbsent(Exception):
    """The trace's files are not there; the text says which and where."""


@dataclass(frozen=True)
class Trace:
    """Requests by worker and minute: ``worker``, ``minute`` and ``count`` are parallel, sorted by minute."""

    name: str
    worker: Ints
    minute: Ints
    count: Ints
    #: How long a request of each worker takes, in seconds, by the trace: its share of the CPU time.
    duration_s: Floats
    memory_mb: Floats

    @property
    def workers(self) -> int:
        """How many workers are deployed; some may never be asked."""
        return len(self.duration_s)

    @property
    def minutes(self) -> int:
        """The length, to the end of the last minute with a request."""
        return int(self.minute[-1]) + 1 if len(self.minute) else 0

    @property
    def requests(self) -> int:
        """All of them."""
        return int(self.count.sum())

    @property
    def first_touches(self) -> int:
        """Workers that are asked at all: cold starts that nobody avoids who starts nothing ahead."""
        return len(np.unique(self.worker))

    def name_of(self, worker: int) -> str:
        """A worker's name, as it would be deployed."""
        return f"worker-{worker}"

    def until(self, minutes: int) -> "Trace":
        """Its first ``minutes``."""
        end = int(np.searchsorted(self.minute, minutes))
        return Trace(self.name, self.worker[:end], self.minute[:end], self.count[:end], self.duration_s, self.memory_mb)


@dataclass(frozen=True)
class Minute:
    """The requests of a minute, in the order of the trace's workers: who is asked, and on which server."""

    at_s: float
    worker: Ints
    server: Ints
    #: Seconds after ``at_s``.
    offset_s: Floats

    def in_order(self) -> tuple[list[int], list[int], list[float]]:
        """Workers, servers and times in order of time."""
        order = np.argsort(self.offset_s, kind="stable")
        times = self.offset_s[order] + self.at_s
        return self.worker[order].tolist(), self.server[order].tolist(), times.tolist()

    def cells(self, servers: int) -> tuple[Ints, Ints, Ints]:
        """Each worker and server that meet in this minute, and how often; sorted by worker."""
        met, times = np.unique(self.worker * servers + self.server, return_counts=True)
        return met // servers, met % servers, times.astype(np.int64)


def minutes_of(trace: Trace, servers: int, seed: int) -> Iterator[Minute]:
    """The requests of a trace as they arrive at ``servers``: the same for every policy and both forms of a replay."""
    ends = np.searchsorted(trace.minute, np.arange(1, trace.minutes + 1)).tolist()
    begin = 0
    for minute, end in enumerate(ends):
        random = np.random.default_rng((seed, minute))
        worker = np.repeat(trace.worker[begin:end], trace.count[begin:end])
        server = random.integers(0, servers, len(worker))
        yield Minute(minute * 60.0, worker, server, random.random(len(worker)) * 60.0)
        begin = end


def load(name: str, traces_dir: Path | None = None, *, functions: int = 3_000, days: int = 14) -> Trace:
    """``T3`` (8 hours of 500 functions) or ``T2`` (a sample of ``functions`` over ``days``). ``TraceAbsent``."""
    directory = (traces_dir or TRACES_DIR).resolve()
    for needed in ["traces.py", _T3, *([_T2] if name == "T2" else [])]:
        if not (directory / needed).is_file():
            raise TraceAbsent(f"there is no {needed} in {directory}; say --traces-dir DIR")
    loader = _loader(directory / "traces.py")
    return _t2(loader, directory, functions, days) if name == "T2" else _t3(loader, directory)


def _loader(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("everwarm_traces", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _t3(loader: ModuleType, directory: Path) -> Trace:
    ends, minute, count, _, columns = loader.load_csr(directory / _T3)
    worker = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    order = np.argsort(minute, kind="stable")
    return Trace(
        "T3",
        worker[order].astype(np.int64),
        minute[order].astype(np.int64),
        count[order].astype(np.int64),
        np.asarray(columns["dur_avg_ms"], np.float64) / 1e3,
        np.asarray(columns["mem_mb"], np.float64),
    )


def _t2(loader: ModuleType, directory: Path, functions: int, days: int) -> Trace:
    """T2 has no durations and no memory. A worker gets those of T3's function that is as popular within T3 as it is
    within T2, so that what is known of them together (the popular are short) stays."""
    worker, minute, count, _ = loader.sample_14d(directory / _T2, functions, days, seed=_T2_SEED)
    totals = np.bincount(worker, weights=count, minlength=functions)
    t3 = _t3(loader, directory)
    popular = np.argsort(-np.bincount(t3.worker, weights=t3.count, minlength=t3.workers), kind="stable")
    rank = np.empty(functions, np.int64)
    rank[np.argsort(-totals, kind="stable")] = np.arange(functions)
    twin = popular[rank * t3.workers // functions]
    return Trace(
        "T2",
        worker.astype(np.int64),
        minute.astype(np.int64),
        count.astype(np.int64),
        t3.duration_s[twin],
        t3.memory_mb[twin],
    )

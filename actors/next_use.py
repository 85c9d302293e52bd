"""When a rarely asked worker will be asked again: a histogram of its idle times. Pure.

The idea and the percentiles are those of M. Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020): a worker whose
idle times are alike (a timer, a nightly job) need not be warm in between; it is started shortly before it is due. Half
of the functions of that trace are timers. The histogram is 60 bins of a second and 240 of a minute; what is idle for
longer than 241 minutes says that it is rare and no more.

It orders evictions and starts ahead; it never evicts while memory is free: on that trace an isolate kept for an hour
does better than one unloaded by prediction.
"""

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NextUseLimits:
    """Bins, percentiles and bounds."""

    second_bins: int = 60
    minute_bins: int = 240
    #: Fewer idle times say nothing about the next one.
    observed_min: int = 4
    #: Observations count half when there are so many: a worker that changes its habits is understood anew after days.
    observed_max: int = 64
    #: Of the idle times, this share may be shorter than the window that is foretold, and this share longer.
    early_share: float = 0.05
    late_share: float = 0.01
    #: How much earlier and later than that the window is, for the width of a bin and a little drift.
    early_factor: float = 0.9
    late_factor: float = 1.1
    #: Asked more often than once in this time on the average, a worker is busy, and nothing is foretold of it.
    busy_gap_s: float = 60.0
    #: Regular is who is due within a window no longer than this share of the idle time before it: then waiting warm
    #: costs less than what is saved.
    window_share_max: float = 0.5
    #: Workers remembered; a histogram has few different bins, about 1 KB. The one asked least lately is forgotten.
    workers_max: int = 16_384


@dataclass(frozen=True, slots=True)
class NextUse:
    """When a worker is likely to be asked, on the clock of ``now_s``: have it warm from ``prewarm_s``, keep it until
    ``keep_s``. ``regular``: narrow enough a window to start it ahead."""

    prewarm_s: float
    keep_s: float
    regular: bool

    def covers(self, now_s: float) -> bool:
        """Whether it is due now."""
        return self.prewarm_s <= now_s <= self.keep_s


class _Habit:
    __slots__ = ("bins", "gap_s", "last_s", "observed")

    def __init__(self, now_s: float) -> None:
        self.last_s = now_s
        self.gap_s = -1.0  # the mean, once there is one
        self.bins: dict[int, int] = {}
        self.observed = 0


class NextUseTable:
    """The habits of workers by name."""

    def __init__(self, limits: NextUseLimits = NextUseLimits()) -> None:
        self.limits = limits
        self._habits: OrderedDict[str, _Habit] = OrderedDict()

    def note(self, worker: str, now_s: float) -> None:
        """It is asked. The cost of a call is the same for busy workers; whoever knows that one is may leave it out."""
        habit = self._habits.get(worker)
        if habit is None:
            self._habits[worker] = _Habit(now_s)
            if len(self._habits) > self.limits.workers_max:
                self._habits.popitem(last=False)
            return
        self._habits.move_to_end(worker)
        idle_s = max(0.0, now_s - habit.last_s)
        habit.last_s = max(now_s, habit.last_s)
        habit.gap_s = idle_s if habit.gap_s < 0 else habit.gap_s + (idle_s - habit.gap_s) / 8
        bin_ = self._bin(idle_s)
        habit.bins[bin_] = habit.bins.get(bin_, 0) + 1
        habit.observed += 1
        if habit.observed >= self.limits.observed_max:
            habit.bins = {bin_: count // 2 for bin_, count in habit.bins.items() if count > 1}
            habit.observed = sum(habit.bins.values())

    def next_use(self, worker: str, now_s: float) -> NextUse | None:
        """When it is next due; None when nothing can be said of it, or it is overdue already."""
        limits = self.limits
        habit = self._habits.get(worker)
        if habit is None or habit.observed < limits.observed_min or habit.gap_s < limits.busy_gap_s:
            return None
        early = self._percentile(habit, limits.early_share)
        late = self._percentile(habit, 1.0 - limits.late_share)
        if late > limits.second_bins + limits.minute_bins - 1:
            return None  # too often idle for longer than the histogram is
        prewarm_s = self._begin_s(early) * limits.early_factor
        keep_s = self._begin_s(late + 1) * limits.late_factor
        if now_s > habit.last_s + keep_s:
            return None
        regular = keep_s - prewarm_s <= limits.window_share_max * prewarm_s
        return NextUse(habit.last_s + prewarm_s, habit.last_s + keep_s, regular)

    def forget(self, worker: str) -> None:
        """It is deployed no more."""
        self._habits.pop(worker, None)

    def _bin(self, idle_s: float) -> int:
        seconds, minutes = self.limits.second_bins, self.limits.minute_bins
        if idle_s < seconds:
            return int(idle_s)
        return seconds + min(int(idle_s - seconds) // 60, minutes)  # the last one: longer than that

    def _begin_s(self, bin_: int) -> float:
        seconds = self.limits.second_bins
        return float(bin_ if bin_ < seconds else seconds + 60 * (bin_ - seconds))

    @staticmethod
    def _percentile(habit: _Habit, share: float) -> int:
        """The bin below which ``share`` of the idle times lie."""
        wanted, seen = share * habit.observed, 0
        for bin_ in sorted(habit.bins):
            seen += habit.bins[bin_]
            if seen > wanted:
                return bin_
        return max(habit.bins)

    def __len__(self) -> int:
        return len(self._habits)

    def __repr__(self) -> str:
        return f"<NextUseTable of {len(self._habits)} workers>"

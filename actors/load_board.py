"""What this machine believes of the load of the others: their last reports, and what it sent them since. Pure.

A report rides on every reply, so it is as old as the last reply. Between two of them the machine adds its own sends:
without that, everybody would see the same idle server and send all at once (Fuerst and Sharma, "CH-RLU", HPDC 2022,
add noise for it; one's own requests do the same and are true). A new report replaces both, because it counts what has
arrived. A report that nobody renewed is forgotten: otherwise a server that was too busy once, and is therefore asked
nothing, would stay busy for ever.

*Over* means more than c times the mean of what is known, with c = 1.25 (consistent hashing with bounded loads;
Mirrokni, Thorup and Zadimoghaddam, SODA 2018). A small c spills for nothing, and a spill is a cold start; a large one
lets a server wait in line beside idle ones.
"""

from collections import OrderedDict
from dataclasses import dataclass

from actors.exchange import Load


@dataclass(frozen=True, slots=True)
class LoadBoardLimits:
    """Weights and bounds of a board."""

    #: What a request in line, or sent and not reported yet, counts with: as this share of a server's cores. Fifty at
    #: once fill a server; guests wait for their origins most of the time.
    request_share: float = 0.02
    #: Below this load nobody waits for a core: to send work away would buy nothing, and cost a cold start.
    busy_min: float = 0.3
    #: How long a report is believed. Ten times as long as a home believes its own.
    report_s_max: float = 10.0
    #: Servers remembered: as many as a ring can have.
    servers_max: int = 4_000


class _Belief:
    __slots__ = ("at_s", "load", "nearly_full", "sent")

    def __init__(self, now_s: float) -> None:
        self.at_s = now_s
        self.load = 0.0
        self.sent = 0.0
        self.nearly_full = False


class LoadBoard:
    """Loads of servers by name, in shares of a server's cores: 1 is a server all of whose cores are busy."""

    def __init__(self, limits: LoadBoardLimits = LoadBoardLimits()) -> None:
        self.limits = limits
        self._beliefs: OrderedDict[str, _Belief] = OrderedDict()

    def reported(self, server: str, load: Load, now_s: float) -> None:
        """``server`` told its load; this machine's own counts as well and belongs here."""
        belief = self._belief(server, now_s)
        belief.at_s = now_s
        belief.load = load.cpu_load + load.queued * self.limits.request_share
        belief.nearly_full = load.nearly_full
        belief.sent = 0.0

    def sent(self, server: str, cost: float = 1.0, now_s: float = 0.0) -> None:
        """A request went to ``server``. ``cost``: how many ordinary requests it is worth."""
        belief = self._belief(server, now_s)
        if now_s - belief.at_s > self.limits.report_s_max:
            # What is known is no longer believed, and these sends begin a new time of belief.
            belief.at_s, belief.load, belief.sent, belief.nearly_full = now_s, 0.0, 0.0, False
        belief.sent += cost

    def load_of(self, server: str, now_s: float) -> float:
        """What is believed of ``server``; 0 when nothing is."""
        belief = self._beliefs.get(server)
        if belief is None or now_s - belief.at_s > self.limits.report_s_max:
            return 0.0
        return belief.load + belief.sent * self.limits.request_share

    def nearly_full(self, server: str, now_s: float) -> bool:
        """Whether ``server`` hinted that it is about to refuse."""
        belief = self._beliefs.get(server)
        return belief is not None and belief.nearly_full and now_s - belief.at_s <= self.limits.report_s_max

    def over(self, server: str, now_s: float, c: float = 1.25) -> bool:
        """Whether ``server`` is busy, and has more than ``c`` times the mean of all servers that are known."""
        load = self.load_of(server, now_s)
        return load > self.limits.busy_min and load > c * self.mean(now_s)

    def overloaded(self, servers: tuple[str, ...], now_s: float, c: float = 1.25) -> frozenset[str]:
        """Those of ``servers`` (a worker's order) that are over."""
        busy = [(s, load) for s in servers if (load := self.load_of(s, now_s)) > self.limits.busy_min]
        if not busy:
            return frozenset()
        bound = c * self.mean(now_s)
        return frozenset(server for server, load in busy if load > bound)

    def mean(self, now_s: float) -> float:
        """The mean load of all servers that are known; 0 when none is."""
        oldest_s = now_s - self.limits.report_s_max
        total, count = 0.0, 0
        for belief in self._beliefs.values():
            if belief.at_s >= oldest_s:
                total += belief.load + belief.sent * self.limits.request_share
                count += 1
        return total / count if count else 0.0

    def forget(self, server: str) -> None:
        """It left the cluster."""
        self._beliefs.pop(server, None)

    def _belief(self, server: str, now_s: float) -> _Belief:
        belief = self._beliefs.get(server)
        if belief is None:
            belief = self._beliefs[server] = _Belief(now_s)
            if len(self._beliefs) > self.limits.servers_max:
                self._beliefs.popitem(last=False)
        else:
            self._beliefs.move_to_end(server)
        return belief

    def __len__(self) -> int:
        return len(self._beliefs)

    def __repr__(self) -> str:
        loads = ", ".join(f"{s} {b.load:.2f}+{b.sent:g}" for s, b in list(self._beliefs.items())[:8])
        return f"<LoadBoard of {len(self._beliefs)}: {loads}>"

"""Whose fault a host's crash was, as far as it can be told, and for how long a version is kept out for it. Pure.

Many tenants share a host's process, and a crash does not say who caused it. What is known is who was running. One
crash accuses everybody who was; but an innocent version is in few crashes, together with many others, and the one that
causes them is in all of them. So a version is a *repeat offender* once it was running in ``crashes_min`` crashes of a
window, and was either the only one that ran in so many of them, or was there in most of all.

*The only one* is the evidence that others cannot blur: three versions that crash hosts in turn are in a third of the
crashes each, and alone in their own. *In most* finds those that crash beside others. Crashes in which nothing ran
accuse nobody and are not counted.

**Kept out, for a while.** From the crash that made it an offender on, a version is refused for ``quarantine_s_first``,
then it may run again: what crashed may have been a machine, or an engine that is mended. Each further crash of the same
window doubles that. A new deploy is a new version, and begins without a past.

Everything follows from the list of crashes: whoever has the same list judges alike, and nothing else is remembered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BlameLimits:
    """Bounds and times, in seconds."""

    #: One crash is an accident, and a request that crashes a host is tried on one host more (``host_choice.LOST_MAX``):
    #: two may be one request's.
    crashes_min: int = 3
    #: How long a crash accuses. An offender that waits for its victims' patience needs three in an hour.
    window_s: float = 3_600.0
    #: A minute: a host that starts anew in seconds then serves nearly always.
    quarantine_s_first: float = 60.0
    #: Half of the window, so that the crashes before it still count when the version runs again.
    quarantine_s_max: float = 1_800.0


@dataclass(frozen=True, slots=True)
class Crash:
    """A host that crashed: Unix time in seconds, and the versions that were running or being started."""

    at_s: float
    versions: frozenset[str]


def quarantined(crashes: Iterable[Crash], now_s: float, limits: BlameLimits = BlameLimits()) -> dict[str, float]:
    """The versions that are kept out now, each with the Unix time until which it is."""
    known = sorted((c for c in crashes if c.versions), key=lambda crash: crash.at_s)
    found: dict[str, float] = {}
    for version in sorted(frozenset().union(*(crash.versions for crash in known))):
        until_s = _until_s(version, known, limits)
        if until_s > now_s:
            found[version] = until_s
    return found


def _until_s(version: str, known: Sequence[Crash], limits: BlameLimits) -> float:
    """The end of a version's last quarantine; 0 when it never had one."""
    until_s = 0.0
    for crash in known:
        if version not in crash.versions:
            continue
        window = [c for c in known if crash.at_s - limits.window_s < c.at_s <= crash.at_s]
        there = sum(version in c.versions for c in window)
        alone = sum(c.versions == {version} for c in window)
        if there < limits.crashes_min or (alone < limits.crashes_min and 2 * there <= len(window)):
            continue
        doublings = min(there - limits.crashes_min, 64)
        until_s = max(until_s, crash.at_s + min(limits.quarantine_s_max, limits.quarantine_s_first * 2.0**doublings))
    return until_s

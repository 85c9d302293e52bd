"""The cluster's own counters: what all servers counted together, and by how much that grew. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

#: What is counted, by role and name, as far as a replay is concerned; of a mapping, all that is in it.
_COUNTED = {
    "ingress": ("requests",),
    "server": ("requests", "routes", "sharded", "prewarms"),
    "shard": ("admitted", "refused", "refusals"),
    "host": ("starts", "cold_starts", "evictions", "wasted", "prewarms_declined", "expired", "outcomes"),
}


class RoleAway(Exception):
    """A role did not tell its counters; the message says which."""


def counted(statistics: Mapping[str, Mapping[str, Any]]) -> Counter[str]:
    """The sums over all servers, as ``host.starts.cold``. ``RoleAway`` when somebody's counters are missing."""
    sums: Counter[str] = Counter()
    for address, told in statistics.items():
        if "error" in told:
            raise RoleAway(f"{address}: {told['error']}")
        role = address.partition("/")[2].partition("-")[0]
        for name in _COUNTED.get(role, ()):
            _add(sums, f"{role}.{name}", told.get(name, 0))
    return sums


def isolates(statistics: Mapping[str, Mapping[str, Any]]) -> int:
    """How many live on all hosts."""
    return sum(int(told["isolates"]) for address, told in statistics.items() if "/host" in address)


def _add(sums: Counter[str], name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _add(sums, f"{name}.{key}", part)
    elif isinstance(value, int):
        sums[name] += value


def grown(before: Counter[str], after: Counter[str]) -> Counter[str]:
    """By how much each grew; those that did not are left out."""
    return Counter({name: after[name] - before[name] for name in after if after[name] != before[name]})


def group(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """The counters under ``prefix``, the most first."""
    found = {name.removeprefix(f"{prefix}."): n for name, n in counts.items() if name.startswith(f"{prefix}.")}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

"""Which of a machine's host processes runs a version, and what becomes of a request whose host is lost. Pure.

Versions are spread over the hosts of a machine by rendezvous hashing (D. Thaler and C. Ravishankar, "Using
name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998): each host draws a number
for each version, and the highest wins. When a host is lost only its own versions move, each to its second choice, and
all who ask agree without having talked.

**Lost hosts.** A request may run again if its guest certainly did not start, or if HTTP says that doing it twice is
doing it once and every byte of its body is still here. To know the first, a host sends STARTED right before guest code
runs; what a process wrote is delivered even when it dies, so a link that ends without STARTED says for certain that
nothing ran. That costs a system call and wakes the reader, so only methods that are not idempotent pay for it: the
others run again anyway.

A request that crashes its host would go on to crash the next. So one that may have started gets one host more, and
not a third.
"""

from collections.abc import Sequence
from hashlib import blake2b

from actors.dispatch import IDEMPOTENT, Event, lost_event

#: Hosts that a request may be lost with, having started for all one knows, and still be given to another one.
LOST_MAX = 1


def by_preference(version: str, hosts: Sequence[str]) -> list[str]:
    """The hosts in the order in which they should run a version; the same for everybody who knows the same hosts."""
    if len(hosts) < 2:
        return list(hosts)
    return sorted(hosts, key=lambda host: (_draw(version, host), host), reverse=True)


def _draw(version: str, host: str) -> bytes:
    return blake2b(version.encode(), digest_size=8, key=blake2b(host.encode(), digest_size=32).digest()).digest()


def says_started(method: str) -> bool:
    """Whether a host says STARTED before it runs a request of this method."""
    return method.upper() not in IDEMPOTENT


def may_run_again(method: str, *, started: bool, body_intact: bool, hosts_lost: int) -> bool:
    """Whether a request whose host was lost before any byte of its answer may be given to another.

    ``started``: the host said so, or asked for more of the body. ``body_intact``: every byte of the body is still here.
    ``hosts_lost``: hosts that were lost with it, this one included.
    """
    delivered = False if says_started(method) and not started else None
    if delivered is None and hosts_lost > LOST_MAX:
        return False
    return lost_event(method, delivered=delivered, body_intact=body_intact) is not Event.LOST

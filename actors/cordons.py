"""Cordons: which workers may share a host process, and which host processes a server has for that. Pure.

WebAssembly keeps guests of one process apart. Should that wall ever break, a guest reads what else is in its process:
so workers of different trust are in different ones. A *cordon* is a group of workers of one trust:

    worker                             its cordon, unless its deploy names another
    hello                              ``default``: whoever operates the platform deploys it, and trusts it
    production/alice                   ``@production``: a namespace's users are trusted by nobody, and have a process
                                       apart from all others; what they share it with is each other

The rule is held by construction, and looked at once more by the last one who could break it:

* a host process is of one cordon for as long as it lives. Its cordon is part of its role's name (``host``,
  ``host-partners``, ``host-@production``), which is given to a process that has run nothing (a standby, or a new one).
  What takes its place after a crash has the same name. Another cordon's turn is another process;
* a request carries the cordon of its version, and goes to sockets of that cordon's hosts only. With no such host on a
  machine it is as if all its hosts were gone: it goes to another machine, or waits, or is refused;
* a host refuses whatever is of another cordon (``isolate_host``).

**How many.** Every server has host processes for every cordon in use, since requests may come to any of them. A deploy
into a cordon that has none yet has them started first. Host processes of a cordon without workers stay, until there
are as many cordons as there may be: then the one that is longest without is replaced, and with none to replace the
deploy is refused. Nobody is ever put in with others for want of room.

**Memory** is the machine's, and all its hosts share it (``memory_parts``).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from actors.worker import CORDON_DEFAULT
from actors.worker_names import cordon_for, cordon_name, namespace_of, users_cordon

#: Cordons at a time. Each is a host process more on every server, of about 100 MB before its first isolate: 1.6 GB of
#: a server's memory are the most that walls may take. Namespaces of one trust can name one cordon for all of them.
CORDONS_MAX: Final = 16
#: The part of its even share of the memory that a host has in any case, so that a cordon that wakes up has room for a
#: few isolates while the others give theirs back.
_FLOOR: Final = 0.5
#: What a host may grow by before it is given more: it is measured twice a second, and would evict meanwhile.
_HEADROOM: Final = 1.25
#: A part that changes by less than a sixteenth is not told: it changes with every measurement.
_TOLD: Final = 16

_HOST: Final = "host"


def cordon_of(worker: str, asked: str = "") -> str:
    """The cordon of a worker whose deploy named ``asked``, or none. Raises ValueError when that is no cordon's name,
    or the cordon of other users than the worker is one of."""
    if asked:
        return cordon_for(worker, asked)
    namespace = namespace_of(worker)
    return users_cordon(namespace) if namespace else CORDON_DEFAULT


def host_roles(cordon: str, hosts: int) -> list[str]:
    """The roles of a server's host processes of a cordon: ``host``, ``host-2``, …; ``host-NAME``, ``host-NAME.2``, …"""
    first, more = (_HOST, f"{_HOST}-") if cordon == CORDON_DEFAULT else (f"{_HOST}-{cordon}", f"{_HOST}-{cordon}.")
    return [first, *(f"{more}{i + 2}" for i in range(hosts - 1))]


def cordon_of_role(role: str) -> str:
    """The cordon of a host process, by its role. Raises ValueError when no host has that role."""
    kind, _, rest = role.partition("-")
    name = rest.partition(".")[0]
    if kind != _HOST:
        raise ValueError(f"{role} is no host's role")
    return CORDON_DEFAULT if not name or name.isdigit() else cordon_name(name)


@dataclass(frozen=True, slots=True)
class Have:
    """The cordons that servers are to have hosts for, the first that came first."""

    cordons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NoRoom:
    """There is no place for one more cordon. ``why`` is for whoever deploys, and names nobody else's cordon."""

    why: str


def room_for(asked: str, there: Sequence[str], used: Collection[str], cordons_max: int = CORDONS_MAX) -> Have | NoRoom:
    """What servers have hosts for, so that ``asked`` is among them.

    ``there``: what they have them for now, in the order in which they were wanted last. ``used``: the cordons that
    have workers, or will have in a moment. The default one is always there.
    """
    if asked == CORDON_DEFAULT or asked in there:
        return Have(tuple(there))
    kept = list(there)
    while len(kept) >= cordons_max:
        idle = next((cordon for cordon in kept if cordon != CORDON_DEFAULT and cordon not in used), None)
        if idle is None:
            return NoRoom(
                f"{cordons_max} cordons have workers, the most that this cluster has host processes for."
                " Deploy into one of them with --cordon, or remove what is in one"
            )
        kept.remove(idle)
    return Have((*kept, asked))


def memory_parts(total_bytes: int, used: Mapping[str, int]) -> dict[str, int]:
    """What each host of a machine may hold in its isolates: at most ``total_bytes`` together.

    ``used``: what they hold now, by socket. Who needs less than an even share leaves the rest to those who need more;
    half of an even share is everybody's, so that nobody has to wait for room who comes late. A part that shrinks is
    taken back by evicting what is idle, as any limit.
    """
    if len(used) < 2:
        return dict.fromkeys(used, total_bytes)
    floor = int(total_bytes / len(used) * _FLOOR)
    wanted = {host: max(floor, int(bytes_ * _HEADROOM)) for host, bytes_ in used.items()}
    parts: dict[str, int] = {}
    left, hungry = total_bytes, len(wanted)
    # The least hungry first: what one does not take is shared by those after it, and the last has all that is left.
    for host in sorted(wanted, key=lambda host: (wanted[host], host)):
        parts[host] = min(wanted[host], left // hungry)
        left -= parts[host]
        hungry -= 1
    # What nobody wants now is an even bonus: a host that fills up has it before it is measured again.
    return {host: part + left // len(parts) for host, part in parts.items()}


class SharedMemory:
    """The memory of one machine's hosts, as its Server deals it out: each host is told its part in answer to what it
    says it holds. ``total_bytes``: of all of them together.

    Hosts of one cordon have equal parts of what is their cordon's: who trusts each other is no burden to others.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._used: dict[str, dict[str, int]] = {}  # by cordon and socket

    def reported(self, cordon: str, hosts: int, socket: str, used_bytes: int, bytes_max: int) -> int | None:
        """One of a cordon's ``hosts`` holds so much, and may hold ``bytes_max``: what it may from now on, if that is
        worth telling."""
        self._used.setdefault(cordon, {})[socket] = used_bytes
        used = {other: sum(by_socket.values()) for other, by_socket in self._used.items()}
        part = memory_parts(self._total_bytes, used)[cordon] // hosts
        return part if abs(part - bytes_max) > part // _TOLD else None

    def forget(self, socket: str) -> None:
        """A host is gone, and what it held."""
        self._used = {
            cordon: left
            for cordon, by_socket in self._used.items()
            if (left := {other: bytes_ for other, bytes_ in by_socket.items() if other != socket})
        }

"""What one host knows of calls between its own guests: whom it may run for whom, as its Server says.

See ``inner_calls``.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.bindings import ServiceTarget, resolve
from actors.budget import Budget
from actors.context import Context
from actors.context_wire import TooLarge, encode_context
from actors.stage_calls import Aim, Refused, StageCalls
from actors.worker import Version, plain_limits
from isolates.egress import OutgoingHead

_ANY_STAGE, _ANOTHER_STAGE = "0" * 15 + "1", "0" * 15 + "2"


@dataclass(frozen=True, slots=True)
class InnerLease:
    """A worker's version, whose place is this host, until the Server says otherwise."""

    version: Version
    home: str
    at_home: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What the first call of a root comes to, which is the same each time: a root has all of its budget then. So books
    are begun only when something else is asked of them, and most trees are one call.

    ``limits``: the callee's, in the tree.
    """

    version: Version
    aim: Aim
    lease: InnerLease
    limits: dict[str, int | None]

    @classmethod
    def of(cls, version: Version, authority: str, lease: InnerLease) -> "Plan | None":
        """What becomes of a fetch of ``authority``, which is a service binding, by a root that runs ``version``. None
        when it is refused."""
        books = StageCalls.begin(version, Context(_ANY_STAGE, Budget.of(version.limits)))
        aim = books.aim(authority) if isinstance(books, StageCalls) else None
        if not isinstance(books, StageCalls) or not isinstance(aim, Aim):
            return None
        call = books.call(aim, OutgoingHead("GET", "http", authority, "/"), _ANOTHER_STAGE, lease.version.limits)
        if isinstance(call, Refused) or isinstance(encode_context(call.context), TooLarge):
            return None
        return cls(version, aim, lease, plain_limits(call.context.limits_of(lease.version.limits)))


class InnerLeases:
    """The leases of one host. ``leases_max``: of them, of versions that are known, and of plans."""

    def __init__(self, leases_max: int) -> None:
        self._leases_max = leases_max
        self._leases: dict[str, InnerLease] = {}
        self._versions: OrderedDict[str, Version] = OrderedDict()
        self._plans: dict[tuple[str, str], Plan] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._leases)

    def heard(self, notice: Mapping[str, Any]) -> None:
        """A notice of the Server's: leases given or taken back. ``ValueError`` for one that was not understood."""
        with self._lock:
            if notice.get("revoke_all"):
                self._leases.clear()
            gone = set(notice.get("revoke", ()))
            for worker in [w for w, lease in self._leases.items() if lease.version.version_id in gone]:
                del self._leases[worker]
            for worker in (*notice.get("add", ()), *notice.get("remove", ())):
                self._leases.pop(worker, None)
            given = notice.get("lease")
            if given is not None:
                callee, caller = Version.from_plain(given["callee"]), Version.from_plain(given["caller"])
                if len(self._leases) < self._leases_max:
                    self._leases[callee.worker] = InnerLease(callee, given["home"], given["at_home"])
                self._versions[caller.version_id] = caller
                if len(self._versions) > self._leases_max:
                    self._versions.popitem(last=False)

    def forget(self) -> None:
        """The Server is away: nobody could take them back."""
        with self._lock:
            self._leases.clear()

    def version(self, version: str) -> Version | None:
        """A version that has called somebody before."""
        return self._versions.get(version)

    def lease(self, worker: str) -> InnerLease | None:
        """The lease for a worker, while it is valid."""
        return self._leases.get(worker)

    def plan(self, version: str, authority: str) -> "Plan | None":
        """What a root that runs ``version`` does with its first fetch, if it is known beforehand."""
        known = self._versions.get(version)
        target = None if known is None else resolve(known.bindings, authority)
        lease = self._leases.get(target.worker) if isinstance(target, ServiceTarget) else None
        if known is None or lease is None:
            return None
        plan = self._plans.get((version, authority))
        if plan is not None and plan.lease is lease:
            return plan
        plan = Plan.of(known, authority, lease)
        if plan is not None:
            if len(self._plans) >= self._leases_max:
                self._plans.clear()
            self._plans[version, authority] = plan
        return plan

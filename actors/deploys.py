"""Deploys: from an upload to the version that answers, in the background, one job each.

Everything that can be refused is refused before anything is changed. Then the code goes to every server that serves,
and only then does the catalog change and every view with it. The switch and a change of the ring exclude each other
(``changing``), so a server that joins meanwhile has the code, one way or the other.
"""

import asyncio
import logging
import secrets
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace

from actors.bindings import NOTHING_BOUND, Bindings
from actors.catalog import Catalog, CatalogError
from actors.cordon_keeper import CordonKeeper
from actors.cordons import cordon_of
from actors.deployer import Deployer
from actors.distribution import Distribution
from actors.fleet import Fleet
from actors.peer import Calls, PeerFailed, PeerLost
from actors.plain import checked_list
from actors.ring import worker_key
from actors.view import decode_plain, deployed_to_plain, encode_plain
from actors.worker import ROUTES_MAX, Deployment, Limits, Plan, Reuse, Version, normal_route
from actors.worker_names import worker_name
from isolates.acceptance import Rejected
from isolates.artifact import Compiled
from isolates.disk import disk_trouble

_log = logging.getLogger("everwarm.deploys")

#: Deploys whose result can still be asked for.
_JOBS_MAX = 64
#: The longest that a switch waits for the new version's first isolate. The home gives it 3 s, and this is the call.
_PRELOAD_S_MAX = 5.0


@dataclass(slots=True)
class Job:
    """One deploy under way, as its client sees it."""

    worker: str
    phase: str = "queued"
    since_s: float = field(default_factory=time.monotonic)
    phases: list[tuple[str, float]] = field(default_factory=list)
    done: bool = False
    error: dict[str, str] | None = None
    result: dict[str, object] | None = None

    def enter(self, phase: str) -> None:
        """The next phase begins."""
        now_s = time.monotonic()
        self.phases.append((self.phase, round(now_s - self.since_s, 3)))
        self.phase, self.since_s = phase, now_s


@dataclass(frozen=True, slots=True)
class _Upload:
    """An upload that is compiled and may be deployed."""

    worker: str
    compiled: Compiled
    component_bytes: int
    limits: Limits
    plan: Plan
    author: str
    reuse: Reuse
    cordon: str
    bindings: Bindings
    routes: tuple[str, ...]


class Deploys:
    """What is deployed, and how that changes. ``cordons``: has servers have hosts for what is deployed.
    ``secrets_of``: the values of a worker's secrets. ``serving``, ``hearing``, ``without``: see ``RingKeeper``."""

    def __init__(
        self,
        catalog: Catalog,
        deployer: Deployer,
        distribution: Distribution,
        fleet: Fleet,
        *,
        secrets_of: Callable[[str], dict[str, str]],
        serving: Callable[[], list[str]],
        hearing: Callable[[], list[str]],
        without: Callable[[], dict[str, str]],
        home_of: Callable[[str], str | None],
        changing: asyncio.Lock,
        now_ms: Callable[[], int],
        cordons: CordonKeeper,
        preload: bool,
    ) -> None:
        self._catalog = catalog
        self._deployer = deployer
        self._distribution = distribution
        self._fleet = fleet
        self._secrets_of = secrets_of
        self._serving = serving
        self._hearing = hearing
        self._without = without
        self._home_of = home_of
        self._changing = changing
        self._now_ms = now_ms
        self._cordons = cordons
        self._preload = preload
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls: Calls = {
            "deploy": self.deploy,
            "deploy_progress": self.deploy_progress,
            "remove": self.remove,
        }

    async def deploy(self, payload: bytes) -> bytes:
        """Begin a deploy: ``{name, plan, limits, component, author}`` and, if it has them, ``reuse``, ``cordon``,
        ``bindings`` and ``routes`` -> ``{"job": id}``. Ask ``deploy_progress``.
        """
        plain = decode_plain(payload)
        job_id = secrets.token_hex(8)
        if len(self._jobs) >= _JOBS_MAX:
            oldest = next((i for i, job in self._jobs.items() if job.done), None)
            if oldest is None:
                return encode_plain({"error": {"code": "busy", "message": "Too many deploys at once."}})
            del self._jobs[oldest]
        job = self._jobs[job_id] = Job(str(plain["name"]))
        task = asyncio.create_task(self._run(job, plain))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return encode_plain({"job": job_id})

    async def deploy_progress(self, payload: bytes) -> bytes:
        """How a deploy goes: phase, seconds in it, the phases before, and at its end the result or the error."""
        job = self._jobs.get(str(decode_plain(payload)["job"]))
        if job is None:
            return encode_plain({"done": True, "error": {"code": "unknownJob", "message": "No such deploy."}})
        plain = asdict(job)
        plain["in_phase_s"] = round(time.monotonic() - job.since_s, 3)
        return encode_plain(plain)

    async def remove(self, payload: bytes) -> bytes:
        """End a worker's deployment; its history stays. ``{"removed": bool}``."""
        plain = decode_plain(payload)
        async with self._changing:
            seq = self._catalog.remove(str(plain["name"]), str(plain["author"]), self._now_ms())
            if seq is not None:
                await self._publish_change(seq, str(plain["name"]))
        return encode_plain({"removed": seq is not None})

    async def _run(self, job: Job, plain: dict[str, object]) -> None:
        try:
            await self._deploy(job, plain)
        except (ValueError, CatalogError) as wrong:
            job.error = {"code": "refused", "message": f"{wrong}", "advice": ""}
        except (OSError, sqlite3.OperationalError) as failed:
            trouble = disk_trouble(failed)
            _log.error("deploying %s failed: %s", job.worker, failed, exc_info=None if trouble else failed)
            job.error = _failed(trouble)
        except Exception:
            _log.exception("deploying %s failed", job.worker)
            job.error = _failed("")
        finally:
            job.enter("failed" if job.error else "done")
            job.done = True

    async def _deploy(self, job: Job, plain: dict[str, object]) -> None:
        name, author = worker_name(str(plain["name"])), str(plain["author"])
        plan = Plan(str(plain["plan"]))
        asked, component = plain["limits"], plain["component"]
        assert isinstance(asked, dict)
        assert isinstance(component, bytes)
        limits = Limits.from_manifest(plan, asked)
        wanted = plain.get("reuse", {})
        assert isinstance(wanted, dict)
        reuse = Reuse.from_manifest(wanted)
        cordon = cordon_of(name, str(plain.get("cordon") or ""))
        bindings = Bindings.from_plain(plain["bindings"]) if "bindings" in plain else NOTHING_BOUND
        routes = tuple(
            normal_route(str(route)) for route in checked_list(plain.get("routes", []), "routes", ROUTES_MAX)
        )
        # What is wrong with a route is said before anything is compiled.
        self._catalog.check_routes(Deployment.whole(name, "0" * 16, routes))
        compiled = await self._deployer.store(component, limits, job.enter)
        if isinstance(compiled, Rejected):
            job.error = asdict(compiled)
            return
        upload = _Upload(
            name, compiled, len(component), limits, plan, author, replace(reuse, single_shot=compiled.single_shot),
            cordon, bindings, routes,
        )  # fmt: skip
        job.enter("distributing")
        async with self._cordons.hosts_for(cordon):
            await self._switch(job, upload)

    async def _switch(self, job: Job, upload: "_Upload") -> None:
        """Have a compiled upload answer: everywhere, at its home first, and then for all."""
        name, compiled, author, routes = upload.worker, upload.compiled, upload.author, upload.routes
        servers = self._serving()
        late = await self._distribution.distribute(servers, compiled)
        if servers and len(late) == len(servers):
            nowhere = "; ".join(f"{server}: {why}" for server, why in sorted(late.items()))
            job.error = {
                "code": "nowhere",
                "message": f"No server could take the code ({nowhere[:500]}).",
                "advice": "What was deployed before goes on.",
            }
            return
        if late:
            _log.warning("%s goes on without %s", name, late)
        async with self._changing:
            version = self._catalog.record_upload(
                name, compiled.component_digest, upload.component_bytes, upload.limits, upload.plan, author,
                self._now_ms(), upload.reuse, upload.cordon, upload.bindings,
            )  # fmt: skip
            await self._publish_change(self._catalog.seq(), name, late)
        begins_with = self._secrets_of(name)
        if self._preload:
            job.enter("warming")
            await self._start_at_home(version, begins_with, late)
        job.enter("switching")
        async with self._changing:
            if self._secrets_of(name) != begins_with:
                # Set meanwhile, and the isolate that was started has the old ones: it is of a version of its own.
                version = self._catalog.record_again(version, author, self._now_ms())
                await self._publish_change(self._catalog.seq(), name, late)
            late |= await self._distribution.distribute([s for s in self._serving() if s not in servers], compiled)
            seq = self._catalog.deploy(Deployment.whole(name, version.version_id, routes), author, self._now_ms())
            await self._publish_change(seq, name, late)
        without = {**self._without(), **late}
        job.result = {
            "worker": name,
            "version": version.version_id,
            "component_digest": compiled.component_digest,
            "component_bytes": upload.component_bytes,
            "artifact_bytes": compiled.artifact_bytes,
            "own_bytes": compiled.own_bytes,
            "startup_cpu_ms": round(compiled.startup_cpu_ms, 2),
            "servers": servers,
            "late": sorted(without),
            "why_late": without,
            "plan": upload.plan.value,
            "cordon": upload.cordon,
            # It is allowed: whoever is bound to each other has to be deployed one after the other.
            "missing": self._catalog.missing(upload.bindings.workers()),
            "unset_secrets": sorted(set(upload.bindings.secrets) - set(self._secrets_of(name))),
        }

    async def renew(self, worker: str, author: str) -> list[str]:
        """Deploy what is deployed of a worker once more, as new versions of the same code, so that all its isolates
        begin anew. The new versions' ids; none when it is not deployed any more."""
        while True:
            async with self._changing:
                deployed = self._catalog.find(worker)
                if deployed is None:
                    return []
                versions = []
                for version in deployed.versions:
                    versions.append(self._catalog.record_again(version, author, self._now_ms()))
                    await self._publish_change(self._catalog.seq(), worker)
                begins_with = self._secrets_of(worker)
            if self._preload:
                for version in versions:
                    await self._start_at_home(version, begins_with)
            async with self._changing:
                now = self._catalog.find(worker)
                if now is None or now.seq != deployed.seq or self._secrets_of(worker) != begins_with:
                    continue  # something else was deployed or set meanwhile: it is that which begins anew
                shares = zip(versions, deployed.deployment.shares, strict=True)
                again = replace(
                    deployed.deployment,
                    shares=tuple(replace(share, version_id=version.version_id) for version, share in shares),
                )
                await self._publish_change(self._catalog.deploy(again, author, self._now_ms()), worker)
            return [version.version_id for version in versions]

    async def _start_at_home(self, version: Version, secrets: dict[str, str], late: Collection[str] = ()) -> None:
        """Have an isolate of a version where its requests will go: none of them needs to see it start."""
        home = self._home_of(worker_key(version.cordon, version.worker))
        if home is None or home in late:
            return
        try:
            async with asyncio.timeout(_PRELOAD_S_MAX):
                order = {"version": version.to_plain(), "secrets": secrets}
                await self._fleet.call(home, "preload", encode_plain(order))
        except (PeerLost, PeerFailed, TimeoutError) as away:
            _log.info("%s was not started at %s: %s", version.version_id, home, away or "it took too long")

    async def _publish_change(self, seq: int, worker: str, late: Collection[str] = ()) -> None:
        """Tell all but those who are ``late`` and may hang: they notice with their heartbeats. Who has no room for the
        code is told: it sends its clients' requests to those that have it."""
        deployed = self._catalog.find(worker)
        plain = {
            "seq": seq,
            "worker": worker,
            "deployed": None if deployed is None else deployed_to_plain(deployed),
            "secrets": {} if deployed is None else self._secrets_of(worker),
        }
        without = self._without()
        told = [server for server in self._hearing() if server not in late or server in without]
        await self._fleet.tell(told, "apply_change", encode_plain(plain))


def _failed(trouble: str) -> dict[str, str]:
    """What is said of a deploy that the platform could not carry out. ``trouble``: with the ControlPlane's disk."""
    if not trouble:
        return {"code": "internalError", "message": "The deploy failed on the platform.", "advice": ""}
    return {
        "code": "noRoom",
        "message": f"The ControlPlane could not keep it: {trouble}.",
        "advice": "What was deployed before goes on. Make room on the cluster's head, and deploy again.",
    }

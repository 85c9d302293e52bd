"""ControlPlane: one per cluster. Catalog, membership, ring epochs, deploys. Never on a request's path.

What it knows is on disk (catalog) or comes back by itself (members join again), so losing it stops deploys and joins
and nothing else. It tells the Servers of each change; a Server that missed one asks for a snapshot.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from actors.catalog import Catalog, CatalogError
from actors.deployer import Deployer
from actors.peer import Calls, PeerFailed, PeerLost, Peers
from actors.view import decode_plain, deployed_to_plain, encode_plain
from actors.worker import Deployment, Limits, Plan, Reuse, worker_name
from isolates.acceptance import Rejected
from isolates.artifact import Compiled, Piece, encode_compiled

_log = logging.getLogger("everwarm.control_plane")

_PAGE = 500
#: Deploys whose result can still be asked for.
_JOBS_MAX = 64


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


class ControlPlane:
    """The cluster's memory."""

    def __init__(self, directory: Path, *, peers: Peers, now_ms: Callable[[], int]) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._catalog = Catalog.open(directory / "catalog.sqlite")
        self._deployer = Deployer(directory)
        self._peers = peers
        self._now_ms = now_ms
        self._members: dict[str, int] = {}
        self._epoch = now_ms()  # later than any epoch of an earlier life, without a place to remember it
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()
        self.calls: Calls = {
            "join": self.join,
            "leave": self.leave,
            "snapshot": self.snapshot,
            "deploy": self.deploy,
            "deploy_progress": self.deploy_progress,
            "remove": self.remove,
            "list": self.snapshot,
            "history": self.history,
            "members": self.members,
        }

    # ------------------------------------------------------------------------------------------------- membership

    async def join(self, payload: bytes) -> bytes:
        """A Server is there: put all code in place on it, then let it into the ring."""
        plain = decode_plain(payload)
        name, weight = str(plain["server"]), int(plain["weight"])
        await self._install_all(name)
        async with self._changing:
            # Once more, for what was deployed meanwhile; nearly always this is one question.
            digests = await self._install_all(name)
            await self._call(name, "collect_code", encode_plain(digests))
            self._members[name] = weight
            await self._publish_ring()
        return b""

    async def _install_all(self, name: str) -> list[str]:
        """Put the code of everything that is deployed in place on a machine; the digests of those components."""
        limits = {v.component_digest: v.limits for d in self._catalog.current() for v in d.versions}
        digests = sorted(limits)
        for i in range(0, len(digests), _PAGE):
            missing = decode_plain(await self._call(name, "missing_code", encode_plain(digests[i : i + _PAGE])))
            for digest in missing:
                compiled = await asyncio.to_thread(self._deployer.compiled, digest)
                compiled = compiled or await self._deployer.recompile(digest, limits[digest])
                if compiled is None:
                    _log.error("component %s can not be compiled for this engine; deploy it again", digest[:12])
                else:
                    await self._install(name, compiled)
        return digests

    async def leave(self, payload: bytes) -> bytes:
        """A Server goes: take it out of the ring."""
        async with self._changing:
            self._members.pop(str(decode_plain(payload)["server"]), None)
            await self._publish_ring()
        return b""

    async def _publish_ring(self) -> None:
        self._epoch += 1
        payload = encode_plain(
            {"epoch": self._epoch, "servers": self._members, "secret": self._catalog.cluster_secret()}
        )
        await self._tell_all("apply_ring", payload)

    async def members(self, payload: bytes = b"") -> bytes:
        """Who is in the ring, and its epoch."""
        return encode_plain({"epoch": self._epoch, "servers": self._members})

    # ---------------------------------------------------------------------------------------------------- deploys

    async def snapshot(self, payload: bytes) -> bytes:
        """A page of what is deployed, by name, after ``after``."""
        page = self._catalog.current(str(decode_plain(payload)["after"]), _PAGE)
        return encode_plain(
            {
                "seq": self._catalog.seq(),
                "workers": [deployed_to_plain(deployed) for deployed in page],
                "more": len(page) == _PAGE,
            }
        )

    async def deploy(self, payload: bytes) -> bytes:
        """Begin a deploy: ``{name, plan, limits, component, author}`` and, if it has one, ``reuse`` -> ``{"job": id}``.

        Ask ``deploy_progress``.
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

    async def _run(self, job: Job, plain: dict[str, object]) -> None:
        try:
            await self._deploy(job, plain)
        except (ValueError, CatalogError) as wrong:
            job.error = {"code": "refused", "message": f"{wrong}", "advice": ""}
        except Exception:
            _log.exception("deploying %s failed", job.worker)
            job.error = {"code": "internalError", "message": "The deploy failed on the platform.", "advice": ""}
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
        compiled = await self._deployer.store(component, limits, job.enter)
        if isinstance(compiled, Rejected):
            job.error = asdict(compiled)
            return
        reuse = replace(reuse, single_shot=compiled.single_shot)
        job.enter("distributing")
        servers = list(self._members)
        late = await self._distribute(servers, compiled)
        job.enter("switching")
        async with self._changing:
            late += await self._distribute([m for m in self._members if m not in servers], compiled)
            version = self._catalog.record_upload(
                name, compiled.component_digest, len(component), limits, plan, author, self._now_ms(), reuse
            )
            upload_seq = self._catalog.seq()
            await self._publish_change(upload_seq, name)
            seq = self._catalog.deploy(Deployment.whole(name, version.version_id), author, self._now_ms())
            await self._publish_change(seq, name)
        job.result = {
            "worker": name,
            "version": version.version_id,
            "component_digest": compiled.component_digest,
            "component_bytes": len(component),
            "artifact_bytes": compiled.artifact_bytes,
            "own_bytes": compiled.own_bytes,
            "startup_cpu_ms": round(compiled.startup_cpu_ms, 2),
            "servers": servers,
            "late": late,
            "plan": plan.value,
        }

    async def remove(self, payload: bytes) -> bytes:
        """End a worker's deployment; its history stays. ``{"removed": bool}``."""
        plain = decode_plain(payload)
        async with self._changing:
            seq = self._catalog.remove(str(plain["name"]), str(plain["author"]), self._now_ms())
            if seq is not None:
                await self._publish_change(seq, str(plain["name"]))
        return encode_plain({"removed": seq is not None})

    async def history(self, payload: bytes) -> bytes:
        """The latest uploads and deploys of one worker, newest first."""
        changes = self._catalog.history(str(decode_plain(payload)["name"]), _PAGE)
        return encode_plain(
            [
                {
                    "seq": change.seq,
                    "kind": change.kind.value,
                    "at_ms": change.at_ms,
                    "author": change.author,
                    "version": change.version.version_id if change.version else None,
                    "component_bytes": change.component_bytes,
                }
                for change in changes
            ]
        )

    async def _distribute(self, servers: list[str], compiled: Compiled) -> list[str]:
        """Put the artifact on every machine; who could not be reached is told, and gets it when it joins again."""

        async def one(server: str) -> str | None:
            try:
                await self._install(server, compiled)
            except (PeerLost, PeerFailed) as failed:
                _log.error("code did not reach %s: %s", server, failed)
                return server
            return None

        return [late for late in await asyncio.gather(*(one(server) for server in servers)) if late is not None]

    async def _install(self, server: str, compiled: Compiled) -> None:
        if not decode_plain(await self._call(server, "missing_code", encode_plain([compiled.component_digest]))):
            return
        # The engine that a toolchain's workers share is asked for like every piece, and found to be there already.
        wanted = encode_plain([asdict(piece) for piece in compiled.pieces])
        for missing in decode_plain(await self._call(server, "missing_pieces", wanted)):
            piece = Piece(**missing)
            path = self._deployer.store_of_artifacts.piece_path(piece.source_digest)
            artifact = await asyncio.to_thread(path.read_bytes)
            await self._call(server, "install_piece", encode_plain({"piece": missing, "artifact": artifact}))
        await self._call(server, "install_code", encode_compiled(compiled))

    async def _publish_change(self, seq: int, worker: str) -> None:
        deployed = self._catalog.find(worker)
        await self._tell_all(
            "apply_change",
            encode_plain(
                {
                    "seq": seq,
                    "worker": worker,
                    "deployed": None if deployed is None else deployed_to_plain(deployed),
                }
            ),
        )

    async def _tell_all(self, method: str, payload: bytes) -> None:
        """Tell every member; one that is away asks for a snapshot when it is back."""

        async def one(server: str) -> None:
            try:
                await self._call(server, method, payload)
            except (PeerLost, PeerFailed) as failed:
                _log.error("%s did not hear %s: %s", server, method, failed)

        await asyncio.gather(*(one(server) for server in self._members))

    async def _call(self, server: str, method: str, payload: bytes) -> bytes:
        return await (await self._peers.get(f"{server}/server")).call(method, payload)

    def close(self) -> None:
        """Close the catalog."""
        self._catalog.close()

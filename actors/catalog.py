"""The catalog: every upload and every deployment there ever was, and what is deployed now. SQLite, one file.

The history (`change`) is append-only, numbered 1, 2, 3 … without gaps, and triggers refuse to update or delete it. The
tables `version` and `deployed` are what the history adds up to, kept in the same transaction, so a reader never sees
one without the other. Other machines are told the number with each deploy: one they have seen always stands for the
same change.

That promise chooses `synchronous=FULL`. In WAL mode NORMAL survives a killed process too, but a power cut may take
the last commits back, and the next deploys would then reuse sequence numbers that servers have already acted on.
A deploy is rare, and one fsync is milliseconds against its seconds of compiling.

One owner, the ControlPlane; no two calls at once, from whichever thread. Each call is one short transaction.
The file holds the cluster's secret: it is 0600 from its first byte (SQLite gives its -wal and -shm the same mode).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from actors.bindings import NOTHING_BOUND, Bindings
from actors.worker import (
    AUTHOR_CHARS_MAX,
    CORDON_DEFAULT,
    REUSE_DEFAULT,
    Deployment,
    Limits,
    Plan,
    Reuse,
    Version,
    make_version_id,
    read_cordon,
)
from actors.worker_names import worker_name

_SCHEMA_VERSION: Final = 1  # kept in SQLite's user_version
_APPLICATION_ID: Final = 0x65766572  # "ever": tells `file` and us whose database this is
_SECRET_BYTES: Final = 32

_SCHEMA: Final = """
CREATE TABLE change (
    seq     INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL CHECK (kind IN ('upload', 'deploy', 'remove')),
    worker  TEXT NOT NULL,
    at_ms   INTEGER NOT NULL,
    author  TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;
CREATE INDEX change_by_worker ON change (worker, seq);
CREATE TRIGGER change_is_never_updated BEFORE UPDATE ON change BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER change_is_never_deleted BEFORE DELETE ON change BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TABLE version (
    version_id TEXT PRIMARY KEY,
    worker     TEXT NOT NULL,
    seq        INTEGER NOT NULL REFERENCES change (seq),
    detail     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE deployed (
    worker TEXT PRIMARY KEY,
    seq    INTEGER NOT NULL REFERENCES change (seq),
    detail TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE secret (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    value BLOB NOT NULL CHECK (length(value) = 32)
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class CatalogLimits:
    """Bounds on one catalog and on one call."""

    workers_max: int = 100_000  # deployed at once; what a machine's routes are built for
    routes_max: int = 100_000  # of all of them together, beside their own names
    page_max: int = 1_000  # changes or workers in one answer: some 500 KB and milliseconds
    busy_timeout_ms: int = 5_000  # a reader from the command line may hold the lock while it copies
    wal_bytes_max: int = 16 * 1024 * 1024  # the log is cut back to this after a checkpoint


_LIMITS: Final = CatalogLimits()


class CatalogError(Exception):
    """The catalog refuses; the message says why, names no path, and may be shown to whoever deploys."""


class NewerCatalog(CatalogError):
    """The file was written by a newer Everwarm than this one."""


class ChangeKind(StrEnum):
    UPLOAD = "upload"
    DEPLOY = "deploy"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the history. An upload has a version and its size, a deploy a deployment, a removal neither."""

    seq: int
    kind: ChangeKind
    worker: str
    at_ms: int
    author: str
    version: Version | None = None
    component_bytes: int | None = None
    deployment: Deployment | None = None


@dataclass(frozen=True, slots=True)
class Deployed:
    """A worker that answers now: its deployment, the versions named by it in that order, and the deploy's number."""

    seq: int
    deployment: Deployment
    versions: tuple[Version, ...]


class Catalog:
    """See the module's docstring. Made by `Catalog.open`."""

    def __init__(self, database: sqlite3.Connection, limits: CatalogLimits = _LIMITS) -> None:
        self._database = database
        self._limits = limits

    @classmethod
    def open(cls, path: Path, entropy: Callable[[int], bytes] = os.urandom, limits: CatalogLimits = _LIMITS) -> Catalog:
        """Opens the file at `path`, or makes it and its directory (0700).

        `entropy(n)` gives n random bytes, used once for the cluster's secret. Raises NewerCatalog when the file's
        schema is newer than this program, CatalogError when it is some other database or no database at all.
        """
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        # isolation_level None: transactions are begun here, and only here. The owner may move between threads (an
        # actor's constructor and its methods do), hence check_same_thread.
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            cls._prepare(database, entropy, limits)
        except sqlite3.DatabaseError as error:
            database.close()
            raise CatalogError(f"the catalog can not be read: {error}") from error
        except BaseException:
            database.close()
            raise
        return cls(database, limits)

    @staticmethod
    def _prepare(database: sqlite3.Connection, entropy: Callable[[int], bytes], limits: CatalogLimits) -> None:
        # The version comes first: the file of a newer program is left exactly as it was found.
        database.execute(f"PRAGMA busy_timeout = {limits.busy_timeout_ms:d}")
        (found,) = database.execute("PRAGMA user_version").fetchone()
        (owner,) = database.execute("PRAGMA application_id").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if tables and owner != _APPLICATION_ID:
            raise CatalogError("the catalog's file is the database of another program")
        if found > _SCHEMA_VERSION:
            raise NewerCatalog(
                f"the catalog has schema {found}; this Everwarm reads {_SCHEMA_VERSION}. Start the newer Everwarm."
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute(f"PRAGMA journal_size_limit = {limits.wal_bytes_max:d}")
        with _transaction(database):
            # Asked again under the lock: another process may have made the schema since.
            if database.execute("PRAGMA user_version").fetchone()[0] == 0:
                for statement in _statements(_SCHEMA):
                    database.execute(statement)
                database.execute("INSERT INTO secret (id, value) VALUES (1, ?)", (entropy(_SECRET_BYTES),))
                database.execute(f"PRAGMA application_id = {_APPLICATION_ID:d}")
                database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION:d}")

    def record_upload(
        self,
        worker: str,
        component_digest: str,
        component_bytes: int,
        limits: Limits,
        plan: Plan,
        author: str,
        at_ms: int,
        reuse: Reuse = REUSE_DEFAULT,
        cordon: str = CORDON_DEFAULT,
        bindings: Bindings = NOTHING_BOUND,
    ) -> Version:
        """Writes down an upload and makes its version. Nothing runs yet: that is `deploy`.

        `component_digest` is sha256 in lower-case hex, `component_bytes` the size as uploaded, `at_ms` Unix time.
        Raises ValueError naming the field when a value is malformed.
        """
        if type(component_bytes) is not int or component_bytes < 0:
            raise ValueError("component_bytes: must be a whole number, zero or more")
        with _transaction(self._database):
            seq = self._next_seq()
            version = Version(
                worker=worker,
                version_id=make_version_id(worker, component_digest, seq),
                component_digest=component_digest,
                limits=limits,
                plan=plan,
                created_at_ms=at_ms,
                author=author,
                reuse=reuse,
                cordon=cordon,
                bindings=bindings,
            )
            detail = {"version": version.to_plain(), "component_bytes": component_bytes}
            self._append(seq, ChangeKind.UPLOAD, worker, at_ms, author, detail)
            self._database.execute(
                "INSERT INTO version (version_id, worker, seq, detail) VALUES (?, ?, ?, ?)",
                (version.version_id, worker, seq, _dumped(version.to_plain())),
            )
        return version

    def record_again(self, version: Version, author: str, at_ms: int) -> Version:
        """A version like `version`, of the same upload, with an id of its own. `version` is in this catalog."""
        row = self._database.execute(
            "SELECT change.detail FROM change JOIN version USING (seq) WHERE version_id = ?", (version.version_id,)
        ).fetchone()
        size = json.loads(row[0])["component_bytes"]
        return self.record_upload(
            version.worker, version.component_digest, size, version.limits, version.plan, author, at_ms, version.reuse,
            version.cordon, version.bindings,
        )  # fmt: skip

    def deploy(self, deployment: Deployment, author: str, at_ms: int) -> int:
        """Makes `deployment` the worker's, and returns its sequence number. A rollback is a deploy of older versions.

        Raises CatalogError when a version was never uploaded for this worker, when too many workers are deployed, or
        when a route is another worker's: a host is never taken over silently.
        """
        worker = deployment.worker
        with _transaction(self._database):
            for version_id in deployment.version_ids:
                found = self.version(version_id)
                if found is None or found.worker != worker:
                    raise CatalogError(f"worker {worker} has no version {version_id}")
            if self.find(worker) is None:
                (count,) = self._database.execute("SELECT count(*) FROM deployed").fetchone()
                if count >= self._limits.workers_max:
                    raise CatalogError(f"{count} workers are deployed, the most this cluster takes")
            self.check_routes(deployment)
            seq = self._next_seq()
            plain = deployment.to_plain()
            self._append(seq, ChangeKind.DEPLOY, worker, at_ms, author, {"deployment": plain})
            self._database.execute(
                "INSERT INTO deployed (worker, seq, detail) VALUES (?, ?, ?)"
                " ON CONFLICT (worker) DO UPDATE SET seq = excluded.seq, detail = excluded.detail",
                (worker, seq, _dumped(plain)),
            )
        return seq

    def check_routes(self, deployment: Deployment) -> None:
        """Raises CatalogError when a route of `deployment` is another worker's, or there are too many."""
        for route in deployment.routes:
            if self._is_routed(route, deployment.worker):
                # It does not say whose it is: one tenant's names are no other tenant's business.
                raise CatalogError(f"routes: {route} leads to another worker")
        if deployment.routes:
            (others,) = self._database.execute(
                "SELECT coalesce(sum(json_array_length(detail, '$.routes')), 0) FROM deployed WHERE worker <> ?",
                (deployment.worker,),
            ).fetchone()
            if others + len(deployment.routes) > self._limits.routes_max:
                raise CatalogError(f"routes: {others} are deployed, and this cluster takes {self._limits.routes_max}")

    def missing(self, workers: Iterable[str]) -> list[str]:
        """Those of `workers` that are not deployed, in their order."""
        return [worker for worker in workers if self.find(worker) is None]

    def remove(self, worker: str, author: str, at_ms: int) -> int | None:
        """Ends the worker's deployment; its versions and history stay. None when nothing was deployed."""
        with _transaction(self._database):
            if self._database.execute("DELETE FROM deployed WHERE worker = ?", (worker,)).rowcount == 0:
                return None
            seq = self._next_seq()
            self._append(seq, ChangeKind.REMOVE, worker, at_ms, author, {})
        return seq

    def cordons(self) -> set[str]:
        """The cordons of all that is deployed."""
        rows = self._database.execute(
            "SELECT DISTINCT json_extract(version.detail, '$.schema') AS schema,"
            " json_extract(version.detail, '$.cordon') AS cordon,"
            " substr(version.worker, 1, instr(version.worker, '/')) AS namespace"
            " FROM deployed, json_each(deployed.detail, '$.shares') AS share"
            " JOIN version ON version.version_id = json_extract(share.value, '$.version_id')"
        )
        return {
            str(read_cordon(schema, cordon or CORDON_DEFAULT, namespace.rstrip("/")))
            for schema, cordon, namespace in rows
        }

    def seq(self) -> int:
        """The number of the latest change, 0 when there is none."""
        return self._next_seq() - 1

    def current(self, after: str = "", limit: int | None = None) -> list[Deployed]:
        """What is deployed, by worker name. Without a limit all of it (at most `workers_max`, seconds for that many:
        for a start, not for a request); else the next `limit` workers after the one named.
        """
        most = self._limits.workers_max if limit is None else min(max(limit, 0), self._limits.page_max)
        rows = self._database.execute(
            "SELECT seq, detail FROM deployed WHERE worker > ? ORDER BY worker LIMIT ?", (after, most)
        )
        return [self._deployed(seq, detail) for seq, detail in rows.fetchall()]

    def find(self, worker: str) -> Deployed | None:
        """What is deployed for one worker."""
        row = self._database.execute("SELECT seq, detail FROM deployed WHERE worker = ?", (worker,)).fetchone()
        return None if row is None else self._deployed(row[0], row[1])

    def version(self, version_id: str) -> Version | None:
        """Any version ever uploaded, deployed or not."""
        row = self._database.execute("SELECT detail FROM version WHERE version_id = ?", (version_id,)).fetchone()
        return None if row is None else Version.from_plain(json.loads(row[0]))

    def changes_since(self, seq: int, limit: int) -> list[Change]:
        """The next changes after `seq`, oldest first: at most `limit` and at most `page_max`. Empty means no more."""
        rows = self._database.execute(
            "SELECT seq, kind, worker, at_ms, author, detail FROM change WHERE seq > ? ORDER BY seq LIMIT ?",
            (seq, self._page(limit)),
        )
        return [_change(*row) for row in rows]

    def history(self, worker: str, limit: int) -> list[Change]:
        """The latest changes of one worker, newest first: at most `limit` and at most `page_max`."""
        rows = self._database.execute(
            "SELECT seq, kind, worker, at_ms, author, detail FROM change WHERE worker = ? ORDER BY seq DESC LIMIT ?",
            (worker, self._page(limit)),
        )
        return [_change(*row) for row in rows]

    def cluster_secret(self) -> bytes:
        """32 random bytes, made with the file and the same ever after. Never log them."""
        (value,) = self._database.execute("SELECT value FROM secret").fetchone()
        return bytes(value)

    def close(self) -> None:
        """Folds the log into the file. May be called twice."""
        self._database.close()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_seq(self) -> int:
        (seq,) = self._database.execute("SELECT coalesce(max(seq), 0) + 1 FROM change").fetchone()
        return int(seq)

    def _append(self, seq: int, kind: ChangeKind, worker: str, at_ms: int, author: str, detail: object) -> None:
        worker_name(worker)
        if type(at_ms) is not int or at_ms < 0:
            raise ValueError("at_ms: must be a whole number, zero or more")
        if not isinstance(author, str) or len(author) > AUTHOR_CHARS_MAX:
            raise ValueError(f"author: must be a string of at most {AUTHOR_CHARS_MAX} characters")
        self._database.execute(
            "INSERT INTO change (seq, kind, worker, at_ms, author, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (seq, kind.value, worker, at_ms, author, _dumped(detail)),
        )

    def _is_routed(self, route: str, except_to: str) -> bool:
        """Whether a route is another worker's. Reads all that is deployed: a deploy with routes has that time."""
        row = self._database.execute(
            "SELECT 1 FROM deployed, json_each(deployed.detail, '$.routes') AS route"
            " WHERE route.value = ? AND deployed.worker <> ? LIMIT 1",
            (route, except_to),
        ).fetchone()
        return row is not None

    def _deployed(self, seq: int, detail: str) -> Deployed:
        deployment = Deployment.from_plain(json.loads(detail))
        versions = []
        for version_id in deployment.version_ids:
            version = self.version(version_id)
            if version is None:
                raise RuntimeError(f"deployment {seq} names version {version_id}, which is not in the catalog")
            versions.append(version)
        return Deployed(seq, deployment, tuple(versions))

    def _page(self, limit: int) -> int:
        return min(max(limit, 0), self._limits.page_max)


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Everything or nothing. IMMEDIATE takes the write lock first, so no statement inside fails for want of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have rolled back already
            database.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """The script's statements one by one: `executescript` would commit the transaction around it first."""
    pending = ""
    for line in script.strip().splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _dumped(plain: object) -> str:
    return json.dumps(plain, separators=(",", ":"), sort_keys=True)


def _change(seq: int, kind: str, worker: str, at_ms: int, author: str, detail: str) -> Change:
    plain = json.loads(detail)
    version = Version.from_plain(plain["version"]) if kind == ChangeKind.UPLOAD else None
    component_bytes = plain.get("component_bytes") if version is not None else None
    deployment = Deployment.from_plain(plain["deployment"]) if kind == ChangeKind.DEPLOY else None
    return Change(seq, ChangeKind(kind), worker, at_ms, author, version, component_bytes, deployment)

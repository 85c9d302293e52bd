from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from actors.catalog import Catalog, CatalogError, CatalogLimits, Change, ChangeKind, Deployed, NewerCatalog
from actors.worker import Deployment, Limits, Plan, Share, Version

DIGEST = "5e" * 32
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "catalog.sqlite3"


def upload(catalog: Catalog, worker: str = "hello", at_ms: int = 1_000) -> Version:
    return catalog.record_upload(worker, DIGEST, 1_234, Limits.for_plan(Plan.FREE), Plan.FREE, "ada", at_ms)


def folded(changes: list[Change]) -> dict[str, Deployment]:
    """What a history adds up to."""
    standing: dict[str, Deployment] = {}
    for change in changes:
        if change.kind is ChangeKind.DEPLOY:
            assert change.deployment is not None
            standing[change.worker] = change.deployment
        elif change.kind is ChangeKind.REMOVE:
            del standing[change.worker]
    return standing


def whole_history(catalog: Catalog) -> list[Change]:
    changes: list[Change] = []
    while page := catalog.changes_since(changes[-1].seq if changes else 0, 1_000):
        changes += page
    return changes


def test_the_story_of_a_worker(path: Path) -> None:
    with Catalog.open(path) as catalog:
        assert (catalog.seq(), catalog.current()) == (0, [])
        old = upload(catalog)
        assert catalog.deploy(Deployment.whole("hello", old.version_id), "ada", 2_000) == 2
        new = upload(catalog, at_ms=3_000)
        assert new.version_id != old.version_id
        split = Deployment("hello", (Share(old.version_id, 90), Share(new.version_id, 10)))
        assert catalog.deploy(split, "bob", 4_000) == 4
        assert catalog.current() == [Deployed(4, split, (old, new))]
        assert catalog.find("hello") == Deployed(4, split, (old, new))
        assert catalog.remove("hello", "bob", 5_000) == 5
        assert catalog.remove("hello", "bob", 5_001) is None
        assert catalog.current() == []
        assert catalog.deploy(Deployment.whole("hello", old.version_id), "ada", 6_000) == 6  # a rollback

    with Catalog.open(path) as catalog:
        kinds = [(change.seq, change.kind, change.author, change.at_ms) for change in whole_history(catalog)]
        assert kinds == [
            (1, ChangeKind.UPLOAD, "ada", 1_000),
            (2, ChangeKind.DEPLOY, "ada", 2_000),
            (3, ChangeKind.UPLOAD, "ada", 3_000),
            (4, ChangeKind.DEPLOY, "bob", 4_000),
            (5, ChangeKind.REMOVE, "bob", 5_000),
            (6, ChangeKind.DEPLOY, "ada", 6_000),
        ]
        first = catalog.changes_since(0, 1)[0]
        assert (first.version, first.component_bytes, first.deployment) == (old, 1_234, None)
        assert [change.seq for change in catalog.changes_since(2, 2)] == [3, 4]
        assert catalog.changes_since(6, 10) == catalog.changes_since(0, 0) == []
        assert [change.seq for change in catalog.history("hello", 3)] == [6, 5, 4]
        assert catalog.history("nobody", 3) == []
        assert catalog.version(new.version_id) == new
        assert catalog.version("0" * 16) is None


def test_only_what_was_uploaded_for_this_worker_is_deployed(path: Path) -> None:
    with Catalog.open(path) as catalog:
        other = upload(catalog, "other")
        with pytest.raises(CatalogError, match="hello has no version"):
            catalog.deploy(Deployment.whole("hello", other.version_id), "ada", 1)
        with pytest.raises(CatalogError, match="other has no version"):
            catalog.deploy(Deployment.whole("other", "0" * 16), "ada", 1)
        assert catalog.seq() == 1


def test_a_malformed_upload_leaves_no_trace(path: Path) -> None:
    limits = Limits.for_plan(Plan.FREE)
    with Catalog.open(path) as catalog:
        for worker, digest, size, author, at_ms, field in [
            ("Hello", DIGEST, 1, "ada", 1, "worker"),
            ("hello", "xyz", 1, "ada", 1, "component_digest"),
            ("hello", DIGEST, -1, "ada", 1, "component_bytes"),
            ("hello", DIGEST, 1, "a" * 257, 1, "author"),
            ("hello", DIGEST, 1, "ada", -1, "created_at_ms"),
        ]:
            with pytest.raises(ValueError, match=f"^{field}:"):
                catalog.record_upload(worker, digest, size, limits, Plan.FREE, author, at_ms)
        version = upload(catalog)
        with pytest.raises(ValueError, match=r"^at_ms:"):
            catalog.deploy(Deployment.whole("hello", version.version_id), "ada", -1)
        assert catalog.seq() == 1


def test_pages_and_workers_are_bounded(path: Path) -> None:
    with Catalog.open(path, limits=CatalogLimits(workers_max=3, page_max=2)) as catalog:
        for worker in ("a", "b", "c"):
            catalog.deploy(Deployment.whole(worker, upload(catalog, worker).version_id), "ada", 1)
        version = upload(catalog, "d")
        with pytest.raises(CatalogError, match="3 workers"):
            catalog.deploy(Deployment.whole("d", version.version_id), "ada", 1)
        again = catalog.find("a")
        assert again is not None
        catalog.deploy(again.deployment, "ada", 2)  # one that is there already may change
        assert len(catalog.changes_since(0, 10**9)) == len(catalog.history("a", 10**9)) == 2
        assert [found.deployment.worker for found in catalog.current()] == ["a", "b", "c"]
        assert [found.deployment.worker for found in catalog.current(limit=10**9)] == ["a", "b"]
        assert [found.deployment.worker for found in catalog.current(after="b", limit=2)] == ["c"]


def test_routes_are_bounded(path: Path) -> None:
    with Catalog.open(path, limits=CatalogLimits(routes_max=3)) as catalog:
        for worker, routes in (("a", ("a.b", "b.b")), ("b", ("c.b",)), ("a", ("a.b", "d.b")), ("c", ())):
            version = upload(catalog, worker).version_id
            catalog.deploy(Deployment.whole(worker, version, routes), "ada", 1)
        version = upload(catalog, "d").version_id
        with pytest.raises(CatalogError, match="routes: 3 are deployed, and this cluster takes 3"):
            catalog.deploy(Deployment.whole("d", version, ("e.b",)), "ada", 1)


def test_a_version_may_be_recorded_again(path: Path) -> None:
    with Catalog.open(path) as catalog:
        first = upload(catalog, "a")
        second = catalog.record_again(first, "bob", 9)
        assert second == replace(first, version_id=second.version_id, author="bob", created_at_ms=9)
        assert second.version_id != first.version_id
        newest, oldest = catalog.history("a", 2)
        assert newest.component_bytes == oldest.component_bytes
        assert newest.version == second


def test_history_can_not_be_rewritten(path: Path) -> None:
    with Catalog.open(path) as catalog:
        upload(catalog)
    database = sqlite3.connect(path)
    for statement in ("UPDATE change SET author = 'eve'", "DELETE FROM change"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
    database.close()


def test_the_secret_is_made_once_and_nobody_else_reads_the_file(path: Path) -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes(range(count))

    for _ in range(2):
        with Catalog.open(path, entropy) as catalog:
            assert catalog.cluster_secret() == bytes(range(32))
            upload(catalog)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
            assert set(modes.values()) == {0o600}, modes
    assert asked == [32]
    assert path.parent.stat().st_mode & 0o777 == 0o700
    os.chmod(path, 0o644)
    with Catalog.open(path):
        assert path.stat().st_mode & 0o777 == 0o600
    with Catalog.open(path.with_name("second")) as one, Catalog.open(path.with_name("third")) as other:
        assert one.cluster_secret() != other.cluster_secret()


def test_a_newer_file_is_refused_and_left_as_it_is(path: Path) -> None:
    Catalog.open(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.close()
    before = path.read_bytes()
    with pytest.raises(NewerCatalog, match="has schema 2; this Everwarm reads 1"):
        Catalog.open(path)
    assert path.read_bytes() == before


def test_other_files_are_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"This is not a database at all. " * 100)
    with pytest.raises(CatalogError, match="can not be read"):
        Catalog.open(path)
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.commit()
    database.close()
    with pytest.raises(CatalogError, match="another program"):
        Catalog.open(path)


DEPLOYS_FOR_EVER = """
import sys
from pathlib import Path
from actors.catalog import Catalog
from actors.worker import Deployment, Limits, Plan

catalog = Catalog.open(Path(sys.argv[1]))
for turn in range(10**9):
    worker = f"worker-{turn % 5}"
    version = catalog.record_upload(worker, "5e" * 32, turn, Limits.for_plan(Plan.FREE), Plan.FREE, "loop", turn)
    print(catalog.deploy(Deployment.whole(worker, version.version_id), "loop", turn), flush=True)
    if turn % 7 == 6:
        print(catalog.remove(worker, "loop", turn), flush=True)
"""


@pytest.mark.parametrize("acknowledged_before_the_kill", [1, 40])
def test_a_killed_owner_leaves_a_consistent_prefix(path: Path, acknowledged_before_the_kill: int) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", DEPLOYS_FOR_EVER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert owner.stdout is not None
    for _ in range(acknowledged_before_the_kill):
        owner.stdout.readline()
    owner.kill()
    rest = [line for line in owner.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    owner.wait()
    owner.stdout.close()

    with Catalog.open(path) as catalog:
        changes = whole_history(catalog)
        assert [change.seq for change in changes] == list(range(1, len(changes) + 1))
        assert len(changes) >= (int(rest[-1]) if rest else acknowledged_before_the_kill)
        standing = {found.deployment.worker: found.deployment for found in catalog.current()}
        assert standing == folded(changes)
        for change in changes:
            if change.version is not None:
                assert catalog.version(change.version.version_id) == change.version
        assert upload(catalog).created_at_ms == 1_000
        assert catalog.seq() == len(changes) + 1

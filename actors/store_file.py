"""Key-value stores on disk: SQLite, one file, one writer. What was answered is what the next one reads.

The ControlPlane owns it and carries out one operation after the other, so operations on a store happen in one order,
wherever in the cluster their guests run, and a read never misses a write that was answered before. One call is one
short transaction; a batch is done whole or not at all. `synchronous=NORMAL` in WAL mode survives a killed process; a
power cut may take back the last moments, but leaves no half of anything.

A number that `increment` keeps is its decimal text, so `get` reads what a guest may have set.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isolates.disk import disk_trouble
from isolates.stores import StoreAsked, StoreTold

_log = logging.getLogger("everwarm.stores")

_SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS store (
        id    INTEGER PRIMARY KEY,
        name  TEXT NOT NULL UNIQUE,
        keys  INTEGER NOT NULL DEFAULT 0,
        bytes INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS entry (
        id    INTEGER PRIMARY KEY AUTOINCREMENT,
        store INTEGER NOT NULL REFERENCES store (id),
        key   TEXT NOT NULL,
        value BLOB NOT NULL,
        UNIQUE (store, key)
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS entry_in_order ON entry (store, id)",
)
_U64_MAX: Final = (1 << 64) - 1
_CURSOR_MAX: Final = (1 << 63) - 1  # of SQLite's integers


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """Bounds on one operation, one store, and all of them."""

    key_bytes_max: int = 512  # a path, a token, an address: more is a value
    value_bytes_max: int = 64 * 1024  # passes through every process on the way, whole
    batch_keys_max: int = 128  # as many as a worker has variables: a page's worth
    batch_bytes_max: int = 512 * 1024  # of keys and values; half of what a frame holds
    list_keys_max: int = 500  # in one answer: 256 KB of the longest keys
    keys_max: int = 100_000  # of one store
    bytes_max: int = 256 * 1024 * 1024  # of one store, keys and values
    stores_max: int = 10_000
    total_bytes_max: int = 8 << 30  # of all: the file's size on the ControlPlane's disk


class _Refused(Exception):
    """The operation cannot be carried out; the text is for the worker's owner."""


class StoreFile:
    """See the module's docstring."""

    def __init__(self, path: Path, limits: StoreLimits | None = None) -> None:
        """Open the file at ``path``, or make it, 0600 from its first byte."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        self._limits = limits or StoreLimits()
        self._in_trouble = False
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        for statement in _SCHEMA:
            self._database.execute(statement)

    def carry_out(self, store: str, asked: StoreAsked) -> StoreTold:
        """One operation on a store, which is made by its first write."""
        try:
            self._check(asked)
            match asked.op:
                case "open":
                    return StoreTold()
                case "get":
                    return self._get(store, asked.keys)
                case "exists":
                    return StoreTold(number=len(self._found(store, asked.keys)))
                case "list":
                    return self._list(store, asked.cursor)
                case "set":
                    with self._transaction():
                        self._set(store, dict(zip(asked.keys, asked.values, strict=True)))
                case "delete":
                    with self._transaction():
                        self._delete(store, asked.keys)
                case "increment":
                    with self._transaction():
                        return self._increment(store, asked.keys[0], asked.delta)
                case _:
                    raise _Refused("no such operation")
        except _Refused as why:
            return StoreTold(error=("other", str(why)))
        except sqlite3.OperationalError as failed:
            if not disk_trouble(failed):
                raise
            if not self._in_trouble:  # once: guests ask as often as they like
                _log.error("the stores cannot be written: %s", failed)
            self._in_trouble = True
            return StoreTold(error=("other", "the stores cannot be written now"))
        self._in_trouble = False
        return StoreTold()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._database.close()

    def _check(self, asked: StoreAsked) -> None:
        limits = self._limits
        if len(asked.keys) > limits.batch_keys_max:
            raise _Refused(f"{len(asked.keys)} keys are more than {limits.batch_keys_max}")
        for key in asked.keys:
            size = len(key.encode())
            if not 0 < size <= limits.key_bytes_max:
                raise _Refused(f"a key has 1 to {limits.key_bytes_max} bytes, and one has {size}")
        for value in asked.values:
            if len(value) > limits.value_bytes_max:
                raise _Refused(f"a value of {len(value)} bytes is more than {limits.value_bytes_max}")
        if sum(len(key.encode()) for key in asked.keys) + sum(map(len, asked.values)) > limits.batch_bytes_max:
            raise _Refused(f"more than {limits.batch_bytes_max} bytes at once")

    def _id(self, store: str) -> int | None:
        row = self._database.execute("SELECT id FROM store WHERE name = ?", (store,)).fetchone()
        return None if row is None else int(row[0])

    def _get(self, store: str, keys: tuple[str, ...]) -> StoreTold:
        found = self._found(store, keys)
        if sum(map(len, found.values())) > self._limits.batch_bytes_max:
            raise _Refused(f"more than {self._limits.batch_bytes_max} bytes at once")
        return StoreTold(values=tuple(found.get(key) for key in keys))

    def _found(self, store: str, keys: tuple[str, ...]) -> dict[str, bytes]:
        marks = ", ".join("?" * len(keys))
        rows = self._database.execute(
            f"SELECT key, value FROM entry WHERE store = ? AND key IN ({marks})", (self._id(store), *keys)
        )
        return {key: bytes(value) for key, value in rows.fetchall()}

    def _list(self, store: str, cursor: int | None) -> StoreTold:
        most = self._limits.list_keys_max
        rows = self._database.execute(
            "SELECT id, key FROM entry WHERE store = ? AND id > ? ORDER BY id LIMIT ?",
            (self._id(store), min(cursor or 0, _CURSOR_MAX), most),
        ).fetchall()
        return StoreTold(keys=tuple(key for _, key in rows), cursor=rows[-1][0] if len(rows) == most else None)

    def _set(self, store: str, entries: dict[str, bytes]) -> None:
        limits = self._limits
        number = self._id(store)
        if number is None:
            (stores,) = self._database.execute("SELECT count(*) FROM store").fetchone()
            if stores >= limits.stores_max:
                raise _Refused(f"this cluster has {stores} stores, the most it takes")
            self._database.execute("INSERT INTO store (name) VALUES (?)", (store,))
            number = self._id(store)
            assert number is not None, "a store that was made just now"
        before = self._found(store, tuple(entries))
        keys = len(entries.keys() - before.keys())
        grown = sum(len(value) - len(before.get(key, b"")) for key, value in entries.items())
        grown += sum(len(key.encode()) for key in entries.keys() - before.keys())
        held_keys, held_bytes = self._database.execute(
            "SELECT keys, bytes FROM store WHERE id = ?", (number,)
        ).fetchone()
        if held_keys + keys > limits.keys_max:
            raise _Refused(f"the store has {held_keys} keys, and takes {limits.keys_max}")
        if held_bytes + grown > limits.bytes_max:
            raise _Refused(f"the store holds {held_bytes} bytes, and takes {limits.bytes_max}")
        (total,) = self._database.execute("SELECT coalesce(sum(bytes), 0) FROM store").fetchone()
        if total + grown > limits.total_bytes_max:
            raise _Refused("the cluster's stores are full")
        self._database.executemany(
            "INSERT INTO entry (store, key, value) VALUES (?, ?, ?)"
            " ON CONFLICT (store, key) DO UPDATE SET value = excluded.value",
            [(number, key, value) for key, value in entries.items()],
        )
        self._count(number, keys, grown)

    def _delete(self, store: str, keys: tuple[str, ...]) -> None:
        number, before = self._id(store), self._found(store, keys)
        if number is None or not before:
            return
        self._database.executemany("DELETE FROM entry WHERE store = ? AND key = ?", [(number, key) for key in before])
        gone = sum(len(key.encode()) + len(value) for key, value in before.items())
        self._count(number, -len(before), -gone)

    def _increment(self, store: str, key: str, delta: int) -> StoreTold:
        before = self._found(store, (key,)).get(key, b"0")
        if not (before.isdigit() and len(before) <= 20):
            raise _Refused("what the key holds is no number")
        number = int(before) + delta
        if not 0 <= number <= _U64_MAX:
            raise _Refused("the number would be too large")
        self._set(store, {key: str(number).encode()})
        return StoreTold(number=number)

    def _count(self, number: int, keys: int, bytes_: int) -> None:
        self._database.execute(
            "UPDATE store SET keys = keys + ?, bytes = bytes + ? WHERE id = ?", (keys, bytes_, number)
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # a full disk may have rolled back already
                self._database.execute("ROLLBACK")
            raise

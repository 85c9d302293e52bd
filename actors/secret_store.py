"""The values of workers' secrets: SQLite, one file beside the catalog's, which only its owner may read.

A file of its own, so that the catalog can be copied, shown and searched without them. Of what is deleted or replaced,
nothing stays in it (`secure_delete`). The values are not encrypted: whoever may read this file may read a key that lies
beside it, too.

A secret belongs to a worker and not to a version: there is one value, the latest, also for a version that is rolled
back to. One owner, the ControlPlane; no two calls at once.
"""

from __future__ import annotations

import os
import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from actors.bindings import LIMITS, VARIABLE, text_bytes
from actors.worker_names import worker_name

_NAME: Final = re.compile(VARIABLE)
#: Of all workers together: a hundred thousand of them with ten each.
_SECRETS_MAX: Final = 1_000_000
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS secret (
    worker TEXT NOT NULL,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    at_ms  INTEGER NOT NULL,
    author TEXT NOT NULL,
    PRIMARY KEY (worker, name)
) STRICT, WITHOUT ROWID
"""


class SecretRefused(Exception):
    """A secret that cannot be kept; the message says why and may be shown. The value is never in it."""


@dataclass(frozen=True, slots=True)
class SecretSet:
    """That a secret has a value: since when (Unix time), and by whom."""

    name: str
    at_ms: int
    author: str


class SecretStore:
    """See the module's docstring."""

    def __init__(self, path: Path) -> None:
        """Open the file at ``path``, or make it, 0600 from its first byte."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA secure_delete = ON")
        # Written now and then, by one process: a log that stays beside the file would keep what was replaced.
        self._database.execute("PRAGMA journal_mode = DELETE")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(_SCHEMA)

    def put(self, worker: str, name: str, value: str, author: str, at_ms: int) -> None:
        """Set a secret's value. ``SecretRefused`` when name or value are malformed, or there are too many."""
        worker_name(worker)
        if _NAME.fullmatch(name) is None:
            raise SecretRefused("a secret's name has letters, digits and underscores, no digit first, at most 128")
        if not value or "\0" in value:
            raise SecretRefused(f"{name}: a value is text of at least one character, without NUL")
        size = text_bytes(value)
        if size > LIMITS.var_bytes_max:
            raise SecretRefused(f"{name}: {size} bytes are more than {LIMITS.var_bytes_max}")
        others = {other: text for other, text in self.of(worker).items() if other != name}
        if len(others) >= LIMITS.secrets_max:
            raise SecretRefused(f"{worker} has {len(others)} secrets, the most a worker may have")
        total = sum(len(other) + text_bytes(text) for other, text in others.items()) + len(name) + size
        if total > LIMITS.vars_bytes_max:
            raise SecretRefused(f"{total} bytes of names and values are more than {LIMITS.vars_bytes_max} for a worker")
        (count,) = self._database.execute("SELECT count(*) FROM secret").fetchone()
        if count >= _SECRETS_MAX:
            raise SecretRefused(f"{count} secrets are kept, the most this cluster takes")
        self._database.execute(
            "INSERT INTO secret (worker, name, value, at_ms, author) VALUES (?, ?, ?, ?, ?) ON CONFLICT (worker, name)"
            " DO UPDATE SET value = excluded.value, at_ms = excluded.at_ms, author = excluded.author",
            (worker, name, value, at_ms, author),
        )

    def delete(self, worker: str, name: str) -> bool:
        """Forget a secret. False when there was none."""
        gone = self._database.execute("DELETE FROM secret WHERE worker = ? AND name = ?", (worker, name))
        return gone.rowcount > 0

    def of(self, worker: str) -> dict[str, str]:
        """Name to value, of one worker: for the Servers, and for nobody else."""
        rows = self._database.execute("SELECT name, value FROM secret WHERE worker = ? ORDER BY name", (worker,))
        return dict(rows.fetchall())

    def listed(self, worker: str) -> list[SecretSet]:
        """Which secrets of a worker have a value."""
        rows = self._database.execute(
            "SELECT name, at_ms, author FROM secret WHERE worker = ? ORDER BY name", (worker,)
        )
        return [SecretSet(*row) for row in rows.fetchall()]

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._database.close()

"""Built components by what they were built from.

The key is a hash over everything that can change the result: the sources, the exact versions of the tools, and the
version of this builder. Times and places of files are not in it, so a checkout elsewhere finds the same entry.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Raise it when the same sources and tools are to give another component: a changed flag, recipe or wrapper.
BUILDER_VERSION = "4"


@dataclass(frozen=True, slots=True)
class CacheLimits:
    # A component of JavaScript or Python is 13-22 MB: room for about a hundred, and for any number of small ones.
    bytes_max: int = 2 * 1024**3


def content_key(inputs: Iterable[tuple[str, bytes]], *, toolchain: str, builder: str = BUILDER_VERSION) -> str:
    """sha256, in hex, over named inputs in the order of their names. Lengths are hashed with the parts, so that no
    two different sets of inputs read the same."""
    digest = hashlib.sha256()
    for part in (builder.encode(), toolchain.encode()):
        _add(digest, part)
    for name, data in sorted(inputs):
        _add(digest, name.encode())
        _add(digest, data)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


class Cache:
    """A folder of components. Safe for several processes: entries appear whole, by rename, and are never changed."""

    def __init__(self, folder: Path, limits: CacheLimits = CacheLimits()) -> None:
        self._folder = folder
        self._limits = limits

    def find(self, key: str) -> Path | None:
        """The component under `key`, now the most recently used one; None if there is none."""
        file = self._file(key)
        try:
            os.utime(file)
        except FileNotFoundError:
            return None
        return file

    def store(self, key: str, component: bytes) -> Path:
        """Keeps `component` under `key`, and drops what was least recently used until the cache is within its limit."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self._folder)
        with os.fdopen(handle, "wb") as new:
            new.write(component)
        file = self._file(key)
        Path(name).rename(file)
        self._shrink(keep=file)
        return file

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.wasm"

    def _shrink(self, keep: Path) -> None:
        entries = []
        for file in self._folder.glob("*.wasm"):
            try:
                entries.append((file.stat().st_mtime_ns, file.stat().st_size, file))
            except FileNotFoundError:
                # Another build dropped it meanwhile.
                continue
        total_bytes = sum(size for _, size, _ in entries)
        for _, size, file in sorted(entries):
            if total_bytes <= self._limits.bytes_max:
                return
            if file != keep:
                file.unlink(missing_ok=True)
                total_bytes -= size

"""What a host is running right now, where it outlives the host: a small file that is mapped into its process.

A process that is killed says nothing any more; but the pages of a file that it had mapped are the kernel's, and stay.
So each request writes a *slot* when its guest begins and clears it at the end: no system call, about a microsecond.
The next process of the same host finds the file of the one before it, and in it who was running when it ended. A host
that stops in order removes its file.

The file: a header (who, since when, where its standard error goes), then slots of one size. A slot's first byte says
what goes on and is written last and cleared first; a reader takes what he finds for what it is worth, since the writer
may have died in the middle.
"""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_MAGIC = b"EWRUN\x00\x00\x01"
_HEADER = struct.Struct("<8sIqq128s512s")  # magic, pid, began and last beat (Unix ms), host's name, its error log
_HEADER_BYTES = 1_024
_BEAT_AT = 8 + 4 + 8
_SLOT = struct.Struct("<Bq16s40s127s")  # phase, since (Unix ms), version, request's id, worker
_SLOT_BYTES = 192


class Phase(IntEnum):
    """What a slot says."""

    FREE = 0
    RUNS = 1  # a guest runs a request
    STARTS = 2  # an isolate is being started


@dataclass(frozen=True, slots=True)
class Slot:
    """One thing that a host was doing: since when, and for whom. Texts are cut to what fits."""

    phase: Phase
    since_ms: int
    version: str
    request_id: str
    worker: str


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """What a process left that ended without a word. Times are Unix times in ms; ``beat_ms`` is its last sign of
    life, which it gives twice a second."""

    host: str
    pid: int
    began_ms: int
    beat_ms: int
    error_log: str
    running: tuple[Slot, ...]


class CrashTable:
    """The table of one host process. Slots are taken and given back from any thread."""

    #: A host has 512 connections, a thread each, and a few that start isolates ahead. Beyond it a request runs
    #: unrecorded.
    SLOTS_MAX = 1_024

    def __init__(self, path: Path, host: str, now_ms: int, error_log: str = "") -> None:
        """Make the table anew at ``path``. ``OSError`` when there is no room for it. ``error_log``: where this
        process's standard error goes."""
        self._path = path
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            size = _HEADER_BYTES + self.SLOTS_MAX * _SLOT_BYTES
            # Not a hole: writing to a page for which the disk has no room ends the process.
            os.posix_fallocate(descriptor, 0, size)
            self._map = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._free = list(range(self.SLOTS_MAX - 1, -1, -1))
        _HEADER.pack_into(
            self._map, 0, _MAGIC, os.getpid(), now_ms, now_ms, host.encode()[:128], error_log.encode()[:512]
        )

    def begin(self, phase: Phase, now_ms: int, version: str, worker: str, request_id: str = "") -> int:
        """Something begins: the slot to give to ``end``."""
        try:
            slot = self._free.pop()  # which is one step for all threads
        except IndexError:
            return -1
        at = _HEADER_BYTES + slot * _SLOT_BYTES
        _SLOT.pack_into(
            self._map, at, 0, now_ms, version.encode()[:16], request_id.encode()[:40], worker.encode()[:127]
        )
        self._map[at] = phase
        return slot

    def end(self, slot: int) -> None:
        """It is over."""
        if slot >= 0:
            self._map[_HEADER_BYTES + slot * _SLOT_BYTES] = Phase.FREE
            self._free.append(slot)

    def beat(self, now_ms: int) -> None:
        """This process lives."""
        struct.pack_into("<q", self._map, _BEAT_AT, now_ms)

    def remove(self) -> None:
        """The host stops in order: nobody is to find anything. What still runs may go on writing."""
        self._path.unlink(missing_ok=True)


class WrittenDown:
    """What is done within may be the end of this process, and stands in the table meanwhile, if there is one."""

    __slots__ = ("_slot", "_table")

    def __init__(
        self, table: CrashTable | None, phase: Phase, version: str, worker: str = "", request_id: str = ""
    ) -> None:
        self._table = table
        if table is not None:
            self._slot = table.begin(phase, time.time_ns() // 1_000_000, version, worker, request_id)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *fault: object) -> None:
        if self._table is not None:
            self._table.end(self._slot)


def left_behind(path: Path) -> LeftBehind | None:
    """What the process that had its table at ``path`` was doing when it ended. None when there is no table, or
    nothing that could be read as one."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if len(data) < _HEADER_BYTES or not data.startswith(_MAGIC):
        return None
    _, pid, began_ms, beat_ms, host, error_log = _HEADER.unpack_from(data)
    running: list[Slot] = []
    for at in range(_HEADER_BYTES, len(data) - _SLOT_BYTES + 1, _SLOT_BYTES):
        phase, since_ms, version, request_id, worker = _SLOT.unpack_from(data, at)
        if phase in (Phase.RUNS, Phase.STARTS):
            running.append(Slot(Phase(phase), since_ms, _text(version), _text(request_id), _text(worker)))
    return LeftBehind(_text(host), pid, began_ms, beat_ms, _text(error_log), tuple(running))


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\x00").decode(errors="replace")

"""Crash reports: what is known of a host process that ended without a word, as one JSON file each.

The next process of the same host writes the report, from what the last one left (``crash_table``) and the end of its
error log. So a report is there before the host serves again, and needs nobody who watched. The directory belongs to one
machine; it holds the latest reports, within bounds, and is where a machine's hosts learn whom to keep out
(``crash_blame``).

A report names workers and requests, and quotes the log: it is for operators, and no tenant ever sees one.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from actors.crash_blame import BlameLimits, Crash, quarantined
from actors.crash_table import CrashTable, LeftBehind, Phase, left_behind

_log = logging.getLogger("everwarm.crashes")

#: Reports kept; a host that crashes all the time fills a day with fewer (``supervision`` leaves it alone).
REPORTS_MAX = 100
#: Of the error log, its end: a traceback of all threads is some 10 KiB.
LOG_BYTES_MAX = 16 << 10
LOG_LINES_MAX = 60
LOG_LINE_CHARS_MAX = 400
#: What was running, in one report: the others are counted.
RUNNING_MAX = 128
#: Above the bounds together; a larger file is none of ours.
_REPORT_BYTES_MAX = 256 << 10

#: What Python's fault handler writes last, and the signal that it stands for.
_LAST_WORDS = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Illegal instruction": "SIGILL",
    "Floating-point exception": "SIGFPE",
}
_FATAL = re.compile("Fatal Python error: (.+)")
_BLAME = BlameLimits()


def _last_words(log: Sequence[str]) -> str:
    """The signal that ended a process, as far as its log tells: nothing is written by one that was killed."""
    for line in reversed(log):
        if found := _FATAL.search(line):
            return _LAST_WORDS.get(found[1].strip(), found[1].strip()[:80])
    return ""


def log_end(path: str) -> list[str]:
    """The last lines of a log; none when it cannot be read."""
    if not path:
        return []
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_BYTES_MAX))
            lines = log.read(LOG_BYTES_MAX).decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line[:LOG_LINE_CHARS_MAX] for line in lines[-LOG_LINES_MAX:]]


def report_of(left: LeftBehind, log: list[str], found_ms: int) -> dict[str, Any]:
    """The report as plain data. ``at_ms`` is the last sign of life: the crash was at most half a second later."""
    return {
        "schema": 1,
        "host": left.host,
        "at_ms": left.beat_ms,
        "found_ms": found_ms,
        "lived_s": round((left.beat_ms - left.began_ms) / 1_000, 1),
        "pid": left.pid,
        "signal": _last_words(log),
        "running": [
            {
                "version": slot.version,
                "worker": slot.worker,
                "request": slot.request_id,
                "doing": slot.phase.name.lower(),
                "for_ms": max(0, left.beat_ms - slot.since_ms),
            }
            for slot in left.running[:RUNNING_MAX]
        ],
        "running_more": max(0, len(left.running) - RUNNING_MAX),
        "log": log,
    }


class CrashReports:
    """The reports of one machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, report: dict[str, Any]) -> Path:
        """Keep a report; the oldest go. ``OSError`` when it cannot be written."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{report['at_ms']:013d}-{re.sub('[^a-z0-9-]', '-', report['host'])}-{report['pid']}.json"
        # Readers look at names that end like this; whoever is read is whole.
        with tempfile.NamedTemporaryFile("w", dir=self._directory, suffix=".part", delete=False) as part:
            json.dump(report, part)
        os.replace(part.name, self._directory / name)
        for old in self._files()[REPORTS_MAX:]:
            old.unlink(missing_ok=True)
        return self._directory / name

    def read(self) -> list[dict[str, Any]]:
        """All reports, the latest first. What cannot be read as one is left out."""
        found: list[dict[str, Any]] = []
        for path in self._files()[:REPORTS_MAX]:
            with suppress(OSError, ValueError):
                if path.stat().st_size <= _REPORT_BYTES_MAX:
                    plain = json.loads(path.read_bytes())
                    if isinstance(plain, dict) and plain.get("schema") == 1:
                        found.append(plain)
        return found

    def changed_ns(self) -> int:
        """Another number when a report came or went; 0 while there were none."""
        try:
            return self._directory.stat().st_mtime_ns
        except OSError:
            return 0

    def _files(self) -> list[Path]:
        with suppress(OSError):
            return sorted(self._directory.glob("*.json"), reverse=True)
        return []


def crashes_of(reports: Sequence[dict[str, Any]]) -> list[Crash]:
    """What ``crash_blame`` judges by."""
    return [
        Crash(report["at_ms"] / 1_000, frozenset(str(one["version"]) for one in report["running"] if one["version"]))
        for report in reports
    ]


class Quarantine:
    """Who may not run on this machine now. Asked with each request, from any thread; ``look`` now and then."""

    def __init__(self, reports: CrashReports, limits: BlameLimits = _BLAME) -> None:
        self._reports = reports
        self._limits = limits
        self._changed_ns = -1
        self._crashes: list[Crash] = []
        self._out: dict[str, float] = {}

    def look(self, now_s: float) -> None:
        """Read what is new, and judge anew. ``now_s``: Unix time."""
        changed_ns = self._reports.changed_ns()
        if changed_ns != self._changed_ns:
            self._changed_ns, self._crashes = changed_ns, crashes_of(self._reports.read())
        elif not self._out:
            return  # nobody gets in by time alone
        out = quarantined(self._crashes, now_s, self._limits)
        for version in out.keys() - self._out.keys():
            _log.error("version %s is kept out for %.0f s: its hosts crashed", version, out[version] - now_s)
        self._out = out

    def keeps_out(self, version: str) -> bool:
        """Whether a version may not run now."""
        return version in self._out

    @property
    def versions(self) -> list[str]:
        """Who is kept out."""
        return sorted(self._out)


def take_over(
    path: Path, host: str, reports: CrashReports, now_ms: int, error_log: str, say: Callable[[str], None] = _log.error
) -> CrashTable | None:
    """A host begins: report what the last process of this name left at ``path``, and make the table of this one.

    A disk that takes neither is no reason not to serve: then nothing is recorded, and the log says so.
    """
    try:
        left = left_behind(path)
        if left is not None:
            written = reports.write(report_of(left, log_end(left.error_log), now_ms))
            running = sum(slot.phase is Phase.RUNS for slot in left.running)
            say(f"{left.host} crashed with {running} requests running; see {written.name}")
        return CrashTable(path, host, now_ms, error_log)
    except OSError as refused:
        say(f"crashes of {host} will leave no report: {refused.strerror}")
        return None

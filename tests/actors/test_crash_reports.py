"""What a host leaves that is killed, who finds it, and who is kept out for it: on real processes and files."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actors.crash_reports import (
    LOG_BYTES_MAX,
    LOG_LINE_CHARS_MAX,
    LOG_LINES_MAX,
    REPORTS_MAX,
    RUNNING_MAX,
    CrashReports,
    Quarantine,
    log_end,
    report_of,
    take_over,
)
from actors.crash_table import CrashTable, LeftBehind, Phase, Slot, left_behind

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION, OTHER = "0123456789abcdef", "fedcba9876543210"

#: A process that writes two things down, is done with one of them, and ends as it is told.
VICTIM = """
import faulthandler, os, signal, sys
from pathlib import Path
from actors.crash_table import CrashTable, Phase
faulthandler.enable()
table = CrashTable(Path(sys.argv[1]), "server-1/host", 1_000, sys.argv[2])
over = table.begin(Phase.RUNS, 1_100, "over", "done", "r-0")
table.begin(Phase.RUNS, 1_200, "0123456789abcdef", "shop", "r-1")
table.begin(Phase.STARTS, 1_300, "fedcba9876543210", "")
table.end(over)
table.beat(1_500)
print("the last line", file=sys.stderr, flush=True)
os.kill(os.getpid(), int(sys.argv[3]))
"""


def crash(directory: Path, number: int) -> Path:
    """Have a process die of a signal; where its table is."""
    table, log = directory / "host.running", directory / "host.err"
    with log.open("wb") as stderr:
        subprocess.run(
            [sys.executable, "-c", VICTIM, str(table), str(log), str(number)],
            stderr=stderr,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            check=False,
        )
    return table


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, ""), (signal.SIGSEGV, "SIGSEGV"), (signal.SIGABRT, "SIGABRT")]
)
def test_a_crash_leaves_a_report_that_names_who_was_running(tmp_path: Path, number: int, said: str) -> None:
    table, reports, heard = crash(tmp_path, number), CrashReports(tmp_path / "crashes"), list[str]()
    made = take_over(table, "server-1/host", reports, 9_000, "", heard.append)
    assert made is not None
    (report,) = reports.read()
    assert report["running"] == [
        {"version": VERSION, "worker": "shop", "request": "r-1", "doing": "runs", "for_ms": 300},
        {"version": OTHER, "worker": "", "request": "", "doing": "starts", "for_ms": 200},
    ]
    assert (report["host"], report["at_ms"], report["found_ms"], report["lived_s"]) == (
        "server-1/host",
        1_500,
        9_000,
        0.5,
    )
    assert report["signal"] == said
    assert "the last line" in report["log"]
    assert heard[0].startswith("server-1/host crashed with 1 requests running")
    (path,) = (tmp_path / "crashes").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_who_stops_in_order_leaves_nothing(tmp_path: Path) -> None:
    path, reports = tmp_path / "host.running", CrashReports(tmp_path / "crashes")
    table = take_over(path, "server-1/host", reports, 1_000, "")
    assert table is not None
    slot = table.begin(Phase.RUNS, 1_000, VERSION, "shop")
    table.remove()
    table.end(slot)  # a request that was still running
    assert take_over(path, "server-1/host", reports, 2_000, "") is not None
    assert reports.read() == []


def test_a_table_has_a_bound_and_gives_slots_back(tmp_path: Path) -> None:
    table = CrashTable(tmp_path / "t", "h", 0)
    slots = [table.begin(Phase.RUNS, i, f"{i:016x}", "w" * 500, "r" * 500) for i in range(CrashTable.SLOTS_MAX + 3)]
    assert slots[CrashTable.SLOTS_MAX :] == [-1, -1, -1]
    left = left_behind(tmp_path / "t")
    assert left is not None
    assert len(left.running) == CrashTable.SLOTS_MAX
    assert left.running[0] == Slot(Phase.RUNS, 0, "0" * 16, "r" * 40, "w" * 127)
    for slot in slots:
        table.end(slot)
    left = left_behind(tmp_path / "t")
    assert left is not None
    assert left.running == ()
    assert table.begin(Phase.STARTS, 0, VERSION, "") >= 0


@pytest.mark.parametrize("nonsense", [b"", b"EWRUN", b"\xff" * 5_000, b"EWRUN\x00\x00\x01" + b"\xff" * 5_000])
def test_a_table_that_is_none_is_read_as_one_or_not_at_all(tmp_path: Path, nonsense: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(nonsense)
    left = left_behind(path)
    assert left is None or all(isinstance(slot.phase, Phase) for slot in left.running)
    assert take_over(path, "h", CrashReports(tmp_path / "c"), 0, "", lambda line: None) is not None


def test_a_directory_that_cannot_be_written_is_said_and_stops_nobody(tmp_path: Path) -> None:
    table = crash(tmp_path, signal.SIGKILL)
    (tmp_path / "crashes").write_text("a file is in the way")
    heard = list[str]()
    assert take_over(table, "server-1/host", CrashReports(tmp_path / "crashes"), 0, "", heard.append) is None
    assert heard == ["crashes of server-1/host will leave no report: File exists"]


def left(at_ms: int, *versions: str, host: str = "server-1/host") -> LeftBehind:
    return LeftBehind(host, 7, 0, at_ms, "", tuple(Slot(Phase.RUNS, 0, v, "r", "w") for v in versions))


def test_reports_are_bounded_in_number_and_size(tmp_path: Path) -> None:
    reports = CrashReports(tmp_path / "crashes")
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 10_000 + b"\n" + b"\n".join(b"line %d" % i for i in range(10_000)))
    lines = log_end(str(log))
    assert lines[-1] == "line 9999"
    assert len(lines) == LOG_LINES_MAX
    log.write_bytes(b"x" * 10 * LOG_BYTES_MAX)
    assert [len(line) for line in log_end(str(log))] == [LOG_LINE_CHARS_MAX]
    assert log_end("") == log_end(str(tmp_path / "nowhere")) == []
    crowd = [f"{i:016x}" for i in range(RUNNING_MAX + 5)]
    for i in range(REPORTS_MAX + 7):
        reports.write(report_of(left(i, *crowd), lines, i))
    found = reports.read()
    assert [report["at_ms"] for report in found] == list(range(REPORTS_MAX + 6, 6, -1))
    assert (len(found[0]["running"]), found[0]["running_more"]) == (RUNNING_MAX, 5)
    assert max(path.stat().st_size for path in (tmp_path / "crashes").iterdir()) < 64 << 10


def test_what_is_no_report_is_left_out(tmp_path: Path) -> None:
    reports = CrashReports(tmp_path)
    reports.write(report_of(left(5, VERSION), [], 5))
    (tmp_path / "9999-a.json").write_text("{")
    (tmp_path / "9998-b.json").write_text("[]")
    (tmp_path / "9997-c.json").write_text(json.dumps({"schema": 99}))
    assert [report["at_ms"] for report in reports.read()] == [5]


def test_a_host_hears_of_the_crashes_of_others_and_keeps_out_who_caused_them(tmp_path: Path) -> None:
    reports = CrashReports(tmp_path / "crashes")
    quarantine = Quarantine(reports)
    quarantine.look(1_000.0)
    assert quarantine.versions == []
    for i in range(3):
        assert not quarantine.keeps_out(VERSION)
        reports.write(report_of(left(1_000_000 + i, VERSION, f"{i:016x}", host=f"server-1/host-{i}"), [], 0))
        quarantine.look(1_001.0)
    assert quarantine.versions == [VERSION]
    assert quarantine.keeps_out(VERSION)
    assert not quarantine.keeps_out(OTHER)
    quarantine.look(1_059.0)
    assert quarantine.keeps_out(VERSION)
    quarantine.look(1_061.0)
    assert quarantine.versions == []  # it may try again
    reports.write(report_of(left(1_062_000, VERSION), [], 0))
    quarantine.look(1_062.0)
    quarantine.look(1_181.0)
    assert quarantine.keeps_out(VERSION)  # twice as long

"""The benchmark of isolates: that it runs and says what it found. Never how fast anything is."""

import json
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.isolates.figure import Figure, Measured, PeerRow, Row, State, rounded
from benchmarks.isolates.guests import Guests, Missing, Prepared
from benchmarks.isolates.measurements import FIGURES, MEASUREMENTS, wanted
from benchmarks.isolates.measuring import measure
from benchmarks.isolates.peers.server import PeerFailed, free_port, serving
from benchmarks.isolates.report import json_line, table

ROOT = Path(__file__).parents[1]


@pytest.fixture
def guests(tmp_path: Path) -> Guests:
    return Guests(tmp_path / "cache", tmp_path / "no toolchains", lambda line: None)


def test_a_quick_run_prints_one_line_with_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.isolates", "--quick", "--json", "--without-peers"]
    done = subprocess.run(
        [*command, "--only", "host_call_us,c_hello_warm_us"],
        cwd=ROOT, env={**os.environ, "EVERWARM_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    printed = json.loads(line)
    assert printed["quick"] is True
    assert printed["peers"] == []
    assert printed["machine"]["cores"] == len(os.sched_getaffinity(0))
    assert list(printed["figures"]) == ["host_call_us", "c_hello_warm_us"]
    for name, row in printed["figures"].items():
        assert row["state"] == "measured", row
        assert row["value"] > 0
        assert row["met"] == (row["value"] <= row["bound"])
        assert printed["notes"][name]["runs"] > 0


def test_a_figure_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.isolates", "--only", "host_call_us,nonsense"],
        cwd=ROOT, env={**os.environ, "EVERWARM_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such figure: nonsense" in done.stderr


class TestFigures:
    def test_every_figure_has_one_place(self) -> None:
        names = [figure.name for measurement in MEASUREMENTS for figure in measurement.figures]
        assert len(names) == len(set(names))
        for name in names:
            (measurement,) = wanted({name})
            assert FIGURES[name] in measurement.figures

    @pytest.mark.parametrize(
        ("figure", "value", "met", "text"),
        [
            (Figure("a_us", 7), 7, True, "<= 7"),
            (Figure("a_us", 7), 7.1, False, "<= 7"),
            (Figure("live", 5_000, at_least=True), 5_000, True, ">= 5000"),
            (Figure("live", 5_000, at_least=True), 4_999, False, ">= 5000"),
            (Figure("compile_s"), 12.0, None, ""),
        ],
    )
    def test_bounds(self, figure: Figure, value: float, met: bool | None, text: str) -> None:
        assert figure.is_met(value) is met
        assert figure.bound_text == text

    def test_four_digits_are_enough(self) -> None:
        assert rounded(0.123456) == 0.1235
        assert rounded(123456) == 123456


class TestMeasuring:
    def test_without_its_toolchain_a_figure_is_skipped_and_says_how_to_get_it(self, guests: Guests) -> None:
        for name in ("js_hello_warm_ms", "js_single_shot_ms", "python_private_mb", "js_live_mb"):
            (measurement,) = wanted({name})
            rows, measured = measure(measurement, guests, quick=True)
            assert measured is None
            assert {row.state for row in rows} == {State.SKIPPED}
            assert len(rows) == len(measurement.figures)
            assert "everwarm build workers/" in rows[0].why

    def test_a_measurement_that_breaks_says_why_in_one_line(self, guests: Guests) -> None:
        hello = guests.prepare("hello_c")
        assert isinstance(hello, Prepared)
        for artifact in guests.store.rglob(f"{hello.digest}*"):
            artifact.unlink()
        (measurement,) = wanted({"c_hello_cold_ms"})
        rows, measured = measure(measurement, guests, quick=True)
        assert measured is None
        assert rows[0].state is State.FAILED
        assert hello.digest in rows[0].why
        assert "\n" not in rows[0].why

    def test_a_guest_is_compiled_once(self, guests: Guests, tmp_path: Path) -> None:
        said: list[str] = []
        for _ in range(2):
            again = Guests(tmp_path / "cache", tmp_path / "no toolchains", said.append)
            assert isinstance(again.prepare("idle"), Prepared)
        assert said == ["compiling idle"]
        assert isinstance(guests.prepare("hello_python"), Missing)


ROWS = [
    Row(Figure("a_us", 7), State.MEASURED, 6.5),
    Row(Figure("b_ms", 1.2), State.SKIPPED, why="nothing to build it with"),
    Row(Figure("c", 5_000, at_least=True), State.MEASURED, 200),
]
FOUND = {"a_us": Measured({"a_us": 6.5}, {"runs": 101})}
PEERS = [
    PeerRow("other", "next answer", "a_us", "over HTTP", 63.612),
    PeerRow("third", "", "b_ms", "", why="not installed"),
]


class TestReport:
    def test_the_table(self) -> None:
        assert table(ROWS, FOUND, PEERS, {"cores": 2}).splitlines() == [
            "figure  value  bound    met",
            "a_us    6.5    <= 7     yes",
            "b_ms    -      <= 1.2   skipped: nothing to build it with",
            "c       200    >= 5000  NO",
            "",
            "machine: cores 2",
            "a_us: runs 101",
            "",
            "Peers are asked over HTTP/1.1 on loopback, one open connection; ours beside them is without HTTP.",
            "",
            "peer   what         value      ours  value  what differs",
            "other  next answer  63.61  us  a_us  6.5    over HTTP",
            "third  -            -          b_ms  -      no value: not installed",
        ]

    def test_the_line(self) -> None:
        printed = json.loads(json_line(ROWS, FOUND, PEERS, {"cores": 2}, quick=False))
        assert {name: row["met"] for name, row in printed["figures"].items()} == {
            "a_us": True,
            "b_ms": None,
            "c": False,
        }
        assert printed["figures"]["b_ms"]["why"] == "nothing to build it with"
        assert printed["notes"] == {"a_us": {"runs": 101}}
        assert printed["machine"] == {"cores": 2}
        assert [(row["value"], row["beside"]) for row in printed["peers"]] == [(63.61, "a_us"), (None, "b_ms")]


#: Listens at argv[1] and answers as argv[2] says. It starts a child that would outlive it, and prints its number.
_PEER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"])
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        body = str(child.pid).encode()
        self.send_response(200 if self.path != "/bad" else 503)
        if self.path == "/chunked":
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(body), body))
            self.wfile.flush()
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class TestPeerServer:
    def test_it_is_asked_over_one_connection_and_ended_with_what_it_started(self) -> None:
        port = free_port()
        with serving([sys.executable, "-c", _PEER, str(port)], port, start_timeout_s=30.0) as server:
            child = int(server.asking.get())
            assert str(child).encode() in server.asking.get("/chunked")
            with pytest.raises(PeerFailed, match="503"):
                server.asking.get("/bad")
            assert server.asking.median_ms(3) > 0
            ended = os.pidfd_open(child)
        # Its parent is gone, so nobody but the kernel can say that it ended.
        readable, _, _ = select.select([ended], (), (), 30.0)
        os.close(ended)
        assert readable == [ended]
        with pytest.raises(ProcessLookupError):
            os.kill(server.pid, 0)

    def test_one_that_ends_at_its_start_says_why(self) -> None:
        command = [sys.executable, "-c", "raise SystemExit('no such option')"]
        with (
            pytest.raises(PeerFailed, match="it ended at its start: no such option"),
            serving(command, free_port(), start_timeout_s=30.0),
        ):
            pass

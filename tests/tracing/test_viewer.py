import http.server
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from everwarm import viewer
from tracing.export import traces_endpoint

TRACE = "0af7651916cd43dd8448eb211c80319c"
SHORT = viewer.ViewerWaits(start_s=0.0, poll_s=0.001)


def pretend_installed(directory: Path, version: str) -> None:
    (directory / "venv" / "bin").mkdir(parents=True)
    (directory / "venv" / "bin" / "python").write_text("")
    (directory / "venv" / "complete").write_text(version)


@pytest.fixture
def healthy_port() -> Iterator[int]:
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_what_is_installed_is_left_alone(tmp_path: Path) -> None:
    pretend_installed(tmp_path, viewer.VIEWER_VERSION)
    told: list[str] = []
    assert viewer.install(tmp_path, told.append) == tmp_path / "venv"
    assert told == [f"mlflow {viewer.VIEWER_VERSION} is installed"]


def test_an_older_or_half_made_environment_does_not_count(tmp_path: Path) -> None:
    assert not viewer.is_installed(tmp_path)
    pretend_installed(tmp_path, "1.0")
    assert not viewer.is_installed(tmp_path)
    (tmp_path / "venv" / "complete").unlink()
    assert not viewer.is_installed(tmp_path)


def test_a_failed_step_says_why_and_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such package\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(broken))
    pretend_installed(tmp_path, "1.0")
    told: list[str] = []
    with pytest.raises(viewer.ViewerFailed, match="no such package"):
        viewer.install(tmp_path, told.append)
    assert "removing an incomplete or older viewer" in told
    assert not viewer.is_installed(tmp_path)


def test_it_listens_on_loopback_and_keeps_to_its_directory(tmp_path: Path) -> None:
    command = viewer.serve_command(tmp_path, 15999)
    assert command[0] == str(tmp_path / "venv" / "bin" / "python")
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "15999"
    assert command[command.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/traces.db"


def test_its_environment_is_quiet_and_free_of_other_settings() -> None:
    environment = viewer.serve_environment({"PATH": "/bin", "MLFLOW_TRACKING_URI": "http://x", "PYTHONPATH": "/ours"})
    assert environment["PATH"] == "/bin"
    assert "MLFLOW_TRACKING_URI" not in environment
    assert "PYTHONPATH" not in environment
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_addresses() -> None:
    url, headers = viewer.otlp_settings(15000)
    assert traces_endpoint(url) == "http://127.0.0.1:15000/v1/traces"
    assert headers == {"x-mlflow-experiment-id": "0"}
    assert viewer.trace_url(15000, TRACE) == (
        f"http://127.0.0.1:15000/#/experiments/0/traces?selectedEvaluationId=tr-{TRACE}"
    )


def test_waiting_ends_when_it_answers(healthy_port: int) -> None:
    viewer.wait_until_ready(healthy_port, waits=SHORT)


def test_waiting_ends_when_it_died_or_time_is_up() -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    with subprocess.Popen(["true"]) as process:
        process.wait()
        with pytest.raises(viewer.ViewerFailed, match="ended before it answered"):
            viewer.wait_until_ready(port, lambda: process.poll() is None)
    with pytest.raises(viewer.ViewerFailed, match="did not answer"):
        viewer.wait_until_ready(port, waits=SHORT)

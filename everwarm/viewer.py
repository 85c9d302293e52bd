"""A trace viewer for the browser, with a waterfall: MLflow, in an environment of its own.

Of the viewers that install from a package index alone, this one draws real bars and takes OTLP over HTTP. It brings
its own pandas, SQLAlchemy and the like (about 850 MB), so it never shares an environment with the cluster's code: it
lives in `<directory>/venv`, and what it stores in `<directory>/traces.db`.

It has no login, so it listens on loopback only. Reach it from elsewhere through `ssh -L`.
"""

from __future__ import annotations

import fcntl
import http.client
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VIEWER: Final = "mlflow"
# Pinned: the page that `trace_url` opens and the header that `otlp_settings` sends are of this version.
VIEWER_VERSION: Final = "3.17.2"
DEFAULT_PORT: Final = 15000

_HOST: Final = "127.0.0.1"
# The experiment that a fresh store has.
_EXPERIMENT: Final = "0"
# What `pip` says of its own accord and what a person who waits wants to see of it.
_TOLD_OF_PIP: Final = ("Collecting ", "Downloading ", "Using cached ", "Installing collected packages")
_LINE_CHARS_MAX: Final = 100
_LINES_OF_FAILURE: Final = 15


@dataclass(frozen=True, slots=True)
class ViewerWaits:
    """`start_s`: the first start creates the database tables, which took 10-20 s on a busy two-core machine.

    `poll_s`: how often it is asked whether it is there. `answer_s`: for one such question.
    """

    start_s: float = 120.0
    poll_s: float = 0.25
    answer_s: float = 5.0


class ViewerFailed(Exception):
    """The viewer could not be installed or started; the text is for the person at the terminal."""


def install(directory: Path, progress: Callable[[str], None]) -> Path:
    """Put the viewer's environment in `directory/venv` unless it is there, and return its path. Takes minutes.

    `progress` gets a line now and then. Two that install at once wait for each other. An environment counts as there
    only when its last step was done, so an interrupted one is made anew. Raises ViewerFailed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    environment = directory / "venv"
    with _alone(directory / "install.lock", progress):
        if is_installed(directory):
            progress(f"{VIEWER} {VIEWER_VERSION} is installed")
            return environment
        if environment.exists():
            progress("removing an incomplete or older viewer")
            shutil.rmtree(environment)
        progress(f"installing {VIEWER} {VIEWER_VERSION} (about 850 MB, two or three minutes)")
        _run([sys.executable, "-m", "venv", str(environment)], progress)
        python = str(_python(directory))
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        _run([python, "-m", "pip", "install", *options, f"{VIEWER}=={VIEWER_VERSION}"], progress)
        # Importing it once finds a broken set of dependencies now, and compiles it for the first start.
        _run([python, "-c", "import mlflow.server"], progress)
        # A rename is the one step that is either done or not.
        unnamed = environment / "complete.new"
        unnamed.write_text(VIEWER_VERSION, "utf-8")
        unnamed.rename(_mark(directory))
        progress("the viewer is installed")
    return environment


def is_installed(directory: Path) -> bool:
    """True when `directory` holds the whole viewer, in the version of this file."""
    try:
        return _mark(directory).read_text("utf-8") == VIEWER_VERSION and _python(directory).exists()
    except OSError:
        return False


def serve_command(directory: Path, port: int = DEFAULT_PORT) -> list[str]:
    """The command that serves the viewer on loopback until it gets SIGTERM. Run it with `cwd=directory`."""
    store = (directory / "traces.db").absolute()
    return [
        str(_python(directory)),
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{store}",
        "--artifacts-destination",
        str((directory / "artifacts").absolute()),
        "--host",
        _HOST,
        "--port",
        str(port),
        "--workers",
        "1",
    ]


def serve_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` with what the viewer needs to stay quiet: no usage statistics, no background jobs.

    Settings of another MLflow that this shell points to are left out, and so is a Python path meant for our code.
    """
    kept = {name: value for name, value in environ.items() if not name.startswith(("MLFLOW_", "PYTHON"))}
    return {
        **kept,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
    }


def otlp_settings(port: int = DEFAULT_PORT) -> tuple[str, dict[str, str]]:
    """The url and the headers for `tracing.export.OtlpExporter`."""
    return f"http://{_HOST}:{port}", {"x-mlflow-experiment-id": _EXPERIMENT}


def traces_url(port: int = DEFAULT_PORT) -> str:
    """The page that lists the traces."""
    return f"http://{_HOST}:{port}/#/experiments/{_EXPERIMENT}/traces"


def trace_url(port: int, trace_id: str) -> str:
    """The page of one trace; `trace_id` in full, 32 hex digits."""
    return f"{traces_url(port)}?selectedEvaluationId=tr-{trace_id}"


def wait_until_ready(
    port: int,
    is_running: Callable[[], bool] = lambda: True,
    waits: ViewerWaits = ViewerWaits(),
) -> None:
    """Return as soon as the viewer answers. ViewerFailed when it ended (`is_running` is False) or time is up."""
    deadline_s = time.monotonic() + waits.start_s
    while not _answers(port, waits.answer_s):
        if not is_running():
            raise ViewerFailed(f"the viewer ended before it answered; is port {port} taken?")
        if time.monotonic() >= deadline_s:
            raise ViewerFailed(f"the viewer did not answer on port {port} within {waits.start_s:.0f} s")
        time.sleep(waits.poll_s)


def _answers(port: int, timeout_s: float) -> bool:
    connection = http.client.HTTPConnection(_HOST, port, timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _python(directory: Path) -> Path:
    return directory.absolute() / "venv" / "bin" / "python"


def _mark(directory: Path) -> Path:
    return directory / "venv" / "complete"


@contextmanager
def _alone(lock: Path, progress: Callable[[str], None]) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another installation of the viewer")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str], progress: Callable[[str], None]) -> None:
    """Run one step to its end; its last lines become the text of ViewerFailed."""
    last: deque[str] = deque(maxlen=_LINES_OF_FAILURE)
    with subprocess.Popen(
        command,
        env=serve_environment(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                text = line.strip()
                last.append(text)
                if text.startswith(_TOLD_OF_PIP):
                    progress(text[:_LINE_CHARS_MAX])
        except BaseException:
            # The person pressed Ctrl-C, or `progress` raised: the step must not go on behind their back.
            process.kill()
            raise
    if process.returncode != 0:
        raise ViewerFailed("\n".join([f"this step failed: {' '.join(command[1:])}", *last]))

"""The state directory: what is where, and who may read it.

``EVERWARM_HOME`` moves it; the default is ``~/.everwarm``. It belongs to one user (0700): it holds the cluster's
secret, the local authority's key, Ray's token, and compiled code that is trusted when it is mapped.
"""

import hashlib
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from actors.link import SOCKET_PATH_BYTES_MAX

#: The longest name of a socket below the run directory, ``/s99-ingress.sock``, with room.
_SOCKET_NAME_BYTES = 24


class HomeUnusable(Exception):
    """The state directory cannot be used; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Running:
    """A cluster that was started from this state directory: how to reach it."""

    pid: int
    ray_address: str
    servers: dict[str, int]  # server -> HTTPS port
    address: str
    started_at_s: float
    otlp: str = ""
    #: Every process below it when it was ready, with its start time: what to end should it be killed itself.
    processes: tuple[tuple[int, str], ...] = ()


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that ended and that nobody has waited for does not."""
    try:
        state: str = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


class Home:
    """The state directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def open(cls) -> "Home":
        """The state directory of this user, made if it is not there. ``HomeUnusable`` says what is wrong with it."""
        directory = Path(os.environ.get("EVERWARM_HOME") or Path.home() / ".everwarm").expanduser().absolute()
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            with tempfile.NamedTemporaryFile(dir=directory):
                pass
        except OSError as refused:
            raise HomeUnusable(
                f"The state directory {directory} is not writable ({refused.strerror}). Set EVERWARM_HOME to another."
            ) from refused
        return cls(directory)

    @property
    def authority(self) -> Path:
        """The local certificate authority."""
        return self.directory / "tls"

    @property
    def ca_certificate(self) -> Path:
        """What clients have to trust."""
        return self.authority / "ca.pem"

    @property
    def control(self) -> Path:
        """Catalog, components and artifacts."""
        return self.directory / "control"

    @property
    def log(self) -> Path:
        """What a cluster in the background prints."""
        return self.directory / "up.log"

    @property
    def builds(self) -> Path:
        """Built components, by content."""
        return self.directory / "builds"

    @property
    def toolchains(self) -> Path:
        """Guest toolchains that were installed for builds."""
        return self.directory / "toolchains"

    @property
    def viewer(self) -> Path:
        """The trace viewer's environment."""
        return self.directory / "viewer"

    def code(self, server: str) -> Path:
        """The artifacts of one server."""
        return self.directory / "servers" / server / "code"

    def sockets(self) -> Path:
        """Where this cluster's sockets are. A path too long for a socket gets a directory of its own in /tmp."""
        run = self.directory / "run"
        if len(os.fsencode(run)) + _SOCKET_NAME_BYTES > SOCKET_PATH_BYTES_MAX:
            name = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:12]
            run = Path(tempfile.gettempdir()) / f"everwarm-{os.getuid()}-{name}"
        run.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = run.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise HomeUnusable(f"The directory {run} is not this user's alone. Remove it, or set EVERWARM_HOME.")
        return run

    def ray_environment(self) -> dict[str, str]:
        """What Ray needs in the environment of every process of the cluster and of every driver."""
        token = self.directory / "ray-token"
        if not token.exists():
            with tempfile.NamedTemporaryFile("w", dir=self.directory, delete=False) as part:
                part.write(secrets.token_hex(32))
            # A hard link fails if another process was first, and then its token counts.
            try:
                os.link(part.name, token)
            except FileExistsError:
                pass
            finally:
                os.unlink(part.name)
        return {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Ray gives workers niceness 15 by default, which starves guests beside anything else.
            "RAY_worker_niceness": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        }

    # ---------------------------------------------------------------------------------------- the viewer that runs

    @property
    def _viewing(self) -> Path:
        return self.directory / "viewer.json"

    def viewing(self) -> tuple[str, dict[str, str]] | None:
        """Where a viewer that runs from here takes traces: url and headers."""
        try:
            plain = json.loads(self._viewing.read_text())
            return (plain["url"], plain["headers"]) if is_alive(plain["pid"]) else None
        except (OSError, ValueError, KeyError):
            return None

    def set_viewing(self, url: str, headers: dict[str, str]) -> None:
        """This process runs a viewer."""
        self._viewing.write_text(json.dumps({"pid": os.getpid(), "url": url, "headers": headers}))

    def clear_viewing(self) -> None:
        """It runs no longer."""
        self._viewing.unlink(missing_ok=True)

    # --------------------------------------------------------------------------------------- the cluster that runs

    @property
    def _running(self) -> Path:
        return self.directory / "cluster.json"

    def running(self) -> Running | None:
        """The cluster that runs from here, if its process is alive."""
        running = self.last_running()
        return running if running is not None and is_alive(running.pid) else None

    def last_running(self) -> Running | None:
        """The cluster that runs from here, or ran and was killed before it could say that it ended."""
        try:
            plain = json.loads(self._running.read_text())
            plain["processes"] = tuple((pid, start) for pid, start in plain["processes"])
            return Running(**plain)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def set_running(self, running: Running) -> None:
        """Say that a cluster runs."""
        part = self._running.with_suffix(".part")
        part.write_text(json.dumps(asdict(running)))
        os.replace(part, self._running)

    def clear_running(self) -> None:
        """It runs no longer."""
        self._running.unlink(missing_ok=True)

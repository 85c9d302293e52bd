"""Looks at the machine that it runs on. Standard library only: it is sent to machines where nothing may be installed,
as a program over ssh, or by value as a Ray actor.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import stat
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

PACKAGES = ("everwarm", "ray", "wasmtime")
#: Settings that a node has from the command that started Ray on it: Ray's, and the CPU that is compiled for.
SETTINGS = (
    "RAY_AUTH_MODE",
    "RAY_grpc_client_keepalive_time_ms",
    "RAY_grpc_client_keepalive_timeout_ms",
    "RAY_gcs_rpc_server_reconnect_timeout_s",
    "RAY_worker_niceness",
    "EVERWARM_CPU",
)
#: A connection between two machines of a cluster takes below a millisecond.
CONNECT_S = 3.0
#: At once. A cluster of a thousand servers is tried in waves.
_CONNECTIONS_MAX = 64


def look(state_directory: str = "") -> dict[str, Any]:
    """What ``facts.Node`` is made of, as plain values. ``state_directory``: empty for this user's."""
    state = state_directory or os.environ.get("EVERWARM_HOME") or os.path.expanduser("~/.everwarm")
    disks = {"state": state, "Ray's files": tempfile.gettempdir()}
    return {
        "hostname": socket.gethostname(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "cpu": platform.machine(),
        },
        "token": _token(),
        "environment": {name: os.environ.get(name, "") for name in SETTINGS},
        "disks": [_disk(holds, path) for holds, path in disks.items()],
        "time_s": time.time(),
    }


def reach(targets: list[tuple[str, int]]) -> list[str]:
    """Connect to each address and port: for each an empty text, or why it did not work."""
    with ThreadPoolExecutor(min(len(targets), _CONNECTIONS_MAX) or 1) as threads:
        return list(threads.map(_connect, targets))


class Probe:
    """The same as an actor, which Ray puts on a node."""

    def look(self, state_directory: str) -> dict[str, Any]:
        """As ``look``."""
        return look(state_directory)

    def time_s(self) -> float:
        """This machine's clock, Unix time."""
        return time.time()

    def reach(self, targets: list[tuple[str, int]]) -> list[str]:
        """As ``reach``."""
        return reach(targets)


def _connect(target: tuple[str, int]) -> str:
    try:
        socket.create_connection(target, timeout=CONNECT_S).close()
    except TimeoutError:
        return "nobody answers"
    except OSError as failed:
        return failed.strerror or type(failed).__name__
    return ""


def _version(package: str) -> str:
    """The version; of this product with the first digits of a digest of its code, since builds share a version."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
    if package != "everwarm":
        return found.version
    recorded = found.read_text("RECORD") or ""
    code = sorted(line for line in recorded.splitlines() if ".py,sha256=" in line)
    return f"{found.version}+{hashlib.sha256(''.join(code).encode()).hexdigest()[:8]}"


def _token() -> dict[str, Any]:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    try:
        with open(os.path.expanduser(path), "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            return {"path": path, "mode": mode, "digest": hashlib.sha256(file.read(4096).strip()).hexdigest()}
    except OSError:
        return {"path": path, "mode": None, "digest": ""}


def _disk(holds: str, path: str) -> dict[str, Any]:
    place = path
    while not os.path.isdir(place):  # where it will be made
        place = os.path.dirname(place) or "/"
    usage = shutil.disk_usage(place)
    return {"holds": holds, "path": path, "free_bytes": usage.free, "total_bytes": usage.total}


if __name__ == "__main__":
    print(json.dumps(look()))

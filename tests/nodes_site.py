"""Where scenarios with several Ray nodes on one machine run: in namespaces of their own, with a token and with
settings of Ray near those of cluster.yaml. What they print last is facts, as JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

_NAMESPACES = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]
#: As cluster.yaml sets them, but for how soon a death is known: these tests wait for several.
_RAY_SETTINGS = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_grpc_client_keepalive_time_ms": "2000",
    "RAY_grpc_client_keepalive_timeout_ms": "2000",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}


def _no_namespaces() -> str:
    """Why there can be none here; empty when there can."""
    missing = [tool for tool in ("unshare", "ip", "curl") if shutil.which(tool) is None]
    if missing:
        return f"needs the commands {', '.join(missing)}"
    done = subprocess.run([*_NAMESPACES, "true"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"needs namespaces of its own: {done.stderr.strip()}"


def played(scenario: Path, within_s: float = 580.0) -> dict[str, Any]:
    """The facts of a scenario. Skips the test where it cannot be played."""
    why = _no_namespaces()
    if why:
        pytest.skip(why)
    # Ray's sockets have long names, so this one is short.
    with tempfile.TemporaryDirectory(prefix="ew-", ignore_cleanup_errors=True) as scratch:
        token = Path(scratch) / "token"
        token.touch(0o600)
        token.write_text("c0ffee" * 8)
        settings = {**_RAY_SETTINGS, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_TMPDIR": scratch}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "EVERWARM_"))}
        command = 'ip link set lo up && exec "$@"'
        done = subprocess.run(
            [*_NAMESPACES, "sh", "-c", command, "sh", sys.executable, str(scenario), scratch],
            env={**environment, **settings}, capture_output=True, text=True, timeout=within_s,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4_000:]
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return facts


def said(command: dict[str, Any]) -> Any:
    """The JSON that a command printed."""
    assert command["code"] == 0, command
    return json.loads(command["out"])

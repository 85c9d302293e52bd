"""What `ray up` left on the head: who the workers are, and the key that opens them.

Ray's launcher copies its configuration and its private key to the head, whose autoscaler starts the workers with them.
This goes the same way: as the same user, with the same key, from the same machine.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from everwarm.doctor import node as node_program

#: A login takes 0.3 s, Python as long again; a machine that starts something else at the time takes longer.
_SSH_S = 15.0
_CONNECT_S = 5
_AT_ONCE_MAX = 32
#: `ray stop` waits for its processes, and then kills them.
_STOP_S = 60.0
_SAID_MAX = 200
_LOG_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """What a command on another machine said, or why it was not run or did not end well."""

    address: str
    said: str = ""
    refused: str = ""
    began_s: float = 0.0  # Unix time of this machine
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RayUp:
    """A configuration of Ray's launcher, as it lies on the head."""

    head: str  # its address; empty where a cloud decides it
    user: str
    key: str
    workers: tuple[str, ...] | None  # addresses; None where a cloud decides them

    @classmethod
    def here(cls) -> "RayUp | None":
        """What lies in this user's home; None when `ray up` has not made this machine a head."""
        try:
            config = json.loads(Path("~/ray_bootstrap_config.yaml").expanduser().read_text())
            provider, auth = config["provider"], config["auth"]
            head, workers = (
                (provider["head_ip"], tuple(provider["worker_ips"])) if provider["type"] == "local" else ("", None)
            )
            return cls(head, auth["ssh_user"], auth.get("ssh_private_key", "~/ray_bootstrap_key.pem"), workers)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def look(self, addresses: Sequence[str]) -> list[LoggedIn]:
        """Run ``node`` on each, with the Python that this runs with. What each said is JSON."""
        program = Path(node_program.__file__).read_text()
        return self._on_each(addresses, f"RAY_AUTH_MODE=token {_python()} -", program, _SSH_S)

    def stop_ray(self, addresses: Sequence[str]) -> list[LoggedIn]:
        """Run `ray stop` on each."""
        return self._on_each(addresses, f"{_python()} -m ray.scripts.scripts stop --force", "", _STOP_S)

    def _on_each(self, addresses: Sequence[str], command: str, given: str, timeout_s: float) -> list[LoggedIn]:
        with ThreadPoolExecutor(_AT_ONCE_MAX) as threads:
            return list(threads.map(lambda address: self._run(address, command, given, timeout_s), addresses))

    def _run(self, address: str, command: str, given: str, timeout_s: float) -> LoggedIn:
        options = ("BatchMode=yes", "IdentitiesOnly=yes", f"ConnectTimeout={_CONNECT_S}", "LogLevel=ERROR")
        # As Ray does it: the machines are known by the addresses that the operator wrote down.
        unknown = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null")
        words = [word for option in (*options, *unknown) for word in ("-o", option)]
        ssh = ["ssh", "-i", str(Path(self.key).expanduser()), *words, f"{self.user}@{address}", command]
        began_s = time.time()
        try:
            done = subprocess.run(ssh, input=given, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return LoggedIn(address, refused=f"nothing came back in {timeout_s:g} s")
        except OSError as failed:
            return LoggedIn(address, refused=f"ssh cannot be run here: {failed.strerror}")
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            return LoggedIn(address, refused=lines[-1] if lines else f"status {done.returncode}")
        return LoggedIn(address, said=done.stdout, began_s=began_s, ended_s=time.time())


def launcher_said() -> list[str]:
    """The latest lines of the launcher's log on this head that tell of a failure."""
    found: list[str] = []
    for name in ("monitor.log", "monitor.err", "monitor.out"):
        try:
            with Path("/tmp/ray/session_latest/logs", name).open("rb") as log:  # where Ray puts it
                log.seek(0, 2)
                log.seek(max(0, log.tell() - _LOG_BYTES_MAX))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        found += [line.strip()[:300] for line in lines if "rror" in line or "ailed" in line]
    return found[-_SAID_MAX:]


def _python() -> str:
    """This Python as another machine's user finds it: the same place in the home."""
    try:
        below = Path(sys.prefix, "bin", "python").relative_to(Path.home())
    except ValueError:
        return shlex.quote(str(Path(sys.prefix, "bin", "python")))
    return f"~/{shlex.quote(str(below))}"


def decode_look(said: str) -> dict[str, Any]:
    """What ``look`` brought back. ``ValueError`` when that is something else."""
    plain = json.loads(said.strip().splitlines()[-1] if said.strip() else "")
    if not isinstance(plain, dict) or "versions" not in plain:
        raise ValueError("not what was asked for")
    return plain

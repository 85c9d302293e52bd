"""Everwarm on machines without Ray's launcher: the lines of docs/cluster.md, "Without the launcher", on each of them.

Quicker than `ray up`, and a machine joins when somebody starts it there. The wheel is the one that `./dev wheel` makes.
"""

import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor

from tests.cluster.hosts.machines import Machines, MachinesFailed
from tests.cluster.hosts.ray_cluster import DESK, HEAD, RayCluster

#: In front of every `ray start`, and what the head's has beside it: as in cluster.yaml, where each has its reason.
_SETTINGS = (
    "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 RAY_grpc_client_keepalive_time_ms=2000"
    " RAY_grpc_client_keepalive_timeout_ms=2000 RAY_gcs_rpc_server_reconnect_timeout_s=10"
)
_HEAD_SETTINGS = (
    "RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=500 RAY_health_check_timeout_ms=1000"
    " RAY_health_check_failure_threshold=3"
)
_ENVIRONMENT = (
    'export PATH="$HOME/everwarm/venv/bin:$PATH"\nexport RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 '
    "RAY_worker_niceness=0\n"
)
#: Only compiled code passes the object store, and all of them share this machine's memory.
_OBJECT_STORE_BYTES = 200 << 20
_INSTALL_S, _START_S, _UP_S = 180.0, 120.0, 240.0


class ByHand:
    """A head and workers that are prepared; whoever is started joins."""

    def __init__(self, machines: Machines, workers: tuple[str, ...]) -> None:
        self.machines = machines
        self._cluster = RayCluster(machines, workers)

    def prepare(self) -> None:
        """Machines, and the wheel, the packages and one token on each of them."""
        self._cluster.prepare()
        self._cluster.on_desk("./dev wheel", timeout_s=_INSTALL_S)
        (wheel,) = (self.machines.files(DESK) / "root" / "checkout" / "dist").glob("*.whl")
        token = secrets.token_hex(32)

        def install(name: str) -> None:
            root = self.machines.files(name) / "root"
            shutil.copy2(wheel, root / "everwarm" / wheel.name)
            (root / "everwarm" / "environment").write_text(_ENVIRONMENT)
            (root / ".ray").mkdir(mode=0o700, exist_ok=True)
            (root / ".ray" / "auth_token").touch(0o600)
            (root / ".ray" / "auth_token").write_text(token)
            pip = "python -m pip install --quiet --no-input --no-deps --force-reinstall ~/everwarm/*.whl"
            self.on(name, pip, timeout_s=_INSTALL_S)

        with ThreadPoolExecutor() as threads:
            list(threads.map(install, self._cluster.nodes))

    def start(self, name: str) -> None:
        """Start Ray on a machine: the head, or one that joins it."""
        own = f"--node-ip-address={self.machines.address(name)} --object-store-memory={_OBJECT_STORE_BYTES}"
        if name == HEAD:
            line = f"{_SETTINGS} {_HEAD_SETTINGS} ray start --head --port=6379 --include-dashboard=false {own}"
        else:
            line = f"{_SETTINGS} ray start --address={self.machines.address(HEAD)}:6379 {own}"
        try:
            self.on(name, line, timeout_s=_START_S)
        except MachinesFailed as failed:
            # Ray gives its own processes 30 s to start, and no setting changes that; as in `ray_cluster`, once more.
            if "timed out during startup" not in str(failed):
                raise
            self.on(name, f"ray stop; {line}", timeout_s=2 * _START_S)

    def up(self) -> None:
        """Start Everwarm, on all machines that were started and on those that will be."""
        self.on(HEAD, "everwarm up --ray-address auto --detach", timeout_s=_UP_S)

    def on(self, name: str, command: str, *, timeout_s: float = 60.0) -> str:
        """Run a line on a machine as its user would after logging in; what it said."""
        return self._cluster.on(name, command, timeout_s=timeout_s)

    def roles(self, name: str) -> list[str]:
        """The processes of Everwarm's servers on a machine."""
        return [line for line in self._cluster.processes(name) if "RoleProcess" in line]

    def started(self, name: str, command: str) -> list[str]:
        """What to run here to have such a line run there, by whoever wants to talk with it."""
        return self.machines.command(name, "bash", "-c", f". ~/everwarm/environment && exec {command}")

"""Everwarm on machines, by Ray's own launcher: what an operator does, done on machines of namespaces.

The *desk* is where somebody types ``./dev ray-up``; the *head* and the workers are the cluster. cluster.yaml is used as
it is shipped: its addresses, user and key are replaced by those of the machines, and nothing else.

No machine can reach a package index. So an environment waits on each of them, as on a machine that was set up before:
a line in it names the packages that are installed here. What the setup commands install is the wheel.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tests.cluster.hosts.machines import REPOSITORY, Machines, MachinesFailed

DESK, HEAD, WORKERS = "desk", "head", ("worker-1", "worker-2")
NAMES = (DESK, HEAD, *WORKERS)
#: What a checkout is made of, as far as `./dev ray-up` reads it.
_CHECKOUT = (
    *("everwarm", "ingress", "actors", "isolates", "tracing"),
    *("dev", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"),
)
_SITE_PACKAGES = Path("lib", f"python{sys.version_info.major}.{sys.version_info.minor}", "site-packages")
#: pip finds all packages there, and takes its time to see that.
_SETUP_S = 120.0
#: `ray up` comes back when the head runs. Quiet machines take 20 s.
_RAY_UP_S = 300.0
_RAY_DOWN_S = 120.0
#: After `ray down` the workers' Ray ends by itself: keepalive and reconnect time-outs of cluster.yaml, 4 and 10 s.
_WORKERS_END_S = 45.0


class RayCluster:
    """A cluster on ``machines``, one of which is the desk."""

    def __init__(
        self,
        machines: Machines,
        workers: tuple[str, ...] = WORKERS,
        *,
        ray_settings: Mapping[str, str] = MappingProxyType({}),
        up_options: str = "",
    ) -> None:
        """``ray_settings``: variables of Ray's that take the place of those in cluster.yaml, on each node that has
        them. ``up_options``: of ``everwarm up``, beside those there."""
        self.machines = machines
        self.workers = workers
        self._ray_settings = ray_settings
        self._up_options = up_options

    @property
    def nodes(self) -> tuple[str, ...]:
        """The head, and then the workers."""
        return (HEAD, *self.workers)

    def prepare(self) -> None:
        """Machines, an environment on each, and a checkout on the desk with the machines' addresses."""
        self.machines.up([DESK, *self.nodes])
        for name in self.nodes:
            self._make_environment(name, Path("root/everwarm/venv"))
            shutil.copy2(REPOSITORY / "requirements.lock", self.machines.files(name) / "root/everwarm/installed.lock")
        self._make_environment(DESK, Path("root/checkout/.venv"))
        desk = self.machines.files(DESK) / "root"
        for part in _CHECKOUT:
            source, place = REPOSITORY / part, desk / "checkout" / part
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, dirs_exist_ok=True, ignore=ignore)
            else:
                shutil.copy2(source, place)
        (desk / "checkout" / "cluster.yaml").write_text(self._cluster_yaml())
        (desk / ".ssh").mkdir(mode=0o700, exist_ok=True)
        shutil.copy2(self.machines.user_key, desk / ".ssh" / "id_ed25519")
        self.on_desk("./dev setup", timeout_s=_SETUP_S)

    def up(self, progress: Callable[[str], None] = lambda line: None) -> None:
        """`ray up`. It comes back when the head is up; the workers come later. ``MachinesFailed`` with what it said."""
        try:
            said = self.on_desk("./dev ray-up", timeout_s=_RAY_UP_S)
        except MachinesFailed as failed:
            # Ray gives its own processes 30 s to start and no setting changes that; a machine with twenty other things
            # to do takes longer. An operator types it again.
            if "timed out during startup" not in str(failed):
                raise
            progress("Ray's head did not start within its 30 s: once more")
            said = self.on_desk("./dev ray-up", timeout_s=_RAY_UP_S)
        progress(said.splitlines()[-1] if said else "")

    def down(self, progress: Callable[[str], None] = lambda line: None) -> None:
        """`ray down`, and wait until no process of Ray or Everwarm runs anywhere. ``MachinesFailed`` if one stays."""
        self.on_desk("./dev ray-down", timeout_s=_RAY_DOWN_S)
        until_s = time.monotonic() + _WORKERS_END_S
        while left := {name: found for name in self.nodes if (found := self.processes(name))}:
            if time.monotonic() > until_s:
                raise MachinesFailed(f"ray down left {left}")
            time.sleep(0.25)
        progress("no process of Ray or Everwarm runs")

    def on_desk(self, command: str, *, timeout_s: float) -> str:
        """Run a line of shell in the desk's checkout; what it said."""
        return self.machines.run(DESK, "bash", "-c", f"cd checkout && {command}", timeout_s=timeout_s).stdout

    def on(self, name: str, command: str, *, timeout_s: float = 60.0, check: bool = True) -> str:
        """Run a line on a node as its user would after logging in."""
        words = ["bash", "-c", f". ~/everwarm/environment && {command}"]
        return self.machines.run(name, *words, timeout_s=timeout_s, check=check).stdout

    def processes(self, name: str) -> list[str]:
        """What runs on a machine beside its first process, sshd and this question."""
        listed = self.machines.run(name, "ps", "-eo", "pid=,args=").stdout.splitlines()
        own = ("machine_init.py", "sshd", "ps -eo")
        return [line.strip()[:160] for line in listed if not any(word in line for word in own)]

    # ------------------------------------------------------------------------------------------------------- below

    def _cluster_yaml(self) -> str:
        text = (REPOSITORY / "cluster.yaml").read_text()
        head = self.machines.address(HEAD)
        workers = ", ".join(self.machines.address(name) for name in self.workers)
        text, heads = re.subn(r"192\.0\.2\.10\b", head, text)
        text, lists = re.subn(r"(?m)^  worker_ips: .*$", f"  worker_ips: [{workers}]", text)
        text, users = re.subn(r"(?m)^  ssh_user: .*$", "  ssh_user: root", text)
        if (heads, lists, users) != (2, 1, 1):
            raise MachinesFailed(f"cluster.yaml is not as expected: {heads}, {lists}, {users} places")
        for name, value in self._ray_settings.items():
            text, places = re.subn(rf"\b{name}=\S+", f"{name}={value}", text)
            if not places:
                raise MachinesFailed(f"cluster.yaml does not set {name}")
        return text.replace("everwarm up --ray-address auto", f"everwarm up {self._up_options} --ray-address auto")

    def _make_environment(self, name: str, place: Path) -> None:
        """A virtual environment that sees the packages of the one that this runs in, and the two programs that the
        launcher and its commands call by their path. Made for its place on the machine."""
        inside, outside = Path("/") / place, self.machines.files(name) / place
        if (outside / "bin" / "ray").exists():
            return
        make = [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(outside)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL, timeout=60)
        (outside / _SITE_PACKAGES / "packages.pth").write_text(f"{Path(sys.prefix) / _SITE_PACKAGES}\n")
        program = outside / "bin" / "ray"
        program.write_text(f"#!{inside}/bin/python\nfrom ray.scripts.scripts import main\n\nmain()\n")
        program.chmod(0o755)

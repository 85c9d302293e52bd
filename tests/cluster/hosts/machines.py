"""Several machines on one: what a test of several machines needs, made of Linux namespaces.

A machine is a process tree with network, PID, mount, UTS and IPC namespaces of its own: it has a name, an address, an
sshd, its own /tmp, /root, /run and /dev/shm, and sees no process of another machine. The rest of its file system is
that of the machine that it runs on, read-only, so that what is installed here is installed there. All machines are
ports of one bridge (``switch``), which has no way out.

    desk     10.20.0.1 ──┐
    head     10.20.0.2 ──┤ br0, in a namespace of its own
    worker-1 10.20.0.3 ──┘

Why so much: ``ray stop`` ends every Ray process that it sees, so each machine needs PIDs of its own. Two Ray nodes that
share /tmp take each other's sockets. ``ray up`` needs an sshd and an address. And a link can only be cut if it is one.

No namespace has a name: each lives as long as its processes. So nothing can be left behind but processes and the run
directory, and ``down`` ends the ones and removes the other. Everything that is known of the machines is in that
directory, which is given by the caller: two tests beside each other do not meet.

Root alone can make this (``missing`` says what is not there).
"""

import fcntl
import ipaddress
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.cluster.hosts.process import Process, children, in_namespace_of, let_go_on
from tests.cluster.hosts.switch import Switch

REPOSITORY = Path(__file__).resolve().parents[3]
#: Private to the machines, since nothing leads out of their network; a run may take another.
NETWORK = "10.20.0.0/24"
#: Ray's object store takes 1 GiB where cluster.yaml says so. Only what is written is memory.
_SHM_MIB = 1200
#: Below a second, on a machine with nothing else to do.
_BOOT_S = 30.0
_LOCK_S = 60.0
_INTERFACE_NAME_MAX = 15  # the kernel's; two characters are the switch's
_UNSHARE = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc")
_TOOLS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "mount": "mount",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "rsync": "rsync",
}


def missing() -> str:
    """Why no machines can be made here, and what to do, in one line; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "machines of namespaces need root on Linux"
    packages = sorted({package for tool, package in _TOOLS.items() if shutil.which(tool) is None})
    if packages:
        return f"machines of namespaces need: apt-get install --no-install-recommends {' '.join(packages)}"
    done = subprocess.run(
        [
            *_UNSHARE,
            "sh",
            "-c",
            "ip link add br0 type bridge && nft add table bridge probe && mount -o remount,bind,ro /",
        ],
        capture_output=True,
        text=True,
        timeout=20,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"this kernel or container makes no such namespaces ({reason})"
    return ""


def processes_in(namespaces: set[str]) -> list[str]:
    """The processes of this whole machine that are in one of ``namespaces``: number and command, a line each."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if namespaces & {os.readlink(entry / "ns" / kind) for kind in ("net", "pid", "mnt", "uts", "ipc")}:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(f"{entry.name} {command.decode(errors='replace')[:200]}")
    return found


class MachinesFailed(Exception):
    """What was asked for was not done; the message says why, in one line."""


@dataclass(slots=True)
class _Machine:
    """What is written down of a machine. Without an ``init`` it is switched off."""

    name: str
    address: str
    wrapper: Process | None = None  # holds the namespaces' first process, which ends with it
    init: Process | None = None
    wire: Process | None = None  # delays its link


@dataclass(slots=True)
class _Site:
    machines: dict[str, _Machine] = field(default_factory=dict)
    switch: Process | None = None

    @classmethod
    def read(cls, file: Path) -> "_Site":
        try:
            plain = json.loads(file.read_text())
        except FileNotFoundError:
            return cls()

        def process(of: dict[str, object] | None) -> Process | None:
            return None if of is None else Process(**of)  # type: ignore[arg-type]

        machines = {
            name: _Machine(name, m["address"], process(m["wrapper"]), process(m["init"]), process(m["wire"]))
            for name, m in plain["machines"].items()
        }
        return cls(machines, process(plain["switch"]))

    def write(self, file: Path) -> None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        os.replace(part, file)


class Machines:
    """The machines of one run directory. Any number of programs may use it, one after the other."""

    def __init__(self, run_directory: Path) -> None:
        self.directory = run_directory.absolute()
        self._file = self.directory / "machines.json"

    # ------------------------------------------------------------------------------------------------ up and down

    def up(self, names: Sequence[str], network: str = NETWORK) -> None:
        """Make the machines that are not there, and switch on those that are off. ``MachinesFailed``."""
        for name in names:
            if not name.replace("-", "").isalnum() or len(name) + 2 > _INTERFACE_NAME_MAX:
                raise MachinesFailed(f"a machine cannot be called {name!r}")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._changing() as site:
            addresses = ipaddress.ip_network(network).hosts()
            taken = {machine.address for machine in site.machines.values()}
            free = (str(address) for address in addresses if str(address) not in taken)
            for name in names:
                if name not in site.machines:
                    site.machines[name] = _Machine(name, next(free))
            if site.switch is None or not site.switch.is_alive():
                for machine in site.machines.values():  # their links went with it
                    _switch_off(machine)
                site.switch = Switch.start().process
                site.write(self._file)
            self._make_keys(site)
            self._boot(site, [site.machines[n] for n in names if not _runs(site.machines[n])])

    def down(self) -> None:
        """End all machines and remove the run directory. Nothing is left."""
        if not self.directory.is_dir():
            return
        with self._changing() as site:
            for machine in site.machines.values():
                _switch_off(machine)
            if site.switch is not None:
                site.switch.end()
        shutil.rmtree(self.directory)

    def power_off(self, name: str) -> None:
        """Pull the plug: every process of the machine is gone at once. Its files stay, as on a disk."""
        with self._changing() as site:
            _switch_off(self._of(site, name))

    def power_on(self, name: str) -> None:
        """Switch a machine on again."""
        with self._changing() as site:
            machine = self._of(site, name)
            if not _runs(machine):
                self._boot(site, [machine])

    # ------------------------------------------------------------------------------------------------------ in one

    def names(self) -> list[str]:
        """The machines, in the order in which they were made."""
        return list(self._read().machines)

    def address(self, name: str) -> str:
        """A machine's address."""
        return self._of(self._read(), name).address

    def files(self, name: str) -> Path:
        """Where a machine's /root and /tmp are, seen from outside: ``files(name) / "root"``."""
        return self.directory / name

    def command(self, name: str, *words: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """What to run here to have ``words`` run on a machine as its root, in its home."""
        machine = self._of(self._read(), name)
        if not _runs(machine):
            raise MachinesFailed(f"{name} is switched off")
        assert machine.init is not None
        given = {
            "HOME": "/root",
            "USER": "root",
            "LOGNAME": "root",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "PATH": f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            **(environment or {}),
        }
        enter = ["nsenter", "--target", str(machine.init.pid), "--mount", "--uts", "--ipc", "--net", "--pid"]
        return [*enter, "--wdns=/root", "--", "env", "-i", *(f"{k}={v}" for k, v in given.items()), *words]

    def run(
        self,
        name: str,
        *words: str,
        timeout_s: float = 60.0,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine to its end. ``MachinesFailed`` when it fails (with ``check``) or takes too long.

        stdout and stderr come as one text: what fails explains itself in either.
        """
        command = self.command(name, *words, environment=environment)
        started = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            said, _ = started.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as late:
            os.killpg(started.pid, signal.SIGKILL)
            said, _ = started.communicate()
            raise MachinesFailed(f"{name}: {words[0]} took more than {timeout_s:g} s:\n{said[-8000:]}") from late
        if check and started.returncode:
            raise MachinesFailed(f"{name}: {' '.join(words)}: status {started.returncode}:\n{said[-8000:]}")
        return subprocess.CompletedProcess(command, started.returncode, said, "")

    # ------------------------------------------------------------------------------------------------------ faults

    def freeze(self, name: str) -> None:
        """Stop every process of a machine (SIGSTOP): its links are up, and nobody answers."""
        init = self._running_init(name)
        until_s = time.monotonic() + _BOOT_S
        while moving := [p for p in in_namespace_of(init.pid) if p.is_alive() and not p.is_stopped()]:
            if time.monotonic() > until_s:
                raise MachinesFailed(f"{name} does not stop")
            for process in moving:  # those that were started meanwhile are met in the next round
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.005)

    def thaw(self, name: str) -> None:
        """Let a frozen machine go on."""
        let_go_on(self._running_init(name).pid)

    def unplug(self, name: str) -> None:
        """Pull a machine's network cable."""
        self._of(self._read(), name)
        self._switch().unplug(name)

    def drop(self, name: str, other: str | None = None) -> None:
        """Lose all packets of a machine, or those between two, without a sign."""
        self._switch().drop(self.address(name), self.address(other) if other else None)

    def drop_one_way(self, name: str, other: str) -> None:
        """Lose what one machine sends to another."""
        self._switch().drop_one_way(self.address(name), self.address(other))

    def delay(self, name: str, delay_ms: float) -> None:
        """Make every packet to and from a machine so much later, each way."""
        with self._changing() as site:
            machine = self._of(site, name)
            switch = self._switch()
            switch.undelay(name, machine.wire)
            machine.wire = switch.delay(name, delay_ms)

    def heal(self) -> None:
        """End all faults of the network."""
        with self._changing() as site:
            switch = self._switch()
            switch.heal([machine.name for machine in site.machines.values() if _runs(machine)])
            for machine in site.machines.values():
                if machine.wire is not None:
                    switch.undelay(machine.name, machine.wire)
                    machine.wire = None

    def namespaces(self) -> set[str]:
        """The namespaces of the machines and of their switch, as the kernel names them."""
        site = self._read()
        processes = [site.switch, *(machine.init for machine in site.machines.values())]
        alive = [process.pid for process in processes if process is not None and process.is_alive()]
        kinds = ("net", "pid", "mnt", "uts", "ipc")
        mine = {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in alive for kind in kinds} - mine

    # ------------------------------------------------------------------------------------------------------- below

    def _boot(self, site: _Site, machines: list[_Machine]) -> None:
        """All at once, since each waits for its sshd."""
        assert site.switch is not None
        switch = Switch(site.switch)
        booting = []
        for machine in machines:
            _switch_off(machine)  # what is left of one that somebody killed
            for place in ("root", "tmp"):
                (self.files(machine.name) / place).mkdir(parents=True, exist_ok=True)
            (self.files(machine.name) / "root").chmod(0o700)
            (self.files(machine.name) / "tmp").chmod(0o1777)
            wrapper = subprocess.Popen(
                [*_UNSHARE, "--kill-child", sys.executable, "-I", str(Path(__file__).with_name("machine_init.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            machine.wrapper = Process.of(wrapper.pid)
            site.write(self._file)
            booting.append((machine, wrapper))
        hosts = "".join(f"{m.address} {m.name}\n" for m in site.machines.values())
        for machine, wrapper in booting:
            _hear(wrapper, b"made", machine.name)
            (init,) = children(wrapper.pid)
            machine.init = Process.of(init)
            switch.connect(machine.name, machine.address, init)
            given = {
                "name": machine.name,
                "address": machine.address,
                "own": str(self.files(machine.name)),
                "keep": _installed(),
                "hosts": f"127.0.0.1 localhost\n{hosts}",
                "shm_mib": _SHM_MIB,
                "key": (self._keys / "user.pub").read_text(),
                "host_key": (self._keys / machine.name).read_text(),
            }
            assert wrapper.stdin is not None
            wrapper.stdin.write(json.dumps(given).encode() + b"\n")
            wrapper.stdin.close()
        for machine, wrapper in booting:
            _hear(wrapper, b"ready", machine.name)
        site.write(self._file)

    @property
    def _keys(self) -> Path:
        return self.directory / "keys"

    @property
    def user_key(self) -> Path:
        """The private key that every machine's sshd lets in."""
        return self._keys / "user"

    def _make_keys(self, site: _Site) -> None:
        self._keys.mkdir(mode=0o700, exist_ok=True)
        for name in ("user", *site.machines):
            if not (self._keys / name).exists():
                make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self._keys / name)]
                subprocess.run(make, check=True, stdin=subprocess.DEVNULL, timeout=20)

    def _read(self) -> _Site:
        return _Site.read(self._file)

    @contextmanager
    def _changing(self) -> Iterator[_Site]:
        """What is written down, by one program at a time; written again at the end, however it ends."""
        with (self.directory / "lock").open("w") as lock:
            until_s = time.monotonic() + _LOCK_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until_s:
                        raise MachinesFailed(f"somebody else changes the machines of {self.directory}") from None
                    time.sleep(0.05)
            site = self._read()
            try:
                yield site
            finally:
                site.write(self._file)

    @staticmethod
    def _of(site: _Site, name: str) -> _Machine:
        if name not in site.machines:
            raise MachinesFailed(f"there is no machine {name}; there are {', '.join(site.machines) or 'none'}")
        return site.machines[name]

    def _running_init(self, name: str) -> Process:
        machine = self._of(self._read(), name)
        if machine.init is None or not machine.init.is_alive():
            raise MachinesFailed(f"{name} is switched off")
        return machine.init

    def _switch(self) -> Switch:
        site = self._read()
        if site.switch is None or not site.switch.is_alive():
            raise MachinesFailed("there is no network: up first")
        return Switch(site.switch)


def _runs(machine: _Machine) -> bool:
    return all(process is not None and process.is_alive() for process in (machine.wrapper, machine.init))


def _switch_off(machine: _Machine) -> None:
    """Its first process dies with the wrapper, and all others with their first: the kernel does it."""
    if machine.init is not None and machine.init.is_alive():
        let_go_on(machine.init.pid)
    for process in (machine.wire, machine.init, machine.wrapper):
        if process is not None:
            process.end()
    machine.wire = machine.init = machine.wrapper = None


def _hear(started: subprocess.Popen[bytes], word: bytes, name: str) -> None:
    """Wait for a line that a machine's first process says."""
    assert started.stdout is not None
    assert started.stderr is not None
    ready, _, _ = select.select([started.stdout], [], [], _BOOT_S)
    said = started.stdout.readline().strip() if ready else b""
    if said != word:
        started.kill()
        reason = started.stderr.read().decode(errors="replace").strip().splitlines() or ["it said nothing in time"]
        raise MachinesFailed(f"{name} did not start: {reason[-1]}")


def _installed() -> list[str]:
    """What has to be visible on every machine, wherever it lies: this Python, its packages, this repository."""
    return sorted({sys.prefix, sys.base_prefix, str(REPOSITORY)})

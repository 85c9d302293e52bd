"""The network between the machines: a bridge in a namespace of its own, with a port for each machine; and its faults.

Nothing of it is visible outside: a link's two ends are in two namespaces, and no namespace has a way out. All of it is
gone when the processes that hold the namespaces are gone.

Faults, until ``heal``:

* ``unplug``: the cable is pulled. The machine sees that at once.
* ``drop``: a black hole. Nobody sees anything; packets are lost, all of a machine's, or those between two machines,
  or those of one direction only.
* ``delay``: every packet to and from a machine comes so much later.
"""

import subprocess
import sys
from pathlib import Path

from tests.cluster.hosts.process import Process

_WIRE = Path(__file__).with_name("wire.py")
#: One system command on the network takes milliseconds; a machine with other work to do takes longer.
_COMMAND_S = 20.0


class Switch:
    """The bridge. ``process`` holds its namespace open."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    def start(cls) -> "Switch":
        """Make the namespace and the bridge in it."""
        keeper = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec >&-; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert keeper.stdout is not None
        with keeper.stdout as said:
            if said.read().strip() != b"made":
                raise OSError("no network namespace could be made")
        switch = cls(Process.of(keeper.pid))
        switch._do("ip", "link", "add", "br0", "type", "bridge")
        switch._do("ip", "link", "set", "br0", "up")
        switch._do("nft", "add table bridge faults")
        switch._do("nft", "add chain bridge faults forward { type filter hook forward priority 0; }")
        return switch

    def connect(self, name: str, address: str, machine_pid: int) -> None:
        """Put a link between a port of the switch and the machine's ``eth0``, with ``address`` in a network of 256."""
        # The port of a machine that was switched off goes when the kernel comes round to it.
        _run(*self._inside, "ip", "link", "delete", _port(name), check=False)
        # The same card as before it was switched off: others remember who has an address.
        card = "02:00:" + ":".join(f"{int(number):02x}" for number in address.split("."))
        peer = ("peer", "name", "eth0", "address", card, "netns", str(machine_pid))
        self._do("ip", "link", "add", _port(name), "type", "veth", *peer)
        self._do("ip", "link", "set", _port(name), "master", "br0", "up")
        inside = ["nsenter", "--target", str(machine_pid), "--net", "ip"]
        _run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
        _run(*inside, "link", "set", "eth0", "up")

    # ------------------------------------------------------------------------------------------------------ faults

    def unplug(self, name: str) -> None:
        """Pull the cable of a machine."""
        self._do("ip", "link", "set", _port(name), "down")

    def drop(self, address: str, other: str | None = None) -> None:
        """Lose what a machine sends and gets: all, or what passes between it and ``other``."""
        for one_way in self._rules(address, other), self._rules(other, address):
            self._do("nft", f"add rule bridge faults forward {one_way} counter drop")

    def drop_one_way(self, address: str, other: str) -> None:
        """Lose what ``address`` sends to ``other``, and nothing else."""
        self._do("nft", f"add rule bridge faults forward {self._rules(address, other)} counter drop")

    def delay(self, name: str, delay_ms: float) -> Process:
        """Each way. The process that does it: end it with ``undelay``."""
        self.undelay(name, None)
        inner, outer = f"i-{name}", f"o-{name}"
        self._do("ip", "link", "add", inner, "type", "veth", "peer", "name", outer)
        self._do("ip", "link", "set", _port(name), "nomaster")
        self._do("ip", "link", "set", outer, "up")
        self._do("ip", "link", "set", inner, "master", "br0", "up")
        wire = subprocess.Popen(
            [*self._inside, sys.executable, str(_WIRE), _port(name), outer, str(round(delay_ms * 1000))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        return Process.of(wire.pid)

    def undelay(self, name: str, wire: Process | None) -> None:
        """Take the delay away."""
        if wire is not None:
            wire.end()
        _run(*self._inside, "ip", "link", "delete", f"i-{name}", check=False)  # there may be none
        self._do("ip", "link", "set", _port(name), "master", "br0")

    def heal(self, names: list[str]) -> None:
        """Plug in and let everything pass. Delays are taken away by ``undelay``."""
        self._do("nft", "flush chain bridge faults forward")
        for name in names:
            self._do("ip", "link", "set", _port(name), "up")

    @staticmethod
    def _rules(source: str | None, to: str | None) -> str:
        return " ".join([*([f"ip saddr {source}"] if source else []), *([f"ip daddr {to}"] if to else [])])

    # ------------------------------------------------------------------------------------------------------- below

    @property
    def _inside(self) -> list[str]:
        return ["nsenter", "--target", str(self.process.pid), "--net"]

    def _do(self, *command: str) -> None:
        _run(*self._inside, *command)


def _port(name: str) -> str:
    return f"p-{name}"


def _run(*command: str, check: bool = True) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

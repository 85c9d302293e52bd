"""Machines made of namespaces (``hosts``): that they are apart, that each fault is one, and that nothing stays behind.

A fault is seen by connecting from one machine to another's sshd, which is there anyhow.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.hosts.machines import Machines, MachinesFailed, missing, processes_in

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
LONG = pytest.mark.skipif(not os.environ.get("EVERWARM_LONG_TESTS"), reason="half a minute: EVERWARM_LONG_TESTS=1")

ONE, TWO, THREE = NAMES = ("one", "two", "three")
#: What takes longer is lost, where it is to be lost; and where it is not, on a machine with a lot else to do.
LOST_S, HEARD_S = 1.0, 20.0
#: Prints how long it took to connect and hear a word, in ms, or why it did not work.
PROBE = """
import socket, sys, time
began_s = time.monotonic()
try:
    with socket.create_connection((sys.argv[1], 22), float(sys.argv[2])) as line:
        line.recv(1)
        print(round((time.monotonic() - began_s) * 1000, 3))
except OSError as failed:
    print(type(failed).__name__)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("machines") / "run")
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, check=True).stdout
    try:
        machines.up(NAMES)
        namespaces = machines.namespaces()
        yield machines
    finally:
        machines.down()
    assert processes_in(namespaces) == []
    assert not machines.directory.exists()
    assert subprocess.run(["ip", "-o", "link"], capture_output=True, check=True).stdout == links


@pytest.fixture
def machines(site: Machines) -> Iterator[Machines]:
    """Whole again afterwards."""
    yield site
    site.heal()
    site.up(NAMES)
    site.thaw(TWO)


def probe(machines: Machines, source: str, to: str, within_s: float = HEARD_S) -> str:
    return machines.run(source, sys.executable, "-I", "-c", PROBE, machines.address(to), str(within_s)).stdout.strip()


def hears(machines: Machines, source: str, to: str) -> bool:
    return probe(machines, source, to).replace(".", "").isdigit()


def hears_nothing(machines: Machines, source: str, to: str) -> bool:
    """A black hole: no answer, and no refusal."""
    return probe(machines, source, to, LOST_S) == "TimeoutError"


def test_each_has_what_is_its_own(machines: Machines) -> None:
    assert machines.run(ONE, "hostname").stdout == "one\n"
    assert machines.address(ONE) in machines.run(ONE, "ip", "-o", "address").stdout
    machines.run(ONE, "sh", "-c", "echo hidden > /tmp/file; echo hidden > /root/file; echo hidden > /dev/shm/file")
    for place in ("/tmp/file", "/root/file", "/dev/shm/file"):
        assert machines.run(TWO, "cat", place, check=False).returncode != 0
    processes = machines.run(ONE, "ps", "-e", "-o", "args=").stdout
    assert processes.count("machine_init.py") == 1
    assert "machine_init.py" in machines.run(ONE, "ps", "-o", "args=", "1").stdout


def test_nothing_of_the_rest_can_be_written(machines: Machines) -> None:
    for place in ("/usr", "/etc", str(Path(__file__).parent)):
        done = machines.run(ONE, "touch", f"{place}/file-of-a-test", check=False)
        assert "Read-only file system" in done.stdout


def test_nothing_leads_out(machines: Machines) -> None:
    assert machines.run(ONE, "ip", "route", "show", "default").stdout == ""


def test_the_key_lets_in_and_no_other_way_does(machines: Machines, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(machines.user_key.read_bytes())
    options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
    ssh = ["ssh", *options, f"root@{machines.address(TWO)}", "hostname"]
    assert "Permission denied" in machines.run(ONE, *ssh, check=False).stdout
    (machines.files(ONE) / "root" / "key").write_bytes(machines.user_key.read_bytes())
    (machines.files(ONE) / "root" / "key").chmod(0o600)
    assert machines.run(ONE, *ssh[:1], "-q", "-i", "/root/key", *ssh[1:]).stdout == "two\n"


def test_up_again_changes_nothing(machines: Machines) -> None:
    namespaces = machines.namespaces()
    machines.up(NAMES)
    assert machines.namespaces() == namespaces


def test_a_drop_between_two_is_not_one_for_the_third(machines: Machines) -> None:
    machines.drop(ONE, TWO)
    assert hears_nothing(machines, ONE, TWO)
    assert hears_nothing(machines, TWO, ONE)
    assert hears(machines, THREE, TWO)
    assert hears(machines, ONE, THREE)
    machines.heal()
    assert hears(machines, ONE, TWO)


def test_a_drop_around_one_is_for_all(machines: Machines) -> None:
    machines.drop(TWO)
    assert hears_nothing(machines, ONE, TWO)
    assert hears_nothing(machines, TWO, THREE)
    assert hears(machines, ONE, THREE)


def test_one_way_is_enough_to_hear_nothing_back(machines: Machines) -> None:
    """And only between these two."""
    machines.drop_one_way(TWO, ONE)
    assert hears_nothing(machines, ONE, TWO)
    assert hears(machines, THREE, TWO)


def test_a_pulled_cable_is_seen_by_the_machine(machines: Machines) -> None:
    machines.unplug(TWO)
    assert "NO-CARRIER" in machines.run(TWO, "ip", "-o", "link", "show", "eth0").stdout
    assert hears_nothing(machines, ONE, TWO)
    machines.heal()
    assert hears(machines, ONE, TWO)


def test_a_delay_is_twice_there_and_back(machines: Machines) -> None:
    """Connecting and hearing a word take a round trip each: four times the delay."""
    machines.delay(TWO, 40)
    assert float(probe(machines, ONE, TWO)) >= 160
    machines.delay(TWO, 5)  # another takes its place
    assert float(probe(machines, THREE, TWO)) >= 20
    machines.heal()
    assert hears(machines, ONE, TWO)
    assert b"wire.py" not in b"".join(path.read_bytes() for path in _command_lines())


def _command_lines() -> list[Path]:
    """Of the processes that this one has started, and that are not of another test."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [Path("/proc", child, "cmdline") for child in children]


def test_a_frozen_machine_says_nothing_and_goes_on_when_it_is_thawed(machines: Machines) -> None:
    machines.freeze(TWO)
    assert hears_nothing(machines, ONE, TWO)  # the kernel connects; nobody says a word
    machines.thaw(TWO)
    assert hears(machines, ONE, TWO)


@LONG
def test_the_plug_ends_all_and_the_disk_is_there_again(machines: Machines) -> None:
    machines.run(TWO, "sh", "-c", "echo kept > /root/kept")
    namespaces = machines.namespaces()
    machines.power_off(TWO)
    assert machines.namespaces() < namespaces
    assert not hears(machines, ONE, TWO)
    with pytest.raises(MachinesFailed, match="switched off"):
        machines.run(TWO, "true")
    machines.power_on(TWO)
    assert machines.run(TWO, "cat", "/root/kept").stdout == "kept\n"
    assert hears(machines, ONE, TWO)


@LONG
def test_a_machine_that_was_killed_comes_up_again(machines: Machines) -> None:
    """Whoever is killed from outside is switched off; ``up`` switches it on."""
    gone = int(machines.run(TWO, "sh", "-c", "pgrep -o -f machine_init.py").stdout)
    assert gone == 1
    wrapper = next(child for child in _command_lines() if b"machine_init.py" in child.read_bytes())
    os.kill(int(wrapper.parent.name), signal.SIGKILL)
    machines.up(NAMES)
    assert all(hears(machines, ONE, name) for name in (TWO, THREE))


def test_what_fails_on_a_machine_says_so(machines: Machines) -> None:
    with pytest.raises(MachinesFailed, match=r"one: sh -c exit 3: status 3"):
        machines.run(ONE, "sh", "-c", "exit 3")
    with pytest.raises(MachinesFailed, match=r"took more than 0.5 s"):
        machines.run(ONE, "sleep", "60", timeout_s=0.5)
    with pytest.raises(MachinesFailed, match="there is no machine four"):
        machines.address("four")
    with pytest.raises(MachinesFailed, match="cannot be called"):
        machines.up(["a-name-that-is-too-long"])

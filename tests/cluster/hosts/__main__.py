"""Machines by hand, in the run directory that --run names (see machines.py; root, and what it says is missing).

python -m tests.cluster.hosts up desk head worker-1 worker-2
python -m tests.cluster.hosts in head hostname -I
python -m tests.cluster.hosts link drop head worker-1      a black hole between two; with one name: around it
python -m tests.cluster.hosts link drop-one-way head worker-1
python -m tests.cluster.hosts link unplug worker-1
python -m tests.cluster.hosts link delay worker-1 50       milliseconds, each way
python -m tests.cluster.hosts link heal
python -m tests.cluster.hosts off worker-2                 the plug; also: on, freeze (SIGSTOP), thaw
python -m tests.cluster.hosts ray-up                       machines, and Everwarm on them by cluster.yaml
python -m tests.cluster.hosts ray-down
python -m tests.cluster.hosts down                         leaves nothing
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.cluster.hosts.machines import Machines, MachinesFailed, missing
from tests.cluster.hosts.ray_cluster import NAMES, RayCluster


def main(arguments: list[str]) -> int:
    """The exit status: the command's own for `in`, else 0, 1 for what failed, 77 where no machines can be made."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster.hosts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(tempfile.gettempdir()) / f"everwarm-machines-{os.getuid()}"
    parser.add_argument("--run", type=Path, default=default, metavar="DIR", help="where everything is kept")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up").add_argument("names", nargs="*", default=list(NAMES))
    inside = commands.add_parser("in")
    inside.add_argument("name")
    inside.add_argument("words", nargs=argparse.REMAINDER)
    link = commands.add_parser("link")
    link.add_argument("fault", choices=["drop", "drop-one-way", "unplug", "delay", "heal"])
    link.add_argument("of", nargs="*")
    for power in ("off", "on", "freeze", "thaw"):
        commands.add_parser(power).add_argument("name")
    for plain in ("ray-up", "ray-down", "down"):
        commands.add_parser(plain)
    given = parser.parse_args(arguments)
    if reason := missing():
        print(reason, file=sys.stderr)
        return 77
    machines = Machines(given.run)
    try:
        match given.command:
            case "up":
                machines.up(given.names)
                for name in machines.names():
                    print(f"{name:<13} {machines.address(name)}")
            case "in":
                command = machines.command(given.name, *given.words)
                os.execvp(command[0], command)
            case "link":
                _link(machines, given.fault, given.of)
            case "ray-up":
                cluster = RayCluster(machines)
                cluster.prepare()
                cluster.up(print)
            case "ray-down":
                RayCluster(machines).down(print)
            case "down":
                machines.down()
            case power:
                calls = {"off": machines.power_off, "on": machines.power_on}
                {**calls, "freeze": machines.freeze, "thaw": machines.thaw}[power](given.name)
    except MachinesFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    return 0


def _link(machines: Machines, fault: str, of: list[str]) -> None:
    match fault, of:
        case "drop", [name]:
            machines.drop(name)
        case "drop", [name, other]:
            machines.drop(name, other)
        case "drop-one-way", [name, other]:
            machines.drop_one_way(name, other)
        case "unplug", [name]:
            machines.unplug(name)
        case "delay", [name, delay_ms]:
            machines.delay(name, float(delay_ms))
        case "heal", []:
            machines.heal()
        case _:
            raise MachinesFailed(f"link {fault} does not take {' '.join(of) or 'nothing'}: see --help")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The command line of the benchmark of isolates."""

import argparse
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from benchmarks.isolates.figure import Measured, Number, PeerRow, Row, State
from benchmarks.isolates.guests import Guests
from benchmarks.isolates.measurements import FIGURES, wanted
from benchmarks.isolates.measuring import measure
from benchmarks.isolates.peers.asked import ask_peers
from benchmarks.isolates.peers.installed import Installed
from benchmarks.isolates.report import json_line, table
from everwarm.home import Home


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.isolates",
        description="What does an isolate cost: a call, an answer, a start, its memory, its limits?",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--only", default="", metavar="NAME,...", help="these figures alone")
    parser.add_argument("--quick", action="store_true", help="few runs of each: to see that it works, not how fast")
    parser.add_argument("--without-peers", action="store_true", help="ask no peer")
    parser.add_argument("--install-peers", action="store_true", help="first install the peers that are not here")
    parser.add_argument("--peers-dir", type=Path, help="where peers are installed (default: in the state directory)")
    parser.add_argument("--cache-dir", type=Path, help="built and compiled guests (default: in the state directory)")
    return parser


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _machine() -> dict[str, Number | str]:
    """What the figures depend on beside this project. A load beyond that of this program spoils them."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "wasmtime": version("wasmtime"),
        "Python": platform.python_version(),
        "load before": os.getloadavg()[0],
    }


def main() -> int:
    """0 when all that could be measured was; 1 when something failed. A bound that is not kept is no failure."""
    parser = _arguments()
    options = parser.parse_args()
    names = {name for name in options.only.split(",") if name} or set(FIGURES)
    if names - set(FIGURES):
        parser.error(f"no such figure: {', '.join(sorted(names - set(FIGURES)))}; there are {', '.join(FIGURES)}")
    home = Home.open()
    toolchains = Path(os.environ.get("EVERWARM_TOOLCHAIN_DIR") or home.toolchains)
    guests = Guests(options.cache_dir or home.builds, toolchains, _progress)
    installed = Installed((options.peers_dir or home.directory / "peers").absolute())
    if options.install_peers:
        installed.install(_progress)
    machine = _machine()
    rows: list[Row] = []
    found: dict[str, Measured] = {}
    todo = wanted(names)
    for number, measurement in enumerate(todo, 1):
        _progress(f"{number}/{len(todo)}  {', '.join(figure.name for figure in measurement.figures)}")
        new_rows, measured = measure(measurement, guests, quick=options.quick)
        rows += [row for row in new_rows if row.figure.name in names]
        if measured is not None:
            found[measurement.name] = measured
    peers: list[PeerRow] = []
    if not options.without_peers:
        peers = ask_peers(installed, guests, names, quick=options.quick, progress=_progress)
    if names == set(FIGURES):
        # Only now are all guests known: with some of them, an engine could go that the next run needs.
        guests.collect()
    machine["load after"] = os.getloadavg()[0]
    if options.json:
        print(json_line(rows, found, peers, machine, quick=options.quick))
    else:
        print(table(rows, found, peers, machine))
    return 1 if any(row.state is State.FAILED for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

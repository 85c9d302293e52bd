"""One measurement in a process of its own: what the parent asks for, and the child that does it.

python -m benchmarks.isolates.measuring JOB     JOB and the one line on stdout are JSON
"""

import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.isolates.figure import Measured, Row, State, rounded
from benchmarks.isolates.guests import ROOT, Guests, Missing, Prepared
from benchmarks.isolates.measurements import Measurement, wanted
from benchmarks.isolates.workbench import NotHere, Workbench

#: How the child says that this machine lacks something; other endings are faults.
_NOT_HERE = 3
#: A reason is one line in a table.
_WHY_CHARS_MAX = 200


def measure(measurement: Measurement, guests: Guests, *, quick: bool) -> tuple[list[Row], Measured | None]:
    """Its rows, in the order of its figures, and what it found. Never raises for what a measurement does."""
    prepared: dict[str, Prepared] = {}
    for name in measurement.guests:
        guest = guests.prepare(name)
        if isinstance(guest, Missing):
            return _without_value(measurement, State.FAILED if guest.is_fault else State.SKIPPED, guest.why), None
        prepared[name] = guest
    job = {
        "measurement": measurement.name,
        "store": str(guests.store.resolve()),
        "guests": {name: asdict(guest) for name, guest in prepared.items()},
        "quick": quick,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.isolates.measuring", json.dumps(job)],
            cwd=ROOT, capture_output=True, text=True, timeout=measurement.timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _without_value(measurement, State.FAILED, f"not done within {measurement.timeout_s:g} s"), None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        state = State.SKIPPED if done.returncode == _NOT_HERE else State.FAILED
        return _without_value(measurement, state, last[:_WHY_CHARS_MAX]), None
    found = json.loads(done.stdout)
    measured = Measured(found["values"], found["notes"])
    return [Row(f, State.MEASURED, measured.values[f.name]) for f in measurement.figures], measured


def _without_value(measurement: Measurement, state: State, why: str) -> list[Row]:
    return [Row(figure, state, why=why) for figure in measurement.figures]


def main(arguments: list[str]) -> int:
    """The child."""
    job = json.loads(arguments[0])
    (measurement,) = wanted({job["measurement"]})
    guests = {name: Prepared(**guest) for name, guest in job["guests"].items()}
    bench = Workbench(Path(job["store"]), guests, quick=job["quick"])
    # As a host does when it has started: a full collection looks at what isolates make, and not at every import.
    gc.collect()
    gc.freeze()
    try:
        measured = measurement.take(bench)
    except NotHere as lacking:
        print(lacking, file=sys.stderr)
        return _NOT_HERE
    rounded_values = {name: rounded(value) for name, value in measured.values.items()}
    notes = {name: value if isinstance(value, str) else rounded(value) for name, value in measured.notes.items()}
    print(json.dumps({"values": rounded_values, "notes": notes}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

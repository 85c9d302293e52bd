"""``jco serve``: the same components transpiled to JavaScript, in Node: one instance for all requests of a process."""

from pathlib import Path

from benchmarks.isolates.figure import PeerRow, in_unit_of
from benchmarks.isolates.guests import Guests, Missing
from benchmarks.isolates.peers.server import PeerFailed, free_port, serving
from everwarm.build import BuildError
from everwarm.build.toolchain import node_program

NAME = "jco serve"
#: It transpiles when it starts, which takes seconds for an engine.
_START_TIMEOUT_S = 120.0
_DIFFERS = "the same component in Node, one instance used again; over HTTP; the whole process is this tenant's"


#: Guest, and the figure that its answer stands beside.
_QUESTIONS = (("hello_c", "c_hello_warm_us"), ("hello_js", "js_hello_warm_ms"))
BESIDE = tuple(ours for _, ours in _QUESTIONS)


def rows(script: Path, guests: Guests, names: set[str], *, quick: bool) -> list[PeerRow]:
    """What stands beside the figures in ``names``, or why there is nothing."""
    return [_row(script, guests, guest, ours, 20 if quick else 300) for guest, ours in _QUESTIONS if ours in names]


def _row(script: Path, guests: Guests, guest: str, ours: str, requests: int) -> PeerRow:
    name = f"{guest}: next answer"
    prepared = guests.prepare(guest)
    if isinstance(prepared, Missing):
        return PeerRow(NAME, name, ours, _DIFFERS, why=prepared.why)
    port = free_port()
    try:
        command = [node_program(), str(script), "serve", prepared.component, "--host", "127.0.0.1", "--port", str(port)]
        with serving(command, port, start_timeout_s=_START_TIMEOUT_S) as it:
            it.asking.median_ms(10)
            return PeerRow(NAME, name, ours, _DIFFERS, in_unit_of(ours, it.asking.median_ms(requests)))
    except (PeerFailed, BuildError) as failed:
        return PeerRow(NAME, name, ours, _DIFFERS, why=str(failed))

"""``wasmtime serve``: the same components on the same engine, hosted natively, one component a process.

An instance for each request is what it does by itself; told to, it uses one again.
"""

from pathlib import Path

from benchmarks.isolates.figure import PeerRow, in_unit_of
from benchmarks.isolates.guests import Guests, Missing
from benchmarks.isolates.peers.server import PeerFailed, free_port, serving

NAME = "wasmtime serve"
#: It compiles when it starts, which takes half a minute for an engine on a busy machine.
_START_TIMEOUT_S = 240.0
#: More requests than any figure makes: the instance is never dropped.
_REUSED = ["--max-instance-reuse-count", "1000000", "--idle-instance-timeout", "60s"]
_FRESH = "the same component, native host, an instance a request; over HTTP; the whole process is this tenant's"
_AGAIN = "the same component, native host, one instance used again; over HTTP; the whole process is this tenant's"


#: Guest, the figure that its answer stands beside, and whether one instance serves all requests.
_QUESTIONS = (
    ("hello_c", "c_hello_cold_ms", False),
    ("hello_c", "c_hello_warm_us", True),
    ("fetch_event_js", "js_single_shot_ms", False),
    ("hello_js", "js_hello_warm_ms", True),
    ("hello_python", "python_hello_cold_ms", False),
    ("hello_python", "python_hello_warm_ms", True),
)
BESIDE = tuple(ours for _, ours, _ in _QUESTIONS)


def rows(program: Path, guests: Guests, names: set[str], *, quick: bool) -> list[PeerRow]:
    """What stands beside the figures in ``names``, or why there is nothing."""
    requests = 20 if quick else 500
    return [_row(program, guests, question, requests) for question in _QUESTIONS if question[1] in names]


def _row(program: Path, guests: Guests, question: tuple[str, str, bool], requests: int) -> PeerRow:
    guest, ours, is_reused = question
    name = f"{guest}: {'next answer' if is_reused else 'instantiate and answer'}"
    differs = _AGAIN if is_reused else _FRESH
    prepared = guests.prepare(guest)
    if isinstance(prepared, Missing):
        return PeerRow(NAME, name, ours, differs, why=prepared.why)
    port = free_port()
    flags = ["-Scli", "--addr", f"127.0.0.1:{port}", *(_REUSED if is_reused else [])]
    try:
        with serving([str(program), "serve", *flags, prepared.component], port, start_timeout_s=_START_TIMEOUT_S) as it:
            it.asking.median_ms(10)
            return PeerRow(NAME, name, ours, differs, in_unit_of(ours, it.asking.median_ms(requests)))
    except PeerFailed as failed:
        return PeerRow(NAME, name, ours, differs, why=str(failed))

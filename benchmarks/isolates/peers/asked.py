"""All peers that are here, one after the other."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.isolates.figure import PeerRow
from benchmarks.isolates.guests import Guests
from benchmarks.isolates.peers import jco_serve, wasmtime_serve, workerd
from benchmarks.isolates.peers.installed import Installed
from benchmarks.isolates.peers.server import PeerFailed


def ask_peers(
    installed: Installed, guests: Guests, names: set[str], *, quick: bool, progress: Callable[[str], None]
) -> list[PeerRow]:
    """What each of them says beside the figures in ``names``. One that is not here, or fails, says so in a row."""
    asked: tuple[tuple[str, tuple[str, ...], Path | None, Callable[[Path], list[PeerRow]]], ...] = (
        (
            workerd.NAME,
            workerd.BESIDE,
            installed.workerd,
            lambda program: [row for row in workerd.rows(program, quick=quick) if row.ours in names],
        ),
        (
            wasmtime_serve.NAME,
            wasmtime_serve.BESIDE,
            installed.wasmtime,
            lambda program: wasmtime_serve.rows(program, guests, names, quick=quick),
        ),
        (
            jco_serve.NAME,
            jco_serve.BESIDE,
            installed.jco,
            lambda script: jco_serve.rows(script, guests, names, quick=quick),
        ),
    )
    found: list[PeerRow] = []
    for name, beside, program, rows in asked:
        ours = next((figure for figure in beside if figure in names), None)
        if ours is None:
            continue
        if program is None:
            found.append(PeerRow(name, "", ours, "", why="not installed; --install-peers does"))
            continue
        progress(f"asking {name}")
        try:
            found += rows(program)
        except PeerFailed as failed:
            found.append(PeerRow(name, "", ours, "", why=str(failed)))
    return found

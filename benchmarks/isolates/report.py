"""What was found, as a table for people or as one JSON line. Pure."""

import json
from collections.abc import Iterable, Sequence

from benchmarks.isolates.figure import Measured, Number, PeerRow, Row, State, rounded, unit_of

_PEERS_NOTE = "Peers are asked over HTTP/1.1 on loopback, one open connection; ours beside them is without HTTP."


def table(
    rows: Iterable[Row], found: dict[str, Measured], peers: Iterable[PeerRow], machine: dict[str, Number | str]
) -> str:
    """Figures, what else is worth knowing of each run and of the machine, and the peers."""
    rows, peers = list(rows), list(peers)
    lines = _columns(
        [("figure", "value", "bound", "met")]
        + [(row.figure.name, _value(row.value), row.figure.bound_text, _verdict(row)) for row in rows]
    )
    lines.append("")
    notes = {"machine": machine, **{name: measured.notes for name, measured in found.items()}}
    for name, told in notes.items():
        if told:
            lines.append(f"{name}: " + ", ".join(f"{key} {_value(value)}" for key, value in told.items()))
    if peers:
        values = {row.figure.name: row.value for row in rows}
        lines += ["", _PEERS_NOTE, ""]
        lines += _columns(
            [("peer", "what", "value", "", "ours", "value", "what differs")]
            + [
                (row.peer, row.name or "-", _value(row.value),
                 "" if row.value is None else unit_of(row.ours),
                 row.ours, _value(values.get(row.ours)),
                 f"no value: {row.why}" if row.why else row.differs)
                for row in peers
            ]
        )  # fmt: skip
    return "\n".join(lines)


def json_line(
    rows: Iterable[Row],
    found: dict[str, Measured],
    peers: Iterable[PeerRow],
    machine: dict[str, Number | str],
    *,
    quick: bool,
) -> str:
    """The same for programs."""
    return json.dumps(
        {
            "quick": quick,
            "machine": machine,
            "figures": {
                row.figure.name: {
                    "value": row.value,
                    "bound": row.figure.bound,
                    "at_least": row.figure.at_least,
                    "met": row.met,
                    "state": row.state,
                    "why": row.why,
                }
                for row in rows
            },
            "notes": {name: measured.notes for name, measured in found.items()},
            "peers": [
                {
                    "peer": row.peer,
                    "name": row.name,
                    "value": None if row.value is None else rounded(row.value),
                    "beside": row.ours,
                    "differs": row.differs,
                    "why": row.why,
                }
                for row in peers
            ],
        }
    )


def _verdict(row: Row) -> str:
    if row.state is not State.MEASURED:
        return f"{row.state}: {row.why}"
    return {True: "yes", False: "NO", None: ""}[row.met]


def _value(value: Number | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{rounded(value):,g}"


def _columns(cells: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines with the cells below each other; the last one is as long as it is."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in cells]  # fmt: skip

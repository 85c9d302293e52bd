"""A figure: its name with the unit at the end, the bound it is held to, and how one is judged. Pure."""

from dataclasses import dataclass, field
from enum import StrEnum

Number = float | int


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and its bound: at most ``bound``, or at least it. Without a bound it is only told."""

    name: str
    bound: Number | None = None
    at_least: bool = False

    @property
    def bound_text(self) -> str:
        """The bound as people write it, or nothing."""
        return "" if self.bound is None else f"{'>=' if self.at_least else '<='} {self.bound:g}"

    def is_met(self, value: Number) -> bool | None:
        """Whether ``value`` keeps the bound; None when there is none."""
        if self.bound is None:
            return None
        return value >= self.bound if self.at_least else value <= self.bound


class State(StrEnum):
    """What became of a figure."""

    MEASURED = "measured"
    SKIPPED = "skipped"  # something that it needs is not on this machine
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Row:
    """One figure after the run. ``why`` says why there is no value."""

    figure: Figure
    state: State
    value: Number | None = None
    why: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None without a value or without a bound."""
        return None if self.value is None else self.figure.is_met(self.value)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one measurement found: values by the names of its figures, and what else is worth knowing of the run."""

    values: dict[str, Number]
    notes: dict[str, Number | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PeerRow:
    """A peer's answer to a question of ours. ``ours`` is the figure that it stands beside."""

    peer: str
    name: str
    ours: str
    differs: str
    value: Number | None = None
    why: str = ""


def rounded(value: Number) -> Number:
    """Four significant digits: more is noise."""
    return value if isinstance(value, int) else float(f"{value:.4g}")


def in_unit_of(figure: str, ms: Number) -> Number:
    """Milliseconds in the unit that the figure's name ends in."""
    return ms * 1e3 if figure.endswith("_us") else ms


def unit_of(figure: str) -> str:
    """The unit that the figure's name ends in, as people write it."""
    return figure.rpartition("_")[2].replace("mb", "MB")

"""Metric families as values, and as the text that Prometheus reads.

A family has a name in OpenTelemetry's manner (`everwarm.queue.time`, unit `s`) and, derived from it by that project's
own rules, one in Prometheus's (`everwarm_queue_time_seconds`): dots become underscores, the unit is spelled out at the
end, and a counter ends in `_total`. So a dashboard finds the same numbers whichever way they came.

What grows must be bounded: each family has at most `POINTS_MAX` series, and what is beyond is added to one whose
labels say `other`. A worker's name is no label: a hundred thousand workers would make a hundred thousand series of
each family, and Prometheus keeps every one of them for as long as it keeps anything.

Pure.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeGuard

# The closed lists behind labels have at most forty names; three hosts of thirteen endings are as many.
POINTS_MAX: Final = 256
_OTHER: Final = "other"
# OpenTelemetry's units (UCUM) as Prometheus spells them. What is in braces is a remark and is dropped.
_UNITS: Final = {"s": "seconds", "By": "bytes", "1": "ratio"}
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Kind(StrEnum):
    """What becomes of a family's numbers: a counter only rises, and begins anew with its process."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often values fell where: `counts` has one more entry than `bounds`, for what is above the last of them."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    def __add__(self, other: Distribution) -> Distribution:
        """Both together. ValueError when their bounds differ."""
        if self.bounds != other.bounds:
            raise ValueError("distributions of different bounds")
        counts = tuple(mine + its for mine, its in zip(self.counts, other.counts, strict=True))
        return Distribution(self.bounds, counts, self.sum + other.sum)


@dataclass(frozen=True, slots=True)
class Point:
    """One series as of now. `since_ns`: when its counting began (unix), 0 when nobody knows."""

    labels: Mapping[str, str]
    value: float | Distribution
    since_ns: int = 0


@dataclass(frozen=True, slots=True)
class Family:
    """Series of one name. `unit` as in OpenTelemetry: `s`, `By`, or what is counted, in braces."""

    name: str
    kind: Kind
    unit: str
    about: str
    points: tuple[Point, ...]

    @property
    def prometheus_name(self) -> str:
        """The name in Prometheus's manner."""
        name = self.name.replace(".", "_")
        unit = _UNITS.get(self.unit)
        if unit is not None and not name.endswith(f"_{unit}"):
            name = f"{name}_{unit}"
        return f"{name}_total" if self.kind is Kind.COUNTER else name

    def bounded(self, points_max: int = POINTS_MAX) -> Family:
        """With at most so many series: those above are added up in the last one, whose labels are all `other`."""
        if len(self.points) <= points_max:
            return self
        kept, rest = self.points[: points_max - 1], self.points[points_max - 1 :]
        total = rest[0].value
        for point in rest[1:]:
            total = _sum(total, point.value)
        return replace(self, points=(*kept, Point(dict.fromkeys(rest[0].labels, _OTHER), total)))


def _sum(one: float | Distribution, other: float | Distribution) -> float | Distribution:
    if isinstance(one, Distribution):
        return one + other if isinstance(other, Distribution) else one
    return one if isinstance(other, Distribution) else one + other


class Histogram:
    """Counts values as they come. Not thread-safe."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One more; it belongs to the first bound that is not below it."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def plain(self) -> dict[str, object]:
        """As plain data, which `distribution_of` reads."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}


def distribution_of(plain: object) -> Distribution | None:
    """What `Histogram.plain` made; None for anything else."""
    if not isinstance(plain, Mapping):
        return None
    bounds, counts, total = plain.get("bounds"), plain.get("counts"), plain.get("sum")
    if not isinstance(bounds, list | tuple) or not isinstance(counts, list | tuple) or not is_number(total):
        return None
    if len(counts) != len(bounds) + 1 or len(counts) > POINTS_MAX:
        return None
    if not all(is_number(value) for value in (*bounds, *counts)):
        return None
    return Distribution(tuple(map(float, bounds)), tuple(map(int, counts)), float(total))


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value can be a series'."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# ------------------------------------------------------------------------------------------------ Prometheus's text


def prometheus_text(families: Iterable[Family]) -> str:
    """All of them in Prometheus's text format, version 0.0.4."""
    lines: list[str] = []
    for family in families:
        name = family.prometheus_name
        lines.append(f"# HELP {name} {_escaped(family.about, quotes=False)}")
        lines.append(f"# TYPE {name} {family.kind.value}")
        for point in family.bounded().points:
            if isinstance(point.value, Distribution):
                lines += _histogram_lines(name, point.labels, point.value)
            else:
                lines.append(_line(name, point.labels, point.value))
    return "\n".join(lines) + "\n"


def _histogram_lines(name: str, labels: Mapping[str, str], value: Distribution) -> list[str]:
    """Buckets are cumulative here, and the last one holds all."""
    lines, below = [], 0
    for bound, count in zip((*map(_number, value.bounds), "+Inf"), value.counts, strict=True):
        below += count
        lines.append(_line(f"{name}_bucket", {**labels, "le": bound}, below))
    return [*lines, _line(f"{name}_sum", labels, value.sum), _line(f"{name}_count", labels, below)]


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    listed = ",".join(f'{label}="{_escaped(text, quotes=True)}"' for label, text in labels.items())
    return f"{name}{{{listed}}} {_number(value)}" if listed else f"{name} {_number(value)}"


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text

"""A strict reader of Prometheus's text format (0.0.4), for tests: what it does not understand is an error.

It holds a writer to more than a scraper does: a family's lines stand together under their HELP and TYPE, a series
comes once, and a histogram's buckets rise up to its count.
"""

import re
from dataclasses import dataclass, field

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')
_UNESCAPED = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}

Labels = frozenset[tuple[str, str]]


@dataclass
class ReadFamily:
    """A family as a scraper sees it: ``samples`` by the sample's name and its labels."""

    name: str
    kind: str
    about: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)

    def value(self, suffix: str = "", **labels: str) -> float:
        """The one sample with these labels."""
        return self.samples[self.name + suffix, frozenset(labels.items())]


def read(text: str) -> dict[str, ReadFamily]:
    """The families of a text by name. AssertionError says which line is wrong."""
    assert text.endswith("\n"), "the last line ends"
    families: dict[str, ReadFamily] = {}
    lines = text.split("\n")[:-1]
    about: dict[str, str] = {}
    current: ReadFamily | None = None
    for line in lines:
        if line.startswith("# HELP "):
            name, _, rest = line.removeprefix("# HELP ").partition(" ")
            assert name not in about, line
            about[name] = rest
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name in about, line
            assert kind in ("counter", "gauge", "histogram"), line
            current = families[name] = ReadFamily(name, kind, about[name])
        else:
            found = _SAMPLE.fullmatch(line)
            assert found is not None, line
            assert current is not None, line
            suffixes = ("_bucket", "_sum", "_count") if current.kind == "histogram" else ("",)
            assert found[1].removeprefix(current.name) in suffixes, line
            key = found[1], _labels(found[2] or "", line)
            assert key not in current.samples, line
            current.samples[key] = float(found[3].replace("Inf", "inf"))
    for family in families.values():
        assert family.kind != "counter" or family.name.endswith("_total"), family.name
        _check_buckets(family)
    return families


def _labels(text: str, line: str) -> Labels:
    labels, at = [], 0
    while at < len(text):
        found = _LABEL.match(text, at)
        assert found is not None, line
        labels.append((found[1], re.sub(r'\\["\\n]', lambda escape: _UNESCAPED[escape[0]], found[2])))
        at = found.end()
    assert len({name for name, _ in labels}) == len(labels), line
    return frozenset(labels)


def _check_buckets(family: ReadFamily) -> None:
    series: dict[Labels, list[tuple[float, float]]] = {}
    for (name, labels), value in family.samples.items():
        if name.endswith("_bucket") and family.kind == "histogram":
            bound = float(dict(labels)["le"].replace("Inf", "inf"))
            series.setdefault(frozenset(pair for pair in labels if pair[0] != "le"), []).append((bound, value))
    for labels, buckets in series.items():
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts), f"{family.name}: buckets are cumulative"
        assert max(buckets)[0] == float("inf"), f"{family.name}: the last bucket holds all"
        assert counts[-1] == family.samples[f"{family.name}_count", labels], family.name

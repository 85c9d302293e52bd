"""everwarm.toml: what a worker's folder says about itself.

P: text in, a value or one clear line out; `read_manifest` adds the reading of the file. An unknown key is an error,
because a limit that is misspelt would otherwise be a limit that is silently not there.

The keys are defined in `manifest_keys`, where the JSON schema for editors comes from as well. What a schema cannot say
is in `_not_in_the_schema`: names that must differ between tables, and sizes in bytes.

An error is `FILE:LINE:COLUMN: KEY: what is wrong and what is allowed`, of the first thing wrong in the file's order.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from actors.bindings import (
    LIMITS,
    NOTHING_BOUND,
    Bindings,
    DispatchBinding,
    KvBinding,
    Outbound,
    ServiceBinding,
    Tail,
    text_bytes,
)
from actors.worker import REUSE_DEFAULT, Plan, Reuse
from everwarm.build.manifest_keys import LIMIT_FIELDS, MANIFEST, MANIFEST_FILE, Language
from everwarm.build.shape import Problem, problems
from everwarm.build.toml_places import Places

__all__ = ["MANIFEST_FILE", "Language", "LimitsWanted", "Manifest", "ManifestError", "parse_manifest", "read_manifest"]

# A manifest is read whole; one with a few hundred variables is some ten KB.
_MANIFEST_BYTES_MAX: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class LimitsWanted:
    """What the manifest asks for, within what its plan allows; None leaves it to the plan."""

    cpu_ms: int | None = None
    memory_mib: int | None = None
    startup_cpu_ms: int | None = None
    subrequests: int | None = None

    def of_version(self) -> dict[str, int]:
        """The same under the names and in the units of `actors.worker.Limits`, without what is left to the plan."""
        asked = {key: getattr(self, key) for key in LIMIT_FIELDS}
        return {field: asked[key] * unit for key, (field, unit) in LIMIT_FIELDS.items() if asked[key] is not None}


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked everwarm.toml.

    Paths are relative to the worker's folder, with forward slashes. `entry` lies inside it. `modules` are further Zig
    files that may lie beside it; each can be imported under the name of its file. `namespace` is the dispatch namespace
    that the worker is a user's in, "" for none. `routes` lead to it beside its own name. `reuse` says how long an
    isolate serves: `max_requests` requests, and `idle_s` seconds after its last one. `bindings` has the variables too.
    """

    name: str
    language: Language
    entry: str
    plan: Plan = Plan.FREE
    limits: LimitsWanted = LimitsWanted()
    reuse: Reuse = REUSE_DEFAULT
    modules: tuple[str, ...] = ()
    namespace: str = ""
    routes: tuple[str, ...] = ()
    bindings: Bindings = NOTHING_BOUND

    @property
    def vars(self) -> tuple[tuple[str, str], ...]:
        """The (name, text) pairs of `[vars]`, sorted."""
        return self.bindings.vars


class ManifestError(Exception):
    """A manifest that cannot be used. The text is one line and names the file, the place in it and the key."""


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the worker in `directory`. Raises ManifestError."""
    file = directory / MANIFEST_FILE
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ManifestError(f"{MANIFEST_FILE}: cannot be read ({error.strerror})") from None
    if len(data) > _MANIFEST_BYTES_MAX:
        raise ManifestError(f"{MANIFEST_FILE}: is larger than {_MANIFEST_BYTES_MAX} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ManifestError(f"{MANIFEST_FILE}: is not UTF-8 text") from None
    return parse_manifest(text, file=MANIFEST_FILE)


def parse_manifest(text: str, *, file: str) -> Manifest:
    """The manifest written in `text`; `file` is what errors call it. Raises ManifestError."""
    try:
        table = tomllib.loads(text)
        places = Places(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(_not_toml(file, text, str(error))) from None
    except (RecursionError, ValueError):
        # Brackets in brackets, and numbers of thousands of digits: tomllib does not promise to read those.
        raise ManifestError(f"{file}: is not TOML that can be read: nested too deeply, or a number too long") from None
    found = list(problems(MANIFEST, table)) or list(_not_in_the_schema(table))
    if found:
        raise ManifestError(min((_located(file, problem, places) for problem in found), key=itemgetter(0))[1])
    return _manifest(table)


def _not_toml(file: str, text: str, complaint: str) -> str:
    """What tomllib says, with its place in front, as all other complaints have it."""
    if where := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", complaint, re.DOTALL):
        what, line, column = where[1], int(where[2]), int(where[3])
    else:
        lines = text.split("\n")
        what, line, column = complaint.removesuffix(" (at end of document)"), len(lines), len(lines[-1]) + 1
    return f"{file}:{line}:{column}: is not TOML: {' '.join(what.split())}"


def _located(file: str, problem: Problem, places: Places) -> tuple[tuple[int, int], str]:
    """A problem as it is told, with what to order it by."""
    place = places.key(problem.path) if problem.at_key else places.value(problem.path)
    complaint = problem.complaint
    if len(problem.path) == 2 and problem.path[1] in MANIFEST.keys:
        # The most frequent slip in TOML: everything after a header belongs to its table.
        complaint += "; if it is meant as a key of its own, write it above the first [table]"
    return (place.line, place.column), f"{file}:{place.line}:{place.column}: {_dotted(problem.path)}: {complaint}"


def _dotted(path: tuple[str | int, ...]) -> str:
    """A path as it is written: `bindings.service[1].name`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]{1,128}", part) else ascii(part[:64]))
    return text


def _not_in_the_schema(table: Mapping[str, Any]) -> Iterator[Problem]:
    """What a JSON schema cannot say, of a table that is right by it."""
    seen: dict[str, str] = {}
    for name, path in _names(table):
        if name in seen:
            complaint = f"{name} is the name of {seen[name]} too; what a worker finds by name must differ"
            yield Problem(path, complaint, at_key=path[0] == "vars")
        kind = path[:-2] if path[0] == "bindings" else path[:1]
        seen.setdefault(name, "one of " + ".".join(str(part) for part in kind))
    total = 0
    for name, text in table.get("vars", {}).items():
        size = text_bytes(text)
        total += len(name) + size
        if size > LIMITS.var_bytes_max:
            yield Problem(("vars", name), f"{size} bytes are more than {LIMITS.var_bytes_max}")
    if total > LIMITS.vars_bytes_max:
        complaint = f"{total} bytes of names and values are more than {LIMITS.vars_bytes_max}"
        yield Problem(("vars",), complaint, at_key=True)


def _names(table: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str | int, ...]]]:
    """Everything that the worker finds by name, with where it stands."""
    for kind, entries in table.get("bindings", {}).items():
        for i, entry in enumerate(entries):
            yield entry["name"], ("bindings", kind, i, "name")
    for name in table.get("vars", {}):
        yield name, ("vars", name)
    for i, name in enumerate(table.get("secrets", [])):
        yield name, ("secrets", i)


def _manifest(table: Mapping[str, Any]) -> Manifest:
    """The value of a table in which nothing is wrong."""
    bound = table.get("bindings", {})
    outbound, tail = table.get("outbound"), table.get("tail")
    return Manifest(
        name=table["name"],
        language=Language(table["language"]),
        entry=table["entry"],
        plan=Plan(table.get("plan", Plan.FREE)),
        limits=LimitsWanted(**table.get("limits", {})),
        reuse=Reuse(**table.get("reuse", {})),
        modules=tuple(table.get("modules", ())),
        namespace=table.get("namespace", ""),
        routes=tuple(table.get("routes", ())),
        bindings=Bindings(
            services=tuple(ServiceBinding(**entry) for entry in bound.get("service", ())),
            dispatch=tuple(DispatchBinding(**entry) for entry in bound.get("dispatch", ())),
            kv=tuple(KvBinding(**entry) for entry in bound.get("kv", ())),
            vars=tuple(sorted(table.get("vars", {}).items())),
            secrets=tuple(table.get("secrets", ())),
            outbound=None if outbound is None else Outbound(outbound["worker"], tuple(outbound.get("parameters", ()))),
            tail=None if tail is None else Tail(tuple(tail["workers"])),
        ),
    )

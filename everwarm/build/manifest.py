"""everwarm.toml: what a worker's folder says about itself.

P: text in, a value or one clear line out; `read_manifest` adds the reading of the file. An unknown key is an error,
because a limit that is misspelt would otherwise be a limit that is silently not there.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path, PurePosixPath

from actors.worker import REUSE_DEFAULT, REUSE_IDLE_S_MAX, REUSE_REQUESTS_MAX, Plan, Reuse

MANIFEST_FILE = "everwarm.toml"

# A worker's name is a label of a host name: at most 63 characters, and it starts with a letter.
_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_VAR_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# A manifest is read whole; one with a few hundred variables is some ten KB.
_MANIFEST_BYTES_MAX = 256 * 1024


class Language(StrEnum):
    ZIG = "zig"
    C = "c"
    JAVASCRIPT = "javascript"
    PYTHON = "python"
    COMPONENT = "component"


@dataclass(frozen=True, slots=True)
class LimitsWanted:
    """What the manifest asks for; None leaves it to the plan, whose ceilings are checked at deploy."""

    cpu_ms: int | None = None
    memory_mib: int | None = None
    startup_cpu_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked everwarm.toml.

    Paths are relative to the worker's folder, with forward slashes. `entry` lies inside it. `modules` are further Zig
    files that may lie beside it; each can be imported under the name of its file. `reuse` says how long an isolate
    serves: `max_requests` requests, and `idle_s` seconds after its last one. `vars` are the (name, text) pairs
    of `[vars]`, sorted, which a JavaScript worker finds in `env`.
    """

    name: str
    language: Language
    entry: str
    plan: Plan = Plan.FREE
    limits: LimitsWanted = LimitsWanted()
    reuse: Reuse = REUSE_DEFAULT
    modules: tuple[str, ...] = ()
    vars: tuple[tuple[str, str], ...] = ()


class ManifestError(Exception):
    """A manifest that cannot be used. The text is one line and names the file and the key."""


_ENTRY_SUFFIXES: Mapping[Language, tuple[str, ...]] = {
    Language.ZIG: (".zig",),
    Language.C: (".c",),
    Language.JAVASCRIPT: (".js", ".mjs", ".ts"),
    Language.PYTHON: (".py",),
    Language.COMPONENT: (".wasm",),
}

_WITH_MODULES = frozenset({Language.ZIG, Language.C})
_WITH_VARS = frozenset({Language.JAVASCRIPT, Language.PYTHON})

# The most any plan gives: 300 s of CPU, 4 GiB (what 32-bit memory can address), 1 s to start.
_LIMIT_MAX: Mapping[str, int] = {"cpu_ms": 300_000, "memory_mib": 4096, "startup_cpu_ms": 1000}


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
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{file}: is not TOML: {error}") from None
    reader = _Reader(file, table)
    reader.allow_only([field.name for field in fields(Manifest)])
    name = reader.text("name")
    if not _NAME.fullmatch(name):
        raise reader.error("name", f'must match {_NAME.pattern} and is "{name}"')
    language = Language(reader.choice("language", list(Language)))
    modules = tuple(reader.path("modules", module) for module in reader.texts("modules"))
    if modules and language not in _WITH_MODULES:
        raise reader.error("modules", "is for Zig and C workers only")
    variables = reader.texts_by_name("vars")
    if variables and language not in _WITH_VARS:
        raise reader.error("vars", "reaches JavaScript and Python workers only")
    return Manifest(
        name=name,
        language=language,
        entry=_entry(reader, language),
        plan=Plan(reader.choice("plan", list(Plan), default=Plan.FREE)),
        limits=_limits(reader.table("limits")),
        reuse=_reuse(reader.table("reuse")),
        modules=modules,
        vars=variables,
    )


def _entry(reader: "_Reader", language: Language) -> str:
    entry = reader.path("entry", reader.text("entry"))
    if ".." in PurePosixPath(entry).parts:
        raise reader.error("entry", f'must lie inside the folder and is "{entry}"')
    suffixes = _ENTRY_SUFFIXES[language]
    if not entry.endswith(suffixes):
        raise reader.error("entry", f'must end in {" or ".join(suffixes)} for {language} and is "{entry}"')
    return entry


def _limits(reader: "_Reader") -> LimitsWanted:
    reader.allow_only([field.name for field in fields(LimitsWanted)])
    return LimitsWanted(
        cpu_ms=reader.whole_number("cpu_ms", _LIMIT_MAX["cpu_ms"]),
        memory_mib=reader.whole_number("memory_mib", _LIMIT_MAX["memory_mib"]),
        startup_cpu_ms=reader.whole_number("startup_cpu_ms", _LIMIT_MAX["startup_cpu_ms"]),
    )


def _reuse(reader: "_Reader") -> Reuse:
    reader.allow_only(["max_requests", "idle_s"])
    return Reuse(
        max_requests=reader.whole_number("max_requests", REUSE_REQUESTS_MAX),
        idle_s=reader.whole_number("idle_s", REUSE_IDLE_S_MAX),
    )


class _Reader:
    """One TOML table, read key by key; it knows its name so that every complaint says where."""

    def __init__(self, file: str, table: Mapping[str, object], prefix: str = "") -> None:
        self._file = file
        self._table = table
        self._prefix = prefix

    def error(self, key: str, complaint: str) -> ManifestError:
        return ManifestError(f"{self._file}: {self._prefix}{key} {complaint}")

    def allow_only(self, known: list[str]) -> None:
        for key in self._table:
            if key not in known:
                # With a cutoff of 0 there is always a nearest one: the list is short, and any hint helps.
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                shown = key if key.isprintable() else repr(key)
                raise self.error(shown, f'is not a known key; the nearest is "{nearest}"')

    def text(self, key: str) -> str:
        value = self._table.get(key)
        if value is None:
            raise self.error(key, "is missing")
        if not isinstance(value, str):
            raise self.error(key, "must be a string")
        if not value.isprintable():
            raise self.error(key, "holds a character that cannot be printed")
        return value

    def choice(self, key: str, choices: list[str], default: str | None = None) -> str:
        if default is not None and key not in self._table:
            return default
        value = self.text(key)
        if value not in choices:
            raise self.error(key, f'must be one of {", ".join(choices)} and is "{value}"')
        return value

    def path(self, key: str, value: str) -> str:
        if not value or "\\" in value or PurePosixPath(value).is_absolute():
            raise self.error(key, f'must be a path relative to the folder and is "{value}"')
        return value

    def texts(self, key: str) -> list[str]:
        value = self._table.get(key, [])
        if not isinstance(value, list):
            raise self.error(key, "must be a list of strings")
        found = [item for item in value if isinstance(item, str) and item.isprintable()]
        if len(found) != len(value):
            raise self.error(key, "must be a list of strings")
        return found

    def texts_by_name(self, key: str) -> tuple[tuple[str, str], ...]:
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "must be a table")
        found: list[tuple[str, str]] = []
        for name, text in value.items():
            if not _VAR_NAME.fullmatch(name):
                raise self.error(f"{key}.{name!r}", f"must be named like {_VAR_NAME.pattern}")
            if not isinstance(text, str):
                raise self.error(f"{key}.{name}", "must be a string")
            found.append((name, text))
        return tuple(sorted(found))

    def table(self, key: str) -> "_Reader":
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise self.error(key, "must be a table")
        return _Reader(self._file, value, prefix=f"{self._prefix}{key}.")

    def whole_number(self, key: str, most: int) -> int | None:
        value = self._table.get(key)
        if value is None:
            return None
        # In Python True is an int; in TOML it is not.
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.error(key, f"must be a whole number from 1 to {most}")
        return value

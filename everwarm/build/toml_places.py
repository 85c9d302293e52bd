"""Where in a TOML text each key and each value stands: what errors point at, and tomllib does not tell.

P. This is no second TOML parser: it is asked only about texts that tomllib has read, so that what is wrong with a text
is never found here, and it makes no values. It walks over the text and knows just enough of the grammar (strings,
comments, nesting) to tell where things begin. A place is found by its path from the top, as `tomllib.loads` gives it:
names for keys of tables, numbers for items of lists and for the tables of `[[...]]`.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

Path = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_BASIC: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_LITERAL: Final = re.compile(r"'[^'\n]*'")
# Up to two quotes may stand right before the closing three.
_BASIC_LINES: Final = re.compile(r'"""(?:[^"\\]|\\.|"(?!""))*"{3,5}', re.DOTALL)
_LITERAL_LINES: Final = re.compile(r"'''(?:[^']|'(?!''))*'{3,5}")
_SCALAR: Final = re.compile(r"[^,\]}#\n]+")  # numbers, truth values, dates; a date may have a space in it


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A line and a column, both from 1; the column counts characters."""

    line: int
    column: int


class Places:
    """The places of one text, which `tomllib.loads` accepts."""

    def __init__(self, text: str) -> None:
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._keys: dict[Path, int] = {}
        self._values: dict[Path, int] = {}
        self._last_of_list: dict[Path, int] = {}  # of `[[...]]`: the number of the latest table
        self._line_starts = [0, *(found.end() for found in re.finditer("\n", self._text))]
        self._scan()

    def key(self, path: Path) -> Place:
        """Where the key at the end of `path` was first written; of what is not there, where the table around it is."""
        return self._nearest(self._keys, path)

    def value(self, path: Path) -> Place:
        """Where the value begins: after the `=` of a pair, at the header of a table."""
        return self._place(self._values[path]) if path in self._values else self.key(path)

    def _nearest(self, known: dict[Path, int], path: Path) -> Place:
        while path and path not in known:
            path = path[:-1]
        return self._place(known.get(path, 0))

    def _place(self, offset: int) -> Place:
        line = bisect_right(self._line_starts, offset)
        return Place(line, offset - self._line_starts[line - 1] + 1)

    def _scan(self) -> None:
        table: Path = ()
        while self._next(_BLANK) < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)

    def _next(self, skipped: re.Pattern[str]) -> int:
        """Step over what `skipped` matches, and say where that is."""
        found = skipped.match(self._text, self._at)
        self._at = self._at if found is None else found.end()
        return self._at

    def _header(self) -> Path:
        began, is_list = self._at, self._text.startswith("[[", self._at)
        self._at += 2 if is_list else 1
        names = [name for name, _ in self._dotted()]
        self._at += 2 if is_list else 1
        path: Path = ()
        for i, name in enumerate(names):
            path += (name,)
            self._keys.setdefault(path, began)
            if is_list and i == len(names) - 1:
                self._last_of_list[path] = self._last_of_list.get(path, -1) + 1
            if path in self._last_of_list:
                path += (self._last_of_list[path],)
                self._keys.setdefault(path, began)
        return path

    def _pair(self, table: Path) -> None:
        path = table
        for name, began in self._dotted():
            path += (name,)
            self._keys.setdefault(path, began)
        self._at += 1  # the equals sign
        self._next(_SPACE)
        self._value(path)

    def _dotted(self) -> list[tuple[str, int]]:
        """A key, its parts with where each begins; ends at what follows it."""
        parts: list[tuple[str, int]] = []
        while True:
            began = self._next(_SPACE)
            first = self._text[began]
            end = self._next({'"': _BASIC, "'": _LITERAL}.get(first, _BARE))
            written = self._text[began:end]
            parts.append((tomllib.loads(f"k = {written}")["k"] if first in "\"'" else written, began))
            self._next(_SPACE)
            if self._text[self._at] != ".":
                return parts
            self._at += 1

    def _value(self, path: Path) -> None:
        began = self._at
        self._values[path] = began
        first = self._text[began]
        if first == "[":
            self._at += 1
            item = 0
            while self._text[self._next(_BLANK)] != "]":
                self._value((*path, item))
                item += 1
                self._comma()
            self._at += 1
        elif first == "{":
            self._at += 1
            while self._text[self._next(_BLANK)] != "}":
                self._pair(path)
                self._comma()
            self._at += 1
        elif first == '"':
            self._next(_BASIC_LINES if self._text.startswith('"""', began) else _BASIC)
        elif first == "'":
            self._next(_LITERAL_LINES if self._text.startswith("'''", began) else _LITERAL)
        else:
            self._next(_SCALAR)

    def _comma(self) -> None:
        if self._text[self._next(_BLANK)] == ",":
            self._at += 1

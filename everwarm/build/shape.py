"""What a manifest may hold, as values: from one definition, the reader's complaints and the editors' JSON schema.

P. A *shape* says what a value must be (`Text`, `Whole`, `TextList`, `TextMap`, `Table`, `TableList`); a *rule* says
what holds between two keys (`When`, `Needs`). `problems` checks a value, `schema_of` describes it in JSON Schema
2020-12; whatever one of them refuses, the other does.

Patterns match the whole text, in the dialect that Python's and JavaScript's regular expressions share.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Path = tuple[str | int, ...]

_SHOWN_CHARS_MAX: Final = 64  # of a wrong value, in a complaint that is one line


@dataclass(frozen=True, slots=True)
class Text:
    """A string. `must` completes "must ..." when it does not match."""

    must: str
    pattern: str = ""
    choices: tuple[str, ...] = ()
    chars_max: int | None = None


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number. `by` is who allows no more than `most`: "the paid plan"; none when it is simply the range."""

    most: int
    least: int = 1
    by: str = ""


@dataclass(frozen=True, slots=True)
class TextList:
    """A list of strings that differ. `must`: what is wrong when there are too many."""

    item: Text
    items_max: int
    items_min: int = 0
    must: str = ""


@dataclass(frozen=True, slots=True)
class TextMap:
    """A table with keys of the author's own, and strings. `must`: what is wrong when there are too many."""

    key: Text
    value: Text
    entries_max: int
    must: str = ""


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a table. `about` is for the author, in an editor."""

    shape: Shape
    about: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table with known keys. `elsewhere`: words that authors may know from other manifests, and what they are here.

    `rules` hold between its keys; they are looked at when the shapes of all are right.
    """

    keys: Mapping[str, Key]
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[When | Needs, ...] = ()


@dataclass(frozen=True, slots=True)
class TableList:
    """`[[...]]`: a list of tables of one shape."""

    table: Table
    tables_max: int


@dataclass(frozen=True, slots=True)
class When:
    """When `key` is one of `among` (or absent, and that means one of them), the value at `path` has also this shape."""

    key: str
    among: tuple[str, ...]
    path: tuple[str, ...]
    shape: Shape
    or_absent: bool = False


@dataclass(frozen=True, slots=True)
class Needs:
    """Where there is `key`, there is something at `path`; `otherwise` is the complaint."""

    key: str
    path: tuple[str, str]
    otherwise: str


Shape = Text | Whole | TextList | TextMap | Table | TableList


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at `path`; `at_key` when it is the key and not its value."""

    path: Path
    complaint: str
    at_key: bool = False


def problems(shape: Shape, value: object, path: Path = ()) -> Iterator[Problem]:
    """Everything about `value` that is not as `shape` says."""
    match shape:
        case Text():
            yield from _text_problems(shape, value, path)
        case Whole():
            yield from _whole_problems(shape, value, path)
        case TextList():
            yield from _list_problems(shape, value, path)
        case TextMap():
            yield from _map_problems(shape, value, path)
        case Table():
            yield from _table_problems(shape, value, path)
        case TableList():
            if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                yield Problem(path, f"must be tables: [[{'.'.join(str(part) for part in path)}]]")
            elif len(value) > shape.tables_max:
                yield Problem(path, f"{len(value)} are more than {shape.tables_max}", at_key=True)
            else:
                for i, item in enumerate(value):
                    yield from problems(shape.table, item, (*path, i))


def _text_problems(shape: Text, value: object, path: Path) -> Iterator[Problem]:
    if not isinstance(value, str):
        yield Problem(path, f"must be a string, and is {shown(value)}")
    elif shape.choices and value not in shape.choices:
        yield Problem(path, f"must be one of {', '.join(shape.choices)}, and is {shown(value)}{_nearest(value, shape)}")
    elif shape.pattern and re.fullmatch(shape.pattern, value) is None:
        yield Problem(path, f"must {shape.must}, and is {shown(value)}")
    elif shape.chars_max is not None and len(value) > shape.chars_max:
        yield Problem(path, f"{len(value)} characters are more than {shape.chars_max}")


def _nearest(value: str, shape: Text) -> str:
    found = difflib.get_close_matches(value, shape.choices, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _whole_problems(shape: Whole, value: object, path: Path) -> Iterator[Problem]:
    # In Python True is an int; in TOML it is not.
    if not isinstance(value, int) or isinstance(value, bool):
        yield Problem(path, f"must be a whole number from {shape.least} to {shape.most}, and is {shown(value)}")
    elif value > shape.most and shape.by:
        yield Problem(path, f"{shown(value)} is more than {shape.by} allows, {shape.most}")
    elif not shape.least <= value <= shape.most:
        yield Problem(path, f"must be a whole number from {shape.least} to {shape.most}, and is {shown(value)}")


def _list_problems(shape: TextList, value: object, path: Path) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(path, f"must be a list of strings, and is {shown(value)}")
        return
    if len(value) > shape.items_max:
        yield Problem(path, shape.must or f"{len(value)} are more than {shape.items_max}", at_key=True)
        return
    if len(value) < shape.items_min:
        yield Problem(path, f"must have at least {shape.items_min}", at_key=True)
    for i, item in enumerate(value):
        yield from problems(shape.item, item, (*path, i))
        if isinstance(item, str) and item in value[:i]:
            yield Problem((*path, i), f"{shown(item)} stands there twice")


def _map_problems(shape: TextMap, value: object, path: Path) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a table, and is {shown(value)}")
        return
    if len(value) > shape.entries_max:
        yield Problem(path, shape.must or f"{len(value)} are more than {shape.entries_max}", at_key=True)
        return
    for name, item in value.items():
        for problem in problems(shape.key, name, (*path, name)):
            yield Problem(problem.path, f"the name {problem.complaint}", at_key=True)
        yield from problems(shape.value, item, (*path, name))


def _table_problems(shape: Table, value: object, path: Path) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"must be a table, and is {shown(value)}")
        return
    wrong = False
    for name, item in value.items():
        known = shape.keys.get(name)
        found = problems(known.shape, item, (*path, name)) if known else (_unknown(shape, name, path),)
        for problem in found:
            wrong = True
            yield problem
    if wrong:
        return  # what seems to be missing may be what is misspelt
    for name, known in shape.keys.items():
        if known.required and name not in value:
            wrong = True
            yield Problem((*path, name), f"is missing: {known.about}", at_key=True)
    if not wrong:
        for rule in shape.rules:
            yield from _when_problems(rule, value) if isinstance(rule, When) else _needs_problems(rule, value)


def _unknown(shape: Table, name: str, path: Path) -> Problem:
    if name in shape.elsewhere:
        return Problem((*path, name), f"no such key; here it is {shape.elsewhere[name]}", at_key=True)
    near = difflib.get_close_matches(name, shape.keys, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(shape.keys)}"
    return Problem((*path, name), f"no such key; {hint}", at_key=True)


def _when_problems(rule: When, table: Mapping[str, Any]) -> Iterator[Problem]:
    given = table.get(rule.key)
    if not (rule.or_absent if given is None else given in rule.among):
        return
    value = _at(table, rule.path)
    if value is not None:
        yield from problems(rule.shape, value, rule.path)


def _needs_problems(rule: Needs, table: Mapping[str, Any]) -> Iterator[Problem]:
    if rule.key in table and not _at(table, rule.path):
        yield Problem((rule.key,), rule.otherwise, at_key=True)


def _at(table: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = table
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def shown(value: object) -> str:
    """A value of a manifest for a complaint: as it might be written, on one line, and not all of a long one."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        cut = value[:_SHOWN_CHARS_MAX]
        text = f'"{cut}"' if cut.isprintable() else ascii(cut)
        return text if cut == value else f"{text} and more"
    if isinstance(value, int | float):
        # Python refuses to write numbers of thousands of digits.
        return str(value) if abs(value) < 1 << 64 else "a number of more than 64 bits"
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else "a date or a time"


def schema_of(shape: Shape) -> dict[str, Any]:
    """`shape` in JSON Schema 2020-12."""
    match shape:
        case Text():
            return _without_none(
                {
                    "type": "string",
                    "enum": list(shape.choices) or None,
                    "pattern": _whole_match(shape.pattern) if shape.pattern else None,
                    "maxLength": shape.chars_max,
                }
            )
        case Whole():
            return {"type": "integer", "minimum": shape.least, "maximum": shape.most}
        case TextList():
            return _without_none(
                {
                    "type": "array",
                    "items": schema_of(shape.item),
                    "maxItems": shape.items_max,
                    "minItems": shape.items_min or None,
                    "uniqueItems": True,
                }
            )
        case TextMap():
            return {
                "type": "object",
                "propertyNames": schema_of(shape.key),
                "additionalProperties": schema_of(shape.value),
                "maxProperties": shape.entries_max,
            }
        case Table():
            return _without_none(
                {
                    "type": "object",
                    "properties": {
                        name: {"description": key.about, **schema_of(key.shape)} for name, key in shape.keys.items()
                    },
                    "required": [name for name, key in shape.keys.items() if key.required] or None,
                    "additionalProperties": False,
                    "allOf": [_rule_schema(rule) for rule in shape.rules] or None,
                }
            )
        case TableList():
            return {"type": "array", "items": schema_of(shape.table), "maxItems": shape.tables_max}


def _rule_schema(rule: When | Needs) -> dict[str, Any]:
    if isinstance(rule, Needs):
        table, name = rule.path
        needed = {"required": [name], "properties": {name: {"minItems": 1}}}
        return {"if": {"required": [rule.key]}, "then": {"required": [table], "properties": {table: needed}}}
    given: dict[str, Any] = {"properties": {rule.key: {"enum": list(rule.among)}}}
    if not rule.or_absent:
        given["required"] = [rule.key]
    then = schema_of(rule.shape)
    for name in reversed(rule.path):
        then = {"properties": {name: then}}
    return {"if": given, "then": then}


def _whole_match(pattern: str) -> str:
    # Python's `$` is also before a line break at the end, JavaScript's is not; the last part makes them the same.
    return f"^(?:{pattern})$(?!\\n)"


def _without_none(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if value is not None}

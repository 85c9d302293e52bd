"""Where keys and values stand, on texts of every kind that tomllib reads."""

import json
import re
import tomllib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwarm.build.toml_places import Path, Place, Places

LINES = '"""'
TEXT = """\
# a comment with = and [brackets]
name = "x" # and "another"
"quoted key" = 1
'its.inside' = 2
a.b . c = [ 1, # one
  'two, ]', [3, 4],
]
point = { x = 1, "y.z" = { deep = [true] } }
lines = QQQ
[not.a.table]
k = \\\\" "" QQQ""
raw = '''
# not = a comment
it's ''''
when = 1979-05-27 07:32:00

[table.sub]
  indented = -1.5e3

[[list]]
a = 1
[[list]]
  b = 2
[list.inner]
c = 3
[[list.inner.more]]
d = 4
""".replace("QQQ", LINES)


def paths(value: object, path: Path = ()) -> Iterator[tuple[Path, object]]:
    """Every path in what tomllib made."""
    if path:
        yield path, value
    if isinstance(value, dict):
        for name, item in value.items():
            yield from paths(item, (*path, name))
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from paths(item, (*path, i))


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("name",), (2, 1), (2, 8)),
        (("quoted key",), (3, 1), (3, 16)),
        (("its.inside",), (4, 1), (4, 16)),
        (("a",), (5, 1), (5, 1)),
        (("a", "b", "c"), (5, 7), (5, 11)),
        (("a", "b", "c", 0), (5, 7), (5, 13)),
        (("a", "b", "c", 1), (5, 7), (6, 3)),
        (("a", "b", "c", 2, 1), (5, 7), (6, 17)),
        (("point", "x"), (8, 11), (8, 15)),
        (("point", "y.z", "deep", 0), (8, 28), (8, 36)),
        (("when",), (15, 1), (15, 8)),
        (("table",), (17, 1), (17, 1)),
        (("table", "sub", "indented"), (18, 3), (18, 14)),
        (("list", 0, "a"), (21, 1), (21, 5)),
        (("list", 1), (22, 1), (22, 1)),
        (("list", 1, "b"), (23, 3), (23, 7)),
        (("list", 1, "inner", "c"), (25, 1), (25, 5)),
        (("list", 1, "inner", "more", 0, "d"), (27, 1), (27, 5)),
        (("list", 1, "absent"), (22, 1), (22, 1)),
        (("absent",), (1, 1), (1, 1)),
    ],
)
def test_places(path: Path, key: tuple[int, int], value: tuple[int, int]) -> None:
    places = Places(TEXT)
    assert (places.key(path), places.value(path)) == (Place(*key), Place(*value))


def test_every_path_of_tomllib_has_its_place() -> None:
    check(TEXT)
    check(TEXT.replace("\n", "\r\n"))


def check(text: str) -> None:
    """At each key's place stands that key, and at each value's place its value."""
    places, lines = Places(text), text.replace("\r\n", "\n").split("\n")

    def rest(place: Place) -> str:
        return "\n".join([lines[place.line - 1][place.column - 1 :], *lines[place.line :]])

    for path, value in paths(tomllib.loads(text)):
        name = path[-1]
        at_key, at_value = rest(places.key(path)), rest(places.value(path))
        if isinstance(name, str):
            assert at_key.startswith((name, json.dumps(name), "[", f"'{name}'", '"')), path
        if isinstance(value, bool):
            assert at_value.startswith("true" if value else "false"), path
        elif isinstance(value, int):
            assert re.match(rf"{value}\b", at_value), path
        elif isinstance(value, str):
            assert at_value[0] in "\"'", path


NAMES = st.text(alphabet="ab-_1", min_size=1, max_size=4) | st.text(alphabet='a.="[]# é', max_size=4)
VALUES = st.recursive(
    st.integers(-99, 99) | st.booleans() | st.text(alphabet="x\"\\'[]{},=#\n ", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


def written(value: object, lines: bool) -> str:
    """A value in TOML; in a list, line breaks and comments may stand between its items."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {written(v, False)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        between = ", # ], \" '\n\t" if lines else ","
        return "[" + between.join(written(item, lines) for item in value) + ("\n]" if lines else "]")
    if isinstance(value, str) and lines and "'''" not in value and not value.endswith("'"):
        return f"'''\n{value}'''"
    return json.dumps(value)


@given(
    st.dictionaries(NAMES, VALUES, max_size=4), NAMES, st.lists(st.dictionaries(NAMES, VALUES, max_size=2), max_size=3)
)
def test_any_text_that_tomllib_reads(top: dict[str, object], name: str, tables: list[dict[str, object]]) -> None:
    name = f"list {name}"
    text = "".join(f"{json.dumps(k)} = {written(v, lines=True)}\n" for k, v in top.items())
    for table in tables:
        text += f"[[ {json.dumps(name)} ]] # here\n"
        text += "".join(f"  {json.dumps(k)}={written(v, lines=False)}\n\n" for k, v in table.items())
    assert tomllib.loads(text) == (top | ({name: tables} if tables else {}))
    check(text)
    places = Places(text)
    starts = [number for number, line in enumerate(text.split("\n"), 1) if line.startswith(f"[[ {json.dumps(name)} ]]")]
    assert [places.key((name, i)).line for i in range(len(tables))] == starts[-len(tables) :][: len(tables)]

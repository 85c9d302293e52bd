"""everwarm.toml: what is read, what is refused and how that is said, and that the editors' schema says the same."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.bindings import LIMITS, Bindings, DispatchBinding, KvBinding, Outbound, ServiceBinding, Tail
from actors.worker import Limits, Plan, Reuse
from everwarm.build import ManifestError
from everwarm.build.manifest import Language, LimitsWanted, Manifest, parse_manifest, read_manifest
from everwarm.build.manifest_keys import MANIFEST, manifest_schema
from everwarm.build.shape import Shape, Table, TableList

WORKERS = Path(__file__).parents[2] / "workers"
FILES = sorted(WORKERS.rglob("everwarm.toml"))
SCHEMA = manifest_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

MINIMAL = 'name = "hello"\nlanguage = "zig"\nentry = "worker.zig"\n'
EVERYTHING = """\
name = "shop"
language = "javascript"
entry = "src/worker.js"
plan = "paid"
namespace = "customers"
routes = ["shop.example.com", "*.shop.example.com"]
secrets = ["STRIPE_KEY"]

[limits]
cpu_ms = 300000
memory_mib = 4096
startup_cpu_ms = 1
subrequests = 10000

[reuse]
max_requests = 1
idle_s = 60

[vars]
B = "2"
A = "one\\ntwo"

[[bindings.service]]
name = "auth"
worker = "auth-worker"

[[bindings.service]]
name = "cart"
worker = "cart-v2"

[[bindings.dispatch]]
name = "plugins"
namespace = "production"

[[bindings.kv]]
name = "sessions"
store = "shop-sessions"

[outbound]
worker = "guard"
parameters = ["customer", "plan_level"]

[tail]
workers = ["logs"]
"""


def test_the_least_that_is_needed() -> None:
    assert parse_manifest(MINIMAL, file="f") == Manifest("hello", Language.ZIG, "worker.zig")


def test_everything() -> None:
    assert parse_manifest(EVERYTHING, file="f") == Manifest(
        name="shop",
        language=Language.JAVASCRIPT,
        entry="src/worker.js",
        plan=Plan.PAID,
        limits=LimitsWanted(cpu_ms=300_000, memory_mib=4096, startup_cpu_ms=1, subrequests=10_000),
        reuse=Reuse(max_requests=1, idle_s=60),
        namespace="customers",
        routes=("shop.example.com", "*.shop.example.com"),
        bindings=Bindings(
            services=(ServiceBinding("auth", "auth-worker"), ServiceBinding("cart", "cart-v2")),
            dispatch=(DispatchBinding("plugins", "production"),),
            kv=(KvBinding("sessions", "shop-sessions"),),
            vars=(("A", "one\ntwo"), ("B", "2")),
            secrets=("STRIPE_KEY",),
            outbound=Outbound("guard", ("customer", "plan_level")),
            tail=Tail(("logs",)),
        ),
    )


def test_limits_are_asked_for_in_the_versions_units() -> None:
    asked = parse_manifest(EVERYTHING, file="f").limits.of_version()
    assert asked == {
        "cpu_ms": 300_000, "memory_soft_bytes": 4 << 30, "startup_cpu_ms": 1, "subrequests_max": 10_000
    }  # fmt: skip
    assert Limits.from_manifest(Plan.PAID, asked).memory_hard_bytes == 4 << 30
    assert parse_manifest(MINIMAL, file="f").limits.of_version() == {}


@pytest.mark.parametrize("plan", list(Plan))
def test_what_the_reader_allows_the_plan_allows(plan: Plan) -> None:
    ceiling = Limits.ceiling_for_plan(plan)
    most = {
        "cpu_ms": ceiling.cpu_ms,
        "memory_mib": ceiling.memory_soft_bytes >> 20,
        "subrequests": ceiling.subrequests_max,
    }
    for key, number in most.items():
        text = f'{MINIMAL}plan = "{plan.value}"\n[limits]\n{key} = '
        Limits.from_manifest(plan, parse_manifest(f"{text}{number}", file="f").limits.of_version())
        with pytest.raises(ManifestError, match=rf"^f:6:\d+: limits.{key}: {number + 1} is more than the"):
            parse_manifest(f"{text}{number + 1}", file="f")


JS = 'name = "j"\nlanguage = "javascript"\nentry = "a.js"\n'
SERVICE = '[[bindings.service]]\nname = "auth"\nworker = "auth-worker"\n'
DISPATCH = '[[bindings.dispatch]]\nname = "d"\nnamespace = "n"\n'
NAME_RULE = "must be lower-case letters, digits and dashes, a letter first, at most 63"

#: A manifest that is refused, and how: by the reader and by the schema.
BAD = [
    ("", "1:1: name: is missing: the worker's name, a part of its host name"),
    ('name = "x"', "1:1: language: is missing: what it is written in, or component"),
    ("name = 3", "1:8: name: must be a string, and is 3"),
    (MINIMAL.replace("hello", "Hello"), f'1:8: name: {NAME_RULE}, and is "Hello"'),
    (MINIMAL.replace("hello", "a" * 64), f'1:8: name: {NAME_RULE}, and is "{"a" * 64}"'),
    (MINIMAL.replace("hello", "1a"), f'1:8: name: {NAME_RULE}, and is "1a"'),
    (MINIMAL.replace("hello", "a/b"), f'1:8: name: {NAME_RULE}, and is "a/b"'),
    (MINIMAL.replace("hello", "hello\\n"), f"1:8: name: {NAME_RULE}, and is 'hello\\n'"),
    (MINIMAL.replace("hello", "a\\u001bb"), f"1:8: name: {NAME_RULE}, and is 'a\\x1bb'"),
    (
        MINIMAL.replace('"zig"', '"zigg"'),
        '2:12: language: must be one of zig, c, javascript, python, component, and is "zigg"; did you mean zig?',
    ),
    (MINIMAL.replace('"zig"', "1979-05-27"), "2:12: language: must be a string, and is a date or a time"),
    (MINIMAL.replace("worker.zig", "../w.zig"), "3:9: entry: must be a path inside the folder, with forward slashes"),
    (MINIMAL.replace("worker.zig", "a/../w.zig"), "3:9: entry: must be a path inside the folder"),
    (MINIMAL.replace("worker.zig", "/worker.zig"), "3:9: entry: must be a path inside the folder"),
    (MINIMAL.replace("worker.zig", "a\\\\b.zig"), "3:9: entry: must be a path inside the folder"),
    (MINIMAL.replace("worker.zig", "worker.js"), '3:9: entry: must end in .zig for zig, and is "worker.js"'),
    (JS.replace("a.js", "a.css"), '3:9: entry: must end in .js or .mjs or .ts for javascript, and is "a.css"'),
    (MINIMAL + 'plan = "gold"', '4:8: plan: must be one of free, paid, and is "gold"'),
    (MINIMAL + 'entri = "x"', "4:1: entri: no such key; did you mean entry?"),
    (MINIMAL + 'main = "x"', "4:1: main: no such key; here it is entry"),
    (MINIMAL + "[[services]]", "4:1: services: no such key; here it is [[bindings.service]]"),
    (MINIMAL + '"a\\tb" = 1', "4:1: 'a\\tb': no such key; there are name, language,"),
    (MINIMAL + "limits = 3", "4:10: limits: must be a table, and is 3"),
    (MINIMAL + "[limits]\n  cpums = 3", "5:3: limits.cpums: no such key; did you mean cpu_ms?"),
    (MINIMAL + "[limits]\ncpu_ms = true", "5:10: limits.cpu_ms: must be a whole number from 1 to 300000, and is true"),
    (MINIMAL + "[limits]\ncpu_ms = 0", "5:10: limits.cpu_ms: must be a whole number from 1 to 300000, and is 0"),
    (MINIMAL + "[limits]\ncpu_ms = 1.5", "5:10: limits.cpu_ms: must be a whole number from 1 to 300000, and is 1.5"),
    (MINIMAL + "[limits]\ncpu_ms = 11", "5:10: limits.cpu_ms: 11 is more than the free plan allows, 10"),
    (MINIMAL + 'plan = "free"\nlimits = { cpu_ms = 11 }', "5:21: limits.cpu_ms: 11 is more than the free plan allows"),
    (
        MINIMAL + 'plan = "paid"\n[limits]\ncpu_ms = 400000',
        "6:10: limits.cpu_ms: 400000 is more than the paid plan allows, 300000",
    ),
    (MINIMAL + "[limits]\nmemory_mib = 4097", "5:14: limits.memory_mib: 4097 is more than the paid plan allows, 4096"),
    (MINIMAL + "[limits]\nmemory_mib = 129", "5:14: limits.memory_mib: 129 is more than the free plan allows, 128"),
    (MINIMAL + f"[limits]\ncpu_ms = 1{'0' * 40}", "5:10: limits.cpu_ms: a number of more than 64 bits is more than"),
    (MINIMAL + "reuse = {max_requests = 0}", "4:25: reuse.max_requests: must be a whole number from 1 to 1000000"),
    (MINIMAL + "reuse = {idle_s = 90000}", "4:19: reuse.idle_s: must be a whole number from 1 to 86400"),
    (MINIMAL + "reuse = {single_shot = true}", "4:10: reuse.single_shot: no such key; there are max_requests, idle_s"),
    (MINIMAL + "reuse = 1", "4:9: reuse: must be a table, and is 1"),
    (MINIMAL + 'modules = "x.zig"', '4:11: modules: must be a list of strings, and is "x.zig"'),
    (MINIMAL + 'modules = ["x.zig", "/x.zig"]', "4:21: modules[1]: must be a path relative to the folder"),
    (MINIMAL + 'modules = ["x.zig", "x.zig"]', '4:21: modules[1]: "x.zig" stands there twice'),
    (JS + 'modules = ["b.zig"]', "4:1: modules: are for Zig and C workers only"),
    (JS + "vars = {A = 1}", "4:13: vars.A: must be a string, and is 1"),
    (JS + 'vars = {A-B = ""}', "4:9: vars.A-B: the name must be letters, digits and underscores, no digit first"),
    (JS + 'vars = {A = "\\u0000"}', "4:13: vars.A: must have no NUL, and is '\\x00'"),
    (JS + f'vars = {{A = "{"x" * 5121}"}}', "4:13: vars.A: 5121 characters are more than 5120"),
    (
        JS + '[vars]\nA = ""\nsecrets = ["B"]',
        "6:11: vars.secrets: must be a string, and is a list; if it is meant as a key of its own, write it above",
    ),
    (MINIMAL + 'namespace = "a.b"', f'4:13: namespace: {NAME_RULE}, and is "a.b"'),
    (MINIMAL + 'secrets = ["A", "b c"]', '4:17: secrets[1]: must be letters, digits and underscores, no digit first'),
    (MINIMAL + 'secrets = { A = "x" }', "4:11: secrets: must be a list of strings, and is a table"),
    (MINIMAL + 'routes = ["Shop.example.com"]', "4:11: routes[0]: must be a host name or *. and one, in lower case"),
    (MINIMAL + 'routes = ["x.localhost"]', "4:11: routes[0]: must be a host name"),
    (MINIMAL + 'routes = ["a.binding.internal"]', "4:11: routes[0]: must be a host name"),
    (MINIMAL + 'routes = ["*"]', "4:11: routes[0]: must be a host name"),
    (MINIMAL + 'routes = ["a.example\\n"]', "4:11: routes[0]: must be a host name"),
    (MINIMAL + "bindings = 1", "4:12: bindings: must be a table, and is 1"),
    (MINIMAL + "[[bindings]]", "4:1: bindings: must be a table, and is a list"),
    (MINIMAL + '[bindings.service]\nname = "a"', "4:1: bindings.service: must be tables: [[bindings.service]]"),
    (MINIMAL + '[[bindings.services]]\nname = "a"', "4:1: bindings.services: no such key; here it is service"),
    (MINIMAL + '[[bindings.queue]]\nname = "a"', "4:1: bindings.queue: no such key; there are service, dispatch, kv"),
    (MINIMAL + SERVICE + '[[bindings.service]]\nname = "b"', "7:1: bindings.service[1].worker: is missing: the worker"),
    (
        MINIMAL + '[[bindings.service]]\nbinding = "AUTH"\nworker = "a"',
        "5:1: bindings.service[0].binding: no such key; here it is name",
    ),
    (MINIMAL + SERVICE + 'service = "x"', "7:1: bindings.service[0].service: no such key; here it is worker"),
    (MINIMAL + SERVICE.replace("auth-worker", "n/u"), f'6:10: bindings.service[0].worker: {NAME_RULE}, and is "n/u"'),
    (MINIMAL + SERVICE.replace('"auth"', '"AUTH"'), f'5:8: bindings.service[0].name: {NAME_RULE}, and is "AUTH"'),
    (MINIMAL + DISPATCH.replace('"n"', "1"), "6:13: bindings.dispatch[0].namespace: must be a string, and is 1"),
    (MINIMAL + '[outbound]\nworker = "g"', "4:1: outbound: is for what a [[bindings.dispatch]] calls, and there"),
    (MINIMAL + SERVICE + '[outbound]\nworker = "g"', "7:1: outbound: is for what a [[bindings.dispatch]] calls"),
    (MINIMAL + "bindings.dispatch = []\n" + '[outbound]\nworker = "g"', "5:1: outbound: is for what a [[bindings.dis"),
    (MINIMAL + DISPATCH + "[outbound]\nparameters = []", "7:1: outbound.worker: is missing"),
    (
        MINIMAL + DISPATCH + '[outbound]\nworker = "g"\nparameters = ["A"]',
        "9:15: outbound.parameters[0]: must be lower-case letters, digits, dashes and underscores, a letter first",
    ),
    (MINIMAL + "[tail]", "4:1: tail.workers: is missing: workers that hear of every request after it ended"),
    (MINIMAL + "[tail]\nworkers = []", "5:1: tail.workers: must have at least 1"),
    (MINIMAL + '[tail]\nworkers = ["a", "b", "c", "d", "e"]', "5:1: tail.workers: 5 are more than 4"),
    (MINIMAL + '[tail]\nworker = "a"', "5:1: tail.worker: no such key; here it is workers"),
    (MINIMAL + 'tail_consumers = [{service = "a"}]', "4:1: tail_consumers: no such key; here it is workers in [tail]"),
]  # fmt: skip

#: What only the reader refuses: JSON Schema has no words for it.
BAD_FOR_THE_READER = [
    (MINIMAL + SERVICE + SERVICE, "8:8: bindings.service[1].name: auth is the name of one of bindings.service too"),
    (
        MINIMAL + SERVICE + DISPATCH.replace('"d"', '"auth"'),
        "8:8: bindings.dispatch[0].name: auth is the name of one of bindings.service too; what a worker finds by name",
    ),
    (JS + 'secrets = ["A"]\n[vars]\nA = ""', "4:12: secrets[0]: A is the name of one of vars too"),
    (JS + SERVICE + '[vars]\nauth = ""', "8:1: vars.auth: auth is the name of one of bindings.service too"),
    (JS + f'[vars]\nA = "{"é" * 2561}"', "5:5: vars.A: 5122 bytes are more than 5120"),
    (
        JS + "[vars]\n" + "".join(f'A{i} = "{"x" * 5100}"\n' for i in range(13)),
        "4:1: vars: 66329 bytes of names and values are more than 65536",
    ),
    # In JSON 1.0 is an integer; in TOML it is none.
    (MINIMAL + "[limits]\ncpu_ms = 1.0", "5:10: limits.cpu_ms: must be a whole number from 1 to 300000, and is 1.0"),
]


@pytest.mark.parametrize(("text", "message"), [*BAD, *BAD_FOR_THE_READER])
def test_an_error_is_one_line_that_names_the_place_and_the_key(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, file="everwarm.toml")
    assert str(caught.value).startswith(f"everwarm.toml:{message}")
    assert "\n" not in str(caught.value)


def complaint(text: str) -> str:
    """What the reader says, or nothing."""
    try:
        parse_manifest(text, file="f")
    except ManifestError as wrong:
        return str(wrong)
    return ""


def as_json(text: str) -> Any:
    """What an editor's TOML plugin checks: the file's values in JSON, dates as strings."""
    return json.loads(json.dumps(tomllib.loads(text), default=str))


@pytest.mark.parametrize("text", [text for text, _ in BAD])
def test_the_schema_refuses_what_the_reader_refuses(text: str) -> None:
    assert not VALIDATOR.is_valid(as_json(text))


@pytest.mark.parametrize("text", [text for text, _ in BAD_FOR_THE_READER])
def test_what_only_the_reader_knows(text: str) -> None:
    assert VALIDATOR.is_valid(as_json(text))


@pytest.mark.parametrize("text", [MINIMAL, EVERYTHING, JS + SERVICE + DISPATCH + '[outbound]\nworker = "g"\n'])
def test_the_schema_accepts_what_the_reader_accepts(text: str) -> None:
    parse_manifest(text, file="f")
    VALIDATOR.validate(as_json(text))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_the_example_workers_have_good_ones(file: Path) -> None:
    manifest = read_manifest(file.parent)
    name = file.parent.name.replace("_", "-")
    assert manifest.name in (name, f"{name}-{file.parent.parent.name}")
    assert (file.parent / manifest.entry).is_file()
    Limits.from_manifest(manifest.plan, manifest.limits.of_version())
    VALIDATOR.validate(as_json(file.read_text()))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_every_key_tells_what_it_is() -> None:
    def keys(shape: Shape) -> list[str]:
        table = shape.table if isinstance(shape, TableList) else shape
        if not isinstance(table, Table):
            return []
        return [key.about for key in table.keys.values()] + [a for k in table.keys.values() for a in keys(k.shape)]

    abouts = keys(MANIFEST)
    assert len(abouts) > 25
    assert all(abouts)


#: Pieces to make manifests of: lines that are right, and some that are wrong by themselves or together.
LINES = [
    *('plan = "paid"', 'plan = "free"', 'plan = "x"', 'modules = ["a.zig"]', "modules = []", 'namespace = "n"'),
    *('routes = ["a.b"]', 'routes = ["a"]', 'secrets = ["A"]', "secrets = [1]", "limits.cpu_ms = 10"),
    *("limits.cpu_ms = 11", "limits.memory_mib = 4096", "limits.subrequests = 51", "limits.x = 1", "reuse.idle_s = 1"),
    *('vars.V = "x"', "vars.V = 1", 'outbound.worker = "g"', 'outbound = { worker = "g", parameters = ["p"] }'),
    *('bindings.dispatch = [{ name = "d", namespace = "n" }]', 'bindings.service = [{ name = "s", worker = "w" }]'),
    *("bindings.dispatch = []", 'bindings.kv = [{ name = "k" }]', 'tail.workers = ["t"]', "tail = {}"),
]
HEADS = [MINIMAL, JS, MINIMAL.replace('entry = "worker.zig"\n', ""), MINIMAL.replace("zig", "c"), 'name = "x"\n']


@given(st.sampled_from(HEADS), st.lists(st.sampled_from(LINES), max_size=6, unique_by=lambda line: line.split(" =")[0]))
def test_reader_and_schema_agree(head: str, lines: list[str]) -> None:
    text = head + "\n".join(lines)
    try:
        table = as_json(text)
    except tomllib.TOMLDecodeError:
        return
    said = complaint(text)
    assert VALIDATOR.is_valid(table) == (not said), said
    if not said:
        manifest = parse_manifest(text, file="f")
        Limits.from_manifest(manifest.plan, manifest.limits.of_version())


NAMES = st.sampled_from("name limits vars bindings service tail workers worker parameters x".split())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return "1.0e-3" if value is None else json.dumps(value)


@given(st.sampled_from(sorted(MANIFEST.keys.keys() - {"name", "language", "entry"})), VALUES)
def test_whatever_stands_there_is_a_manifest_or_a_line_that_names_it(key: str, value: object) -> None:
    text = f"{JS}{key} = {toml(value)}".replace("\\u007f", "").replace("\x7f", "")  # TOML has no such character
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # half of a character that JSON writes in two
    said = complaint(text)
    assert said == "" or said.startswith("f:4:")
    assert said == "" or f": {key}" in said
    assert said == "" or said.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "f:1:8: is not TOML: Invalid value"),
        ('a = 1\nname = "x"\na = 2', "f:3:6: is not TOML: Cannot overwrite a value"),
        ('name = "x', "f:1:10: is not TOML: Unterminated string"),
        ("a = " + "[" * 100_000, "f: is not TOML that can be read"),
        ("a = " + "9" * 10_000, "f: is not TOML that can be read"),
    ],
)
def test_what_is_not_toml(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, file="f")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_first_of_several_errors_is_told() -> None:
    text = 'name = "hello"\nlanguage = "zig"\nplan = "gold"\nentri = "worker.zig"\n[limits]\ncpu = 1\n'
    with pytest.raises(ManifestError, match=r"^f:3:8: plan: must be one of"):
        parse_manifest(text, file="f")
    with pytest.raises(ManifestError, match=r"^f:4:1: entri: no such key; did you mean entry\?$"):
        parse_manifest(text.replace("gold", "paid"), file="f")
    with pytest.raises(ManifestError, match=r"^f:6:1: limits.cpu: no such key; here it is cpu_ms$"):
        parse_manifest(text.replace("gold", "paid").replace("entri", "entry"), file="f")


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^everwarm\.toml: cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "everwarm.toml").write_bytes(b"\xff")
    with pytest.raises(ManifestError, match=r"^everwarm\.toml: is not UTF-8 text"):
        read_manifest(tmp_path)
    (tmp_path / "everwarm.toml").write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(ManifestError, match=r"^everwarm\.toml: is larger than 262144 bytes"):
        read_manifest(tmp_path)


def test_the_numbers_are_the_bindings() -> None:
    properties = SCHEMA["properties"]
    assert properties["vars"]["maxProperties"] == LIMITS.vars_max
    assert properties["bindings"]["properties"]["service"]["maxItems"] == LIMITS.services_max
    assert properties["limits"]["properties"]["cpu_ms"]["maximum"] == Limits.ceiling_for_plan(Plan.PAID).cpu_ms


@pytest.mark.parametrize("page", ["docs/manifest.md", "README.md"])
def test_the_manifests_that_are_shown_are_good_ones(page: str) -> None:
    shown = re.findall(r"```toml\n(name = .*?)```", (WORKERS.parent / page).read_text(), re.DOTALL)
    assert shown
    for text in shown:
        VALIDATOR.validate(as_json(text))
        parse_manifest(text, file=page)

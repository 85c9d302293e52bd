"""Guests for the tests of the sandbox: the example workers, compiled once a session, and small ones written as text."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from isolates import abi
from isolates.artifact import ArtifactStore, Compiled, Mapped, digest_of
from isolates.compiler import compile_and_start
from isolates.engine import Sandbox, sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.limits import IsolateLimits
from tests.isolates.guest_text import compiled_text, handler
from tests.isolates.host_functions import Functions
from tests.isolates.values_guest import Load, ValuesSandbox

ROOT = Path(__file__).parents[2]

Guests = Callable[[str], Mapped]
TextGuest = Callable[..., Mapped]
Start = Callable[..., Isolate]


@pytest.fixture(scope="session")
def box() -> Sandbox:
    return sandbox()


@pytest.fixture(scope="session")
def guests(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Guests:
    """An example worker by name, on the way that a deploy takes: prepare, compile, check, start once, map."""
    folder = tmp_path_factory.mktemp("artifacts")
    store = ArtifactStore(folder)
    digests: dict[str, str] = {}

    def mapped(name: str) -> Mapped:
        if name not in digests:
            source = ROOT / "workers" / "zig" / name / "worker.wasm"
            compiled = compile_and_start(source.read_bytes(), store, IsolateLimits(startup_cpu_ms=5_000))
            assert isinstance(compiled, Compiled), compiled
            digests[name] = compiled.component_digest
        return store.map(box, digests[name])

    return mapped


@pytest.fixture(scope="session")
def text_guest(box: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> TextGuest:
    """A guest from the parts that ``guest_text.handler`` takes; it is not checked as a deploy would check it."""
    folder = tmp_path_factory.mktemp("text")
    made: dict[str, Mapped] = {}

    def mapped(**parts: str) -> Mapped:
        text = handler(**parts)
        if text not in made:
            path = folder / digest_of(text.encode())
            path.write_bytes(compiled_text(box, text))
            made[text] = Mapped(box, path, path.name)
        return made[text]

    return mapped


@pytest.fixture(scope="session")
def values_box() -> ValuesSandbox:
    return ValuesSandbox()


@pytest.fixture(scope="session")
def load(values_box: ValuesSandbox, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A guest of ``values_box`` from its text."""
    folder = tmp_path_factory.mktemp("values")
    made: dict[str, Mapped] = {}

    def mapped(text: str) -> Mapped:
        if text not in made:
            path = folder / f"{len(made)}.cwasm"
            path.write_bytes(compiled_text(values_box, text))
            made[text] = Mapped(values_box, path, "0" * 64)
        return made[text]

    return mapped


@pytest.fixture
def start(box: Sandbox) -> Iterator[Start]:
    """Starts isolates and closes them; afterwards no guest is left in the table of guests that this test put there."""
    started: list[Isolate] = []
    before = set(abi.GUESTS)

    def make(mapped: Mapped, **limits: float) -> Isolate:
        isolate = Isolate.start(box, mapped, IsolateLimits(**limits), secrets.token_bytes)  # type: ignore[arg-type]
        assert not isinstance(isolate, StartFailed), isolate
        started.append(isolate)
        return isolate

    yield make
    for isolate in started:
        isolate.close()
    assert set(abi.GUESTS) <= before, "a closed isolate is still known"


@pytest.fixture
def types(box: Sandbox) -> Functions:
    return Functions(box, "http/types")


@pytest.fixture
def streams(box: Sandbox) -> Functions:
    return Functions(box, "io/streams")

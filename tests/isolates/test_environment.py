"""A version's variables, as its isolates see them: as environment and as configuration, and each only its own."""

import secrets
from pathlib import Path

import pytest

from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start
from isolates.engine import Sandbox
from isolates.isolate import Isolate
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from tests.isolates.environment_guest import environment_guest
from tests.isolates.host_functions import guest_for
from tests.scripted_conversation import ScriptedConversation

LIMITS = IsolateLimits(startup_cpu_ms=5_000.0, cpu_ms=5_000.0)
DRAFTS = ["wasi:config/store@0.2.0-rc.1", "wasi:config/store@0.2.0-draft", "wasi:config/runtime@0.2.0-draft"]


def answers(box: Sandbox, folder: Path, component: bytes, *environments: tuple[tuple[str, str], ...]) -> list[bytes]:
    """What isolates of one component answer, each with an environment of its own; all live at the same time."""
    store = ArtifactStore(folder)
    compiled = compile_and_start(component, store, LIMITS)
    assert isinstance(compiled, Compiled), compiled
    mapped = store.map(box, compiled.component_digest)
    isolates = [Isolate.start(box, mapped, LIMITS, secrets.token_bytes, given) for given in environments]
    said = []
    for isolate in isolates:
        assert isinstance(isolate, Isolate), isolate
        conversation = ScriptedConversation()
        assert isolate.run(conversation).outcome is Outcome.OK
        said.append(conversation.body)
    for isolate in isolates:
        assert isinstance(isolate, Isolate)
        isolate.close()
    return said


ADA, BOB = (("KEY", "ada's"), ("MODE", "a")), (("KEY", "bob's"),)


def test_each_isolate_has_its_own(box: Sandbox, tmp_path: Path) -> None:
    said = answers(box, tmp_path, environment_guest(), ADA, BOB, ())
    assert said == [b"KEY=ada's\nMODE=a\n", b"KEY=bob's\n", b""]


def test_what_start_up_reads_is_not_kept_for_others(box: Sandbox, tmp_path: Path) -> None:
    """Its start-up takes long enough to be kept. It asked for the environment, so it is not: each isolate asks anew."""
    component = environment_guest(at_start=True)
    said = answers(box, tmp_path, component, ADA, BOB, ADA)
    assert said == [b"KEY=ada's\nMODE=a\n", b"KEY=bob's\n", b"KEY=ada's\nMODE=a\n"]
    again = compile_and_start(component, ArtifactStore(tmp_path), LIMITS)
    assert isinstance(again, Compiled)
    assert again.snapshot_saves_ms == 0


@pytest.mark.parametrize("draft", DRAFTS)
def test_they_are_the_configuration_too(draft: str, box: Sandbox, tmp_path: Path) -> None:
    said = answers(box, tmp_path, environment_guest(config=draft), ADA, BOB)
    assert said == [b"KEY=ada's\nMODE=a\n", b"KEY=bob's\n"]


@pytest.mark.parametrize("draft", DRAFTS)
def test_one_is_found_by_its_name(draft: str, box: Sandbox) -> None:
    guest = guest_for()
    guest.variables = ADA
    get = box.world.interfaces[draft].functions["get"]
    assert [get(guest, name).value for name in ("KEY", "MODE", "key", "")] == ["ada's", "a", None, None]

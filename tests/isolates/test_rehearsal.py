"""Components whose build vouches for a rehearsal begin in the state that it leaves; all others do not."""

from pathlib import Path

import pytest
from wasmtime import wat2wasm

from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start
from isolates.engine import Sandbox
from isolates.isolate import Isolate
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.rehearsal import AUTHORITY, LISTING_MARK, MARK, REHEARSALS, Rehearsal, is_marked, marked
from isolates.wasm_binary import COMPONENT_PREAMBLE, CUSTOM, name, section
from tests.isolates.guest_text import handler
from tests.scripted_conversation import ScriptedConversation

TYPES = """
    (export "fields" (type $fields (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.set-status-code"
      (func (param "self" (borrow $response)) (param "status-code" u16) (result (result))))
    (export "[static]response-outparam.set"
      (func (param "param" (own 1)) (param "response" (result (own $response)))))
"""


def counting(*, answers: bool = True, keeps: bool = False) -> bytes:
    """A guest that counts its requests, in its memory and in a global, and answers with 200 + both counts."""
    set_status = """(drop (call $status (global.get $made)
          (i32.add
            (i32.const 200)
            (i32.add (i32.load (i32.const 64)) (i32.mul (i32.const 10) (global.get $count))))))"""
    body = """
      (global.set $count (i32.add (global.get $count) (i32.const 1)))
      (i32.store (i32.const 64) (i32.add (i32.load (i32.const 64)) (i32.const 1)))
      (global.set $made (call $make (call $fields)))
    """
    keep = "(drop (call $fields))" if keeps else ""
    ends = "(call $set (local.get $outparam) (i32.const 0) (global.get $made))" if answers else "unreachable"
    text = handler(
        http_exports=TYPES,
        lowered="""
          (alias export $types "[constructor]fields" (func $new-fields))
          (alias export $types "[constructor]outgoing-response" (func $new-response))
          (alias export $types "[method]outgoing-response.set-status-code" (func $set-status))
          (alias export $types "[static]response-outparam.set" (func $set-outparam))
          (core func $fields (canon lower (func $new-fields)))
          (core func $make (canon lower (func $new-response)))
          (core func $status (canon lower (func $set-status)))
          (core func $set (canon lower (func $set-outparam)))
        """,
        functions="fields (result i32)\nmake (param i32) (result i32)\nstatus (param i32 i32) (result i32)\n"
        "set (param i32 i32 i32)",
        core_items='(global $count (export "count") (mut i32) (i32.const 0)) (global $made (mut i32) (i32.const 0))',
        body=f"{body} {set_status} {keep} {ends} (call $drop-request (local.get $request))",
    )
    return bytes(wat2wasm(text))


@pytest.fixture
def deploy(box: Sandbox, tmp_path: Path) -> "Deploy":
    return Deploy(box, tmp_path)


class Deploy:
    def __init__(self, box: Sandbox, folder: Path) -> None:
        self._box = box
        self._folder = folder

    def statuses(self, component: bytes, requests: int = 2) -> list[int]:
        """What the first requests of an isolate of it are answered with."""
        store = ArtifactStore(self._folder)
        compiled = compile_and_start(component, store, IsolateLimits())
        assert isinstance(compiled, Compiled), compiled
        isolate = Isolate.start(self._box, store.map(self._box, compiled.component_digest), IsolateLimits(), bytes)
        assert isinstance(isolate, Isolate)
        found = []
        try:
            for _ in range(requests):
                conversation = ScriptedConversation()
                assert isolate.run(conversation).outcome is Outcome.OK
                assert conversation.response is not None
                found.append(conversation.response.status)
        finally:
            isolate.close()
        return found


def test_a_marked_component_begins_after_its_rehearsals_in_memory_and_globals(deploy: Deploy) -> None:
    seen = len(REHEARSALS)
    assert deploy.statuses(counting()) == [211, 222]
    assert deploy.statuses(marked(counting())) == [200 + 11 * (seen + 1), 200 + 11 * (seen + 2)]


def test_the_instrumented_form_does_not_stay_in_the_store(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    compiled = compile_and_start(marked(counting()), store, IsolateLimits())
    assert isinstance(compiled, Compiled)
    assert {file.stem for file in store.directory.glob("*.cwasm")} == {p.source_digest for p in compiled.pieces}


def test_one_that_does_not_answer_its_rehearsals_runs_as_it_came(deploy: Deploy, tmp_path: Path) -> None:
    compiled = compile_and_start(marked(counting(answers=False)), ArtifactStore(tmp_path), IsolateLimits())
    assert isinstance(compiled, Compiled)


def test_one_that_keeps_something_of_the_hosts_runs_as_it_came(deploy: Deploy) -> None:
    assert deploy.statuses(marked(counting(keeps=True))) == [211, 222]


def test_the_mark() -> None:
    plain = counting()
    assert not is_marked(plain)
    assert is_marked(marked(plain))
    assert marked(marked(plain)) == marked(plain)
    assert not is_marked(marked(plain), LISTING_MARK)
    both = marked(plain, LISTING_MARK)
    assert is_marked(both)
    assert is_marked(both, LISTING_MARK)
    assert both == marked(marked(plain), LISTING_MARK) == marked(both) == marked(both, LISTING_MARK)
    assert not is_marked(b"junk")
    assert not is_marked(COMPONENT_PREAMBLE + section(CUSTOM, name(b"other")))
    assert not is_marked(COMPONENT_PREAMBLE + section(CUSTOM, name(b"other") + MARK))
    assert is_marked(COMPONENT_PREAMBLE + section(CUSTOM, name(MARK)))


def test_a_rehearsal_is_a_whole_request_with_nobody() -> None:
    for path, body in REHEARSALS:
        rehearsal = Rehearsal(path, body)
        assert rehearsal.head.authority == AUTHORITY
        assert rehearsal.head.method == ("POST" if body else "GET")
        read = b""
        while (piece := rehearsal.read_body(64 * 1024)) is not None:
            assert rehearsal.body_ready()
            read += piece
        assert read == body
        assert rehearsal.listening()

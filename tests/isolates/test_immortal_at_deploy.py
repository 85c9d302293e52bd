"""What a deploy makes of a glue's list of objects: marks in the memory of a worker that goes on as before, or none."""

import itertools
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from isolates import compiler
from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start
from isolates.engine import Sandbox
from isolates.immortal import LIST_BYTES_MAX
from isolates.isolate import Isolate
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.rehearsal import LISTING_MARK, REHEARSALS, Rehearsal, is_marked, marked
from tests.isolates.answering_guest import answering, asked_for
from tests.scripted_conversation import ScriptedConversation

MARK, KIND = 0x3FFF_FFFF, 7_777
#: Where the guest counts its requests and its lists, and keeps two objects, of which one is free.
COUNTED_AT, FREED_AT, OBJECT_AT, LIST_AT = 1_024, 1_032, 1_040, 2_048
SHOWN_BYTES = 24
GOOD = (MARK, FREED_AT, KIND, OBJECT_AT, KIND)


def interpreter(list_: tuple[int, ...] = GOOD, *, cut: int = 0, listing: str = "", serving: str = "") -> bytes:
    """A guest that answers with its two counts and its objects' words; asked for them, with ``list_``.

    ``listing`` and ``serving``: what it does first, when it is asked for its objects and for anything else.
    """
    objects = struct.pack("<6I", 0, 0, 0, KIND, 3, KIND)
    size = 4 * len(list_) - cut
    return answering(
        f"""(if {asked_for("/objects")}
          (then (call $count (i32.const {COUNTED_AT + 4})) {listing}
            (call $answer (i32.const {LIST_AT}) (i32.const {size})))
          (else (call $count (i32.const {COUNTED_AT})) {serving}
            (call $answer (i32.const {COUNTED_AT}) (i32.const {SHOWN_BYTES}))))""",
        items=f"""
          (func $count (param $at i32)
            (i32.store (local.get $at) (i32.add (i32.load (local.get $at)) (i32.const 1))))
          (data (i32.const {COUNTED_AT}) "{_text(objects)}")
          (data (i32.const {LIST_AT}) "{_text(struct.pack(f"<{len(list_)}I", *list_))}")""",
    )


def _text(data: bytes) -> str:
    return "".join(f"\\{byte:02x}" for byte in data)


def listing(component: bytes) -> bytes:
    return marked(component, LISTING_MARK)


class Deployed:
    """An isolate of a component that was deployed just now."""

    def __init__(self, box: Sandbox, folder: Path, component: bytes) -> None:
        store = ArtifactStore(folder)
        self.compiled = compile_and_start(component, store, IsolateLimits())
        assert isinstance(self.compiled, Compiled), self.compiled
        assert {file.stem for file in store.directory.glob("*.cwasm")} == {
            piece.source_digest for piece in self.compiled.pieces
        }, "what was compiled to look at it is gone"
        isolate = Isolate.start(box, store.map(box, self.compiled.component_digest), IsolateLimits(), os.urandom)
        assert isinstance(isolate, Isolate)
        self.isolate = isolate

    def first_answer(self) -> tuple[int, ...]:
        """Requests, lists, then the words of the free object and of the other one."""
        conversation = ScriptedConversation()
        try:
            assert self.isolate.run(conversation).outcome is Outcome.OK
            assert conversation.finished
        finally:
            self.isolate.close()
        return struct.unpack("<6I", conversation.body)


@pytest.fixture
def first_answer(box: Sandbox, tmp_path: Path) -> "FirstAnswer":
    return FirstAnswer(box, tmp_path)


class FirstAnswer:
    """What an isolate of a component answers first, once it is deployed."""

    def __init__(self, box: Sandbox, folder: Path) -> None:
        self._box = box
        self._folders = (folder / str(number) for number in itertools.count())

    def __call__(self, component: bytes) -> tuple[int, ...]:
        return Deployed(self._box, next(self._folders), component).first_answer()


REHEARSED = len(REHEARSALS)
UNMARKED = (0, KIND, 3, KIND)
MARKED_NOW = f"(i32.eq (i32.load (i32.const {OBJECT_AT})) (i32.const {MARK}))"


class TestMarks:
    def test_what_is_listed_is_marked(self, first_answer: FirstAnswer) -> None:
        assert first_answer(listing(interpreter())) == (REHEARSED + 1, 1, 0, KIND, MARK, KIND)

    def test_an_isolate_after_the_other_finds_them(self, box: Sandbox, tmp_path: Path) -> None:
        """They are in what is mapped, and what an isolate writes over them is its own."""
        over = f"(i32.store (i32.const {OBJECT_AT}) (i32.const 5))"
        component = listing(interpreter(serving=f"(if {MARKED_NOW} (then {over}))"))
        for _ in range(2):
            assert Deployed(box, tmp_path, component).first_answer() == (REHEARSED + 1, 1, 0, KIND, 5, KIND)

    def test_one_whose_build_does_not_say_so_is_not_asked(self, first_answer: FirstAnswer) -> None:
        assert first_answer(marked(interpreter())) == (REHEARSED + 1, 0, *UNMARKED)

    def test_one_whose_build_says_nothing_else_is_not_asked_either(self, first_answer: FirstAnswer) -> None:
        both = listing(interpreter())
        only = both.replace(b"everwarm-rehearsal", b"everwarm-otherwise")
        assert is_marked(only, LISTING_MARK)
        assert not is_marked(only)
        assert first_answer(only) == (1, 0, *UNMARKED)


class TestNoMarks:
    """Whatever is wrong with the list: the worker begins after its rehearsals, and without marks."""

    @pytest.mark.parametrize(
        "bad",
        [
            {"list_": ()},
            {"list_": (MARK,)},
            {"list_": GOOD[:-1]},
            {"cut": 1},
            {"list_": (3, *GOOD[1:])},
            {"list_": (*GOOD, OBJECT_AT + 1, KIND)},
            {"list_": (*GOOD, 65_532, KIND)},
            {"list_": (*GOOD, 0xFFFF_FFFC, KIND)},
            {"listing": "unreachable"},
            {"listing": f"(call $send (i32.const {LIST_AT}) (i32.const 20)) (return)"},
            {"listing": "(return)"},
            {"listing": "(loop $for-ever (br $for-ever))"},
        ],
        ids=[
            "none", "empty", "half a pair", "cut off", "a count as its mark", "an odd address", "half in memory",
            "beyond all memory", "a trap", "half an answer", "no answer", "for ever",
        ],
    )  # fmt: skip
    def test_a_list_that_is_none(
        self, bad: dict[str, Any], first_answer: FirstAnswer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(compiler, "_REHEARSAL_CPU_MS", 100.0)
        requests, lists, *objects = first_answer(listing(interpreter(**bad)))
        assert (requests, tuple(objects)) == (REHEARSED + 1, UNMARKED)
        assert lists == (bad == {"list_": (MARK,)}), "what its bad list has left in its memory is not kept"

    def test_marks_that_its_requests_do_not_survive(self, first_answer: FirstAnswer) -> None:
        for broken in ("unreachable", "(return)"):
            component = listing(interpreter(serving=f"(if {MARKED_NOW} (then {broken}))"))
            assert first_answer(component) == (REHEARSED + 1, 0, *UNMARKED)

    def test_one_that_does_not_answer_its_rehearsals_runs_as_it_came(self, first_answer: FirstAnswer) -> None:
        begun = f"(if (i32.eq (i32.load (i32.const {COUNTED_AT})) (i32.const {REHEARSED})) (then unreachable))"
        assert first_answer(listing(interpreter(serving=begun))) == (1, 0, *UNMARKED)


class TestRehearsedAnswers:
    def test_what_is_kept_of_one_is_bounded(self) -> None:
        rehearsal = Rehearsal("/objects", b"")
        assert rehearsal.answered is None
        for _ in range(5):
            rehearsal.send(b"x" * (LIST_BYTES_MAX // 4 - 1))
            rehearsal.send(b"")
        assert rehearsal.body == b"x" * LIST_BYTES_MAX
        rehearsal.send(b"y")
        assert len(rehearsal.body) == LIST_BYTES_MAX == Rehearsal.KEPT_BYTES_MAX
        assert LIST_BYTES_MAX % 8 != 4, "a list that is cut off is none"

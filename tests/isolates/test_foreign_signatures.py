"""Components that declare their imports otherwise than the host does."""

import pytest

from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.isolates.guest_text import DROP_BOTH, IN_LIBC, handler
from tests.isolates.values_guest import Load, ValuesSandbox, served, started

WRONG_IMPORTS = {
    "no result": ("wasi:random/random", "get-random-u64", "(func)", "", "(call $wrong)"),
    "no parameter": ("wasi:random/random", "get-random-bytes", "(func (result (list u8)))", "(param i32)",
                     "(call $wrong (i32.const 16))"),
    "one parameter more": ("wasi:clocks/monotonic-clock", "now", '(func (param "x" u64) (result u64))',
                           "(param i64) (result i64)", "(drop (call $wrong (i64.const 1)))"),
    "an address as a list": ("wasi:io/poll", "poll", '(func (param "in" u64) (result (list u32)))',
                             "(param i64 i32)", "(call $wrong (i64.const 64) (i32.const 16))"),
    "numbers as handles": ("wasi:io/poll", "poll", '(func (param "in" (list u64)) (result (list u32)))',
                           "(param i32 i32 i32)", "(call $wrong (i32.const 64) (i32.const 1) (i32.const 16))"),
    "a result without its payload": (
        "test:abi/result-ok", "take", '(func (param "values" (list (result))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "a text in an option of a number": (
        "test:abi/option-option", "take", '(func (param "values" (list (option string))))', "(param i32 i32)",
        "(i32.store (i32.const 64) (i32.const 1)) (call $wrong (i32.const 64) (i32.const 1))"),
    "a shorter tuple": (
        "test:abi/tuple", "take", '(func (param "values" (list (tuple string))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "numbers as fields": (
        "test:abi/fields", "take", '(func (param "values" (list u64)))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "fields without values": (
        "test:abi/fields", "take", '(func (param "values" (list (tuple string))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "fields with numbers": (
        "test:abi/fields", "take", '(func (param "values" (list (tuple string u64))))', "(param i32 i32)",
        "(call $wrong (i32.const 64) (i32.const 1))"),
    "another result": ("wasi:random/random", "get-random-u64", "(func (result string))", "(param i32)",
                       "(call $wrong (i32.const 16))"),
}  # fmt: skip


class TestForeignSignatures:
    """A component declares the types of its imports itself: every one of these would read wild memory if believed."""

    @pytest.mark.parametrize("name", WRONG_IMPORTS)
    def test_the_guest_is_trapped_and_the_process_lives(self, name: str, values_box: ValuesSandbox, load: Load) -> None:
        interface, function, kind, core, call = WRONG_IMPORTS[name]
        text = handler(
            imports=f'(import "{interface}@0.2.0" (instance $it (export "{function}" {kind})))',
            lowered=f'(core func $wrong (canon lower (func $it "{function}") {IN_LIBC}))',
            functions=f"wrong {core}",
            body=f"{DROP_BOTH} {call}",
        )
        isolate = started(values_box, load(text))
        finished = served(isolate)
        assert (finished.outcome, finished.verdict) == (Outcome.EXCEPTION, Verdict.KILL), finished
        isolate.close()

    def test_a_resource_of_another_type_is_not_taken_for_the_right_one(
        self, values_box: ValuesSandbox, load: Load
    ) -> None:
        text = handler(
            http_exports="""(export "fields" (type $fields (sub resource)))
                (export "[constructor]fields" (func (result (own $fields))))""",
            imports="""(alias export $types "fields" (type $fields))
                (import "wasi:io/poll@0.2.0" (instance $poll (alias outer 1 $fields (type $not-a-pollable))
                    (export "poll" (func (param "in" (list (borrow $not-a-pollable))) (result (list u32))))))""",
            lowered=f"""(core func $new (canon lower (func $types "[constructor]fields")))
                (core func $poll (canon lower (func $poll "poll") {IN_LIBC}))""",
            functions="new (result i32)\npoll (param i32 i32 i32)",
            body=f"{DROP_BOTH} (i32.store (i32.const 64) (call $new))"
            " (call $poll (i32.const 64) (i32.const 1) (i32.const 16))",
        )
        isolate = started(values_box, load(text))
        finished = served(isolate)
        assert (finished.outcome, finished.reason) == (Outcome.EXCEPTION, "a resource of another type was passed")
        isolate.close()

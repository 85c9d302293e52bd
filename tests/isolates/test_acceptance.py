"""What a deploy refuses before anything runs, and how it says so."""

import pytest
from wasmtime import wat2wasm
from wasmtime.component import Component

from isolates.acceptance import rejected_by_header, rejected_by_type
from isolates.engine import Sandbox
from isolates.wasm_binary import COMPONENT_PREAMBLE
from tests.isolates.guest_text import compiled_text, handler


class TestHeader:
    @pytest.mark.parametrize(
        ("data", "code"),
        [(b"", "notAComponent"), (b"junk", "notAComponent"), (b"\0asm", "notAComponent"),
         (b"(component)", "notAComponent"), (b"\0asm\x01\x00\x00\x00rest", "coreModule"),
         (b"\x7fELF" + bytes(60), "notAComponent"), (bytes(101), "tooLarge"), (COMPONENT_PREAMBLE, None)],
    )  # fmt: skip
    def test_told_without_compiling(self, data: bytes, code: str | None) -> None:
        rejected = rejected_by_header(data, 100)
        assert (rejected and rejected.code) == code
        assert rejected is None or (rejected.message and rejected.advice)

    def test_the_message_says_how_large_it_may_be(self) -> None:
        rejected = rejected_by_header(bytes(2_000), 1_000)
        assert rejected is not None
        assert rejected.message == "The component has 2,000 bytes; the limit is 1,000."

    def test_an_artifact_from_outside_is_no_component(self, box: Sandbox) -> None:
        rejected = rejected_by_header(compiled_text(box, "(component)"), 1 << 30)
        assert rejected is not None
        assert rejected.code == "notAComponent"


EMPTY_HANDLER = '(export "wasi:http/incoming-handler@{}" (instance $i))'
TYPES = {
    "nothing exported": ("(component)", "missingExport", "it exports nothing"),
    "another export": (
        '(component (instance $i) (export "a:b/c@1.0.0" (instance $i)))', "missingExport", "a:b/c@1.0.0"),
    "a handler without handle": (
        f'(component (instance $i) {EMPTY_HANDLER.format("0.2.0")})', "missingExport", "incoming-handler"),
    "a handler of 0.20": (
        f'(component (instance $i) {EMPTY_HANDLER.format("0.20.0")})', "missingExport", "incoming-handler@0.20.0"),
    "an unknown interface": (
        handler(imports='(import "acme:db/query@1.2.0" (instance $q (export "run" (func))))'),
        "unknownImport", "acme:db/query@1.2.0"),
    "an unknown function": (
        handler(imports='(import "wasi:random/random@0.2.0" (instance $q (export "get-dice" (func))))'),
        "unknownImport", "wasi:random/random@0.2.0#get-dice"),
    "an unknown resource": (
        handler(imports='(import "wasi:io/poll@0.2.0" (instance $q (export "epoll" (type (sub resource)))))'),
        "unknownImport", "wasi:io/poll@0.2.0#epoll"),
    "a bare function": (handler(imports='(import "run" (func $run))'), "unknownImport", "run"),
    "four unknown": (
        handler(imports="".join(f'(import "a:b/c{i}@1.0.0" (instance))' for i in range(4))),
        "unknownImport", " and 1 more"),
    "WASI 0.3": (
        '(component (import "wasi:http/types@0.3.0" (instance (export "fields" (type (sub resource))))))',
        "wasi03", "wasi:http/types@0.3.0"),
    "WASI 0.1": (
        handler(imports='(import "wasi:random/random@0.1.0" (instance))'), "unknownImport", "wasi:random/random@0.1.0"),
}  # fmt: skip


class TestType:
    @pytest.mark.parametrize("name", TYPES)
    def test_what_cannot_run_here_is_named(self, name: str, box: Sandbox) -> None:
        text, code, named = TYPES[name]
        rejected = rejected_by_type(box, Component(box.engine, bytes(wat2wasm(text))))
        assert rejected is not None
        assert rejected.code == code
        assert named in str(rejected)

    @pytest.mark.parametrize("version", ["0.2", "0.2.0", "0.2.3", "0.2.12", "0.2.13-rc"])
    def test_every_version_of_the_line_is_known(self, version: str, box: Sandbox) -> None:
        known = box.knows(f"wasi:io/poll@{version}")
        assert known is not None
        assert {"pollable", "poll", "[method]pollable.ready", "[method]pollable.block"} <= known

    @pytest.mark.parametrize("name", ["wasi:io/poll", "wasi:io/poll@0.20.0", "wasi:io/poll@0.3.0", "wasi:io/pol@0.2.0"])
    def test_others_are_not(self, name: str, box: Sandbox) -> None:
        assert box.knows(name) is None

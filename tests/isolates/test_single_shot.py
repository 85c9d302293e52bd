"""Components that answer once are told by what their engine exports."""

import pytest
from wasmtime import wat2wasm

from isolates.compiler import prepared
from isolates.component_binary import Root, core_module
from isolates.single_shot import is_single_shot
from isolates.wasm_binary import NotUnderstood
from tests.isolates.conftest import ROOT

ENGINE = "wizer.resume"
HANDLE = "wasi:http/incoming-handler@0.2.3#handle"


def component(*modules: tuple[str, ...]) -> bytes:
    """A component of modules that export functions of these names."""
    root = Root()
    for exports in modules:
        functions = "".join(f'(func (export "{called}"))' for called in exports)
        root.append(core_module(bytes(wat2wasm(f"(module {functions})"))))
    return root.encode()


@pytest.mark.parametrize(
    ("modules", "once"),
    [([(ENGINE, HANDLE)], True), ([("memory",), (ENGINE, HANDLE), ("x",)], True),
     ([(ENGINE, "wasi:http/incoming-handler@0.2.10#handle", "cabi_realloc")], True),
     ([(ENGINE, HANDLE, f"cabi_post_{HANDLE}")], False), ([(HANDLE,)], False), ([(ENGINE,)], False), ([], False),
     ([(ENGINE,), (HANDLE,)], False), ([(ENGINE, "wasi:http/incoming-handler@0.3.0#handle")], False),
     ([(ENGINE, "my:http/incoming-handler@0.2.3#handle")], False)],
)  # fmt: skip
def test_by_exports(modules: list[tuple[str, ...]], once: bool) -> None:
    made = component(*modules)
    assert is_single_shot(Root.parse(made)) is once
    assert prepared(made)[1] is once


def test_no_example_worker_is() -> None:
    for worker in ROOT.glob("workers/zig/*/worker.wasm"):
        assert not is_single_shot(Root.parse(worker.read_bytes()))


def test_a_module_that_can_not_be_read() -> None:
    root = Root()
    root.append(core_module(b"\0asm\x01\0\0\0\x07\x05\xff\xff\xff\xff\x0f"))
    with pytest.raises(NotUnderstood):
        is_single_shot(root)
    assert prepared(root.encode()) == (None, False)

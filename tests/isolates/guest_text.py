"""Guests written as component text: a handler around a few core instructions and the imports they need."""

from wasmtime import wat2wasm
from wasmtime.component import Component

from isolates.engine import Sandbox

_TEMPLATE = """
(component
  (import "wasi:http/types@0.2.3" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))
    {http_exports}
  ))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  {imports}
  (core module $libc
    (memory (export "memory") {pages})
    (global $top (mut i32) (i32.const 4096))
    (func (export "reset") (global.set $top (i32.const 4096)))
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (local $start i32)
      (local.set $start
        (i32.and (i32.add (global.get $top) (i32.const 15)) (i32.const -16)))
      (global.set $top (i32.add (local.get $start) (local.get 3)))
      (local.get $start)))
  (core instance $libc (instantiate $libc))
  (core func $drop-request (canon resource.drop $request))
  (core func $drop-outparam (canon resource.drop $outparam))
  {lowered}
  (core module $main
    (import "libc" "memory" (memory 1))
    (import "libc" "reset" (func $reset))
    (import "host" "drop-request" (func $drop-request (param i32)))
    (import "host" "drop-outparam" (func $drop-outparam (param i32)))
    {core_imports}
    {core_items}
    (func (export "handle") (param $request i32) (param $outparam i32)
      (call $reset)
      {body}))
  (core instance $main (instantiate $main
    (with "libc" (instance $libc))
    (with "host" (instance
      (export "drop-request" (func $drop-request))
      (export "drop-outparam" (func $drop-outparam))
      {core_exports}))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.3" (instance $handler)))
"""

DROP_BOTH = "(call $drop-request (local.get $request)) (call $drop-outparam (local.get $outparam))"
IN_LIBC = '(memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))'


def handler(
    *,
    imports: str = "",
    lowered: str = "",
    functions: str = "",
    http_exports: str = "",
    core_items: str = "",
    body: str = DROP_BOTH,
    pages: str = "1",
) -> str:
    """The text of a component whose handler runs ``body``.

    ``imports`` are component-level imports, ``lowered`` core functions made of them, ``functions`` the core types under
    which the core module gets them: ``name (param i32)`` a line.
    """
    pairs = [line.strip().partition(" ") for line in functions.splitlines() if line.strip()]
    return _TEMPLATE.format(
        http_exports=http_exports,
        imports=imports,
        lowered=lowered,
        core_imports="\n    ".join(f'(import "host" "{name}" (func ${name} {kind}))' for name, _, kind in pairs),
        core_exports="\n      ".join(f'(export "{name}" (func ${name}))' for name, _, _ in pairs),
        core_items=core_items,
        body=body,
        pages=pages,
    )


def compiled_text(box: Sandbox, text: str) -> bytes:
    """The artifact of a component given as text."""
    return bytes(Component(box.engine, bytes(wat2wasm(text))).serialize())

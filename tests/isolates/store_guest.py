"""A guest with a key-value store: it counts its requests in ``hits``, keeps the path in ``last``, and reads it back."""

from wasmtime import wat2wasm

from tests.isolates.answering_guest import _ITEMS, _PATH, _PATH_CALL, CALLS, HTTP, STREAMS, lowered
from tests.isolates.guest_text import handler

_STORE = """
    (import "wasi:keyvalue/store@0.2.0-draft" (instance $store
        (type $shape (variant (case "no-such-store") (case "access-denied") (case "other" string)))
        (export "error" (type $store-error (eq $shape)))
        (export "bucket" (type $bucket (sub resource)))
        (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $store-error)))))
        (export "[method]bucket.get" (func (param "self" (borrow $bucket)) (param "key" string)
            (result (result (option (list u8)) (error $store-error)))))
        (export "[method]bucket.set" (func (param "self" (borrow $bucket)) (param "key" string)
            (param "value" (list u8)) (result (result (error $store-error)))))))
    (alias export $store "bucket" (type $bucket))
    (alias export $store "error" (type $store-error))
    (import "wasi:keyvalue/atomics@0.2.0-draft" (instance $atomics
        (alias outer 1 $bucket (type $outer)) (export "bucket" (type $bucket (eq $outer)))
        (alias outer 1 $store-error (type $outer-error)) (export "error" (type $error (eq $outer-error)))
        (export "increment" (func (param "bucket" (borrow $bucket)) (param "key" string) (param "delta" u64)
            (result (result u64 (error $error)))))))"""
_STORE_CALLS = {
    "open": ("store", "open", "(param i32 i32 i32)"),
    "get": ("store", "[method]bucket.get", "(param i32 i32 i32 i32)"),
    "set-key": ("store", "[method]bucket.set", "(param i32 i32 i32 i32 i32 i32)"),
    "increment": ("atomics", "increment", "(param i32 i32 i32 i64 i32)"),
}
_ITEMS_OF_STORE = """
    (data (i32.const 1024) "sessionshitslast")
    (data (i32.const 1100) "no such store")
    (global $bucket (mut i32) (i32.const 0))"""
#: "N /path": the number has one digit.
_BODY = """
    (global.set $outparam (local.get $outparam))
    (call $path (local.get $request) (i32.const 64))
    (call $drop-request (local.get $request))
    (call $open (i32.const 1024) (i32.const 8) (i32.const 128))
    (if (i32.load8_u (i32.const 128))
        (then (if (i32.load8_u (i32.const 132)) (then unreachable)) (call $answer (i32.const 1100) (i32.const 13)))
        (else
            (global.set $bucket (i32.load (i32.const 132)))
            (call $increment (global.get $bucket) (i32.const 1032) (i32.const 4) (i64.const 1) (i32.const 144))
            (call $good (i32.const 144))
            (call $set-key (global.get $bucket) (i32.const 1036) (i32.const 4)
                (i32.load (i32.const 68)) (i32.load (i32.const 72)) (i32.const 176))
            (call $good (i32.const 176))
            (call $get (global.get $bucket) (i32.const 1036) (i32.const 4) (i32.const 208))
            (call $good (i32.const 208))
            (if (i32.eqz (i32.load8_u (i32.const 212))) (then unreachable))
            (i32.store8 (i32.const 2048) (i32.add (i32.const 48) (i32.load (i32.const 152))))
            (i32.store8 (i32.const 2049) (i32.const 32))
            (memory.copy (i32.const 2050) (i32.load (i32.const 216)) (i32.load (i32.const 220)))
            (call $drop-bucket (global.get $bucket))
            (call $answer (i32.const 2048) (i32.add (i32.const 2) (i32.load (i32.const 220))))))"""


def store_guest() -> bytes:
    """The component. Its manifest binds a store as ``sessions``, or it answers that there is none."""
    text = handler(
        http_exports=HTTP + _PATH,
        imports=STREAMS + _STORE,
        **lowered(CALLS | _PATH_CALL | _STORE_CALLS, {"stream": "$stream", "bucket": "$bucket"}),
        core_items=_ITEMS + _ITEMS_OF_STORE,
        body=_BODY,
    )
    return bytes(wat2wasm(text))

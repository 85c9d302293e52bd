"""A guest that answers with its environment, a line ``NAME=TEXT`` each: as it is now, or as it was when it started."""

from wasmtime import wat2wasm

from tests.isolates.answering_guest import _ITEMS, _PATH, _PATH_CALL, CALLS, HTTP, STREAMS, lowered
from tests.isolates.guest_text import handler

_ENVIRONMENT = """
    (import "wasi:cli/environment@0.2.0" (instance $environment
        (export "get-environment" (func (result (list (tuple string string)))))))"""
_CONFIG = """
    (import "{draft}" (instance $config
        (type $shape (variant (case "upstream" string) (case "io" string)))
        (export "{error}" (type $config-error (eq $shape)))
        (export "get-all" (func (result (result (list (tuple string string)) (error $config-error)))))))"""
#: The text is gathered from byte 32,768 on, where nothing else is.
_COLLECT = """
    (global $end (mut i32) (i32.const 32768))
    (func $put (param $at i32) (param $size i32) (param $then i32)
        (memory.copy (global.get $end) (local.get $at) (local.get $size))
        (global.set $end (i32.add (global.get $end) (local.get $size)))
        (i32.store8 (global.get $end) (local.get $then))
        (global.set $end (i32.add (global.get $end) (i32.const 1))))
    (func $collect (local $at i32) (local $last i32)
        (global.set $end (i32.const 32768))
        (call $environment (i32.const 96))
        (local.set $at (i32.load (i32.const {list})))
        (local.set $last (i32.add (local.get $at) (i32.shl (i32.load offset=4 (i32.const {list})) (i32.const 4))))
        (block $done (loop $more
            (br_if $done (i32.ge_u (local.get $at) (local.get $last)))
            (call $put (i32.load (local.get $at)) (i32.load offset=4 (local.get $at)) (i32.const 61))
            (call $put (i32.load offset=8 (local.get $at)) (i32.load offset=12 (local.get $at)) (i32.const 10))
            (local.set $at (i32.add (local.get $at) (i32.const 16)))
            (br $more))))
    {start}"""
_BODY = """
    (global.set $outparam (local.get $outparam))
    (call $path (local.get $request) (i32.const 64))
    (call $drop-request (local.get $request))
    {collect}
    (call $answer (i32.const 32768) (i32.sub (global.get $end) (i32.const 32768)))"""
#: Takes some 20 ms, so that a deploy would keep what start-up leaves if it could.
_LONG = """(local $i i32) (local.set $i (i32.const 40000000))
    (loop $l (local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $l (local.get $i)))"""


def environment_guest(*, at_start: bool = False, config: str = "") -> bytes:
    """The component. ``config``: the full name of a draft of wasi:config, to ask that instead of wasi:cli."""
    asked, function = ("config", "get-all") if config else ("environment", "get-environment")
    imports = _CONFIG.format(draft=config, error="config-error" if "runtime" in config else "error")
    text = handler(
        http_exports=HTTP + _PATH,
        imports=STREAMS + (imports if config else _ENVIRONMENT),
        **lowered(CALLS | _PATH_CALL | {"environment": (asked, function, "(param i32)")}, {"stream": "$stream"}),
        core_items=_ITEMS
        + _COLLECT.format(
            # Of a result, the list comes after its case.
            list=100 if config else 96,
            start=f"(func $start {_LONG} (call $collect)) (start $start)" if at_start else "",
        ),
        body=_BODY.format(collect="" if at_start else "(call $collect)"),
    )
    return bytes(wat2wasm(text))

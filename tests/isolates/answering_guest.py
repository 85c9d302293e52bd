"""Guests written as text that answer each request with bytes of their memory.

Of the interfaces, the part that an answer takes is here, for guests that do something else besides: ``CALLS``,
``HTTP`` and ``STREAMS``.
"""

from wasmtime import wat2wasm

from tests.isolates.guest_text import IN_LIBC, handler

#: Core functions by name: the component's instance, the function in it, and the core type.
CALLS = {
    "fields": ("types", "[constructor]fields", "(result i32)"),
    "response": ("types", "[constructor]outgoing-response", "(param i32) (result i32)"),
    "body": ("types", "[method]outgoing-response.body", "(param i32 i32)"),
    "stream": ("types", "[method]outgoing-body.write", "(param i32 i32)"),
    "set": ("types", "[static]response-outparam.set", "(param i32 i32 i32)"),
    "finish": ("types", "[static]outgoing-body.finish", "(param i32 i32 i32 i32)"),
    "write": ("streams", "[method]output-stream.blocking-write-and-flush", "(param i32 i32 i32 i32)"),
}
#: What the guest imports of ``wasi:http/types``, and of ``wasi:io/streams``.
HTTP = """
    (export "fields" (type $fields (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "outgoing-body" (type $body (sub resource)))
    (export "output-stream" (type $stream (sub resource)))
    (type $code-shape (variant (case "HTTP-protocol-error"))) (export "error-code" (type $code (eq $code-shape)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "[method]outgoing-response.body" (func (param "self" (borrow $response)) (result (result (own $body)))))
    (export "[method]outgoing-body.write" (func (param "self" (borrow $body)) (result (result (own $stream)))))
    (export "[static]response-outparam.set" (func (param "param" (own 1))
        (param "response" (result (own $response) (error $code)))))
    (export "[static]outgoing-body.finish" (func (param "this" (own $body)) (param "trailers" (option (own $fields)))
        (result (result (error $code)))))"""
STREAMS = """
    (alias export $types "output-stream" (type $stream))
    (import "wasi:io/streams@0.2.3" (instance $streams
        (export "error" (type $error (sub resource)))
        (alias outer 1 $stream (type $outer)) (export "output-stream" (type $stream (eq $outer)))
        (type $error-shape (variant (case "last-operation-failed" (own $error)) (case "closed")))
        (export "stream-error" (type $stream-error (eq $error-shape)))
        (export "[method]output-stream.blocking-write-and-flush" (func (param "self" (borrow $stream))
            (param "contents" (list u8)) (result (result (error $stream-error)))))))"""
_PATH = """
    (export "[method]incoming-request.path-with-query" (func (param "self" (borrow 0)) (result (option string))))"""
_PATH_CALL = {"path": ("types", "[method]incoming-request.path-with-query", "(param i32 i32)")}
_ITEMS = """
    (global $outparam (mut i32) (i32.const 0)) (global $body (mut i32) (i32.const 0))
    (func $good (param $at i32) (if (i32.load8_u (local.get $at)) (then unreachable)))
    (func $send (param $at i32) (param $size i32) (local $response i32) (local $out i32)
        (local.set $response (call $response (call $fields)))
        (call $body (local.get $response) (i32.const 64)) (call $good (i32.const 64))
        (global.set $body (i32.load (i32.const 68)))
        (call $set (global.get $outparam) (i32.const 0) (local.get $response))
        (call $stream (global.get $body) (i32.const 64)) (call $good (i32.const 64))
        (local.set $out (i32.load (i32.const 68)))
        (call $write (local.get $out) (local.get $at) (local.get $size) (i32.const 80)) (call $good (i32.const 80))
        (call $drop-stream (local.get $out)))
    (func $answer (param $at i32) (param $size i32)
        (call $send (local.get $at) (local.get $size))
        (call $finish (global.get $body) (i32.const 0) (i32.const 0) (i32.const 80)) (call $good (i32.const 80)))"""
_BODY = """
    (global.set $outparam (local.get $outparam))
    (call $path (local.get $request) (i32.const 64))
    (call $drop-request (local.get $request))
    {body}"""


def asked_for(path: str) -> str:
    """The core expression for whether the request's path is of this length and begins so, in its first four bytes.

    Before the first ``$send`` or ``$answer``.
    """
    begin = int.from_bytes(path[:4].encode(), "little")
    return f"""(i32.and (i32.eq (i32.load (i32.const 72)) (i32.const {len(path)}))
        (i32.eq (i32.load (i32.load (i32.const 68))) (i32.const {begin})))"""


def lowered(calls: dict[str, tuple[str, str, str]], drops: dict[str, str]) -> dict[str, str]:
    """Core functions for ``guest_text.handler``: those of ``calls``, and one that drops each resource of ``drops``."""
    texts = [
        f'(core func ${name} (canon lower (func ${instance} "{function}") {IN_LIBC}))'
        for name, (instance, function, _) in calls.items()
    ]
    texts += [f"(core func $drop-{name} (canon resource.drop {kind}))" for name, kind in drops.items()]
    functions = [f"{name} {kind}" for name, (_, _, kind) in calls.items()]
    functions += [f"drop-{name} (param i32)" for name in drops]
    return {"lowered": "\n".join(texts), "functions": "\n".join(functions)}


def answering(body: str, *, items: str = "", pages: str = "1") -> bytes:
    """A component that runs ``body`` for each request.

    ``$answer at size`` answers with at most 64 KiB of the memory, ``$send`` with less than a whole answer. Bytes 64 to
    95 of the memory and those from 4,096 on are in use.
    """
    text = handler(
        http_exports=HTTP + _PATH,
        imports=STREAMS,
        **lowered(CALLS | _PATH_CALL, {"stream": "$stream"}),
        core_items=_ITEMS + items,
        body=_BODY.format(body=body),
        pages=pages,
    )
    return bytes(wat2wasm(text))

"""Components around core modules, for start-ups of all kinds."""

from wasmtime import wat2wasm

from isolates.limits import MIB, IsolateLimits

LIMITS = IsolateLimits(startup_cpu_ms=5_000.0, cpu_ms=5_000.0, memory_bytes_max=32 * MIB)

#: A component around core modules. The last one is ``$main``; it has the handler and what can be asked.
_COMPONENT = """
(component
  (import "wasi:http/types@0.2.3" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  {before}
  (core module $main
    {imports}
    {items}
    (func (export "handle") (param i32 i32))
    {exports})
  (core instance $main (instantiate $main {arguments}))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.3" (instance $handler))
  {lifted}
  {after})
"""
#: A digest of all of the memory.
DIGEST = """
    (func (export "digest") (result i64) (local $at i32) (local $sum i64)
      (local.set $sum (i64.const 0x14650FB0739D0383))
      (loop $more
        (local.set $sum (i64.mul (i64.xor (local.get $sum) (i64.load (local.get $at))) (i64.const 0x100000001B3)))
        (local.set $sum (i64.xor (local.get $sum) (i64.shr_u (local.get $sum) (i64.const 29))))
        (local.set $at (i32.add (local.get $at) (i32.const 8)))
        (br_if $more (i32.lt_u (local.get $at) (i32.shl (memory.size) (i32.const 16)))))
      (local.get $sum))
    (func (export "pages") (result i64) (i64.extend_i32_u (memory.size)))"""


def component(
    items: str, exports: str = DIGEST, *, before: str = "", after: str = "", imports: str = "", arguments: str = ""
) -> bytes:
    """A component whose main module has ``items``; what its ``exports`` return can be asked (``func () -> u64``)."""
    names = [part.partition('"')[0] for part in exports.split('(func (export "')[1:]]
    lifted = "\n".join(
        f'(func ${name} (result u64) (canon lift (core func $main "{name}"))) (export "{name}" (func ${name}))'
        for name in names
    )
    text = _COMPONENT.format(
        items=items, exports=exports, before=before, after=after, imports=imports, arguments=arguments, lifted=lifted
    )
    return bytes(wat2wasm(text))


#: Takes some 20 ms, so that doing it once is worth it.
LONG = """(local $i i32) (local.set $i (i32.const 40000000))
    (loop $l (local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $l (local.get $i)))"""
STARTS = "(func $start (i32.store (i32.const 0) (i32.const 5))) (start $start)"

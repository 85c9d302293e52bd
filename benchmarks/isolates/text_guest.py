"""A guest in text that calls the host in a loop, and the same loop without the call. Pure.

Its handler gives both handles back and answers nothing, so that a run is the loop and as little else as there can be.
The host function is ``wasi:clocks/monotonic-clock.now``: no parameter, one number back, and the host's side of it reads
one attribute.
"""

#: Calls of one request: enough that entering and leaving the guest vanish beside them, and few enough for hundreds of
#: runs.
CALLS = 2_000

_TEMPLATE = """
(component
  (import "wasi:http/types@0.2.10" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (import "wasi:clocks/monotonic-clock@0.2.10" (instance $clock
    (export "now" (func (result u64)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $outparam))
  (core func $drop-request (canon resource.drop $request))
  (core func $drop-outparam (canon resource.drop $outparam))
  (core func $now (canon lower (func $clock "now")))
  (core module $main
    (import "host" "drop-request" (func $drop-request (param i32)))
    (import "host" "drop-outparam" (func $drop-outparam (param i32)))
    (import "host" "now" (func $now (result i64)))
    (func (export "handle") (param $request i32) (param $outparam i32)
      (local $left i32)
      (local.set $left (i32.const CALLS))
      (loop $again
        STEP
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br_if $again (local.get $left)))
      (call $drop-request (local.get $request))
      (call $drop-outparam (local.get $outparam))))
  (core instance $main (instantiate $main (with "host" (instance
    (export "drop-request" (func $drop-request))
    (export "drop-outparam" (func $drop-outparam))
    (export "now" (func $now))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $outparam))
    (canon lift (core func $main "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.10" (instance $handler)))
"""


def calling() -> str:
    """The component that calls the host ``CALLS`` times a request."""
    return _TEMPLATE.replace("STEP", "(drop (call $now))").replace("CALLS", str(CALLS))


def idle() -> str:
    """The same without the call."""
    return _TEMPLATE.replace("STEP", "").replace("CALLS", str(CALLS))

"""The few functions of wasmtime's C API that run isolates, as the foreign-function calls that they are.

Through this handle calls release the GIL, so guests run in parallel; the small calls that convert values go through
``abi``'s own handle, which keeps it.
"""

import ctypes

from wasmtime import _ffi

_C = ctypes.CDLL(str(_ffi.filename))
_P, _U64, _I64, _SIZE = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_size_t

TICK = ctypes.CFUNCTYPE(_SIZE, _P, _P, _P, _P)
NO_FINALIZER = ctypes.CFUNCTYPE(None, _P)(0)


def prototype(name: str, result: object, *arguments: object) -> "ctypes._NamedFuncPointer":
    """A function of the C API with its types."""
    function = getattr(_C, name)
    function.restype, function.argtypes = result, arguments
    return function  # type: ignore[no-any-return]


config_concurrency_support = prototype("wasmtime_config_concurrency_support_set", None, _P, ctypes.c_bool)
engine_increment_epoch = prototype("wasmtime_engine_increment_epoch", None, _P)
store_new = prototype("wasmtime_store_new", _P, _P, _P, ctypes.CFUNCTYPE(None, _P))
store_context = prototype("wasmtime_store_context", _P, _P)
store_delete = prototype("wasmtime_store_delete", None, _P)
store_limiter = prototype("wasmtime_store_limiter", None, _P, _I64, _I64, _I64, _I64, _I64)
store_epoch_callback = prototype(
    "wasmtime_store_epoch_deadline_callback", None, _P, TICK, _P, ctypes.CFUNCTYPE(None, _P)
)
context_set_epoch_deadline = prototype("wasmtime_context_set_epoch_deadline", None, _P, _U64)
instance_get_func = prototype("wasmtime_component_instance_get_func", ctypes.c_bool, _P, _P, _P, _P)
func_call = prototype("wasmtime_component_func_call", _P, _P, _P, _P, _SIZE, _P, _SIZE)
_error_message = prototype("wasmtime_error_message", None, _P, _P)
_error_delete = prototype("wasmtime_error_delete", None, _P)
_byte_vec_delete = prototype("wasm_byte_vec_delete", None, _P)


class Instance(ctypes.Structure):
    """``wasmtime_component_instance_t``."""

    _fields_ = [("store_id", ctypes.c_uint64), ("private", ctypes.c_uint32)]


class Function(ctypes.Structure):
    """``wasmtime_component_func_t``: opaque, read and passed on."""

    _fields_ = [
        ("store_id", ctypes.c_uint64),
        ("private1", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("private2", ctypes.c_uint32),
        ("pad2", ctypes.c_uint32),
        ("private3", ctypes.c_void_p),
    ]


def consume_error(error: int) -> str:
    """The message of a C API error, which is freed."""
    vector = (ctypes.c_size_t * 2)()
    _error_message(error, vector)
    text = ctypes.string_at(vector[1], vector[0]).decode("utf-8", "replace")
    _byte_vec_delete(vector)
    _error_delete(error)
    return text


def must(error: int | None) -> None:
    """``RuntimeError`` for an error that only this host can have caused."""
    if error:
        raise RuntimeError(consume_error(error))

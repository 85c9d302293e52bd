"""wasi:keyvalue: the stores that a version's manifest binds, by the names that it gives them.

An operation waits for its answer as a guest waits for anything: outside of its CPU time, until its wall-time limit, and
no longer than its client is there. Start-up code has no store: its result may become every isolate's, and what it
waited for would be nobody's request.
"""

import time
from typing import Any

from isolates.component_value import Err, Ok
from isolates.guest import Guest
from isolates.stores import StoreAsked, StoreTold
from isolates.wit import World

_VERSION = "0.2.0-draft"
#: An operation takes milliseconds. Whoever keeps the stores gives up before.
_ANSWER_S_MAX = 10.0
#: Operations of one request: as many as the largest plan's subrequests, and each costs others more than a guest.
OPERATIONS_MAX = 1_000


class Bucket:
    """An open store."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


def _ask(guest: Guest, store: str, asked: StoreAsked) -> StoreTold:
    """Have one operation carried out, and wait for it."""
    if guest.conversation is None:
        return _failed("there is no store while an isolate starts")
    guest.store_operations += 1
    if guest.store_operations > OPERATIONS_MAX:
        return _failed(f"more than {OPERATIONS_MAX} operations in one request")
    call = guest.stores.begin(store, asked)
    if isinstance(call, StoreTold):
        return call
    until_s = time.monotonic() + _ANSWER_S_MAX
    try:
        while (told := call.told()) is None:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return _failed("the store did not answer in time")
            guest.wait(left_s, readable=(call.fileno(),))
    finally:
        call.close()
    guest.io_happened()
    return told


def _failed(why: str) -> StoreTold:
    return StoreTold(error=("other", why))


def _result(told: StoreTold, value: Any) -> Any:
    return Ok(value) if told.error is None else Err(told.error)


def define(world: World) -> None:
    """wasi:keyvalue/store, atomics and batch."""
    store = world.interface(f"wasi:keyvalue/store@{_VERSION}")
    store.resource("bucket")
    store.variant("store-error", {"no-such-store": None, "access-denied": None, "other": "string"})
    store.record("key-response", {"keys": "list<string>", "cursor": "option<u64>"})

    @store.func("open: func(identifier: string) -> result<own<bucket>, store-error>")
    def open_(guest: Guest, identifier: str) -> Any:
        told = _ask(guest, identifier, StoreAsked("open"))
        return _result(told, Bucket(identifier))

    @store.func("[method]bucket.get: func(self: borrow<bucket>, key: string) -> result<option<list<u8>>, store-error>")
    def get(guest: Guest, self: Bucket, key: str) -> Any:
        told = _ask(guest, self.name, StoreAsked("get", (key,)))
        return _result(told, told.values[0] if told.values else None)

    @store.func(
        "[method]bucket.set: func(self: borrow<bucket>, key: string, value: list<u8>) -> result<_, store-error>"
    )
    def set_(guest: Guest, self: Bucket, key: str, value: bytes) -> Any:
        return _result(_ask(guest, self.name, StoreAsked("set", (key,), (value,))), None)

    @store.func("[method]bucket.delete: func(self: borrow<bucket>, key: string) -> result<_, store-error>")
    def delete(guest: Guest, self: Bucket, key: str) -> Any:
        return _result(_ask(guest, self.name, StoreAsked("delete", (key,))), None)

    @store.func("[method]bucket.exists: func(self: borrow<bucket>, key: string) -> result<bool, store-error>")
    def exists(guest: Guest, self: Bucket, key: str) -> Any:
        told = _ask(guest, self.name, StoreAsked("exists", (key,)))
        return _result(told, told.number > 0)

    @store.func(
        "[method]bucket.list-keys: func(self: borrow<bucket>, cursor: option<u64>) -> result<key-response, store-error>"
    )
    def list_keys(guest: Guest, self: Bucket, cursor: int | None) -> Any:
        told = _ask(guest, self.name, StoreAsked("list", cursor=cursor))
        return _result(told, (list(told.keys), told.cursor))

    atomics = world.interface(f"wasi:keyvalue/atomics@{_VERSION}")
    atomics.use_resource("bucket", "bucket")

    @atomics.func("increment: func(bucket: borrow<bucket>, key: string, delta: u64) -> result<u64, store-error>")
    def increment(guest: Guest, bucket: Bucket, key: str, delta: int) -> Any:
        told = _ask(guest, bucket.name, StoreAsked("increment", (key,), delta=delta))
        return _result(told, told.number)

    batch = world.interface(f"wasi:keyvalue/batch@{_VERSION}")
    batch.use_resource("bucket", "bucket")

    @batch.func(
        "get-many: func(bucket: borrow<bucket>, keys: list<string>)"
        " -> result<list<option<tuple<string, list<u8>>>>, store-error>"
    )
    def get_many(guest: Guest, bucket: Bucket, keys: list[str]) -> Any:
        told = _ask(guest, bucket.name, StoreAsked("get", tuple(keys)))
        found = zip(keys, told.values, strict=False)
        return _result(told, [None if value is None else (key, value) for key, value in found])

    @batch.func(
        "set-many: func(bucket: borrow<bucket>, key-values: list<tuple<string, list<u8>>>) -> result<_, store-error>"
    )
    def set_many(guest: Guest, bucket: Bucket, entries: list[tuple[str, bytes]]) -> Any:
        keys, values = tuple(key for key, _ in entries), tuple(value for _, value in entries)
        return _result(_ask(guest, bucket.name, StoreAsked("set", keys, values)), None)

    @batch.func("delete-many: func(bucket: borrow<bucket>, keys: list<string>) -> result<_, store-error>")
    def delete_many(guest: Guest, bucket: Bucket, keys: list[str]) -> Any:
        return _result(_ask(guest, bucket.name, StoreAsked("delete", tuple(keys))), None)

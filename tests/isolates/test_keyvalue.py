"""wasi:keyvalue, called as guests call it: on a real file, and where nothing answers."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.store_file import StoreFile
from isolates.artifact import ArtifactStore, Compiled
from isolates.compiler import compile_and_start
from isolates.component_value import Err, GuestTrap
from isolates.engine import Sandbox
from isolates.isolate import Isolate, RunningGuest
from isolates.limits import IsolateLimits
from isolates.outcome import Outcome
from isolates.stores import StoreAsked
from isolates.wasi.keyvalue import OPERATIONS_MAX
from tests.file_stores import FileStores
from tests.isolates.host_functions import guest_for
from tests.isolates.store_guest import store_guest
from tests.scripted_conversation import ScriptedConversation


class SilentCall:
    """An operation that nobody answers; its descriptor is a pipe's, which nobody writes to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.closed = False

    def fileno(self) -> int:
        return self._descriptor

    def told(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


class SilentStores:
    def __init__(self, descriptor: int) -> None:
        self.call = SilentCall(descriptor)

    def begin(self, store: str, asked: StoreAsked) -> SilentCall:
        return self.call


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[FileStores]:
    file = StoreFile(tmp_path / "stores.sqlite")
    yield FileStores(file)
    file.close()


class Calls:
    """The functions of wasi:keyvalue, on an open bucket."""

    def __init__(self, box: Sandbox, guest: RunningGuest) -> None:
        self._interfaces = box.world.interfaces
        self._guest = guest
        self.bucket: Any = None

    def call(self, interface: str, name: str, *arguments: Any) -> Any:
        return self._interfaces[f"wasi:keyvalue/{interface}@0.2.0-draft"].functions[name](self._guest, *arguments)

    def open(self, name: str = "sessions") -> Any:
        opened = self.call("store", "open", name)
        self.bucket = opened.value
        return opened

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.call("store", f"[method]bucket.{name}", self.bucket, *arguments).value

    def many(self, name: str, argument: Any) -> Any:
        return self.call("batch", f"{name}-many", self.bucket, argument).value


@pytest.fixture
def calls(box: Sandbox, stores: FileStores) -> Calls:
    guest = guest_for(ScriptedConversation())
    guest.stores = stores
    made = Calls(box, guest)
    made.open()
    return made


def test_one_key_at_a_time(calls: Calls) -> None:
    assert calls.get("a") is None
    assert calls.set("a", b"1") is None
    assert [calls.get("a"), calls.exists("a"), calls.exists("b")] == [b"1", True, False]
    assert calls.delete("a") is None
    assert calls.get("a") is None
    assert calls.call("atomics", "increment", calls.bucket, "n", 3).value == 3


def test_many_keys_at_once(calls: Calls, stores: FileStores) -> None:
    assert calls.many("set", [("a", b"1"), ("b", b"2")]) is None
    assert calls.many("get", ["b", "c", "a"]) == [("b", b"2"), None, ("a", b"1")]
    assert calls.call("store", "[method]bucket.list-keys", calls.bucket, None).value == (["a", "b"], None)
    assert calls.many("delete", ["a", "b"]) is None
    assert calls.many("get", ["a", "b"]) == [None, None]
    assert [asked.op for asked in stores.asked] == ["open", "set", "get", "list", "delete", "get"]


def test_what_is_not_bound_is_no_store(calls: Calls, box: Sandbox) -> None:
    assert calls.open("another").value == ("no-such-store", None)
    without = Calls(box, guest_for(ScriptedConversation()))
    assert without.open().value == ("no-such-store", None)


def test_start_up_code_has_none(box: Sandbox, stores: FileStores) -> None:
    guest = guest_for()
    guest.stores = stores
    opened = Calls(box, guest).open()
    assert isinstance(opened, Err)
    assert opened.value == ("other", "there is no store while an isolate starts")
    assert stores.asked == []


def test_operations_of_a_request_are_bounded(calls: Calls) -> None:
    for _ in range(OPERATIONS_MAX - 1):
        assert calls.exists("a") is False
    assert calls.exists("a") == ("other", "more than 1000 operations in one request")


def test_a_store_that_does_not_answer_ends_with_its_request(box: Sandbox, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    guest = guest_for(ScriptedConversation(), wall_ms=50)
    guest.stores = silent = SilentStores(reading)
    with pytest.raises(GuestTrap):
        Calls(box, guest).open()
    assert guest.ended is Outcome.EXCEEDED_WALL_TIME
    assert silent.call.closed
    os.close(reading)
    os.close(writing)


def test_a_guest_counts_and_remembers(box: Sandbox, stores: FileStores, tmp_path: Path) -> None:
    artifacts = ArtifactStore(tmp_path / "code")
    compiled = compile_and_start(store_guest(), artifacts, IsolateLimits())
    assert isinstance(compiled, Compiled), compiled
    mapped = artifacts.map(box, compiled.component_digest)
    said = []
    for given in (stores, stores, None):
        isolate = Isolate.start(box, mapped, IsolateLimits(cpu_ms=5_000), secrets.token_bytes, stores=given)
        assert isinstance(isolate, Isolate), isolate
        for path in ("/one", "/two"):
            conversation = ScriptedConversation(path)
            finished = isolate.run(conversation)
            assert finished.outcome is Outcome.OK, finished
            said.append(conversation.body)
        assert isolate.guest.resources == 0
        isolate.close()
    assert said == [b"1 /one", b"2 /two", b"3 /one", b"4 /two", b"no such store", b"no such store"]

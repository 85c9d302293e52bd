"""Key-value stores on disk: what is written is read, batches are whole, and every bound holds."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.store_file import StoreFile, StoreLimits
from isolates.stores import StoreAsked, StoreTold


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stores.sqlite"


@pytest.fixture
def stores(path: Path) -> Iterator[StoreFile]:
    made = StoreFile(path)
    yield made
    made.close()


def put(stores: StoreFile, store: str = "s", **values: bytes) -> StoreTold:
    return stores.carry_out(store, StoreAsked("set", tuple(values), tuple(values.values())))


def get(stores: StoreFile, *keys: str, store: str = "s") -> tuple[bytes | None, ...]:
    told = stores.carry_out(store, StoreAsked("get", keys))
    assert told.error is None, told
    return told.values


def refused(told: StoreTold) -> str:
    assert told.error is not None
    case, why = told.error
    assert case == "other"
    return why or ""


def test_what_is_written_is_read_also_later(stores: StoreFile, path: Path) -> None:
    assert get(stores, "a") == (None,)
    assert put(stores, a=b"1", b=b"") == StoreTold()
    assert put(stores, a=b"\0\xff") == StoreTold()
    assert put(stores, "other", a=b"another's") == StoreTold()
    assert get(stores, "b", "none", "a") == (b"", None, b"\0\xff")
    assert stores.carry_out("s", StoreAsked("exists", ("a",))).number == 1
    assert stores.carry_out("s", StoreAsked("exists", ("c",))).number == 0
    assert stores.carry_out("s", StoreAsked("delete", ("a", "never"))) == StoreTold()
    stores.close()
    again = StoreFile(path)
    assert get(again, "a", "b") == (None, b"")
    assert get(again, "a", store="other") == (b"another's",)
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_number_is_counted_up(stores: StoreFile) -> None:
    def counted(delta: int) -> StoreTold:
        return stores.carry_out("s", StoreAsked("increment", ("n",), delta=delta))

    assert [counted(delta).number for delta in (5, 0, 37)] == [5, 5, 42]
    assert get(stores, "n") == (b"42",)
    assert refused(counted((1 << 64) - 1)) == "the number would be too large"
    assert get(stores, "n") == (b"42",)
    put(stores, n=b"4x")
    assert refused(counted(1)) == "what the key holds is no number"


def test_keys_are_listed_in_pages(path: Path) -> None:
    stores = StoreFile(path, StoreLimits(list_keys_max=2))
    put(stores, c=b"", a=b"", b=b"", d=b"", e=b"")
    put(stores, "other", x=b"")
    listed, cursor = [], None
    while True:
        told = stores.carry_out("s", StoreAsked("list", cursor=cursor))
        listed.append(told.keys)
        cursor = told.cursor
        if cursor is None:
            break
        stores.carry_out("s", StoreAsked("delete", told.keys))  # what is gone does not move what follows
    assert listed == [("c", "a"), ("b", "d"), ("e",)]
    assert stores.carry_out("nobody", StoreAsked("list")) == StoreTold()
    assert stores.carry_out("s", StoreAsked("list", cursor=(1 << 64) - 1)) == StoreTold()
    stores.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (StoreAsked("get", ("",)), "a key has 1 to 512 bytes, and one has 0"),
        (StoreAsked("get", ("é" * 257,)), "a key has 1 to 512 bytes, and one has 514"),
        (StoreAsked("set", ("a",), (bytes(65_537),)), "a value of 65537 bytes is more than 65536"),
        (StoreAsked("get", tuple(map(str, range(129)))), "129 keys are more than 128"),
        (StoreAsked("set", tuple("abcdefghi"), (bytes(65_000),) * 9), "more than 524288 bytes at once"),
        (StoreAsked("drop", ("a",)), "no such operation"),
    ],
)
def test_what_is_too_large_is_refused(asked: StoreAsked, said: str, stores: StoreFile) -> None:
    assert refused(stores.carry_out("s", asked)) == said


def test_a_store_has_a_bound_of_keys_and_of_bytes_and_a_batch_is_whole(path: Path) -> None:
    stores = StoreFile(path, StoreLimits(keys_max=3, bytes_max=20))
    assert put(stores, a=b"1", b=b"2") == StoreTold()
    assert refused(put(stores, c=b"3", d=b"4")) == "the store has 2 keys, and takes 3"
    assert get(stores, "c", "d") == (None, None)
    assert refused(put(stores, a=bytes(18))) == "the store holds 4 bytes, and takes 20"
    assert put(stores, a=bytes(17)) == StoreTold()
    assert put(stores, a=b"") == StoreTold()
    assert put(stores, b=bytes(15)) == StoreTold()
    stores.carry_out("s", StoreAsked("delete", ("a", "b")))
    assert put(stores, c=bytes(19)) == StoreTold()
    stores.close()


def test_all_stores_together_have_a_bound(path: Path) -> None:
    stores = StoreFile(path, StoreLimits(stores_max=2, total_bytes_max=10))
    put(stores, "one", a=b"1234")
    put(stores, "two", a=b"")
    assert refused(put(stores, "three", a=b"")) == "this cluster has 2 stores, the most it takes"
    assert refused(put(stores, "two", a=b"12345")) == "the cluster's stores are full"
    stores.close()


def test_what_is_read_at_once_is_bounded_too(path: Path) -> None:
    stores = StoreFile(path, StoreLimits(batch_bytes_max=10))
    put(stores, a=b"123456")
    put(stores, b=b"123456")
    assert refused(stores.carry_out("s", StoreAsked("get", ("a", "b")))) == "more than 10 bytes at once"
    assert get(stores, "a") == (b"123456",)
    stores.close()

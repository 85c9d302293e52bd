"""Where secrets' values lie: who may read the file, what is left in it, and what is refused."""

import stat
from pathlib import Path

import pytest

from actors.secret_store import SecretRefused, SecretSet, SecretStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "secrets.sqlite"


def test_a_value_is_kept_replaced_and_forgotten(path: Path) -> None:
    store = SecretStore(path)
    store.put("shop", "KEY", "first", "ada", 1)
    store.put("shop", "KEY", "second", "bob", 2)
    store.put("shop", "OTHER", "x", "ada", 3)
    store.put("production/shop", "KEY", "a user's", "eve", 4)
    assert store.of("shop") == {"KEY": "second", "OTHER": "x"}
    assert store.listed("shop") == [SecretSet("KEY", 2, "bob"), SecretSet("OTHER", 3, "ada")]
    assert (store.delete("shop", "KEY"), store.delete("shop", "KEY")) == (True, False)
    store.close()
    again = SecretStore(path)
    assert again.of("shop") == {"OTHER": "x"}
    assert again.of("production/shop") == {"KEY": "a user's"}
    assert again.of("nobody") == {}
    again.close()


def test_only_its_owner_may_read_it_and_nothing_stays_of_what_is_gone(path: Path) -> None:
    path.touch(mode=0o644)
    store = SecretStore(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.put("shop", "KEY", "the-first-value", "ada", 1)
    assert b"the-first-value" in path.read_bytes()
    store.put("shop", "KEY", "the-second-value", "ada", 2)
    store.put("shop", "GONE", "the-third-value", "ada", 3)
    store.delete("shop", "GONE")
    left = path.read_bytes()
    assert b"the-second-value" in left
    assert b"the-first-value" not in left
    assert b"the-third-value" not in left
    assert [file.name for file in path.parent.iterdir()] == ["secrets.sqlite"]
    store.close()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("1KEY", "v", "a secret's name has letters"),
        ("K" * 129, "v", "a secret's name has letters"),
        ("KEY", "", "KEY: a value is text of at least one character"),
        ("KEY", "a\0b", "KEY: a value is text"),
        ("KEY", "é" * 2_561, "KEY: 5122 bytes are more than 5120"),
    ],
)
def test_what_is_malformed_is_refused_without_its_value(name: str, value: str, said: str, path: Path) -> None:
    store = SecretStore(path)
    with pytest.raises(SecretRefused) as refused:
        store.put("shop", name, value, "ada", 1)
    assert str(refused.value).startswith(said)
    assert store.of("shop") == {}
    store.close()


def test_a_worker_has_a_bound_of_names_and_of_bytes(path: Path) -> None:
    store = SecretStore(path)
    for i in range(128):
        store.put("many", f"K{i}", "v", "ada", 1)
    store.put("many", "K5", "another", "ada", 2)
    with pytest.raises(SecretRefused, match="many has 128 secrets"):
        store.put("many", "K128", "v", "ada", 3)
    for i in range(12):
        store.put("large", f"K{i}", "v" * 5_120, "ada", 1)
    with pytest.raises(SecretRefused, match="66589 bytes of names and values are more than 65536 for a worker"):
        store.put("large", "K12", "v" * 5_120, "ada", 2)
    store.close()

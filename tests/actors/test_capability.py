"""Each mint has exactly one release."""

import pytest

from actors.capability import Exports, ExportsFull
from actors.exchange import Capability


class Few(Exports[str]):
    OUT_MAX = 3


def test_mint_resolve_release() -> None:
    exports: Exports[str] = Exports("server-1/server")
    body = exports.mint("body")
    other = exports.mint("other")
    assert body.owner == other.owner == "server-1/server"
    assert (exports.resolve(body.key), exports.resolve(other.key), len(exports)) == ("body", "other", 2)
    exports.release(body)
    assert exports.resolve(body.key) is None  # a late caller is business as usual
    assert exports.resolve(999) is None
    assert repr(exports) == "Exports(server-1/server, out=[2])"


def test_a_second_release_is_a_broken_invariant() -> None:
    exports: Exports[str] = Exports("a")
    lent = exports.mint("thing")
    exports.release(lent)
    with pytest.raises(KeyError):
        exports.release(lent)


def test_a_key_is_never_used_again() -> None:
    exports: Exports[str] = Exports("a")
    seen = set()
    for _ in range(100):
        with exports.lent("thing") as lent:
            seen.add(lent.key)
    assert len(seen) == 100


def test_an_owner_knows_its_own() -> None:
    mine: Exports[str] = Exports("a")
    lent = mine.mint("thing")
    assert mine.owned(lent) == "thing"
    assert mine.owned(Capability("b", lent.key)) is None
    assert mine.owned(Capability("a", lent.key + 1)) is None
    mine.release(lent)
    assert mine.owned(lent) is None


def test_lent_comes_back_on_every_path() -> None:
    exports: Exports[str] = Exports("a")
    with exports.lent("thing") as lent:
        assert exports.owned(lent) == "thing"
    assert len(exports) == 0
    with pytest.raises(RuntimeError, match="inside"), exports.lent("thing"):
        raise RuntimeError("inside")
    assert len(exports) == 0


def test_the_bound_says_that_something_is_not_released() -> None:
    exports = Few("a")
    lent = [exports.mint(str(i)) for i in range(Few.OUT_MAX)]
    with pytest.raises(ExportsFull, match="a has lent out 3 things"):
        exports.mint("one more")
    exports.release(lent[0])
    exports.mint("one more")
    assert len(exports) == Few.OUT_MAX

from __future__ import annotations

import random
from collections import Counter

import pytest

from actors.ring import Ring, RingLimits, worker_key

SECRET = b"0123456789abcdef0123456789abcdef"
KEYS = [worker_key("default", f"worker-{number}") for number in range(20_000)]
FOUR = {"alpha": 1, "beta": 1, "gamma": 1, "delta": 1}


def homes(ring: Ring) -> list[str | None]:
    return [ring.home_of(key) for key in KEYS]


def test_a_fifth_server_takes_a_fifth_and_nothing_else_moves() -> None:
    before, after = homes(Ring(1, FOUR, SECRET)), homes(Ring(2, {**FOUR, "epsilon": 1}, SECRET))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"epsilon"}
    assert 0.15 < len(moved) / len(KEYS) < 0.25


def test_a_newcomers_share_is_near_a_fifth_whatever_the_secret() -> None:
    """160 points each spread a share by 1/sqrt(160) of itself, 8 %: over many secrets its mean is a fifth all the same,
    and nobody's is far from it."""
    secrets = random.Random(5)
    servers = {**FOUR, "epsilon": 1}
    shares = []
    for _ in range(50):
        ring = Ring(1, servers, secrets.randbytes(32))
        shares.append(sum(ring.home_of(key) == "epsilon" for key in KEYS[:2_000]) / 2_000 / 0.2)
    assert sum(0.9 < share < 1.1 for share in shares) > 30
    assert 0.98 < sum(shares) / len(shares) < 1.02
    assert 0.6 < min(shares) < max(shares) < 1.4


def test_a_server_that_leaves_moves_only_its_own() -> None:
    before = homes(Ring(1, FOUR, SECRET))
    after = homes(Ring(2, {name: 1 for name in FOUR if name != "gamma"}, SECRET))
    moved = [old for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"gamma"}
    assert len(moved) == before.count("gamma")
    assert len(set(after)) == 3


@pytest.mark.parametrize("count", [4, 50])
def test_the_load_is_even(count: int) -> None:
    load = Counter(homes(Ring(1, {f"server-{number}": 1 for number in range(count)}, SECRET)))
    assert len(load) == count
    assert max(load.values()) / (len(KEYS) / count) < 1.35


def test_a_server_of_twice_the_weight_is_home_to_twice_as_many() -> None:
    load = Counter(homes(Ring(1, {"alpha": 2, "beta": 1, "gamma": 1}, SECRET)))
    assert 0.42 < load["alpha"] / len(KEYS) < 0.58


def test_a_server_of_no_weight_is_a_member_and_no_home() -> None:
    ring = Ring(1, {**FOUR, "leaving": 0}, SECRET)
    assert "leaving" in ring.servers
    assert "leaving" not in ring.successors(KEYS[0], 10)
    assert homes(ring) == homes(Ring(1, FOUR, SECRET))


def test_the_order_of_listing_does_not_matter() -> None:
    names = [f"server-{number}" for number in range(30)]
    shuffled = list(names)
    random.Random(7).shuffle(shuffled)
    assert homes(Ring(1, dict.fromkeys(names, 1), SECRET)) == homes(Ring(1, dict.fromkeys(shuffled, 1), SECRET))


def test_another_secret_gives_other_homes() -> None:
    same = sum(a == b for a, b in zip(homes(Ring(1, FOUR, SECRET)), homes(Ring(1, FOUR, SECRET[::-1])), strict=True))
    assert 0.15 < same / len(KEYS) < 0.35  # by chance, one in four


def test_a_key_spelled_like_a_point_does_not_land_on_it() -> None:
    ring = Ring(1, dict.fromkeys(FOUR, 1), SECRET)
    aimed = [ring.home_of(f"alpha-{number}") for number in range(160)]
    assert aimed.count("alpha") < 80


def test_successors_start_at_home_and_are_distinct() -> None:
    ring = Ring(1, {f"server-{number}": 1 for number in range(9)}, SECRET)
    for key in KEYS[:300]:
        found = ring.successors(key, 4)
        assert found[0] == ring.home_of(key)
        assert len(found) == len(set(found)) == 4
        assert set(ring.successors(key, 50)) == set(ring.servers)
        assert ring.successors(key, 0) == ring.successors(key, -1) == []


def test_the_second_successor_is_the_home_once_the_first_is_gone() -> None:
    ring = Ring(1, FOUR, SECRET)
    without = {gone: Ring(2, {name: 1 for name in FOUR if name != gone}, SECRET) for gone in FOUR}
    for key in KEYS[:300]:
        first, second = ring.successors(key, 2)
        assert without[first].home_of(key) == second


def test_an_empty_ring_has_no_homes() -> None:
    for servers in ({}, {"leaving": 0}):
        ring = Ring(0, servers, SECRET)
        assert ring.home_of("anything") is None
        assert ring.successors("anything", 3) == []


def test_one_server_is_home_to_all() -> None:
    ring = Ring(3, {"alone": 1}, SECRET)
    assert set(homes(ring)) == {"alone"}
    assert ring.successors(KEYS[0], 3) == ["alone"]
    assert repr(ring) == "<Ring epoch 3, 1 servers, 160 points>"


def test_a_view_does_not_follow_its_source() -> None:
    source = dict(FOUR)
    ring = Ring(1, source, SECRET)
    source["epsilon"] = 1
    assert "epsilon" not in ring.servers
    with pytest.raises(TypeError):
        ring.servers["epsilon"] = 1  # type: ignore[index]


def test_worker_keys_are_unambiguous() -> None:
    assert len({worker_key("a", "c"), worker_key("b", "c"), worker_key("a", "b/c"), worker_key("a", "c/b")}) == 4
    with pytest.raises(ValueError, match="cordon"):
        worker_key("a/b", "c")
    with pytest.raises(ValueError, match="worker_name"):
        worker_key("a", "b/c/d")


@pytest.mark.parametrize(
    ("epoch", "servers", "secret"),
    [
        (-1, FOUR, SECRET),
        (True, FOUR, SECRET),
        (1, {"": 1}, SECRET),
        (1, {"a" * 257: 1}, SECRET),
        (1, {"a": -1}, SECRET),
        (1, {"a": True}, SECRET),
        (1, {"a": 10**9}, SECRET),
        (1, FOUR, b"short"),
        (1, FOUR, bytes(65)),
    ],
)
def test_values_outside_the_bounds_are_refused(epoch: int, servers: dict[str, int], secret: bytes) -> None:
    with pytest.raises(ValueError, match=r"epoch|servers|secret"):
        Ring(epoch, servers, secret, RingLimits())

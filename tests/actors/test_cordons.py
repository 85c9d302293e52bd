"""Which workers share a host process."""

from itertools import pairwise
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.cordons import (
    CORDONS_MAX,
    Have,
    NoRoom,
    SharedMemory,
    cordon_of,
    cordon_of_role,
    host_roles,
    memory_parts,
    room_for,
)
from actors.worker import CORDON_DEFAULT
from actors.worker_names import LABEL

labels = st.from_regex(LABEL, fullmatch=True)
cordons = labels | labels.map("@{}".format)
MIB: Final = 1 << 20


def test_who_names_none_is_trusted_unless_it_is_a_namespaces_user() -> None:
    assert cordon_of("hello") == CORDON_DEFAULT
    assert cordon_of("production/alice") == "@production"
    assert cordon_of("default/alice") == "@default"
    assert cordon_of("production/alice", "partners") == "partners"
    assert cordon_of("production/alice", CORDON_DEFAULT) == CORDON_DEFAULT


@pytest.mark.parametrize("worker", ["hello", "staging/alice", "prod/alice"])
def test_nobody_is_put_in_with_the_users_of_a_namespace_but_they(worker: str) -> None:
    with pytest.raises(ValueError, match="cordon: @production is for the users of that namespace alone"):
        cordon_of(worker, "@production")


@given(labels, labels, labels)
def test_users_of_two_namespaces_share_nothing_and_nothing_with_the_operators(one: str, other: str, user: str) -> None:
    assert (cordon_of(f"{one}/{user}") == cordon_of(f"{other}/{user}")) == (one == other)
    assert cordon_of(f"{one}/{user}") not in (cordon_of(user), cordon_of(user, one))


@given(cordons, cordons, st.integers(1, 4))
def test_a_hosts_role_says_its_cordon_and_no_two_cordons_have_one_role(one: str, other: str, hosts: int) -> None:
    roles = host_roles(one, hosts)
    assert len(set(roles)) == hosts
    assert {cordon_of_role(role) for role in roles} == {one}
    assert set(roles).isdisjoint(host_roles(other, hosts)) or one == other


def test_the_default_cordon_has_the_roles_that_hosts_always_had() -> None:
    assert host_roles(CORDON_DEFAULT, 3) == ["host", "host-2", "host-3"]
    assert host_roles("@production", 2) == ["host-@production", "host-@production.2"]
    with pytest.raises(ValueError, match="no host's role"):
        cordon_of_role("shard")


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[str], set[str], int]:
    most = draw(st.integers(1, 5))
    there = draw(st.lists(cordons, unique=True, max_size=most - 1).map(lambda some: [CORDON_DEFAULT, *some]))
    there = list(dict.fromkeys(there))
    return there, set(draw(st.lists(st.sampled_from(there)))), most


@given(cordons, situations())
def test_there_is_room_or_none_and_nobodys_hosts_are_given_away(
    asked: str, situation: tuple[list[str], set[str], int]
) -> None:
    there, used, most = situation
    decided = room_for(asked, there, used, most)
    if isinstance(decided, NoRoom):
        assert asked not in there
        assert used | {CORDON_DEFAULT} >= set(there)
        return
    assert asked in decided.cordons
    assert used & set(there) <= set(decided.cordons)
    assert CORDON_DEFAULT in decided.cordons
    assert len(set(decided.cordons)) == len(decided.cordons) <= max(most, len(there))


def test_who_has_been_without_workers_for_longest_gives_way() -> None:
    there = ("default", "a", "b", "c")
    assert room_for("d", there, {"a"}, 4) == Have(("default", "a", "c", "d"))
    assert room_for("c", there, set(), 4) == Have(there)
    assert isinstance(room_for("d", there, {"a", "b", "c"}, 4), NoRoom)
    assert len(there) < CORDONS_MAX


used = st.dictionaries(
    st.text("abc", min_size=1, max_size=3), st.integers(0, 4 << 30), min_size=1, max_size=CORDONS_MAX
)


@given(st.integers(1, 64 << 30), used)
def test_hosts_share_the_machines_memory_and_no_more(total_bytes: int, used: dict[str, int]) -> None:
    parts = memory_parts(total_bytes, used)
    assert parts.keys() == used.keys()
    assert sum(parts.values()) <= total_bytes
    assert total_bytes - sum(parts.values()) < 2 * len(parts), "nothing is left lying about"
    assert min(parts.values()) >= int(total_bytes / len(used) / 2) - 1


@given(st.integers(1 << 20, 64 << 30), used)
def test_who_uses_more_gets_no_less(total_bytes: int, used: dict[str, int]) -> None:
    parts = memory_parts(total_bytes, used)
    order = sorted(used, key=lambda host: (used[host], host))
    assert all(parts[a] <= parts[b] + 1 for a, b in pairwise(order))


def test_one_host_has_all_of_it_and_an_idle_one_leaves_the_other_most() -> None:
    assert memory_parts(2_048 * MIB, {"a": 5 * MIB}) == {"a": 2_048 * MIB}
    parts = memory_parts(2_048 * MIB, {"a": 0, "b": 2_048 * MIB})
    assert (parts["a"] // MIB, parts["b"] // MIB) == (512, 1_536)
    parts = memory_parts(2_048 * MIB, {"a": 4_096 * MIB, "b": 4_096 * MIB})
    assert parts == {"a": 1_024 * MIB, "b": 1_024 * MIB}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["1", "2"]), st.integers(0, 1 << 31)), max_size=60))
def test_what_hosts_are_told_never_adds_up_to_more_than_there_is_once_all_have_spoken(
    reports: list[tuple[str, str, int]],
) -> None:
    """Each host acts on what it is told, and speaks again: as they do, twice a second."""
    total = 2 << 30
    memory, may = SharedMemory(total), dict[str, int]()
    holds = {(cordon, host): held for cordon, host, held in reports}

    def all_speak() -> None:
        for cordon, host in sorted(holds):
            socket = f"{cordon}{host}"
            bytes_max = may.setdefault(socket, total)
            told = memory.reported(cordon, 2, socket, min(holds[cordon, host], bytes_max), bytes_max)
            may[socket] = bytes_max if told is None else told

    for _ in range(50):
        all_speak()
    assert sum(may.values()) <= total * 17 // 16
    for cordon, host in sorted(holds):
        memory.forget(f"{cordon}{host}")
    assert memory.reported("a", 1, "a1", 0, 5) == total


def test_the_only_cordon_is_told_nothing() -> None:
    memory = SharedMemory(4 << 30)
    assert memory.reported("default", 2, "a", 3 << 30, 2 << 30) is None
    assert memory.reported("default", 2, "b", 0, 2 << 30) is None

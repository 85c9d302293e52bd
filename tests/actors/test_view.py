"""A machine's view of the cluster: stale is slow, a gap is noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.catalog import Deployed
from actors.ring import Ring
from actors.view import ClusterView, decode_plain, deployed_from_plain, deployed_to_plain, encode_plain
from actors.worker import Deployment, Limits, Plan, Share, Version
from isolates.outcome import Outcome

OLD, NEW = "0" * 16, "1" * 16


def version(version_id: str, worker: str = "hello") -> Version:
    return Version(worker, version_id, "ab" * 32, Limits.for_plan(Plan.PAID), Plan.PAID, 1_000, "ada")


def deployed(seq: int, worker: str = "hello") -> Deployed:
    return Deployed(seq, Deployment.whole(worker, OLD), (version(OLD, worker),))


def test_deployments_survive_the_way() -> None:
    split = Deployed(7, Deployment("hello", (Share(OLD, 90), Share(NEW, 10))), (version(OLD), version(NEW)))
    for one in (deployed(3), split):
        assert deployed_from_plain(decode_plain(encode_plain(deployed_to_plain(one)))) == one


def test_a_wrong_field_is_named() -> None:
    plain = deployed_to_plain(deployed(3))
    plain["deployment"] = {"schema": 1, "worker": "hello"}
    with pytest.raises(ValueError, match="shares"):
        deployed_from_plain(plain)


def test_changes_in_order() -> None:
    view = ClusterView()
    assert view.apply(1, "hello", deployed(1))
    assert view.apply(2, "other", deployed(2, "other"))
    assert view.apply(3, "hello", None)
    assert (view.seq, set(view.workers)) == (3, {"other"})


def test_an_old_change_is_heard_and_not_applied() -> None:
    view = ClusterView(seq=5)
    assert view.apply(5, "hello", deployed(5))
    assert view.apply(4, "hello", deployed(4))
    assert (view.seq, view.workers) == (5, {})


def test_a_gap_changes_nothing_and_says_so() -> None:
    view = ClusterView(seq=5)
    assert not view.apply(7, "hello", deployed(7))
    assert (view.seq, view.workers) == (5, {})


def test_removing_what_is_not_there_is_heard() -> None:
    view = ClusterView()
    assert view.apply(1, "hello", None)
    assert view.seq == 1


@given(st.permutations(range(1, 7)))
def test_whatever_the_order_a_gap_is_noticed_or_everything_is_there(order: list[int]) -> None:
    view = ClusterView()
    missed = False
    for seq in order:
        missed = missed or not view.apply(seq, f"w-{seq}", deployed(seq, f"w-{seq}"))
    assert missed == (order != sorted(order))
    assert set(view.workers) == {f"w-{seq}" for seq in range(1, view.seq + 1)}


def test_versions_and_homes() -> None:
    view = ClusterView()
    assert view.version_for("hello", b"r-1") is Outcome.SCRIPT_NOT_FOUND
    assert (view.home_of("hello"), view.epoch) == (None, 0)
    view.apply(1, "hello", deployed(1))
    assert view.version_for("hello", b"r-1") == version(OLD)
    view.ring = Ring(4, {"server-1": 1}, b"s" * 32)
    assert (view.home_of("hello"), view.epoch) == ("server-1", 4)


def test_a_split_gives_each_affinity_one_version() -> None:
    view = ClusterView()
    split = Deployment("hello", (Share(OLD, 50), Share(NEW, 50)))
    view.apply(1, "hello", Deployed(1, split, (version(OLD), version(NEW))))
    seen = {}
    for i in range(64):
        chosen = view.version_for("hello", b"r-%d" % i)
        assert isinstance(chosen, Version)
        assert view.version_for("hello", b"r-%d" % i) == chosen
        seen[chosen.version_id] = True
    assert set(seen) == {OLD, NEW}


# --------------------------------------------------------------------------------------------- the ring, as it turns

SECRET = b"s" * 32
NAMES = [f"w-{i}" for i in range(200)]


def test_a_ring_turns_forward_only() -> None:
    view = ClusterView()
    assert view.turn_ring(Ring(4, {"server-1": 1}, SECRET))
    assert not view.turn_ring(Ring(4, {"server-2": 1}, SECRET))
    assert not view.turn_ring(Ring(3, {"server-2": 1}, SECRET))
    assert view.home_of("hello") == "server-1"


def test_who_has_a_new_home_and_was_there_before() -> None:
    view = ClusterView()
    view.turn_ring(Ring(1, {"server-1": 1, "server-2": 1}, SECRET))
    for seq, worker in enumerate(NAMES, 1):
        view.apply(seq, worker, deployed(seq, worker))
    assert not any(view.has_moved(worker) for worker in NAMES)
    before = {worker: view.home_of(worker) for worker in NAMES}
    view.turn_ring(Ring(2, {"server-1": 1, "server-2": 1, "server-3": 1}, SECRET))
    moved = {worker for worker in NAMES if view.has_moved(worker)}
    assert moved == {worker for worker in NAMES if view.home_of(worker) == "server-3"}
    assert moved == {worker for worker in NAMES if view.home_of(worker) != before[worker]}
    # What is deployed after the ring turned was never anywhere else.
    again = next(iter(moved))
    view.apply(len(NAMES) + 1, again, deployed(len(NAMES) + 1, again))
    assert not view.has_moved(again)
    assert not view.has_moved("nobody")


def test_a_cordon_is_part_of_a_workers_key() -> None:
    view = ClusterView(ring=Ring(1, {f"server-{i}": 1 for i in range(9)}, SECRET))
    inside = Version("hello", OLD, "ab" * 32, Limits.for_plan(Plan.PAID), Plan.PAID, 1_000, "ada", cordon="partners")
    view.apply(1, "hello", Deployed(1, Deployment.whole("hello", OLD), (inside,)))
    assert (view.key_of("hello"), view.key_of("other")) == ("partners/hello", "default/other")


def test_the_order_begins_at_home() -> None:
    view = ClusterView(ring=Ring(1, {f"server-{i}": 1 for i in range(9)}, SECRET))
    for worker in NAMES[:20]:
        order = view.order_of(worker, 4)
        assert len(set(order)) == 4
        assert order[0] == view.home_of(worker)
        assert view.next_home_of(worker, order[0]) == order[1]
        assert view.next_home_of(worker, "server-99") == order[0]
    assert ClusterView().order_of("hello", 4) == []

"""Versions over hosts, and what may run again when one of them is lost."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.host_choice import LOST_MAX, by_preference, may_run_again, says_started

HOSTS = [f"/run/s1-host-{i}.sock" for i in range(4)]


def test_versions_are_spread_evenly() -> None:
    counts = Counter(by_preference(f"version {i}", HOSTS)[0] for i in range(4_000))
    assert set(counts) == set(HOSTS)
    assert all(850 < count < 1_150 for count in counts.values()), counts


@given(st.text(max_size=20), st.permutations(HOSTS), st.sampled_from(HOSTS))
def test_only_the_versions_of_a_lost_host_move(version: str, hosts: list[str], lost: str) -> None:
    before = by_preference(version, HOSTS)
    assert by_preference(version, hosts) == before, "the order in which they are listed counts"
    assert by_preference(version, [host for host in hosts if host != lost]) == [h for h in before if h != lost]


@pytest.mark.parametrize("hosts", [[], ["one"]])
def test_few_hosts(hosts: list[str]) -> None:
    assert by_preference("v", hosts) == hosts


@pytest.mark.parametrize(
    ("method", "started", "body_intact", "again"),
    [
        ("POST", False, True, True),  # it never said STARTED
        ("POST", True, True, False),
        ("PATCH", True, True, False),
        ("POST", True, False, False),
        ("GET", False, True, True),  # a host does not say it: the guest may have run, and may run again
        ("get", True, True, True),
        ("PUT", True, True, True),
        ("PUT", True, False, False),  # a part of the body went with the host
    ],
)
def test_what_may_run_again(method: str, started: bool, body_intact: bool, again: bool) -> None:
    assert may_run_again(method, started=started, body_intact=body_intact, hosts_lost=1) is again
    certain = method == "POST" and not started  # then it cannot have been the crash
    assert may_run_again(method, started=started, body_intact=body_intact, hosts_lost=LOST_MAX + 1) is certain


def test_only_who_could_not_run_again_pays_for_being_told() -> None:
    assert [m for m in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH") if says_started(m)] == [
        "POST",
        "PATCH",
    ]

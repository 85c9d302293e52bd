"""A cluster on the nodes of a Ray that others started: every node serves, whoever comes, goes, dies and comes back.

What happens is in ``nodes_scenario.py``, which needs a network of its own: the facts are judged here.
"""

from pathlib import Path
from typing import Any

import pytest
from nodes_site import played, said

ALL = ["node-127-0-0-1", "node-127-0-0-2", "node-127-0-0-3"]
ADDRESSES = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
HELLO = "hello from Zig"


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return played(Path(__file__).with_name("nodes_scenario.py"))


def test_every_node_serves_what_was_deployed_from_any_of_them(facts: dict[str, Any]) -> None:
    assert sorted(said(facts["up"])["servers"]) == ALL
    deployed = said(facts["deploy"])
    assert (sorted(deployed["servers"]), deployed["late"]) == (ALL, [])
    assert all(text.startswith(HELLO) for text in facts["fetched"]), facts["fetched"]


def test_every_node_tells_the_same(facts: dict[str, Any]) -> None:
    assert facts["before"]["code"] == 3
    for status in facts["status"].values():
        told = said(status)
        assert told["addresses"] == dict(zip(ALL, ADDRESSES, strict=True))
        assert sorted(told["membership"]["servers"]) == ALL
        assert not [counters for counters in told["roles"].values() if "error" in counters]


def test_an_edge_listens_at_its_node_and_the_authoritys_key_stays_on_the_head(facts: dict[str, Any]) -> None:
    assert facts["listening"] == ADDRESSES
    assert facts["secrets"] == {"1": ["tls/ca.key"], "2": [], "3": []}


def test_a_node_that_joins_late_serves_within_seconds(facts: dict[str, Any]) -> None:
    assert facts["joined_after_s"] is not None  # some 4 s, and as long as processes take to start on a busy machine
    assert facts["joined_serves_after_s"] is not None


def test_a_node_that_comes_and_goes_under_load_is_noticed_by_no_client(facts: dict[str, Any]) -> None:
    """Clients use its edge as soon as it answers, and until it refuses them. What it took over it gives back."""
    three, four, left = (facts[f"homes_of_{which}"] for which in ("three", "four", "those_left"))
    moved = {worker for worker in three if three[worker] != four[worker]}
    assert {four[worker] for worker in moved} == {"node-127-0-0-4"}
    assert left == three
    seen = facts["load"]
    assert [one for one in seen if one["status"] != 200] == []
    of_moved = [one for one in seen if one["worker"] in moved]
    assert [one for one in of_moved if "start;desc=cold" in one["timing"].replace('"', "")] == []
    assert [one for one in of_moved if "node-127-0-0-4" in one["timing"]] != []


def test_a_server_is_removed_and_called_back(facts: dict[str, Any]) -> None:
    assert sorted(said(facts["removed"])["servers"]) == ALL
    assert sorted(said(facts["called_back"])["servers"]) == [*ALL, "node-127-0-0-4"]
    assert facts["removed_wrong"]["err"].startswith("everwarm: There is no server node-127-0-0-9; there are node-127")
    assert facts["down_on_a_node"]["err"].startswith("everwarm: This machine is a node of a cluster.")


def test_a_node_that_dies_is_out_and_the_same_server_when_it_comes_back(facts: dict[str, Any]) -> None:
    assert facts["dead_out_after_s"] is not None
    assert facts["dead_forgotten_after_s"] is not None
    assert all(text.startswith(HELLO) for text in facts["fetched_meanwhile"])
    assert facts["back_after_s"] is not None
    assert facts["fetched_back"].startswith(HELLO)


def test_the_owners_death_is_not_the_clusters(facts: dict[str, Any]) -> None:
    assert all(text.startswith(HELLO) for text in facts["fetched_without_owner"])
    assert said(facts["up_again"])["servers"]
    assert facts["all_again_after_s"] is not None  # at once, unless this machine is too busy to start them in a minute
    assert all(text.startswith(HELLO) for text in facts["fetched_again"]), facts["fetched_again"]


def test_down_leaves_nothing(facts: dict[str, Any]) -> None:
    assert facts["down"]["code"] == 0, facts["down"]
    edges, status, processes = facts["after"]
    assert edges == []
    assert status["code"] == 3
    assert facts["processes"] >= 1 + 4 * 4  # and those that are kept ready
    assert processes == 0

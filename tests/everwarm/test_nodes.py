"""Which node has a server: what Ray says of its nodes, a line at a time."""

import pytest

from everwarm.nodes import Bring, Forget, Node, NodeLimits, Nodes, SendAway, Stand, server_name

ONE, TWO, TWO_AGAIN = Node("a1", "10.0.0.1"), Node("b2", "10.0.0.2"), Node("b3", "10.0.0.2")
FIRST, SECOND = "node-10-0-0-1", "node-10-0-0-2"


def with_servers(*there: Node) -> Nodes:
    nodes = Nodes()
    nodes.saw(there, 0.0)
    for node in there:
        nodes.came(server_name(node.address))
    return nodes


@pytest.mark.parametrize(
    ("address", "name"), [("10.77.0.2", "node-10-77-0-2"), ("fd00::7", "node-fd00--7"), ("127.0.0.1", "node-127-0-0-1")]
)
def test_a_server_has_the_name_of_its_nodes_address(address: str, name: str) -> None:
    assert server_name(address) == name


def test_each_node_gets_one_server_and_a_look_changes_nothing() -> None:
    nodes = Nodes()
    assert nodes.saw([ONE, TWO], 0.0) == [Bring(FIRST, ONE), Bring(SECOND, TWO)]
    assert nodes.saw([TWO, ONE], 0.5) == []
    nodes.came(FIRST)
    assert nodes.saw([ONE, TWO], 1.0) == []
    assert repr(nodes) == f"{FIRST}: here, {SECOND}: coming"


def test_a_node_that_is_gone_is_forgotten_wherever_its_server_was() -> None:
    for stand in Stand:
        nodes = with_servers(ONE, TWO)
        nodes._servers[SECOND] = nodes._servers[SECOND].__class__(TWO, stand)
        assert nodes.saw([ONE], 1.0) == [Forget(SECOND)]
        nodes.came(SECOND)  # news of what was under way there come too late, and mean nothing
        nodes.failed(SECOND, 1.0)
        nodes.left(SECOND)
        assert nodes.stand(SECOND) is None


def test_a_machine_that_comes_back_is_the_same_server_when_its_death_is_known() -> None:
    nodes = with_servers(ONE, TWO)
    assert nodes.saw([ONE, TWO, TWO_AGAIN], 1.0) == []
    assert nodes.saw([ONE, TWO_AGAIN], 2.0) == [Forget(SECOND), Bring(SECOND, TWO_AGAIN)]


def test_what_does_not_start_is_tried_again_later_each_time() -> None:
    nodes, now_s, tries = Nodes(), 0.0, []
    while now_s < 200.0:
        if nodes.saw([ONE], now_s):
            tries.append(now_s)
            nodes.failed(FIRST, now_s)
        now_s += 0.5
    assert tries == [0.0, 2.0, 6.0, 14.0, 30.0, 62.0, 122.0, 182.0]
    assert nodes.saw([ONE], 1_000.0) == [Bring(FIRST, ONE)]
    nodes.came(FIRST)
    assert nodes.saw([], 1_001.0) == [Forget(FIRST)]


def test_a_node_that_leaves_is_drained_and_gets_no_server_again() -> None:
    nodes = with_servers(ONE, TWO)
    leaving = Node(TWO.node_id, TWO.address, leaves=True)
    assert nodes.saw([ONE, leaving], 1.0) == [SendAway(SECOND)]
    nodes.left(SECOND)
    assert nodes.saw([ONE, leaving], 2.0) == []
    assert nodes.call_back() == []
    assert nodes.saw([ONE], 3.0) == [Forget(SECOND)]
    assert Nodes().saw([leaving], 0.0) == []


def test_a_node_that_leaves_while_its_server_comes_is_drained_when_it_came() -> None:
    nodes = Nodes()
    nodes.saw([TWO], 0.0)
    leaving = Node(TWO.node_id, TWO.address, leaves=True)
    assert nodes.saw([leaving], 0.5) == []
    nodes.came(SECOND)
    assert nodes.saw([leaving], 1.0) == [SendAway(SECOND)]


def test_a_dismissed_server_stays_away_until_it_is_called_back() -> None:
    nodes = with_servers(ONE, TWO)
    assert nodes.dismiss(SECOND) == SendAway(SECOND)
    assert nodes.dismiss(SECOND) is None
    assert nodes.dismiss("node-10-0-0-9") is None
    assert nodes.call_back() == []  # it is still on its way out
    nodes.left(SECOND)
    assert nodes.saw([ONE, TWO], 1.0) == []
    assert nodes.call_back() == [SECOND]
    assert nodes.saw([ONE, TWO], 2.0) == [Bring(SECOND, TWO)]


def test_not_all_machines_of_a_large_cluster_start_at_once() -> None:
    many = [Node(f"n{i}", f"10.0.1.{i}") for i in range(10)]
    nodes = Nodes(NodeLimits(coming_max=4))
    first = nodes.saw(many, 0.0)
    assert len(first) == 4
    assert nodes.saw(many, 0.5) == []
    for bring in first[:3]:
        assert isinstance(bring, Bring)
        nodes.came(bring.server)
    assert len(nodes.saw(many, 1.0)) == 3

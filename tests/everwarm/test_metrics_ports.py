"""Where the metrics of each server are read, and that no guest gets there."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors.egress_policy import Target
from actors.peer import LocalPeers
from everwarm.cluster_config import ClusterConfig
from everwarm.roles import World


async def _nobody(payload: bytes) -> bytes:
    """Shares nothing: no role is started."""
    return payload


def world(config: ClusterConfig, edge_port: int) -> World:
    return World(config, "server", "server-1", LocalPeers(), Path(config.home), edge_port, _nobody, _nobody)


@pytest.mark.parametrize(
    ("port", "metrics_port", "edge_port", "expected"),
    [(8443, 9443, 8443, 9443), (8443, 9443, 8445, 9445), (8443, 9100, 8444, 9101), (8443, 0, 8444, 0), (0, 9443, 0, 0)],
)
def test_they_stand_in_a_row_as_the_edges_do(port: int, metrics_port: int, edge_port: int, expected: int) -> None:
    config = ClusterConfig("home", port=port, metrics_port=metrics_port)
    assert world(config, edge_port).metrics_port == expected


def test_no_guest_reads_them_whatever_the_operator_allows() -> None:
    config = ClusterConfig("home", port=8443, metrics_port=9443, egress_allow=("127.0.0.0/8", "[::1]"))

    def is_open(policy_of: str, address: str, port: int) -> bool:
        policy = config.egress_policy(policy_of)
        by_number = policy.refusal(Target("http", address, port), None) is None
        by_name = bool(policy.permitted(Target("http", "a.test", port), [address]))
        assert by_number == by_name
        return by_number

    assert is_open("127.0.0.1:9443", "127.0.0.1", 9000)
    for port in (9443, 9444, 9458):
        assert not is_open("127.0.0.1:9443", "127.0.0.1", port)
        assert not is_open("0.0.0.0:9443", "127.0.0.1", port)
    assert not is_open("[::1]:9443", "::1", 9443)
    config = replace(config, metrics_port=0)
    assert not is_open("127.0.0.1:40123", "127.0.0.1", 40123)
    assert is_open("", "127.0.0.1", 9443)

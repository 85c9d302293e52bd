"""Where the way out does not lead, and how much of it a worker may have."""

import asyncio
import contextlib
import os
import socket
from ipaddress import ip_address
from typing import Any

import pytest
from complete_servers import wait_until
from way_out import LIMIT_S, Make, Way, read

from actors.connection import Frame, frame
from actors.egress import EgressLimits
from actors.egress_connect import _is_own
from actors.egress_line import HostOutgoing
from actors.egress_names import SystemNames
from actors.egress_origin import OriginLimits
from isolates.egress import OutgoingTimeouts

# -------------------------------------------------------------------------------------------------------- refusals


def test_nobody_listens(make: Make) -> None:
    way = make()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        way.origin.port = taken.getsockname()[1]
    assert way.get("/").code == ("connection-refused", None)
    assert way.statistics()["failures"] == {"connection-refused": 1}


def test_unknown_names(make: Make) -> None:
    assert make().get("/", host="nowhere.test").code == ("DNS-error", ("NXDOMAIN", None))


def test_a_name_with_a_private_address_is_refused(make: Make) -> None:
    way = make(added=None, names={"evil.test": [["127.0.0.1", "10.0.0.1", "::1", "169.254.169.254"]]})
    way.origin.port = 80
    assert way.get("/", host="evil.test").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="127.0.0.1").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="[::ffff:127.0.0.1]").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="169.254.169.254").code == ("destination-IP-prohibited", None)
    assert way.get("/", host="localhost").code == ("destination-not-found", None)
    assert way.get("/", host="2130706433").code == ("DNS-error", ("NXDOMAIN", None))
    way.origin.port = 8080
    assert way.get("/", host="evil.test").code == ("HTTP-request-denied", None)


def test_of_several_addresses_only_permitted_ones_are_tried(make: Make) -> None:
    way = make(names={"mixed.test": [["10.0.0.1", "192.168.0.1", "127.0.0.1"]]})
    assert way.get("/hello", host="mixed.test").body == b"hello"


def test_the_next_address_is_tried(make: Make) -> None:
    way = make(added="127.0.0.0/8", names={"two.test": [["127.0.0.2", "127.0.0.1"]]})
    assert way.get("/hello", host="two.test").body == b"hello"


def test_a_name_that_answers_differently_the_next_time(make: Make) -> None:
    way = make(names={"rebind.test": [["127.0.0.1"], ["169.254.169.254"]]})
    assert way.get("/once", host="rebind.test").body == b"bye"
    assert way.names.asked == [("worker", "rebind.test")]  # once, and what was judged was connected to
    assert way.get("/once", host="rebind.test").code == ("destination-IP-prohibited", None)


def test_the_clusters_own_addresses(make: Make) -> None:
    way = make(own=("127.0.0.1",))
    assert way.get("/hello").code == ("destination-IP-prohibited", None)
    assert way.get("/hello", host="127.0.0.1").code == ("destination-IP-prohibited", None)


def test_this_machines_own_addresses() -> None:
    assert _is_own("127.0.0.1")
    assert _is_own("::1") or not socket.has_ipv6
    assert not _is_own("8.8.8.8")


def test_an_allow_list_holds_also_for_a_connection_that_is_open(make: Make) -> None:
    way = make()
    assert way.get("/hello").body == b"hello"
    assert way.get("/hello", allow=("other.test",)).code == ("HTTP-request-denied", None)
    assert way.get("/hello", allow=("*.test",)).body == b"hello"


def test_a_circle_is_broken(way: Way) -> None:
    assert way.get("/hello", loops_left=1).body == b"hello"
    assert way.get("/hello", loops_left=0).code == ("loop-detected", None)


@pytest.mark.parametrize(
    ("method", "path", "case"),
    [("CONNECT", "/", "HTTP-request-method-invalid"), ("GET", "/a b", "HTTP-request-URI-invalid")],
)
def test_nonsense_is_refused(make: Make, method: str, path: str, case: str) -> None:
    assert make().get(path, method).code == (case, None)


def test_certificates_that_are_not_the_names(make: Make) -> None:
    way = make("https", names={"other.test": [["127.0.0.1"]]})
    assert way.get("/hello", host="other.test").code == ("TLS-certificate-error", None)
    assert way.get("/hello", host="127.0.0.1").body == b"hello"
    stranger = make("https", trusted=False)
    assert stranger.get("/hello").code == ("TLS-certificate-error", None)


def test_an_origin_that_speaks_no_tls(make: Make) -> None:
    way = make("http")
    way.scheme = "https"
    code = way.get("/hello").code
    assert code is not None
    assert code[0] in ("TLS-protocol-error", "connection-terminated")


# ----------------------------------------------------------------------------------------------------------- bounds


def hold(way: Way, count: int, **about: Any) -> list[HostOutgoing]:
    """Exchanges that are open at the origin."""
    before = len(way.origin.requests)
    held = [way.open("/silent", **about) for _ in range(count)]
    for one in held:
        one.finish()
    way.until(lambda: len(way.origin.requests) >= before + count, "they are there")
    return held


def test_the_exchanges_of_a_worker_and_of_a_machine(make: Make) -> None:
    way = make(limits=EgressLimits(worker_exchanges_max=2, exchanges_max=3))
    held = hold(way, 2)
    assert way.get("/hello").code == ("connection-limit-reached", None)
    assert way.get("/hello", worker="other").body == b"hello"
    way.until(lambda: way.statistics()["links"] == 2, "its connection is gone")
    held += [way.open("/silent", worker="other")]
    way.until(lambda: way.statistics()["links"] == 3, "full")
    assert way.get("/hello", worker="third").code == ("connection-limit-reached", None)
    for one in held:
        one.close()


def test_the_seventh_of_a_tree_waits(make: Make) -> None:
    way = make()
    held = hold(way, 6, request_id="tree")
    seventh = way.open("/hello", request_id="tree")
    seventh.finish()
    assert way.get("/hello", request_id="other tree").body == b"hello"
    assert seventh.head() is None
    held[0].close()
    assert read(seventh).body == b"hello"
    late = way.get("/hello", request_id="tree", connections_max=6, timeouts=OutgoingTimeouts(connect_s=5.0))
    assert late.body == b"hello"
    held += hold(way, 1, request_id="tree")
    full = way.get("/hello", request_id="tree", timeouts=OutgoingTimeouts(connect_s=0.02))
    assert full.code == ("connection-limit-reached", None)
    for one in held:
        one.close()
    way.until(lambda: not way.server._trees, "nothing is kept of a tree that is over")


def test_the_six_are_those_of_all_stages_of_a_tree(make: Make) -> None:
    way = make()
    held = [one for worker in ("a", "b", "c") for one in hold(way, 2, request_id="tree", worker=worker)]
    seventh = way.open("/hello", request_id="tree", worker="d")
    seventh.finish()
    full = way.get("/hello", request_id="tree", worker="a", timeouts=OutgoingTimeouts(connect_s=0.02))
    assert full.code == ("connection-limit-reached", None)
    assert seventh.head() is None
    held[-1].close()
    assert read(seventh).body == b"hello"
    for one in held:
        one.close()


def test_a_worker_that_has_all_its_connections_waits(make: Make) -> None:
    way = make(limits=EgressLimits(origin=OriginLimits(connections_max=1)))
    (held,) = hold(way, 1)
    waiting = way.open("/hello")
    waiting.finish()
    full = way.get("/hello", timeouts=OutgoingTimeouts(connect_s=0.02))
    assert full.code == ("connection-limit-reached", None)
    assert way.get("/hello", worker="other").body == b"hello"
    assert waiting.head() is None
    held.close()
    assert read(waiting).body == b"hello"


def test_the_socket_is_this_users_alone(make: Make) -> None:
    assert os.stat(make().path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", frame(Frame.BODY, b"x"), frame(Frame.OUTGOING, b"nonsense"), frame(Frame.OUTGOING)[:3]],
)
def test_nonsense_ends_the_connection_and_nothing_else(make: Make, data: bytes) -> None:
    way = make(limits=EgressLimits(ask_s=0.1))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(way.path))
        stranger.sendall(data)
        stranger.settimeout(LIMIT_S)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
    assert way.get("/hello").body == b"hello"


# ------------------------------------------------------------------------------------------------------------ names


def test_the_machines_resolver() -> None:
    async def play() -> None:
        names = SystemNames()
        try:
            found = await names.lookup("w", "localhost", 80)
            assert found
            assert all(ip_address(address).is_loopback for address in found)
            with pytest.raises(socket.gaierror):
                await names.lookup("w", "nowhere.invalid", 80)
            for _ in range(10):
                await names.lookup("w", "127.0.0.1", 80)

            async def idle() -> bool:
                return not names._gates and not names._under_way

            await wait_until(idle, "nothing is kept")
        finally:
            names.close()

    asyncio.run(play())

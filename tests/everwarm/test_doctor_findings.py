"""What the doctor says of a cluster: well at first, and then each thing that can be wrong with it."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from everwarm.doctor.facts import Actor, Clock, ClusterFacts, Disk, Node, Port, Ssh, Token
from everwarm.doctor.findings import Check, Finding, Level, by_level, judge

GIB = 1 << 30
HEAD, ONE, TWO = "10.0.0.1", "10.0.0.2", "10.0.0.3"
ROLES = ("server", "shard", "ingress", "host")
SERVERS = {"node-1": HEAD, "node-2": ONE, "node-3": TWO}
SETTINGS = {"RAY_AUTH_MODE": "token", "RAY_grpc_client_keepalive_time_ms": "2000"}
SECRET_DIGEST = "5ec2e7" * 10


def node(address: str) -> Node:
    return Node(
        address,
        f"host-{address[-1]}",
        "ray",
        {"python": "3.11.7", "everwarm": "0.1.0+aa", "ray": "2.60.0", "wasmtime": "50.0.1"},
        Token("~/.ray/auth_token", 0o600, SECRET_DIGEST),
        SETTINGS,
        (Disk("state", "~/.everwarm", 50 * GIB, 100 * GIB),),
        Clock(0.001, 0.002),
    )


WELL = ClusterFacts(
    head=HEAD,
    expected=(ONE, TWO),
    ssh=(Ssh(ONE), Ssh(TWO)),
    ray_address="10.0.0.1:6379",
    ray_failure="",
    ray_nodes=(HEAD, ONE, TWO),
    silent={},
    nodes=(node(HEAD), node(ONE), node(TWO)),
    ports=tuple(Port("HTTPS of x", to, 8443, by) for to in (HEAD, ONE, TWO) for by in (HEAD, ONE, TWO)),
    actors=(Actor("control", "everwarm"), *(Actor(f"{s}/{r}", "everwarm") for s in SERVERS for r in ROLES)),
    servers=SERVERS,
    on_nodes=True,
)


def bad(facts: ClusterFacts) -> list[Finding]:
    return [finding for finding in judge(facts) if finding.level is not Level.OK]


def with_node(change: Callable[[Node], Node]) -> ClusterFacts:
    """The second worker is another."""
    return replace(WELL, nodes=(*WELL.nodes[:2], change(WELL.nodes[2])))


def test_all_is_well_in_a_line_a_check() -> None:
    findings = judge(WELL)
    assert [finding.check for finding in findings] == list(Check)
    assert by_level(findings) == {Level.OK: len(Check), Level.WARNING: 0, Level.WRONG: 0}
    assert all(not finding.do for finding in findings)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("root@10.0.0.3: Permission denied (publickey).", "authorized_keys"),
        ("ssh: connect to host 10.0.0.3 port 22: Connection refused", "sshd"),
        ("ssh: connect to host 10.0.0.3 port 22: Connection timed out", "firewall"),
        ("bash: line 1: ~/everwarm/venv/bin/python: No such file or directory", "setup commands"),
    ],
)
def test_a_worker_that_the_head_does_not_get_into(said: str, advice: str) -> None:
    (finding,) = bad(replace(WELL, ssh=(Ssh(ONE), Ssh(TWO, said))))
    assert (finding.check, finding.level) == (Check.SSH, Level.WRONG)
    assert said in finding.says
    assert advice in finding.do


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (Token("~/.ray/auth_token"), "there is no"),
        (Token("~/.ray/auth_token", 0o644, SECRET_DIGEST), "mode 644"),
        (Token("~/.ray/auth_token", 0o600, "0the2" * 12), "another token than the head's"),
    ],
)
def test_a_token_that_is_wrong(token: Token, says: str) -> None:
    facts = with_node(lambda node: replace(node, token=token))
    (finding,) = bad(facts)
    assert (finding.check, finding.level) == (Check.TOKENS, Level.WRONG)
    assert says in finding.says
    assert TWO in finding.says


def test_no_digest_of_a_token_is_ever_said() -> None:
    other = with_node(lambda node: replace(node, token=replace(node.token, digest="0the2" * 12)))
    for facts in (WELL, other):
        assert SECRET_DIGEST[:12] not in repr(judge(facts)) + repr(facts)
        assert "0the20the2" not in repr(judge(facts)) + repr(facts)


def test_ray_that_guesses_how_it_authenticates() -> None:
    facts = with_node(lambda node: replace(node, environment={**SETTINGS, "RAY_AUTH_MODE": ""}))
    assert {finding.check for finding in bad(facts)} == {Check.TOKENS, Check.SETTINGS}


@pytest.mark.parametrize(
    ("versions", "says"),
    [
        ({"ray": "2.59.0"}, "ray 2.59.0, the head has 2.60.0"),
        ({"wasmtime": ""}, "wasmtime is not installed"),
        ({"everwarm": "0.1.0+bb"}, "everwarm 0.1.0+bb"),  # the same version, other code
        ({"python": "3.12.1"}, "python 3.12.1"),
    ],
)
def test_another_version(versions: dict[str, str], says: str) -> None:
    (finding,) = bad(with_node(lambda node: replace(node, versions={**node.versions, **versions})))
    assert (finding.check, finding.level) == (Check.VERSIONS, Level.WRONG)
    assert says in finding.says


def test_a_patch_of_python_does_not_matter() -> None:
    assert not bad(with_node(lambda node: replace(node, versions={**node.versions, "python": "3.11.9"})))


def test_ray_that_does_not_answer_is_said_once() -> None:
    facts = replace(WELL, ray_failure="ConnectionError: nobody", ray_nodes=(), nodes=(node(HEAD),), ports=(), actors=())
    (finding,) = bad(replace(facts, servers=None))
    assert finding.check is Check.RAY
    assert "ConnectionError: nobody" in finding.says


def test_a_worker_that_has_not_joined_and_what_the_launcher_says_of_it() -> None:
    said = ("NodeUpdater: 10.0.0.2: fine", "NodeUpdater: 10.0.0.3: SSH still not available")
    facts = replace(WELL, ray_nodes=(HEAD, ONE), nodes=WELL.nodes[:2], launcher_said=said)
    (finding,) = bad(facts)
    assert finding.check is Check.RAY
    assert finding.says.startswith(TWO)
    assert said[1] in finding.says
    assert "RAY_UP_enable_autoscaler_v2=0" in finding.do


def test_a_node_that_ray_has_and_that_does_nothing() -> None:
    (finding,) = bad(replace(WELL, silent={TWO: "no answer in 30 s"}, nodes=WELL.nodes[:2]))
    assert finding.check is Check.RAY
    assert "no answer in 30 s" in finding.says


def test_settings_that_have_to_be_equal() -> None:
    slow = {**SETTINGS, "RAY_grpc_client_keepalive_time_ms": "300000"}
    (finding,) = bad(with_node(lambda node: replace(node, environment=slow)))
    assert (finding.check, finding.level) == (Check.SETTINGS, Level.WRONG)
    assert "300000" in finding.says


def test_rays_own_settings_are_a_warning() -> None:
    nodes = tuple(replace(n, environment={"RAY_AUTH_MODE": "token"}) for n in WELL.nodes)
    (finding,) = bad(replace(WELL, nodes=nodes))
    assert (finding.check, finding.level) == (Check.SETTINGS, Level.WARNING)
    assert not bad(replace(WELL, nodes=nodes, on_nodes=False))  # a Ray on loopback has no machines to lose


@pytest.mark.parametrize(
    ("clock", "level"),
    [
        (Clock(0.05, 0.01), None),
        (Clock(-0.3, 0.01), Level.WARNING),
        (Clock(0.3, 0.4), None),  # over ssh it is not known better
        (Clock(7.0, 0.5), Level.WRONG),
    ],
)
def test_a_clock_that_goes_wrong(clock: Clock, level: Level | None) -> None:
    found = bad(with_node(lambda node: replace(node, clock=clock)))
    assert [finding.level for finding in found] == ([level] if level else [])
    assert {finding.check for finding in found} <= {Check.CLOCKS}


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [
        (9 * GIB, 100 * GIB, Level.WARNING),
        (4 * GIB, 100 * GIB, Level.WRONG),
        (GIB // 2, 4 * GIB, Level.WRONG),
        (2 * GIB, 4 * GIB, None),
    ],
)
def test_a_disk_that_is_nearly_full(free: int, total: int, level: Level | None) -> None:
    disk = Disk("state", "~/.everwarm", free, total)
    found = bad(with_node(lambda node: replace(node, disks=(disk,))))
    assert [(finding.check, finding.level) for finding in found] == ([(Check.DISKS, level)] if level else [])


def test_no_control_plane() -> None:
    (finding,) = bad(replace(WELL, servers=None, actors=()))
    assert finding.check is Check.ACTORS
    assert "everwarm up --ray-address auto --detach" in finding.do


def test_a_control_plane_that_does_not_answer() -> None:
    (finding,) = bad(replace(WELL, servers=None))
    assert (finding.check, finding.says) == (Check.ACTORS, "the ControlPlane does not say which servers there are")


def test_a_role_that_is_gone() -> None:
    actors = tuple(actor for actor in WELL.actors if actor.name != "node-2/shard")
    (finding,) = bad(replace(WELL, actors=actors))
    assert (finding.check, finding.says) == (Check.ACTORS, "node-2: shard not running")


def test_a_second_control_plane_in_another_namespace() -> None:
    (finding,) = bad(replace(WELL, actors=(*WELL.actors, Actor("control", "mine"))))
    assert "'mine'" in finding.says
    assert not bad(replace(WELL, actors=(*WELL.actors, Actor("trainer", "mine"))))


def test_a_node_without_a_server() -> None:
    servers = {"node-1": HEAD, "node-2": ONE}
    (finding,) = bad(replace(WELL, servers=servers))
    assert finding.check is Check.ACTORS
    assert finding.says.startswith(TWO)


def test_a_port_that_one_machine_does_not_reach() -> None:
    ports = tuple(
        replace(port, failure="nobody answers") if (port.address, port.tried_from) == (TWO, ONE) else port
        for port in WELL.ports
    )
    (finding,) = bad(replace(WELL, ports=ports))
    assert finding.says == f"{TWO}:8443 (HTTPS of x) from {ONE}: nobody answers"
    assert "firewall" in finding.do

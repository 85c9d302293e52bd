"""Judges facts: for each question one line that says it is well, or a line for each thing that is wrong and what to do.

Pure: the same facts give the same findings. The numbers stand beside their reasons.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from everwarm.doctor.facts import Clock, ClusterFacts

#: Roles that every server has, beside its hosts. Each is a named actor, ``<server>/<role>``.
_ROLES = ("server", "shard", "ingress", "host")
_CONTROL = "control"
_NAMESPACE = "everwarm"
#: Ray makes no new objects on a disk that is this full, and a deploy then fails.
_USED_MAX = 0.95
_USED_WARN = 0.90
#: A JavaScript engine's compiled code is 30 MB, a heap's trace of a crash more; below this the next deploys fail.
_FREE_BYTES_MIN = 1 << 30
#: The spans of one trace come from several machines, and a hop takes 2 ms: a waterfall with more is drawn in disorder.
_CLOCK_WARN_S = 0.1
#: Certificates, tokens of others and the ring's epochs are dated.
_CLOCK_MAX_S = 5.0
#: Addresses that one line names; the others are counted.
_NAMED_MAX = 8


class Level(StrEnum):
    """How bad. ``WRONG`` makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"


class Check(StrEnum):
    """The questions, in the order in which they are asked: what fails early explains what fails later."""

    SSH = "ssh"
    TOKENS = "tokens"
    VERSIONS = "versions"
    RAY = "ray"
    SETTINGS = "settings"
    CLOCKS = "clocks"
    DISKS = "disks"
    ACTORS = "actors"
    PORTS = "ports"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line. ``do`` is empty when there is nothing to do."""

    check: Check
    level: Level
    says: str
    do: str = ""


def judge(facts: ClusterFacts) -> list[Finding]:
    """All findings, in the order of ``Check``."""
    checks = {
        Check.SSH: _ssh,
        Check.TOKENS: _tokens,
        Check.VERSIONS: _versions,
        Check.RAY: _ray,
        Check.SETTINGS: _settings,
        Check.CLOCKS: _clocks,
        Check.DISKS: _disks,
        Check.ACTORS: _actors,
        Check.PORTS: _ports,
    }
    return [Finding(check, *line) for check in Check for line in checks[check](facts)]


_Line = tuple[Level, str, str]
_Lines = Iterator[_Line]


def _ok(says: str) -> _Line:
    return Level.OK, says, ""


def _ssh(facts: ClusterFacts) -> _Lines:
    refused = [tried for tried in facts.ssh if tried.refused]
    for tried in refused:
        yield Level.WRONG, f"{tried.address}: the head does not get in ({tried.refused})", _way_in(tried.refused)
    entered = [tried.address for tried in facts.ssh if not tried.refused]
    if entered:
        yield _ok(f"the head gets into {_named(entered)}")
    elif not facts.ssh:
        yield _ok("there is no other machine to get into")


def _way_in(refused: str) -> str:
    if "ermission denied" in refused:
        return "Put the public half of the key of cluster.yaml's `auth` into the user's authorized_keys there."
    if "refused" in refused:
        return "Start sshd there."
    if "No such file" in refused or "not found" in refused:
        return "Run `ray up` again: its setup commands have not been through there."
    return "See that it is switched on, has this address, and that no firewall is between; then `ray up` again."


def _tokens(facts: ClusterFacts) -> _Lines:
    well = []
    reference = next((node.token.digest for node in facts.nodes if node.address == facts.head), "")
    for node in facts.nodes:
        token = node.token
        if token.mode is None:
            yield Level.WRONG, f"{node.address}: there is no {token.path}", "Run `./dev ray-up` again: it makes one."
        elif token.mode & 0o077:
            says = f"{node.address}: {token.path} can be read by others (mode {token.mode:o})"
            yield Level.WRONG, says, f"There: chmod 600 {token.path}"
        elif reference and token.digest != reference:
            says = f"{node.address}: {token.path} is another token than the head's"
            yield Level.WRONG, says, "Run `./dev ray-up` again: it copies one to all."
        elif node.asked_by == "ray" and node.environment.get("RAY_AUTH_MODE") != "token":
            says = f"{node.address}: Ray was started without RAY_AUTH_MODE=token"
            yield Level.WRONG, says, "Set it in front of every `ray start`: left unset, Ray guesses."
        else:
            well.append(node.address)
    if well:
        yield _ok(f"the same token with mode 600 on {_named(well)}")


def _versions(facts: ClusterFacts) -> _Lines:
    head = next((node for node in facts.nodes if node.address == facts.head), None)
    if head is None:
        return
    wrong = False
    for node in facts.nodes:
        for name, of_head in head.versions.items():
            found = node.versions.get(name, "")
            if not found:
                wrong = True
                yield (
                    Level.WRONG,
                    f"{node.address}: {name} is not installed",
                    "Run `ray up` again, and read what its setup commands say there.",
                )
            elif found != of_head and not (name == "python" and _minor(found) == _minor(of_head)):
                wrong = True
                yield Level.WRONG, f"{node.address}: {name} {found}, the head has {of_head}", _same(name)
    if not wrong:
        versions = ", ".join(f"{name} {version}" for name, version in head.versions.items())
        yield _ok(f"{versions} on {_named(node.address for node in facts.nodes)}")


def _same(name: str) -> str:
    if name == "python":
        return "Install the head's minor version there, remove ~/everwarm/venv, and run `ray up` again."
    if name == "cpu":
        return "Code is compiled for the head's, so it can be no server here. Take machines of one architecture."
    return "Run `./dev ray-up` again: it installs the same everywhere."


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _ray(facts: ClusterFacts) -> _Lines:
    if facts.ray_failure:
        do = "Is it running? `ray status` on the head; else `./dev ray-up`, or `everwarm up` for a Ray of its own."
        yield Level.WRONG, f"Ray at {facts.ray_address} does not answer: {facts.ray_failure}", do
        return
    missing = [address for address in facts.expected or () if address not in facts.ray_nodes]
    for address in missing:
        said = [line for line in facts.launcher_said if address in line]
        because = f" Its launcher says: {said[-1]}" if said else ""
        yield (
            Level.WRONG,
            f"{address}: not in Ray's cluster.{because}",
            "It may still be setting up; `ray exec cluster.yaml 'tail -n 50 /tmp/ray/session_latest/logs/monitor.out'`"
            " shows how far it is. With none joining, `ray up` was called without RAY_UP_enable_autoscaler_v2=0.",
        )
    for address, why in facts.silent.items():
        yield (
            Level.WRONG,
            f"{address}: Ray has it alive, and nothing could be started on it ({why})",
            "There: `ray stop`, then `ray up` again; look at raylet.out among its logs.",
        )
    if not missing and not facts.silent:
        count = len(facts.ray_nodes)
        yield _ok(f"{count} {'node' if count == 1 else 'nodes'} alive: {_named(facts.ray_nodes)}")


def _settings(facts: ClusterFacts) -> _Lines:
    asked = [node for node in facts.nodes if node.asked_by == "ray"]
    if not asked:
        return
    wrong = False
    first = asked[0]
    for node in asked[1:]:
        for name, value in first.environment.items():
            if node.environment.get(name, "") != value:
                wrong = True
                yield (
                    Level.WRONG,
                    f"{node.address}: {name} is {node.environment.get(name) or 'not set'},"
                    f" on {first.address} {value or 'not set'}",
                    "Give both start commands of cluster.yaml the same value, and run `ray up` again.",
                )
    if facts.on_nodes and not first.environment.get("RAY_grpc_client_keepalive_time_ms"):
        wrong = True
        yield (
            Level.WARNING,
            "Ray runs with its own settings: a machine that is cut off counts as alive for a minute",
            "Take the RAY_ settings of cluster.yaml's start commands over.",
        )
    if not wrong:
        yield _ok(f"Ray has the same settings on {_named(node.address for node in asked)}")


def _clocks(facts: ClusterFacts) -> _Lines:
    worst = Clock(0.0, 0.0)
    wrong = False
    for node in facts.nodes:
        clock = node.clock
        certain_s = abs(clock.ahead_s) - clock.error_s
        if certain_s > _CLOCK_WARN_S:
            wrong = True
            way = "ahead" if clock.ahead_s > 0 else "behind"
            yield (
                Level.WRONG if certain_s > _CLOCK_MAX_S else Level.WARNING,
                f"{node.address}: its clock is {abs(clock.ahead_s):.2f} s {way} (give or take {clock.error_s:.2f})",
                "Run an NTP client on all machines: `timedatectl set-ntp true`.",
            )
        if abs(clock.ahead_s) + clock.error_s > abs(worst.ahead_s) + worst.error_s:
            worst = clock
    if not wrong and facts.nodes:
        yield _ok(f"no clock is more than {abs(worst.ahead_s) + worst.error_s:.3f} s from the head's")


def _disks(facts: ClusterFacts) -> _Lines:
    least = min((disk.free_bytes for node in facts.nodes for disk in node.disks), default=0)
    wrong = False
    for node in facts.nodes:
        for disk in node.disks:
            used = 1.0 - disk.free_bytes / disk.total_bytes if disk.total_bytes else 1.0
            short = disk.free_bytes < min(_FREE_BYTES_MIN, disk.total_bytes // 4)
            if used > _USED_WARN or short:
                wrong = True
                yield (
                    Level.WRONG if used > _USED_MAX or short else Level.WARNING,
                    f"{node.address}: {disk.path} ({disk.holds}) is {used:.0%} full,"
                    f" {disk.free_bytes / (1 << 30):.1f} GiB free",
                    "Make room: old sessions of Ray in its temporary directory can go.",
                )
    if not wrong and facts.nodes:
        yield _ok(f"at least {least / (1 << 30):.1f} GiB free everywhere")


def _actors(facts: ClusterFacts) -> _Lines:
    if facts.ray_failure:
        return
    ours = {actor.name for actor in facts.actors if actor.namespace == _NAMESPACE}
    up = "`everwarm up --ray-address auto --detach` on the head" if facts.on_nodes else "`everwarm up`"
    if _CONTROL not in ours:
        yield Level.WRONG, "Everwarm does not run here: there is no ControlPlane", f"Start it: {up}."
        return
    if facts.servers is None:
        do = "See up.log in the head's state directory. Requests are served without it; deploys are not."
        yield Level.WRONG, "the ControlPlane does not say which servers there are", do
        return
    wrong = False
    for server in sorted(facts.servers):
        lost = [role for role in _ROLES if f"{server}/{role}" not in ours]
        if lost:
            wrong = True
            do = "See `everwarm status`, and up.log in the head's state directory."
            yield Level.WRONG, f"{server}: {', '.join(lost)} not running", do
    elsewhere = {actor.namespace for actor in facts.actors if actor.name == _CONTROL} - {_NAMESPACE}
    for namespace in sorted(elsewhere):
        wrong = True
        yield (
            Level.WRONG,
            f"there is another ControlPlane, in the namespace {namespace!r}",
            "Whoever started it connected with that namespace; `ray.kill` it there.",
        )
    if facts.on_nodes:
        bare = [address for address in facts.ray_nodes if address not in facts.servers.values()]
        for address in bare:
            wrong = True
            do = "It may have just joined; else see up.log in the head's state directory."
            yield Level.WRONG, f"{address}: a node of Ray without a server", do
    if not wrong:
        others = {actor.namespace for actor in facts.actors} - {_NAMESPACE}
        beside = f"; others have {_named(sorted(others))}" if others else ""
        yield _ok(f"{len(ours)} actors in the namespace {_NAMESPACE!r}, every server has its roles{beside}")


def _ports(facts: ClusterFacts) -> _Lines:
    closed = [port for port in facts.ports if port.failure]
    by_target: dict[tuple[str, str, int, str], list[str]] = {}
    for port in closed:
        by_target.setdefault((port.of, port.address, port.port, port.failure), []).append(port.tried_from)
    for (of, address, number, failure), tried_from in by_target.items():
        yield (
            Level.WRONG,
            f"{address}:{number} ({of}) from {_named(tried_from)}: {failure}",
            "Open it in the machines' firewall for each other."
            if "answer" in failure
            else "See that what listens there runs: `everwarm status`.",
        )
    if facts.ports and not closed:
        ports = {(port.address, port.port) for port in facts.ports}
        places = {port.tried_from for port in facts.ports}
        yield _ok(f"{len(ports)} ports, tried from {len(places)} {'machine' if len(places) == 1 else 'machines'}")


def _named(addresses: Iterable[str]) -> str:
    every = list(addresses)
    more = f" and {len(every) - _NAMED_MAX} more" if len(every) > _NAMED_MAX else ""
    return ", ".join(every[:_NAMED_MAX]) + more


def by_level(findings: Iterable[Finding]) -> Mapping[Level, int]:
    """How many of each level."""
    counts = dict.fromkeys(Level, 0)
    for finding in findings:
        counts[finding.level] += 1
    return counts

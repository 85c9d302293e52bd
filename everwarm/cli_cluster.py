"""Commands about a cluster: up, down, status."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from everwarm.cli_crashes import supervision_lines
from everwarm.cli_servers import membership_text
from everwarm.console import JSON, fail, open_home, progress, when
from everwarm.home import Home

#: Metrics are read so many ports above requests: two clusters whose edges do not meet do not meet there either.
METRICS_ABOVE = 1_000


@click.command()
@click.option("--servers", default=3, show_default=True, type=click.IntRange(1, 16), help="Servers on this machine.")
@click.option("--port", default=8443, show_default=True, type=click.IntRange(0, 65519), help="HTTPS port of the first.")
@click.option("--address", default="", help="Address to listen on: 127.0.0.1, or each node's own on a Ray's nodes.")
@click.option(
    "--ray-address",
    default="",
    metavar="HOST:PORT",
    help="Run on all nodes of this Ray, which others started (auto: the one on this machine), a server on each.",
)
@click.option(
    "--metrics-port",
    default=None,
    type=click.IntRange(0, 65519),
    help="Port of the first server's Prometheus metrics; the others follow.  [default: 1000 above --port]",
)
@click.option("--metrics-address", default="", help="Address to listen on for them: loopback, unless it is named here.")
@click.option("--metrics/--no-metrics", default=True, help="Whether metrics can be read.")
@click.option("--otlp", "otlp_url", default="", metavar="URL", help="Send traces and metrics to this OTLP endpoint.")
@click.option("--traces/--no-traces", default=True, help="Whether clients' requests leave traces.")
@click.option("--otlp-header", multiple=True, metavar="K=V", help="A header for that endpoint; may be repeated.")
@click.option("--certificates", default="", metavar="DIR", help="PEM files by host name, instead of the local CA's.")
@click.option(
    "--hosts", default=1, show_default=True, type=click.IntRange(1, 16), help="Processes of isolates in each server."
)
@click.option(
    "--memory-mib", default=2048, show_default=True, type=click.IntRange(64), help="For each host's isolates."
)
@click.option(
    "--isolates", default=2000, show_default=True, type=click.IntRange(1, 20_000), help="At most, in each host."
)
@click.option("--sharding/--no-sharding", default=True, help="Send requests to the home of their worker, or never.")
@click.option("--restarts/--no-restarts", default=True, help="Replace a process that dies or hangs, or leave it.")
@click.option(
    "--egress-allow",
    multiple=True,
    metavar="HOST:PORT",
    help="Let workers reach this too, beyond public addresses on ports 80 and 443; may be repeated.",
)
@click.option("--detach", is_flag=True, help="Run in the background; end it with: everwarm down")
@click.option("--examples", is_flag=True, help="Deploy the example workers and say what to try.")
@click.option("--with-js", is_flag=True, help="With --examples: build and deploy the JavaScript worker too.")
@click.option("--with-python", is_flag=True, help="With --examples: build and deploy the Python worker too.")
@JSON
def up(
    servers: int,
    port: int,
    address: str,
    ray_address: str,
    metrics_port: int | None,
    metrics_address: str,
    metrics: bool,
    otlp_url: str,
    traces: bool,
    otlp_header: tuple[str, ...],
    certificates: str,
    hosts: int,
    memory_mib: int,
    isolates: int,
    sharding: bool,
    restarts: bool,
    egress_allow: tuple[str, ...],
    detach: bool,
    examples: bool,
    with_js: bool,
    with_python: bool,
    as_json: bool,
) -> None:
    """Start a cluster on this machine, or on the nodes of a Ray, and keep it until Ctrl-C."""
    from everwarm.up import UpFailed, run
    from everwarm.up import detach as run_detached

    began_s = time.monotonic()
    home = open_home()
    headers = _headers(otlp_header)
    if certificates and not Path(certificates).is_dir():
        fail(f"There is no directory {certificates} to read certificates from.")
    if metrics_port is None:
        metrics_port = port + METRICS_ABOVE if port else 0
    if metrics and metrics_port > 65519:
        fail(f"With --port {port} there is no room for the metrics' ports above it. Choose one with --metrics-port.")
    if egress_allow:
        from actors.egress_policy import parse_rule

        try:
            unbound = [text for text in egress_allow if parse_rule(text).port is None]
        except ValueError as wrong:
            fail(f"--egress-allow {wrong}")
        if unbound:
            fail(f"--egress-allow takes HOST:PORT, not {unbound[0]!r}")
    if otlp_url:
        from tracing.otlp_url import traces_endpoint

        try:
            traces_endpoint(otlp_url)
        except ValueError as wrong:
            fail(wrong)
    if detach:
        try:
            # Headers may be secrets, so they do not go through the arguments of a process.
            os.environ["EVERWARM_OTLP_HEADERS"] = json.dumps(headers)
            running = run_detached(home, [a for a in sys.argv[2:] if a not in ("--detach", "--json")],
                                   on_nodes=bool(ray_address))  # fmt: skip
        except UpFailed as failed:
            fail(failed)
        if as_json:
            click.echo(json.dumps({"pid": running.pid, "servers": running.servers, "ca": str(home.ca_certificate)}))
        else:
            ports = ", ".join(f"{name} on port {p}" for name, p in sorted(running.servers.items()))
            click.echo(f"Everwarm is up (pid {running.pid}): {ports}. See: everwarm status. End: everwarm down")
        return
    headers = headers or json.loads(os.environ.pop("EVERWARM_OTLP_HEADERS", "{}"))
    viewing = None if otlp_url else home.viewing()
    if viewing is not None:
        otlp_url, headers = viewing
        progress("traces go to the viewer that runs from this state directory")
    if not ray_address:
        os.environ.update(home.ray_environment())
    from everwarm.cluster_config import ClusterConfig

    config = ClusterConfig(
        home=str(home.directory),
        servers=1 if ray_address else servers,
        address=address or ("" if ray_address else "127.0.0.1"),
        ray_address=ray_address,
        port=port,
        otlp_url=otlp_url,
        otlp_headers=headers,
        otlp_metrics=viewing is None,
        traces=traces,
        metrics=metrics,
        metrics_address=metrics_address,
        metrics_port=metrics_port,
        certificates=str(Path(certificates).absolute()) if certificates else "",
        egress_allow=egress_allow,
        memory_bytes_max=memory_mib << 20,
        isolates_max=isolates,
        sharding=sharding,
        restarts=restarts,
        hosts=hosts,
    )
    try:
        run(
            home,
            config,
            progress=progress,
            on_ready=lambda running: _ready(home, running, began_s, examples, with_js, with_python, as_json),
        )
    except UpFailed as failed:
        fail(failed)


def _ready(
    home: Home, running: Any, began_s: float, examples: bool, with_js: bool, with_python: bool, as_json: bool
) -> None:
    """The cluster is there: deploy the examples and say so."""
    deployed: list[str] = []
    if examples:
        from everwarm.answers import EverwarmError
        from everwarm.client import connect
        from everwarm.examples import NoExamples, deploy_examples, what_to_try

        try:
            with connect(home) as client:
                deployed = deploy_examples(client, home, with_js=with_js, with_python=with_python, progress=progress)
        except (EverwarmError, NoExamples) as failed:
            progress(f"The examples were not deployed: {failed}")
        progress(f"ready after {time.monotonic() - began_s:.1f} s\n")
        if not as_json:
            click.echo(what_to_try(home, running, deployed))
    if as_json:
        click.echo(json.dumps({"pid": running.pid, "servers": running.servers, "ca": str(home.ca_certificate)}))
    elif not examples:
        ports = ", ".join(f"{name} on port {p}" for name, p in sorted(running.servers.items()))
        click.echo(f"Everwarm is up: {ports}. Ctrl-C ends it.")


def _headers(pairs: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            fail(f"--otlp-header takes NAME=VALUE, not {pair!r}")
        headers[name] = value
    return headers


@click.command()
def down() -> None:
    """End the cluster that runs from this state directory, with all its processes."""
    from everwarm.up import down as end

    home = open_home()
    if home.last_running() is None and home.joined() is not None:
        fail("This machine is a node of a cluster. End it on its head, or remove this one: everwarm servers remove")
    click.echo("Everwarm is down." if end(home) else "No cluster runs from this state directory.")


@click.command()
@JSON
def status(as_json: bool) -> None:
    """What runs: servers, workers and their homes, counters."""
    from everwarm.answers import NotRunning
    from everwarm.client import connect

    home = open_home()
    try:
        client = connect(home)
    except NotRunning as missing:
        click.echo(json.dumps({"running": False}) if as_json else str(missing))
        sys.exit(3)
    except (ConnectionError, ValueError) as refused:
        fail(f"The cluster does not answer ({refused}).")
    with client:
        running, counters = client.running, client.statistics()
        workers, membership = client.workers(), client.members()
    if as_json:
        found = {"pid": running.pid, "servers": running.servers, "addresses": running.addresses,
                 "membership": membership, "roles": counters}  # fmt: skip
        click.echo(json.dumps({"running": True, **found}))
        return
    click.echo(
        f"Everwarm runs (pid {running.pid}) since {when(int(running.started_at_s * 1000))}, {len(workers)} workers."
    )
    click.echo(f"Local CA: {home.ca_certificate}\n")
    wide = max([10, *map(len, running.servers)]) + 2
    click.echo(
        f"{'server':<{wide}}{'https':<24}{'requests':>9}{'isolates':>9}{'running':>8}{'sharded out':>12}{'refused':>8}"
        f"{'in':>6}"
    )
    for server, port in sorted(running.servers.items()):
        of = {address.partition("/")[2]: c for address, c in counters.items() if address.startswith(f"{server}/")}
        broken = [role for role, values in of.items() if "error" in values]
        hosts = [values for role, values in of.items() if role.startswith("host") and role not in broken]
        if not hosts or any(not role.startswith("host") for role in broken):
            click.echo(f"{server:<{wide}}{', '.join(broken)} not reachable")
            continue
        sharded = of["server"]["sharded"]
        click.echo(
            f"{server:<{wide}}{running.addresses[server] + ':' + str(port):<24}{of['ingress']['requests']:>9}"
            f"{sum(h['isolates'] for h in hosts):>9}{sum(h['running'] for h in hosts):>8}"
            f"{sharded['offered']:>12}{sharded['refused']:>8}{of['shard']['admitted']:>6}"
            + (f"  {', '.join(broken)} not reachable" if broken else "")
        )
    for line in _cordon_lines(counters):
        click.echo(line)
    metrics = [c["metrics"] for a, c in sorted(counters.items()) if a.endswith("/server") and c.get("metrics")]
    if metrics:
        click.echo("\nmetrics: " + ", ".join(f"http://{where}/metrics" for where in metrics))
    click.echo("\n" + membership_text(membership))
    for line in supervision_lines(home):
        click.echo(line)
    homes: dict[str, str] = next(
        (c["homes"] for address, c in counters.items() if address.endswith("/server") and "homes" in c), {}
    )
    click.echo("\nhomes: " + (", ".join(f"{worker} at {where}" for worker, where in sorted(homes.items())) or "none"))


def _cordon_lines(counters: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The host processes of each cordon; nothing while all that is deployed is in one."""
    of: dict[str, list[Mapping[str, Any]]] = {}
    for _, host in sorted(counters.items()):
        if "cordon" in host:
            of.setdefault(host["cordon"], []).append(host)
    if len(of) > 1:
        wide = max([10, *map(len, of)]) + 2
        yield f"\n{'cordon':<{wide}}{'hosts':>7}{'isolates':>9}{'running':>8}{'MiB':>8}{'of':>8}"
        for cordon, hosts in sorted(of.items()):
            yield (
                f"{cordon:<{wide}}{len(hosts):>7}{sum(h['isolates'] for h in hosts):>9}"
                f"{sum(h['running'] for h in hosts):>8}{sum(h['memory_bytes'] for h in hosts) >> 20:>8}"
                f"{sum(h['memory_bytes_max'] for h in hosts) >> 20:>8}"
            )


COMMANDS: tuple[click.Command, ...] = (up, down, status)

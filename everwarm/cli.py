"""The command line. Each command is a few lines around ``client``, ``up``, ``build`` and ``viewer``.

Errors are one clear line on stderr and exit code 1; ``--json`` prints one JSON document on stdout and nothing else.
Anything slow is imported inside its command, so that ``--help`` answers at once.
"""

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from everwarm.home import Home, HomeUnusable

if TYPE_CHECKING:
    from everwarm.client import Client

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def _fail(message: object) -> NoReturn:
    click.echo(f"everwarm: {message}", err=True)
    sys.exit(1)


def _home() -> Home:
    try:
        return Home.open()
    except HomeUnusable as unusable:
        _fail(unusable)


def _connect() -> "Client":
    from everwarm.client import NotRunning, connect

    try:
        return connect(_home())
    except NotRunning as missing:
        _fail(missing)
    except (ConnectionError, ValueError) as refused:
        _fail(f"The cluster does not answer ({refused}). See: everwarm status")


def _progress(line: str) -> None:
    click.echo(line, err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="everwarm")
def main() -> None:
    """WebAssembly workers on a Ray cluster, kept warm.

    The state directory is ~/.everwarm, or what EVERWARM_HOME names.
    """


# -------------------------------------------------------------------------------------------------- up, status, down


@main.command()
@click.option("--servers", default=3, show_default=True, type=click.IntRange(1, 16), help="Servers on this machine.")
@click.option("--port", default=8443, show_default=True, type=click.IntRange(0, 65519), help="HTTPS port of the first.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--otlp", "otlp_url", default="", metavar="URL", help="Send traces to this OTLP/HTTP endpoint.")
@click.option("--otlp-header", multiple=True, metavar="K=V", help="A header for that endpoint; may be repeated.")
@click.option("--certificates", default="", metavar="DIR", help="PEM files by host name, instead of the local CA's.")
@click.option(
    "--hosts", default=1, show_default=True, type=click.IntRange(1, 16), help="Processes of isolates in each server."
)
@click.option(
    "--memory-mib", default=2048, show_default=True, type=click.IntRange(64), help="For each host's isolates."
)
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
    otlp_url: str,
    otlp_header: tuple[str, ...],
    certificates: str,
    hosts: int,
    memory_mib: int,
    egress_allow: tuple[str, ...],
    detach: bool,
    examples: bool,
    with_js: bool,
    with_python: bool,
    as_json: bool,
) -> None:
    """Start a cluster on this machine and keep it until Ctrl-C."""
    from everwarm.up import UpFailed, run
    from everwarm.up import detach as run_detached

    began_s = time.monotonic()
    home = _home()
    headers = _headers(otlp_header)
    if certificates and not Path(certificates).is_dir():
        _fail(f"There is no directory {certificates} to read certificates from.")
    if egress_allow:
        from actors.egress_policy import parse_rule

        try:
            unbound = [text for text in egress_allow if parse_rule(text).port is None]
        except ValueError as wrong:
            _fail(f"--egress-allow {wrong}")
        if unbound:
            _fail(f"--egress-allow takes HOST:PORT, not {unbound[0]!r}")
    if otlp_url:
        from tracing.export import traces_endpoint

        try:
            traces_endpoint(otlp_url)
        except ValueError as wrong:
            _fail(wrong)
    if detach:
        try:
            # Headers may be secrets, so they do not go through the arguments of a process.
            os.environ["EVERWARM_OTLP_HEADERS"] = json.dumps(headers)
            running = run_detached(home, [a for a in sys.argv[2:] if a not in ("--detach", "--json")])
        except UpFailed as failed:
            _fail(failed)
        if as_json:
            click.echo(json.dumps({"pid": running.pid, "servers": running.servers, "ca": str(home.ca_certificate)}))
        else:
            ports = ", ".join(f"{name} on port {p}" for name, p in sorted(running.servers.items()))
            click.echo(f"Everwarm is up (pid {running.pid}): {ports}. See: everwarm status. End: everwarm down")
        return
    headers = headers or json.loads(os.environ.pop("EVERWARM_OTLP_HEADERS", "{}"))
    viewing = home.viewing()
    if not otlp_url and viewing is not None:
        otlp_url, headers = viewing
        _progress("traces go to the viewer that runs from this state directory")
    os.environ.update(home.ray_environment())
    from everwarm.cluster import ClusterConfig

    config = ClusterConfig(
        home=str(home.directory),
        servers=servers,
        address=address,
        port=port,
        otlp_url=otlp_url,
        otlp_headers=headers,
        certificates=str(Path(certificates).absolute()) if certificates else "",
        egress_allow=egress_allow,
        memory_bytes_max=memory_mib << 20,
        hosts=hosts,
    )
    try:
        run(
            home,
            config,
            progress=_progress,
            on_ready=lambda running: _ready(home, running, began_s, examples, with_js, with_python, as_json),
        )
    except UpFailed as failed:
        _fail(failed)


def _ready(
    home: Home, running: Any, began_s: float, examples: bool, with_js: bool, with_python: bool, as_json: bool
) -> None:
    """The cluster is there: deploy the examples and say so."""
    deployed: list[str] = []
    if examples:
        from everwarm.client import EverwarmError, connect
        from everwarm.examples import NoExamples, deploy_examples, what_to_try

        try:
            with connect(home) as client:
                deployed = deploy_examples(client, home, with_js=with_js, with_python=with_python, progress=_progress)
        except (EverwarmError, NoExamples) as failed:
            _progress(f"The examples were not deployed: {failed}")
        _progress(f"ready after {time.monotonic() - began_s:.1f} s\n")
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
            _fail(f"--otlp-header takes NAME=VALUE, not {pair!r}")
        headers[name] = value
    return headers


@main.command()
def down() -> None:
    """End the cluster that runs from this state directory, with all its processes."""
    from everwarm.up import down as end

    click.echo("Everwarm is down." if end(_home()) else "No cluster runs from this state directory.")


@main.command()
@JSON
def status(as_json: bool) -> None:
    """What runs: servers, workers and their homes, counters."""
    home = _home()
    if home.running() is None:
        if as_json:
            click.echo(json.dumps({"running": False}))
        else:
            click.echo("No cluster runs from this state directory. Start one with: everwarm up --detach")
        sys.exit(3)
    with _connect() as client:
        running, counters = client.running, client.statistics()
        workers = client.workers()
    if as_json:
        click.echo(json.dumps({"running": True, "pid": running.pid, "servers": running.servers, "roles": counters}))
        return
    click.echo(
        f"Everwarm runs (pid {running.pid}) since {_when(int(running.started_at_s * 1000))}, {len(workers)} workers."
    )
    click.echo(f"Local CA: {home.ca_certificate}\n")
    click.echo(
        f"{'server':<12}{'https':<24}{'requests':>9}{'isolates':>9}{'running':>8}{'sharded out':>12}{'refused':>8}"
        f"{'in':>6}"
    )
    for server, port in sorted(running.servers.items()):
        of = {address.partition("/")[2]: c for address, c in counters.items() if address.startswith(f"{server}/")}
        broken = [role for role, values in of.items() if "error" in values]
        hosts = [values for role, values in of.items() if role.startswith("host") and role not in broken]
        if not hosts or any(not role.startswith("host") for role in broken):
            click.echo(f"{server:<12}{', '.join(broken)} not reachable")
            continue
        sharded = of["server"]["sharded"]
        click.echo(
            f"{server:<12}{running.address + ':' + str(port):<24}{of['ingress']['requests']:>9}"
            f"{sum(h['isolates'] for h in hosts):>9}{sum(h['running'] for h in hosts):>8}"
            f"{sharded['offered']:>12}{sharded['refused']:>8}{of['shard']['admitted']:>6}"
            + (f"  {', '.join(broken)} not reachable" if broken else "")
        )
    homes: dict[str, str] = next(
        (c["homes"] for address, c in counters.items() if address.endswith("/server") and "homes" in c), {}
    )
    click.echo("\nhomes: " + (", ".join(f"{worker} at {where}" for worker, where in sorted(homes.items())) or "none"))


# ------------------------------------------------------------------------------------------------- build, deploy, list


@main.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: DIRECTORY/worker.wasm")
@JSON
def build(directory: Path, output: Path | None, as_json: bool) -> None:
    """Build the worker in DIRECTORY (see its everwarm.toml) into a component."""
    from everwarm.build import BuildError, ManifestError
    from everwarm.build import build as make

    home = _home()
    try:
        built = make(directory, cache_dir=home.builds, toolchain_dir=home.toolchains, progress=_progress)
    except (BuildError, ManifestError) as failed:
        detail = getattr(failed, "detail", "")
        _fail(f"{failed}\n{detail}".strip())
    target = output or directory / "worker.wasm"
    shutil.copyfile(built.component, target)
    size = target.stat().st_size
    if as_json:
        click.echo(
            json.dumps(
                {
                    "worker": built.manifest.name,
                    "component": str(target),
                    "bytes": size,
                    "sha256": built.sha256,
                    "from_cache": built.from_cache,
                    "seconds": round(built.seconds, 3),
                }
            )
        )
        return
    how = "from the cache" if built.from_cache else f"in {built.seconds:.1f} s"
    click.echo(f"{built.manifest.name}: {target} ({size:,} bytes, {how})")


@main.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="The worker's name. Default: of everwarm.toml, or of the file.")
@click.option("--plan", type=click.Choice(["free", "paid"]), help="Default: of everwarm.toml, or free.")
@click.option("--prebuilt", is_flag=True, help="Of a folder, deploy the worker.wasm in it as it is.")
@JSON
def deploy(source: Path, name: str | None, plan: str | None, prebuilt: bool, as_json: bool) -> None:
    """Deploy SOURCE: a component file, or a worker's folder, which is built first (from the cache if it can be).

    Name, plan, limits and reuse are those of the folder's everwarm.toml, if there is one.
    """
    from everwarm.build import BuildError, ManifestError
    from everwarm.build import build as make
    from everwarm.build.manifest import MANIFEST_FILE, read_manifest
    from everwarm.client import DeployFailed, EverwarmError
    from everwarm.examples import COMPONENT_FILE, limits_of, reuse_of

    limits: dict[str, int] = {}
    reuse: dict[str, int] = {}
    component = source
    # A component that lies where `build` puts it belongs to the manifest beside it.
    folder = source if source.is_dir() else source.parent if source.name == COMPONENT_FILE else None
    try:
        if folder is not None and (source.is_dir() or (folder / MANIFEST_FILE).exists()):
            manifest = read_manifest(folder)
            name, plan = name or manifest.name, plan or manifest.plan.value
            limits, reuse = limits_of(manifest), reuse_of(manifest)
            component = folder / COMPONENT_FILE
            if source.is_dir() and not prebuilt:
                home = _home()
                component = make(
                    source, cache_dir=home.builds, toolchain_dir=home.toolchains, progress=_progress
                ).component
            elif not component.exists():
                _fail(f"There is no {component}. Build it first: everwarm build {source}")
    except (BuildError, ManifestError) as failed:
        _fail(failed)
    name = name or re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-") or "worker"
    with _connect() as client:
        try:
            done = client.deploy(
                name, component, plan=plan or "free", limits=limits, reuse=reuse, progress=_phases(quiet=as_json)
            )
        except DeployFailed as refused:
            if as_json:
                click.echo(json.dumps({"error": {"code": refused.code, "message": refused.message}}))
                sys.exit(1)
            _fail(f"{name} was not deployed, nothing is changed. {refused}")
        except EverwarmError as failed:
            _fail(failed)
        ports = client.running.servers
    if as_json:
        click.echo(
            json.dumps(
                {
                    "worker": done.worker,
                    "version": done.version,
                    "component_digest": done.component_digest,
                    "component_bytes": done.component_bytes,
                    "artifact_bytes": done.artifact_bytes,
                    "startup_cpu_ms": done.startup_cpu_ms,
                    "servers": done.servers,
                    "late": done.late,
                    "phases": done.phases,
                }
            )
        )
        return
    click.echo(
        f"{done.worker} is deployed: version {done.version}, {done.component_bytes:,} bytes, compiled"
        f" {done.artifact_bytes:,} ({done.own_bytes:,} of them its own), startup {done.startup_cpu_ms:g} ms of CPU,"
        f" on {', '.join(done.servers)}"
    )
    if done.late:
        click.echo(f"not reached yet: {', '.join(done.late)}")
    click.echo(f"https://{done.worker}.localhost:{min(ports.values())}/")


def _phases(*, quiet: bool) -> Callable[[str, float], None]:
    """Progress of a deploy: one line that counts on a terminal, a line a phase elsewhere."""
    last = ""
    terminal = sys.stderr.isatty()

    def tell(phase: str, seconds: float) -> None:
        nonlocal last
        if quiet:
            return
        if terminal:
            click.echo(f"\r\033[K{phase} {seconds:.1f} s", nl=False, err=True)
            if phase != last:
                last = phase
        elif phase != last and seconds > 0.3:
            last = phase
            click.echo(phase, err=True)

    return tell


@main.command()
@click.argument("name")
def remove(name: str) -> None:
    """End the deployment of worker NAME. Its uploads and history stay."""
    with _connect() as client:
        if not client.remove(name):
            _fail(f"There is no worker {name}. See: everwarm list")
    click.echo(f"{name} is no longer deployed.")


@main.command("list")
@JSON
def list_workers(as_json: bool) -> None:
    """The workers that are deployed."""
    with _connect() as client:
        workers = client.workers()
    if as_json:
        click.echo(json.dumps(workers))
        return
    if not workers:
        click.echo("Nothing is deployed. Deploy a worker with: everwarm deploy FILE.wasm")
        return
    click.echo(f"{'worker':<24}{'version':<18}{'plan':<6}{'deployed':<22}by")
    for worker in workers:
        for version in worker["versions"]:
            click.echo(
                f"{version['worker']:<24}{version['version_id']:<18}{version['plan']:<6}"
                f"{_when(version['created_at_ms']):<22}{version['author']}"
            )


# ---------------------------------------------------------------------------------------------------- fetch, traces


@main.command()
@click.argument("worker")
@click.argument("path", default="/")
@click.option("-X", "--method", default=None, help="Default: GET, or POST with --data.")
@click.option("-H", "--header", multiple=True, metavar="K:V", help="A request header; may be repeated.")
@click.option("-d", "--data", default=None, help="The request body; @FILE reads a file.")
@click.option("--server", default=None, help="The server to send it through. Default: in turn.")
@JSON
def fetch(
    worker: str,
    path: str,
    method: str | None,
    header: tuple[str, ...],
    data: str | None,
    server: str | None,
    as_json: bool,
) -> None:
    """Send a request to WORKER through the cluster, without HTTPS."""
    from everwarm.client import EverwarmError

    headers = {}
    for line in header:
        name, colon, value = line.partition(":")
        if not colon:
            _fail(f"--header takes NAME:VALUE, not {line!r}")
        headers[name.strip()] = value.strip()
    body = b""
    if data is not None:
        try:
            body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        except OSError as unreadable:
            _fail(f"{data[1:]} cannot be read ({unreadable.strerror})")
    with _connect() as client:
        try:
            answer = client.fetch(
                worker, path, method=method or ("POST" if data is not None else "GET"), headers=headers, body=body,
                server=server,
            )  # fmt: skip
        except EverwarmError as failed:
            _fail(failed)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "status": answer.status,
                    "headers": answer.headers,
                    "body": answer.text,
                    "outcome": answer.outcome,
                    "server": answer.server,
                    "home": answer.home,
                    "start_type": answer.start_type,
                    "hop": answer.hop,
                    "refused": answer.refused,
                    "queue_ms": answer.queue_ms,
                    "cpu_ms": answer.cpu_ms,
                    "request_id": answer.request_id,
                    "trace_id": answer.trace_id,
                }
            )
        )
    else:
        click.echo(
            f"{answer.status} {answer.outcome}, {answer.start_type or 'not started'} on {answer.server or 'no server'}"
            f" (home {answer.home or 'none'}{', hop' if answer.hop else ''}"
            f"{', refused: ' + answer.refused if answer.refused else ''}), trace {answer.trace_id[:12]}",
            err=True,
        )
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    if answer.outcome != "ok":
        sys.exit(1)


@main.command()
@click.argument("trace_id", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many, without an id.")
@JSON
def traces(trace_id: str | None, limit: int, as_json: bool) -> None:
    """The latest requests, or the waterfall of the one whose TRACE_ID begins so."""
    import msgspec

    from tracing.summary import TraceSummary
    from tracing.waterfall import SUMMARY_HEADER, draw, summary_line

    with _connect() as client:
        if trace_id is not None:
            spans = client.wait_for_trace(trace_id, 1.0)
            if not spans:
                _fail(f"Nobody knows a trace {trace_id}. Traces are kept for the last 1,000 requests of each server.")
            click.echo(json.dumps(msgspec.to_builtins(spans)) if as_json else draw(spans, _bar_chars()))
            return
        latest = client.traces(limit)
    if as_json:
        click.echo(json.dumps(latest))
        return
    if not latest:
        click.echo("No requests yet.")
        return
    click.echo(SUMMARY_HEADER)
    zone = time.localtime().tm_gmtoff
    for plain in latest:
        click.echo(summary_line(msgspec.convert(plain, TraceSummary), _zone(zone)))


def _zone(offset_s: int) -> Any:
    from datetime import timedelta, timezone

    return timezone(timedelta(seconds=offset_s))


def _bar_chars() -> int:
    return max(20, min(60, shutil.get_terminal_size().columns - 100))


@main.command()
@click.option("--port", default=15000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--install-only", is_flag=True, help="Only install it (850 MB, some minutes).")
def viewer(port: int, install_only: bool) -> None:
    """Install and run a trace viewer for the browser, on loopback, and send it the cluster's traces."""
    import subprocess

    from everwarm.viewer import (
        ViewerFailed,
        install,
        otlp_settings,
        serve_command,
        serve_environment,
        traces_url,
        wait_until_ready,
    )

    home = _home()
    try:
        install(home.viewer, _progress)
    except ViewerFailed as failed:
        _fail(failed)
    if install_only:
        return
    process = subprocess.Popen(
        serve_command(home.viewer, port), cwd=home.viewer, env=serve_environment(os.environ),
        stdout=subprocess.DEVNULL, stderr=(home.viewer / "viewer.log").open("ab"),
    )  # fmt: skip
    try:
        wait_until_ready(port, lambda: process.poll() is None)
        url, headers = otlp_settings(port)
        home.set_viewing(url, dict(headers))
        click.echo(f"The viewer is at {traces_url(port)}")
        if _send_traces_to(home, url, dict(headers)):
            click.echo("The cluster that runs from this state directory sends its traces there now.")
        else:
            click.echo("A cluster that is started now (./dev serve, everwarm up) sends its traces there.")
        click.echo("Ctrl-C ends it.")
        process.wait()
    except ViewerFailed as failed:
        _fail(failed)
    except KeyboardInterrupt:
        pass  # that is how one ends it
    finally:
        home.clear_viewing()
        _send_traces_to(home, "", {})
        process.terminate()
        process.wait()


def _send_traces_to(home: Home, url: str, headers: dict[str, str]) -> bool:
    """Point the cluster that runs from here, if one does, at another backend."""
    from everwarm.client import EverwarmError, connect

    try:
        with connect(home) as client:
            client.export_traces_to(url, headers)
    except (EverwarmError, ConnectionError):
        return False
    return True


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


if __name__ == "__main__":
    main(prog_name="everwarm")

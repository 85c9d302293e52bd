"""Commands about workers: build, deploy, remove, list, describe, manifest."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from everwarm.console import JSON, connected, fail, open_home, progress, when


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: DIRECTORY/worker.wasm")
@JSON
def build(directory: Path, output: Path | None, as_json: bool) -> None:
    """Build the worker in DIRECTORY (see its everwarm.toml) into a component."""
    from everwarm.build import BuildError, ManifestError
    from everwarm.build import build as make

    home = open_home()
    try:
        built = make(directory, cache_dir=home.builds, toolchain_dir=home.toolchains, progress=progress)
    except (BuildError, ManifestError) as failed:
        detail = getattr(failed, "detail", "")
        fail(f"{failed}\n{detail}".strip())
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


@click.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("--name", help="The worker's name. Default: of everwarm.toml, or of the file.")
@click.option("--plan", type=click.Choice(["free", "paid"]), help="Default: of everwarm.toml, or free.")
@click.option(
    "--cordon", default="", help="Its group of workers of one trust. Default: default; of users, that of the namespace."
)
@click.option("--namespace", default="", help="The dispatch namespace whose user it is. Default: of everwarm.toml.")
@click.option("--prebuilt", is_flag=True, help="Of a folder, deploy the worker.wasm in it as it is.")
@JSON
def deploy(
    source: Path, name: str | None, plan: str | None, cordon: str, namespace: str, prebuilt: bool, as_json: bool
) -> None:
    """Deploy SOURCE: a component file, or a worker's folder, which is built first (from the cache if it can be).

    Name, plan, limits, reuse, bindings and routes are those of the folder's everwarm.toml, if there is one.
    """
    from actors.bindings import NOTHING_BOUND
    from everwarm.answers import DeployFailed, EverwarmError
    from everwarm.build import BuildError, ManifestError
    from everwarm.build import build as make
    from everwarm.build.manifest import MANIFEST_FILE, read_manifest
    from everwarm.examples import COMPONENT_FILE, reuse_of

    limits: dict[str, int] = {}
    reuse: dict[str, int] = {}
    bindings = NOTHING_BOUND
    routes: tuple[str, ...] = ()
    component = source
    # A component that lies where `build` puts it belongs to the manifest beside it.
    folder = source if source.is_dir() else source.parent if source.name == COMPONENT_FILE else None
    try:
        if folder is not None and (source.is_dir() or (folder / MANIFEST_FILE).exists()):
            said = read_manifest(folder)
            name, plan, namespace = name or said.name, plan or said.plan.value, namespace or said.namespace
            limits, reuse = said.limits.of_version(), reuse_of(said)
            bindings, routes = said.bindings, said.routes
            component = folder / COMPONENT_FILE
            if source.is_dir() and not prebuilt:
                home = open_home()
                component = make(
                    source, cache_dir=home.builds, toolchain_dir=home.toolchains, progress=progress
                ).component
            elif not component.exists():
                fail(f"There is no {component}. Build it first: everwarm build {source}")
    except (BuildError, ManifestError) as failed:
        fail(failed)
    name = name or re.sub(r"[^a-z0-9]+", "-", source.stem.lower()).strip("-") or "worker"
    with connected() as client:
        try:
            done = client.deploy(
                name,
                component,
                plan=plan or "free",
                limits=limits,
                reuse=reuse,
                cordon=cordon,
                bindings=bindings,
                routes=routes,
                namespace=namespace,
                progress=_phases(quiet=as_json),
            )
        except DeployFailed as refused:
            if as_json:
                click.echo(json.dumps({"error": {"code": refused.code, "message": refused.message}}))
                sys.exit(1)
            fail(f"{name} was not deployed, nothing is changed. {refused}")
        except EverwarmError as failed:
            fail(failed)
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
                    "why_late": done.why_late,
                    "missing": done.missing,
                    "unset_secrets": done.unset_secrets,
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
        for server in done.late:
            click.echo(f"not on {server} yet: {done.why_late.get(server, 'it was not reached')}")
    if done.missing:
        click.echo(f"bound to workers that are not deployed yet: {', '.join(done.missing)}")
    for secret in done.unset_secrets:
        click.echo(f"without a value yet: everwarm secret put {secret} --worker {done.worker}")
    port = min(ports.values())
    for route in routes:
        host, slash, path = route.removesuffix("*").partition("/")
        click.echo(f"https://{host}:{port}{slash}{path}  (its name has to lead here)")
    if namespace:
        click.echo(f"It has no host name: workers with a dispatch binding to {namespace} call it.")
    else:
        click.echo(f"https://{done.worker}.localhost:{port}/")


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


@click.command()
@click.argument("name")
def remove(name: str) -> None:
    """End the deployment of worker NAME. Its uploads and history stay."""
    with connected() as client:
        if not client.remove(name):
            fail(f"There is no worker {name}. See: everwarm list")
    click.echo(f"{name} is no longer deployed.")


@click.command("list")
@JSON
def list_workers(as_json: bool) -> None:
    """The workers that are deployed."""
    with connected() as client:
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
                f"{when(version['created_at_ms']):<22}{version['author']}"
            )


@click.command()
@click.argument("name")
@JSON
def describe(name: str, as_json: bool) -> None:
    """What is deployed of worker NAME (or NAMESPACE/USER): its versions, their limits and what they are bound to."""
    with connected() as client:
        found = client.describe(name)
    if found is None:
        fail(f"There is no worker {name}. See: everwarm list")
    if as_json:
        click.echo(json.dumps(found))
        return
    deployment = found["deployed"]["deployment"]
    percent = {share["version_id"]: share["percent"] for share in deployment["shares"]}
    for version in found["deployed"]["versions"]:
        click.echo(f"{version['worker']}  version {version['version_id']}, {percent[version['version_id']]} %")
        for label, text in _described(version):
            click.echo(f"  {label:<10}{text}")
    for route in deployment["routes"]:
        click.echo(f"  {'route':<10}{route}")
    for name in found["unset_secrets"]:
        click.echo(f"  {'unset':<10}{name}: everwarm secret put {name} --worker {deployment['worker']}")
    if found["missing"]:
        click.echo(f"  {'missing':<10}{', '.join(found['missing'])}: not deployed")


def _described(version: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A version's lines: what it is, and what it is bound to. The values of variables are for ``--json``."""
    bound = version["bindings"]
    yield "deployed", f"{when(version['created_at_ms'])} by {version['author']}"
    yield "plan", f"{version['plan']}, {version['limits']['cpu_ms']} ms of CPU, cordon {version['cordon']}"
    for entry in bound["services"]:
        yield "service", f"http://{entry['name']}.binding.internal/ -> {entry['worker']}"
    for entry in bound["dispatch"]:
        yield "dispatch", f"http://USER.{entry['name']}.dispatch.internal/ -> {entry['namespace']}/USER"
    for entry in bound["kv"]:
        yield "kv", f"{entry['name']} -> {entry['store']}"
    if bound["outbound"]:
        parameters = ", ".join(bound["outbound"]["parameters"]) or "none"
        yield "outbound", f"{bound['outbound']['worker']}, parameters: {parameters}"
    if bound["tail"]:
        yield "tail", ", ".join(bound["tail"]["workers"])
    for label, names in (("vars", bound["vars"]), ("secrets", bound["secrets"])):
        if names:
            yield label, ", ".join(names)


@click.group()
def manifest() -> None:
    """What a worker's everwarm.toml may hold."""


@manifest.command("schema")
def manifest_schema_command() -> None:
    """Print the JSON schema of everwarm.toml, for editors."""
    from everwarm.build.manifest_keys import manifest_schema

    click.echo(json.dumps(manifest_schema(), indent=2))


@manifest.command("check")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
def manifest_check(directory: Path) -> None:
    """Read the everwarm.toml in DIRECTORY, and say what is wrong with it or nothing."""
    from everwarm.build.manifest import ManifestError, read_manifest

    try:
        read_manifest(directory)
    except ManifestError as wrong:
        fail(wrong)


COMMANDS: tuple[click.Command, ...] = (build, deploy, remove, list_workers, describe, manifest)

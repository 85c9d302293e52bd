"""Deploying a component: check, compile and start it in a process of its own, then keep it.

One compile at a time: an engine's compile takes 400 MB and both cores for seconds, and the machine that compiles also
serves. Everything that can be refused is refused before anything is changed.
"""

import asyncio
import logging
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from actors.worker import Limits
from isolates.acceptance import Rejected, rejected_by_header
from isolates.artifact import ArtifactStore, Compiled, digest_of

_log = logging.getLogger("everwarm.deployer")

#: The largest components of stock toolchains compile in 20-30 s of CPU on two cores; beyond this it is an attack.
_COMPILE_TIMEOUT_S = 180.0
#: Deploys that wait for their compile.
_WAITING_MAX = 64
#: A line of the compile process: its result names a component's imports, which a component can make long.
_LINE_BYTES_MAX = 4 << 20

Progress = Callable[[str], None]


class _Line(msgspec.Struct):
    """What the compile process says in a line: one of the four."""

    progress: str | None = None
    compiled: Compiled | None = None
    rejected: Rejected | None = None
    disk: int | None = None


class Deployer:
    """Keeps every component ever uploaded, and its compiled pieces for this engine, under one directory."""

    def __init__(self, directory: Path) -> None:
        self._components = directory / "components"
        self._components.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._store_directory = directory / "artifacts"
        self.store_of_artifacts = ArtifactStore(self._store_directory)
        self._one_at_a_time = asyncio.Semaphore(1)
        self._waiting = 0

    def compiled(self, component_digest: str) -> Compiled | None:
        """The manifest of a component, if it was compiled for this engine and is sound on disk."""
        store = self.store_of_artifacts
        return store.compiled(component_digest) if store.sound(component_digest) else None

    async def recompile(self, component_digest: str, limits: Limits) -> Compiled | None:
        """Compile a component again that was accepted before: its artifact was damaged, or was another engine's.

        None when it is not kept, or does not compile for this engine.
        """
        source = self._components / f"{component_digest}.wasm"
        component = await asyncio.to_thread(source.read_bytes) if source.exists() else b""
        if digest_of(component) != component_digest:
            return None
        async with self._one_at_a_time:
            made = self.compiled(component_digest) or await self._compile(component, limits, lambda phase: None)
        if isinstance(made, Rejected):
            _log.error("component %s does not compile any more: %s", component_digest[:12], made)
            return None
        return made

    async def store(self, component: bytes, limits: Limits, progress: Progress) -> Compiled | Rejected:
        """Check, compile, start once and keep ``component``; or say why not, with nothing kept. ``OSError`` when the
        disk does not take it."""
        progress("checking")
        rejected = rejected_by_header(component, limits.component_raw_bytes_max)
        if rejected is not None:
            return rejected
        compressed_bytes = await asyncio.to_thread(lambda: len(zlib.compress(component, 6)))
        if compressed_bytes > limits.component_bytes_max:
            return Rejected(
                "tooLarge",
                f"The component has {compressed_bytes:,} bytes compressed; its plan's limit is"
                f" {limits.component_bytes_max:,}.",
                'Strip it (wasm-tools strip -a), or set plan = "paid" in everwarm.toml.',
            )
        digest = digest_of(component)
        kept = await asyncio.to_thread(self.compiled, digest)
        if kept is not None:
            progress("already compiled")
            return kept
        if self._waiting >= _WAITING_MAX:
            return Rejected("busy", "Too many deploys are waiting to be compiled.", "Try again in a minute.")
        self._waiting += 1
        try:
            progress("waiting for the compiler")
            async with self._one_at_a_time:
                return self.compiled(digest) or await self._compile(component, limits, progress)
        finally:
            self._waiting -= 1

    async def _compile(self, component: bytes, limits: Limits, progress: Progress) -> Compiled | Rejected:
        progress("compiling")
        with tempfile.TemporaryDirectory(dir=self._components, prefix="compile-") as scratch:
            source = Path(scratch) / "component.wasm"
            source.write_bytes(component)
            result = await self._compile_process(source, limits, progress)
            if isinstance(result, Rejected):
                await asyncio.to_thread(self._collect_pieces)
                return result
            progress("storing")
            os.replace(source, self._components / f"{digest_of(component)}.wasm")
        return result

    def _collect_pieces(self) -> None:
        """Remove the pieces of what was rejected: all that no manifest names. Nothing else compiles meanwhile."""
        store = self.store_of_artifacts
        store.collect({manifest.stem for manifest in store.directory.glob("*.json")})

    async def _compile_process(self, source: Path, limits: Limits, progress: Progress) -> Compiled | Rejected:
        """Run ``python -m isolates.compiler``; a crash or a time-out of it is the component's fault, not ours."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "isolates.compiler", str(source), str(self._store_directory),
            str(limits.startup_cpu_ms), str(limits.memory_soft_bytes), str(limits.memory_hard_bytes),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
            limit=_LINE_BYTES_MAX,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        began_s = time.monotonic()
        complaints = asyncio.create_task(process.stderr.read())
        try:
            async with asyncio.timeout(_COMPILE_TIMEOUT_S):
                result = await _result(process.stdout, progress)
                await process.wait()
                said = await complaints
        except TimeoutError:
            return Rejected(
                "compileTimeout", f"Compiling took longer than {_COMPILE_TIMEOUT_S:g} s.", "Make it smaller."
            )
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            await complaints
        if process.returncode != 0 or result is None:
            _log.error("the compiler ended with %s: %s", process.returncode, said.decode(errors="replace")[-2000:])
            return Rejected("invalid", "The component does not compile.", "Check it with: wasm-tools validate")
        _log.info("compiled in %.1f s", time.monotonic() - began_s)
        return result


async def _result(output: asyncio.StreamReader, progress: Progress) -> Compiled | Rejected | None:
    """Read the compile process's lines to the end: its result, None when it gave none. ``OSError`` of its disk."""
    result: Compiled | Rejected | None = None
    while raw := await output.readline():
        line = msgspec.json.decode(raw, type=_Line)
        if line.progress is not None:
            progress(line.progress)
        if line.disk is not None:
            raise OSError(line.disk, os.strerror(line.disk))
        result = line.compiled or line.rejected or result
    return result

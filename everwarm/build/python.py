"""Python workers: a module with a WSGI application, or with a class `IncomingHandler`, made by componentize-py.

The module is imported once, at build, inside the component's own CPython, and the memory that leaves behind is the
component. So what a worker imports and computes at its top level costs nothing at a cold start, and what it opens
there (files, sockets) does not exist when it runs. Pure-Python dependencies lie in its folder. The environment has the
manifest's variables there; what a version is deployed with, and its secrets, are there from the first request on.

What the module defines decides how it is asked. A class `IncomingHandler` is the export of wasi:http itself, on the
bindings that componentize-py makes. Otherwise a callable `app` or `application` is a WSGI application (PEP 3333), and
`worker_wsgi` and `worker_wasi` become part of the component to stand between the two.
"""

import os
import sys
from pathlib import Path, PurePosixPath

from everwarm.build.project import WIT_DIR, WIT_WORLDS, Input, Project, entry_file, source_inputs, wit_inputs
from everwarm.build.tool import BuildError, run, tool_environment
from isolates.rehearsal import LISTING_MARK, marked

_GLUE = ("worker_heap.py", "worker_wasi.py", "worker_wsgi.py")
# The module that componentize-py starts from.
_ENTRY = "everwarm_entry"
# What is beside the worker in its component; a worker of that name would hide it.
_TAKEN_NAMES = frozenset(
    {*(world.replace("-", "_") for world in WIT_WORLDS), "wit_world", "componentize_py_types", _ENTRY}
    | {name.removesuffix(".py") for name in _GLUE}
)
_ENTRY_TEXT = """\
import os

VARS = {variables!r}
os.environ.update(VARS)

from functools import partial

import {module} as worker
import worker_wasi
import worker_wsgi

handler = getattr(worker, "IncomingHandler", None)
if handler is None:
    application = getattr(worker, "app", None) or getattr(worker, "application", None)
    if not callable(application):
        raise ImportError("{module}.py defines neither app (or application), a WSGI application, nor IncomingHandler")
    handler = worker_wasi.handler_for(partial(worker_wsgi.serve, application, VARS))
rehearsed = worker_wasi.handler_for(partial(worker_wsgi.serve, worker_wsgi.rehearsed, {{}}))
IncomingHandler = worker_wasi.export_of(handler, rehearsed, VARS)
"""


def inputs(project: Project) -> list[Input]:
    """Every file of the folder: a module may read its data files when it is imported, and its variables."""
    entry_file(project)
    variables = ("everwarm.toml vars", repr(project.manifest.vars).encode())
    return [*source_inputs(project), variables, *((f"glue {name}", data) for name, data in _glue()), *wit_inputs()]


def compile_component(project: Project) -> bytes:
    """Raises BuildError with the traceback that importing the worker gave."""
    name, scratch = project.manifest.name, project.scratch
    entry = PurePosixPath(project.manifest.entry)
    module = entry.stem
    if len(entry.parts) > 1 or not module.isidentifier() or module in _TAKEN_NAMES:
        raise BuildError(f"{name}: entry {entry} cannot be imported; it must be a module at the top of the folder")
    project.tool_file("componentize_py", "__init__.py")
    # A copy: the snapshot's CPython may write where it imports from, and the worker's folder is not ours to fill.
    sources, glue = scratch / "sources", scratch / "glue"
    _write(sources, source_inputs(project))
    entry_text = _ENTRY_TEXT.format(module=module, variables=dict(project.manifest.vars))
    _write(glue, [*_glue(), (f"{_ENTRY}.py", entry_text.encode())])
    # It looks for installed packages; without an empty environment to find it would take this program's own.
    empty = scratch / "no-packages"
    (empty / "lib" / "site-packages").mkdir(parents=True)
    toolchain_path = os.fspath(project.toolchain) if project.toolchain is not None else ""
    run(
        [
            *(sys.executable, "-c", "import sys, componentize_py; sys.exit(componentize_py.script())"),
            *("--quiet", "--wit-path", str(WIT_DIR), "--world", project.world, "componentize", _ENTRY),
            *("--python-path", str(glue), "--python-path", str(sources), "--output", "worker.wasm"),
        ],
        failure=f"{name}: the worker cannot be imported for its snapshot",
        cwd=scratch,
        shown_as=project.shown_as,
        relevant=_worker_traceback,
        env=tool_environment(scratch) | {"PYTHONPATH": toolchain_path, "VIRTUAL_ENV": str(empty)},
    )
    return marked((scratch / "worker.wasm").read_bytes(), LISTING_MARK)


def _glue() -> list[Input]:
    return [(name, (Path(__file__).parent / name).read_bytes()) for name in _GLUE]


def _write(folder: Path, files: list[Input]) -> None:
    for file, data in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(data)


def _worker_traceback(output: str) -> str:
    """The traceback of the worker's own import, out of the tool's report of it."""
    _, marker, report = output.rpartition("AssertionError: Traceback")
    return f"Traceback{report.partition('Caused by:')[0]}" if marker else output

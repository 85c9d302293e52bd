"""JavaScript workers: a module with `export default { async fetch(request, env, ctx) }`, bundled, wrapped and snapshot.

esbuild makes one module of the worker, what it imports (also from its node_modules) and `worker_wrapper.js`; then
componentize-js runs that module's top level inside the engine, and keeps the memory it leaves behind as the component.
The bundle is what the cache key is made of: it is the source as the engine sees it, wherever the parts came from.
"""

from pathlib import Path

from everwarm.build.project import WIT_DIR, Input, Project, entry_file, wit_inputs
from everwarm.build.tool import BuildError, run, tool_environment
from everwarm.build.toolchain import node_program
from isolates.rehearsal import marked

_WRAPPER = "worker_wrapper.js"
# A worker serves many requests from one instance, and the engine's own fetch event only one: the wrapper exports the
# handler instead. Stdio (logs), clocks (timers), random and http (Request, Response, fetch) stay.
_FEATURES_OFF = ["fetch-event"]


def inputs(project: Project) -> list[Input]:
    """The bundle. Raises BuildError with esbuild's message when the source is wrong or an import is not found."""
    entry_file(project)
    name = project.manifest.name
    esbuild = _esbuild(project)
    wrapper = WIT_DIR.parent / _WRAPPER
    bundle = run(
        [
            *(str(esbuild), "--bundle", "--format=esm", "--target=es2022", "--charset=utf8"),
            # Names, not paths: neither this machine's folders nor the wrapper's place end up in the bundle.
            *("--sourcefile=everwarm", "--external:wasi:*", f"--alias:everwarm:worker=./{project.manifest.entry}"),
            *("--conditions=workerd,worker,import", "--log-level=warning", "--color=false"),
        ],
        failure=f"{name}: the JavaScript source cannot be bundled",
        cwd=project.directory,
        shown_as=project.shown_as,
        env=tool_environment(project.scratch),
        stdin=wrapper.read_bytes(),
    )
    (project.scratch / _bundle_name(project)).write_bytes(bundle)
    return [("bundle", bundle), *wit_inputs()]


def compile_component(project: Project) -> bytes:
    """Raises BuildError, for example with the exception that the worker's top level threw."""
    componentize = project.tool_file("node_modules", "@bytecodealliance", "componentize-js", "src", "cli.js")
    bundle = _bundle_name(project)
    run(
        [
            *(node_program(), str(componentize), bundle, "--wit", str(WIT_DIR), "--world-name", project.world),
            *("--disable", *_FEATURES_OFF, "--out", "worker.wasm"),
        ],
        failure=f"{project.manifest.name}: the worker cannot be started for its snapshot",
        cwd=project.scratch,
        shown_as=project.shown_as,
        relevant=_engine_report,
    )
    return marked((project.scratch / "worker.wasm").read_bytes())


def _bundle_name(project: Project) -> str:
    # It is what the stack traces of the worker show.
    return f"{project.manifest.name}.js"


def _esbuild(project: Project) -> Path:
    # The program itself: npm installs the package of this machine's kind alone. What starts it from Node reports
    # every error of the source once more, as its own.
    programs = sorted(project.tool_file("node_modules", "@esbuild").glob("*/bin/esbuild"))
    if not programs:
        raise BuildError("esbuild has no program for this kind of machine")
    return programs[0]


def _engine_report(output: str) -> str:
    """What the engine said, out of the stack trace of the tool around it."""
    _, marker, report = output.rpartition("Error: Failed to initialize component")
    return report.partition(":\n")[2].partition("\n    at ")[0] if marker else output

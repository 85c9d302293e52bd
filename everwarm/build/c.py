"""C workers: a reactor with the C library's strings and memory, compiled by Zig's clang.

The entry and every `.c` file of the manifest's modules are compiled together; all modules can be included under the
names of their files (workers/c/wasi_http.h is one). The library's files and streams need an operating system, which a
worker has not: a worker that uses them does not become a component.
"""

from everwarm.build.core_module import compile_core, component_of_core, core_file, module_inputs
from everwarm.build.project import Input, Project, entry_file, source_inputs, wit_inputs
from everwarm.build.tool import BuildError

_SUFFIXES = (".c", ".h")


def inputs(project: Project) -> list[Input]:
    """What the component depends on: the C files of the folder and the modules that the manifest names."""
    entry_file(project)
    sources = [source for suffix in _SUFFIXES for source in source_inputs(project, suffix=suffix)]
    return [*sources, *module_inputs(project), *wit_inputs()]


def compile_component(project: Project) -> bytes:
    """Raises BuildError with the compiler's message."""
    scratch, manifest = project.scratch, project.manifest
    # Modules in a folder of their own: what else lies beside them could be included too, and nobody would know.
    included = scratch / "modules"
    included.mkdir()
    for module in manifest.modules:
        source = project.directory / module
        if (included / source.name).exists():
            raise BuildError(f"{manifest.name}: two modules are called {source.name}")
        (included / source.name).write_bytes(source.read_bytes())
    compile_core(
        project,
        "cc",
        [
            *("-target", "wasm32-wasi", "-mexec-model=reactor", "-std=c11", "-Oz", "-s"),
            *("-Wall", "-Wextra", "-Wno-unused-function", "-fno-color-diagnostics"),
            # Neither this machine's folders nor the scratch folder's random name end up in the module.
            *("-I", str(included), f"-ffile-prefix-map={included}=.", "-o", str(core_file(project))),
            manifest.entry,
            *(str(file) for file in sorted(included.glob("*.c"))),
        ],
        language="C",
    )
    return component_of_core(project)

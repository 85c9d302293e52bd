"""Zig workers: a core module for a machine without an operating system (workers/zig/wasi_http.zig shows how)."""

from pathlib import PurePosixPath

from everwarm.build.core_module import compile_core, component_of_core, core_file, module_inputs
from everwarm.build.project import Input, Project, entry_file, source_inputs, wit_inputs


def inputs(project: Project) -> list[Input]:
    """What the component depends on: the Zig files of the folder and the modules that the manifest names."""
    entry_file(project)
    return [*source_inputs(project, suffix=".zig"), *module_inputs(project), *wit_inputs()]


def compile_component(project: Project) -> bytes:
    """Raises BuildError with the compiler's message."""
    modules = project.manifest.modules
    imports = [PurePosixPath(module).stem for module in modules]
    compile_core(
        project,
        "build-exe",
        [
            *("-target", "wasm32-freestanding", "-fno-entry", "-rdynamic"),
            *("-O", "ReleaseSmall", "-fstrip", "--name", "worker", f"-femit-bin={core_file(project)}"),
            *(part for module in imports for part in ("--dep", module)),
            f"-Mroot={project.manifest.entry}",
            *(f"-M{module}={path}" for module, path in zip(imports, modules, strict=True)),
        ],
        language="Zig",
    )
    return component_of_core(project)

"""One worker on its way to a component: where its sources are, what they are, and the tools to build them with."""

from dataclasses import dataclass
from pathlib import Path

from everwarm.build.manifest import Manifest
from everwarm.build.tool import BuildError

# The WASI text that every worker is built against, and the worlds in it: without key-value stores, and with them.
WIT_DIR = Path(__file__).parent / "wit"
WIT_WORLDS = ("everwarm-worker", "everwarm-worker-with-stores")

# As much as a component may weigh (64 MiB raw): sources above that cannot become one.
_SOURCE_BYTES_MAX = 64 * 1024 * 1024
# A folder with more files than this is a home directory, not a worker.
_SOURCE_FILES_MAX = 10_000
# What other tools leave in a source folder: installed packages, caches, environments, earlier builds.
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "venv", "zig-out"})

Input = tuple[str, bytes]


@dataclass(frozen=True, slots=True)
class Project:
    """`directory` is the worker's folder, `toolchain` that of its tools (None for a component that is ready-made), and
    `scratch` an empty folder that goes when the build is over."""

    directory: Path
    manifest: Manifest
    toolchain: Path | None
    scratch: Path

    def tool_file(self, *path: str) -> Path:
        """A file of the toolchain. Raises BuildError if the installed toolchain lacks it."""
        if self.toolchain is None:
            raise AssertionError(f"a {self.manifest.language} worker has no toolchain")
        file = self.toolchain.joinpath(*path)
        if not file.exists():
            raise BuildError(
                f"the toolchain in {self.toolchain.name} lacks {path[-1]}; remove that folder and build again"
            )
        return file

    @property
    def world(self) -> str:
        """The world that the worker is built for."""
        return WIT_WORLDS[bool(self.manifest.bindings.kv)]

    @property
    def shown_as(self) -> dict[Path, str]:
        """What the machine's folders are called in what the author of the worker reads."""
        shown = {self.directory: ".", self.scratch: "<build>", WIT_DIR: "<wit>"}
        if self.toolchain is not None:
            shown[self.toolchain] = "<toolchain>"
        return shown


def entry_file(project: Project) -> Path:
    """The entry of the manifest. Raises BuildError if there is no such file."""
    file = project.directory / project.manifest.entry
    if not file.is_file():
        raise BuildError(f"{project.manifest.name}: entry {project.manifest.entry} does not exist")
    return file


def source_inputs(project: Project, suffix: str = "") -> list[Input]:
    """Every file below the worker's folder whose name ends in `suffix`, by relative name. Raises BuildError when
    there is too much of it. The manifest is not among them: what counts in it goes into the key by itself."""
    inputs: list[Input] = []
    total_bytes = 0
    for file in _files_below(project.directory):
        if not file.name.endswith(suffix) or file.suffix in (".wasm", ".toml"):
            continue
        data = file.read_bytes()
        total_bytes += len(data)
        inputs.append((file.relative_to(project.directory).as_posix(), data))
        if total_bytes > _SOURCE_BYTES_MAX or len(inputs) > _SOURCE_FILES_MAX:
            raise BuildError(
                f"{project.manifest.name}: the sources are more than {_SOURCE_FILES_MAX} files "
                f"or {_SOURCE_BYTES_MAX} bytes; move what is no source out of the folder"
            )
    return inputs


def wit_inputs() -> list[Input]:
    return [(file.relative_to(WIT_DIR).as_posix(), file.read_bytes()) for file in sorted(WIT_DIR.rglob("*.wit"))]


def _files_below(directory: Path) -> list[Path]:
    files: list[Path] = []
    for child in sorted(directory.iterdir()):
        if child.name.startswith(".") or child.is_symlink():
            continue
        if child.is_dir() and child.name not in _SKIPPED_FOLDERS:
            files.extend(_files_below(child))
        elif child.is_file():
            files.append(child)
        if len(files) > _SOURCE_FILES_MAX:
            break
    return files

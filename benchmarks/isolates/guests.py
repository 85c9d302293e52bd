"""The guests that are measured: where each comes from, built and compiled once.

Example workers, a stock fetch event, and two guests in text. Components are built by ``everwarm.build``; artifacts are
installed in an ``ArtifactStore`` below the cache directory, on the way that a deploy takes, by the digest of their
component. So the second run of the benchmark builds and compiles nothing. A sandbox with other sources may make other
pieces of the same component, so it is asked again then, and compiles those that changed: what is measured is what is
here.

    python -m benchmarks.isolates.guests COMPONENT STORE    compile and install one; prints one JSON object
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wasmtime import wat2wasm

from benchmarks.isolates import text_guest
from everwarm.build import BuildError, ManifestError, build
from everwarm.build.cache import Cache, content_key
from everwarm.build.project import WIT_DIR, WIT_WORLDS, wit_inputs
from everwarm.build.tool import run
from everwarm.build.toolchain import JAVASCRIPT, PYTHON, Toolchain, install, is_installed, node_program
from isolates.acceptance import Rejected
from isolates.artifact import ArtifactStore, digest_of
from isolates.compiler import compile_and_start
from isolates.limits import IsolateLimits

ROOT = Path(__file__).resolve().parents[2]
WORKERS = ROOT / "workers"
#: Compiling an engine of 10-20 MB takes half a minute on a busy machine; ten times that is a hang.
_COMPILE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A guest that is ready: the path of its component, and the digest under which its artifact is installed."""

    component: str
    digest: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Why a guest is not there. ``is_fault``: something broke; else this machine lacks what it is made with."""

    why: str
    is_fault: bool


class Guests:
    """All guests by name, prepared when they are first asked for and then remembered."""

    def __init__(self, cache_dir: Path, toolchain_dir: Path, progress: Callable[[str], None]) -> None:
        self.store = cache_dir / "artifacts"
        self._cache_dir, self._toolchain_dir, self._progress = cache_dir, toolchain_dir, progress
        self._sandbox = _sources_of_the_sandbox()
        self._known: dict[str, Prepared | Missing] = {}  # bounded by the guests below
        self._sources: dict[str, Callable[[], Path | Missing]] = {
            "calling": lambda: self._text("calling", text_guest.calling()),
            "idle": lambda: self._text("idle", text_guest.idle()),
            "hello_c": self._smallest_hello,
            "echo": lambda: WORKERS / "zig" / "echo" / "worker.wasm",
            "spin": lambda: WORKERS / "zig" / "spin" / "worker.wasm",
            "hello_js": lambda: self._built(WORKERS / "js" / "hello-js", JAVASCRIPT),
            "second_tenant_js": lambda: self._built(Path(__file__).parent / "second_tenant", JAVASCRIPT),
            "fetch_event_js": self._fetch_event,
            "hello_python": lambda: self._built(WORKERS / "python" / "hello-python", PYTHON),
        }

    def prepare(self, name: str) -> Prepared | Missing:
        """The guest, built, compiled and installed if it was not; or why not."""
        if name not in self._known:
            self._known[name] = self._prepare(name)
        return self._known[name]

    def _prepare(self, name: str) -> Prepared | Missing:
        try:
            component = self._sources[name]()
        except (BuildError, ManifestError) as failed:
            return Missing(f"{name} cannot be built: {failed}", is_fault=True)
        if isinstance(component, Missing):
            return component
        if not component.exists():
            return Missing(f"{name} is not here: {component.relative_to(ROOT)}", is_fault=False)
        digest = digest_of(component.read_bytes())
        if digest not in self._compiled() or not ArtifactStore(self.store).has(digest):
            self._progress(f"compiling {name}")
            failure = _compile_in_a_process(component, self.store)
            if failure:
                return Missing(f"{name} cannot be compiled: {failure}", is_fault=True)
            self._remember({*self._compiled(), digest})
        return Prepared(str(component), digest)

    @property
    def _index(self) -> Path:
        """Which components the sandbox, as its sources are now, has compiled into the store."""
        return self.store / f"compiled-by-{self._sandbox}.json"

    def _compiled(self) -> set[str]:
        return set(json.loads(self._index.read_text())) if self._index.exists() else set()

    def _remember(self, digests: set[str]) -> None:
        self._index.write_text(json.dumps(sorted(digests)))

    def collect(self) -> None:
        """Remove from the store what earlier sources of the sandbox made and this one does not use."""
        for earlier in self.store.glob("compiled-by-*.json"):
            if earlier != self._index:
                earlier.unlink()
        ArtifactStore(self.store).collect(self._compiled())

    def _smallest_hello(self) -> Path:
        """The hello in C, or the one in Zig as long as there is none: the same thing at the same size."""
        in_c = WORKERS / "c" / "hello" / "worker.wasm"
        return in_c if in_c.exists() else WORKERS / "zig" / "hello" / "worker.wasm"

    def _text(self, name: str, text: str) -> Path:
        file = self._cache_dir / f"benchmark-{name}-{digest_of(text.encode())[:16]}.wasm"
        if not file.exists():
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            file.write_bytes(bytes(wat2wasm(text)))
        return file

    def _built(self, directory: Path, toolchain: Toolchain) -> Path | Missing:
        if not is_installed(toolchain, self._toolchain_dir):
            return self._without(toolchain)
        built = build(directory, cache_dir=self._cache_dir, toolchain_dir=self._toolchain_dir, progress=self._progress)
        return built.component

    def _fetch_event(self) -> Path | Missing:
        if not is_installed(JAVASCRIPT, self._toolchain_dir):
            return self._without(JAVASCRIPT)
        source = (Path(__file__).parent / "fetch_event.js").read_bytes()
        cache = Cache(self._cache_dir)
        key = content_key([("fetch_event.js", source), *wit_inputs()], toolchain=JAVASCRIPT.version)
        found = cache.find(key)
        if found is not None:
            return found
        self._progress("building a stock fetch event")
        tools = install(JAVASCRIPT, self._toolchain_dir, self._progress)
        componentize = tools / "node_modules" / "@bytecodealliance" / "componentize-js" / "src" / "cli.js"
        with tempfile.TemporaryDirectory(prefix="everwarm-bench-") as scratch:
            (Path(scratch) / "app.js").write_bytes(source)
            run(
                [
                    *(node_program(), str(componentize), "app.js", "--wit", str(WIT_DIR)),
                    *("--world-name", WIT_WORLDS[0], "--out", "worker.wasm"),
                ],
                failure="a stock fetch event cannot be built",
                cwd=Path(scratch),
                shown_as={Path(scratch): "<build>", tools: "<toolchain>"},
            )
            return cache.store(key, (Path(scratch) / "worker.wasm").read_bytes())

    def _without(self, toolchain: Toolchain) -> Missing:
        worker = "js/hello-js" if toolchain is JAVASCRIPT else "python/hello-python"
        return Missing(
            f"{toolchain.title} is not installed; `everwarm build workers/{worker}` installs it", is_fault=False
        )


def _sources_of_the_sandbox() -> str:
    """Names what decides how a component is compiled, beside the component: 16 hex digits."""
    sources = hashlib.sha256()
    for file in sorted((ROOT / "isolates").rglob("*.py")):
        sources.update(file.read_bytes())
    return sources.hexdigest()[:16]


def _compile_in_a_process(component: Path, store: Path) -> str:
    """Why it failed, or nothing. In a process of its own: an engine takes 400 MB to compile."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.isolates.guests", str(component.resolve()), str(store.resolve())],
            cwd=ROOT, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"not done within {_COMPILE_TIMEOUT_S:g} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return ""


def main(arguments: list[str]) -> int:
    """Compile one component in this process, start it once and install it: what a deploy does."""
    component, store = arguments
    limits = IsolateLimits(startup_cpu_ms=5_000)
    result = compile_and_start(Path(component).read_bytes(), ArtifactStore(Path(store)), limits)
    if isinstance(result, Rejected):
        print(result, file=sys.stderr)
        return 1
    print(json.dumps({"installed": result.component_digest}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

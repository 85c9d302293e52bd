import os
import sys
from pathlib import Path

import pytest

from everwarm.build import BuildError, Built, build
from everwarm.build.cache import Cache, CacheLimits, content_key
from everwarm.build.manifest import parse_manifest
from everwarm.build.project import Project, source_inputs
from everwarm.build.tool import run
from everwarm.build.toolchain import ZIG, Toolchain, install, is_installed, node_program

ROOT = Path(__file__).parents[2]
WORKERS = ROOT / "workers"

MINIMAL = 'name = "hello"\nlanguage = "zig"\nentry = "worker.zig"\n'


def folder_with(tmp_path: Path, **files: str | bytes) -> Path:
    """A worker's folder; `worker_zig="x"` is a file worker.zig with the text x."""
    folder = tmp_path / "worker"
    folder.mkdir()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("_", ".")).write_bytes(data)
    return folder


def build_quietly(folder: Path, tmp_path: Path) -> Built:
    return build(folder, cache_dir=tmp_path / "cache", toolchain_dir=tmp_path / "tools", progress=lambda line: None)


class TestContentKey:
    def test_every_part_counts(self) -> None:
        inputs = [("a", b"1"), ("b", b"2")]
        keys = {
            content_key(inputs, toolchain="t1", builder="1"),
            content_key([("a", b"1"), ("b", b"3")], toolchain="t1", builder="1"),
            content_key([("a", b"1"), ("c", b"2")], toolchain="t1", builder="1"),
            content_key([("a", b"1")], toolchain="t1", builder="1"),
            content_key([("a", b"1b"), ("", b"2")], toolchain="t1", builder="1"),
            content_key(inputs, toolchain="t2", builder="1"),
            content_key(inputs, toolchain="t1", builder="2"),
        }
        assert len(keys) == 7

    def test_the_order_of_the_files_does_not(self) -> None:
        inputs = [("a", b"1"), ("b", b"2")]
        assert content_key(inputs, toolchain="t") == content_key(inputs[::-1], toolchain="t")

    def test_a_toolchain_is_its_exact_versions(self) -> None:
        newer = Toolchain("zig", "Zig", pip={**ZIG.pip, "ziglang": "0.17.2"})
        assert newer.version != ZIG.version
        assert newer.folder_name != ZIG.folder_name


class TestSourceInputs:
    def project(self, folder: Path, tmp_path: Path) -> Project:
        return Project(folder, parse_manifest(MINIMAL, file="f"), None, tmp_path)

    def test_bytes_and_names_count_and_times_do_not(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, worker_zig="a", everwarm_toml=MINIMAL, worker_wasm=b"\0asm")
        before = source_inputs(self.project(folder, tmp_path))
        assert before == [("worker.zig", b"a")]
        os.utime(folder / "worker.zig", (1, 1))
        assert source_inputs(self.project(folder, tmp_path)) == before
        (folder / "worker.zig").write_text("b")
        assert source_inputs(self.project(folder, tmp_path)) != before

    def test_what_other_tools_left_is_not_a_source(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, worker_zig="a")
        for name in ("node_modules", "__pycache__", ".git"):
            (folder / name).mkdir()
            (folder / name / "x.zig").write_text("x")
        (folder / "parts").mkdir()
        (folder / "parts" / "b.zig").write_text("b")
        (folder / "link.zig").symlink_to(tmp_path / "elsewhere")
        names = [name for name, _ in source_inputs(self.project(folder, tmp_path), suffix=".zig")]
        assert names == ["parts/b.zig", "worker.zig"]


class TestCache:
    def test_finds_what_was_stored(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path / "cache")
        assert cache.find("k") is None
        stored = cache.store("k", b"component")
        assert cache.find("k") == stored
        assert stored.read_bytes() == b"component"
        assert list(stored.parent.iterdir()) == [stored]

    def test_drops_the_least_recently_used(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, CacheLimits(bytes_max=20))
        for age, key in enumerate(["old", "older", "oldest"]):
            os.utime(cache.store(key, b"." * 5), (1000 - age, 1000 - age))
        cache.find("oldest")
        cache.store("new", b"." * 10)
        assert sorted(file.stem for file in tmp_path.iterdir()) == ["new", "old", "oldest"]

    def test_keeps_what_was_just_stored_however_large(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path, CacheLimits(bytes_max=20))
        cache.store("small", b".")
        assert cache.store("large", b"." * 30).exists()
        assert cache.find("small") is None


class TestTool:
    def test_a_failure_says_what_the_tool_said_without_this_machines_paths(self, tmp_path: Path) -> None:
        script = f"import sys; print('first\\n{tmp_path}/a.zig:1: error: bad', file=sys.stderr); sys.exit(3)"
        with pytest.raises(BuildError) as caught:
            run([sys.executable, "-c", script], failure="w: failed", cwd=tmp_path, shown_as={tmp_path: "."})
        assert caught.value.message == "w: failed: ./a.zig:1: error: bad"
        assert caught.value.detail == "first\n./a.zig:1: error: bad"

    def test_a_tool_that_hangs_is_a_failure(self, tmp_path: Path) -> None:
        command = [sys.executable, "-c", "import sys; sys.stdin.read(); import threading; threading.Event().wait()"]
        with pytest.raises(BuildError, match="did not end within"):
            run(command, failure="w: failed", cwd=tmp_path, shown_as={}, timeout_s=0.05)

    def test_tools_do_not_see_the_callers_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SECRET_OF_THE_CALLER", "x")
        seen = run(
            [sys.executable, "-c", "import os; print(sorted(os.environ))"], failure="f", cwd=tmp_path, shown_as={}
        )
        assert b"SECRET_OF_THE_CALLER" not in seen


class TestToolchain:
    def test_an_installed_one_is_used_as_it_is(self, tmp_path: Path) -> None:
        assert not is_installed(ZIG, tmp_path)
        (tmp_path / ZIG.folder_name).mkdir()
        lines: list[str] = []
        assert install(ZIG, tmp_path, lines.append) == tmp_path / ZIG.folder_name
        assert lines == []

    def test_a_failed_install_leaves_nothing_that_looks_installed(self, tmp_path: Path) -> None:
        # A name that no registry can have: pip refuses it before it asks anyone.
        impossible = Toolchain("broken", "Broken", pip={"not a name": "1"})
        with pytest.raises(BuildError, match=r"^Broken could not be installed with pip: "):
            install(impossible, tmp_path, lambda line: None)
        assert not is_installed(impossible, tmp_path)
        assert [file.suffix for file in tmp_path.iterdir()] == [".lock"]

    def test_no_node(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BuildError, match=r"^JavaScript workers need Node 20 or newer; there is no `node` on PATH$"):
            node_program()

    @pytest.mark.parametrize(("version", "good"), [("v18.19.0", False), ("v20.0.0", True), ("v104.1.0", True)])
    def test_how_new_node_is(self, version: str, good: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        node = tmp_path / "node"
        node.write_text(f"#!/bin/sh\necho {version}\n")
        node.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        if good:
            assert node_program() == str(node)
        else:
            with pytest.raises(BuildError, match=f"the `node` on PATH is {version}"):
                node_program()


class TestBuild:
    MANIFEST = 'name = "ready"\nlanguage = "component"\nentry = "worker.wasm"\n'
    COMPONENT = (WORKERS / "zig" / "silent" / "worker.wasm").read_bytes()

    def test_a_component_is_taken_as_it_is_and_found_again(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, everwarm_toml=self.MANIFEST, worker_wasm=self.COMPONENT)
        first, second = build_quietly(folder, tmp_path), build_quietly(folder, tmp_path)
        assert first.component.read_bytes() == self.COMPONENT
        assert (first.from_cache, second.from_cache) == (False, True)
        assert (second.component, second.sha256) == (first.component, first.sha256)

    @pytest.mark.parametrize(
        ("data", "message"),
        [(b"hello", "ready: the result is not WebAssembly"), (b"\0asm\1\0\0\0", "ready: the result is a core module")],
    )
    def test_what_is_no_component_is_refused(self, data: bytes, message: str, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, everwarm_toml=self.MANIFEST, worker_wasm=data)
        with pytest.raises(BuildError, match=message):
            build_quietly(folder, tmp_path)

    def test_an_entry_that_is_not_there(self, tmp_path: Path) -> None:
        folder = folder_with(tmp_path, everwarm_toml=self.MANIFEST)
        with pytest.raises(BuildError, match=r"^ready: entry worker\.wasm does not exist$"):
            build_quietly(folder, tmp_path)

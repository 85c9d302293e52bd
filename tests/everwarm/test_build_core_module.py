"""Zig and C workers: the components that are checked in, and what their toolchain makes of sources."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import Engine
from wasmtime.component import Component

from everwarm.build import BuildError, build
from everwarm.build.manifest import Language, read_manifest
from everwarm.build.toolchain import ZIG
from isolates.outcome import Outcome
from tests.built_worker import ROOT, TOOLCHAINS, BuiltWorker, needs

WORKERS = ROOT / "workers"
# What is built where it is deployed, because it is large, has no component beside its source.
CHECKED_IN = sorted(
    manifest.parent
    for group in ("c", "platform", "zig")
    for manifest in WORKERS.glob(f"{group}/*/everwarm.toml")
    if read_manifest(manifest.parent).language is not Language.JAVASCRIPT
)
# A component may import these and no others: what is here is what it costs to host one.
ALLOWED = (
    "wasi:http/types@",
    "wasi:http/outgoing-handler@",
    "wasi:io/error@",
    "wasi:io/poll@",
    "wasi:io/streams@",
    "wasi:clocks/monotonic-clock@",
    "wasi:cli/stdout@",
)

ZIG_MANIFEST = 'name = "hello"\nlanguage = "zig"\nentry = "worker.zig"\n'
C_MANIFEST = 'name = "checks"\nlanguage = "c"\nentry = "worker.c"\nmodules = [{modules}]\n'


@pytest.mark.parametrize("folder", CHECKED_IN, ids=lambda folder: f"{folder.parent.name}/{folder.name}")
def test_a_checked_in_component(folder: Path) -> None:
    data = (folder / "worker.wasm").read_bytes()
    assert len(data) < 100_000
    engine = Engine()
    component_type = Component(engine, data).type
    imports = list(component_type.imports(engine))
    assert [name for name in imports if not name.startswith(ALLOWED)] == []
    assert list(component_type.exports(engine)) == ["wasi:http/incoming-handler@0.2.10"]


def test_all_of_them_are_here() -> None:
    names = [f"{folder.parent.name}/{folder.name}" for folder in CHECKED_IN]
    zig = ("echo", "fetch", "hello", "hoard", "silent", "slow_start", "snapshot", "spin", "stream", "tail", "trap")
    platform = ("alice", "audit", "bob", "dispatcher", "guard")
    assert names == ["c/hello", *(f"platform/{name}" for name in platform), *(f"zig/{name}" for name in zig)]


def worker_folder(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "worker"
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def built(folder: Path, cache: Path) -> Path:
    return build(folder, cache_dir=cache, toolchain_dir=TOOLCHAINS, progress=lambda line: None).component


@pytest.mark.toolchain
@needs(ZIG)
@pytest.mark.parametrize("name", ["zig/hello", "c/hello", "platform/alice", "platform/guard"])
def test_the_checked_in_component_is_what_its_source_gives(name: str, tmp_path: Path) -> None:
    folder = WORKERS / name
    assert built(folder, tmp_path).read_bytes() == (folder / "worker.wasm").read_bytes()


@pytest.mark.toolchain
@needs(ZIG)
class TestErrors:
    def failing(self, folder: Path, tmp_path: Path) -> BuildError:
        with pytest.raises(BuildError) as caught:
            built(folder, tmp_path)
        assert str(tmp_path) not in caught.value.message + caught.value.detail
        return caught.value

    def test_in_zig(self, tmp_path: Path) -> None:
        folder = worker_folder(
            tmp_path, everwarm_toml=ZIG_MANIFEST, worker_zig="export fn handle() void { missing(); }"
        )
        error = self.failing(folder, tmp_path)
        assert "worker.zig:1:27: error: use of undeclared identifier 'missing'" in error.message

    def test_in_c(self, tmp_path: Path) -> None:
        source = "int f(void) { return missing(); }\n"
        folder = worker_folder(tmp_path, everwarm_toml=C_MANIFEST.format(modules=""), worker_c=source)
        assert "worker.c:1:22: error: call to undeclared function 'missing'" in self.failing(folder, tmp_path).message

    def test_a_c_worker_that_wants_an_operating_system(self, tmp_path: Path) -> None:
        source = '#include <stdio.h>\n#include "wasi_http.h"\nvoid handle(http_request *a, http_response *b) '
        source += '{ printf("%p %p", (void *)a, (void *)b); }\n'
        manifest = C_MANIFEST.format(modules='"../wasi_http.h"')
        shutil.copy(WORKERS / "c" / "wasi_http.h", tmp_path)
        error = self.failing(worker_folder(tmp_path, everwarm_toml=manifest, worker_c=source), tmp_path)
        assert "does not fit wasi:http" in error.message
        assert "wasi_snapshot_preview1" in error.detail

    def test_two_modules_of_one_name(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "x.h").write_text("")
        manifest = C_MANIFEST.format(modules='"../a/x.h", "../b/x.h"')
        folder = worker_folder(tmp_path, everwarm_toml=manifest, worker_c="")
        assert self.failing(folder, tmp_path).message == "checks: two modules are called x.h"


SOURCE = """
#include <stdlib.h>
#include "wasi_http.h"
#include "second.h"

static bool is(http_text text, const char *wanted) {
    return text.length == strlen(wanted) && memcmp(text.bytes, wanted, text.length) == 0;
}

void handle(http_request *request, http_response *response) {
    http_text path = http_path(request), chunk;
    if (is(path, "/echo")) {
        http_text type = http_header(request, "content-type");
        http_add_header(response, "content-type", type.bytes == NULL ? http_literal("none") : type);
        http_begin(response, 202);
        while (http_read(request, &chunk)) http_write(response, chunk);
        if (http_broke_off(request)) http_give_up(response);
    } else if (is(path, "/large")) {
        char *bytes = malloc(200000);
        memset(bytes, 'x', 200000);
        http_answer(response, 200, "text/plain", (http_text){bytes, 200000});
        free(bytes);
    } else if (is(path, "/bad")) {
        http_add_header(response, "x", http_literal("a\\nb"));
        http_begin(response, 200);
    } else if (is(path, "/half")) {
        http_begin(response, 200);
        http_write(response, http_literal("half"));
        http_give_up(response);
        http_write(response, http_literal("never"));
    } else if (is(path, "/facts")) {
        http_buffer text = http_buffer_of(100);
        http_append_number(&text, http_method(request));
        http_append(&text, http_literal(" "));
        http_append_number(&text, UINT64_MAX);
        http_append(&text, http_literal(" "));
        http_append(&text, http_target(request));
        http_append_number(&text, second());
        http_answer(response, 200, "text/plain", http_text_of(&text));
    } else if (is(path, "/log")) {
        char *bytes = malloc(5000);
        memset(bytes, 'x', 5000);
        http_log(http_literal("a line"));
        http_log((http_text){bytes, 5000});
        http_log(http_literal(""));
        free(bytes);
        http_answer(response, 200, "text/plain", http_literal("logged"));
    } else if (is(path, "/none")) {
        http_give_up(response);
    } else if (!is(path, "/silent")) {
        http_answer(response, 404, "text/plain", http_literal(""));
    }
}
"""


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltWorker]:
    folder = tmp_path_factory.mktemp("c")
    shutil.copy(WORKERS / "c" / "wasi_http.h", folder)
    (folder / "second.h").write_text("unsigned second(void);\n")
    (folder / "second.c").write_text('#include "second.h"\nunsigned second(void) { return 2; }\n')
    manifest = C_MANIFEST.format(modules='"../wasi_http.h", "../second.h", "../second.c"')
    worker = BuiltWorker.of(worker_folder(folder, everwarm_toml=manifest, worker_c=SOURCE))
    yield worker
    worker.close()


@pytest.mark.toolchain
@needs(ZIG)
class TestC:
    def test_a_body_streams_through(self, worker: BuiltWorker) -> None:
        body = [os.urandom(70_000) for _ in range(8)]
        answer = worker.ask("/echo", method="POST", headers=(("content-type", b"x/y"),), body=body)
        assert (answer.status, answer.body, answer.header("content-type")) == (202, b"".join(body), b"x/y")
        assert worker.ask("/echo", headers=()).header("content-type") == b"none"

    def test_a_body_that_breaks_off(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/echo", method="POST", body=[b"part"], body_breaks=True)
        assert answer.finished.outcome is Outcome.RESPONSE_STREAM_DISCONNECTED

    def test_a_large_answer(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/large")
        assert (answer.body, answer.header("content-length")) == (b"x" * 200_000, b"200000")

    def test_facts(self, worker: BuiltWorker) -> None:
        assert worker.ask("/facts?q=1", method="PUT").body == b"3 18446744073709551615 /facts?q=12"

    def test_nothing(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/nowhere")
        assert (answer.status, answer.body, answer.header("content-length")) == (404, b"", b"0")

    @pytest.mark.parametrize("path", ["/bad", "/none", "/silent"])
    def test_no_answer(self, worker: BuiltWorker, path: str) -> None:
        answer = worker.ask(path)
        assert answer.finished.outcome is Outcome.EXCEPTION
        assert answer.finished.reason == "the worker answered with the error internal-error"

    def test_the_log(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/log")
        assert (answer.status, answer.body) == (200, b"logged")
        logged = [(line.stream, line.text) for line in answer.finished.logs]
        assert logged == [("stdout", "a line"), ("stdout", "x" * 4096), ("stdout", "x" * 904)]

    def test_half_an_answer(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/half")
        assert answer.finished.outcome is Outcome.RESPONSE_STREAM_DISCONNECTED
        assert answer.conversation.body == b"half"

    def test_no_handle_is_left(self, worker: BuiltWorker) -> None:
        for path in ("/echo", "/large", "/bad", "/half", "/facts", "/log", "/none", "/silent", "/nowhere"):
            worker.ask(path, method="POST", body=[b"x"] * 3)
            assert worker.isolate.guest.resources == 0, path


def test_hello_in_eight_calls(tmp_path: Path) -> None:
    worker = BuiltWorker.of_component(WORKERS / "c" / "hello" / "worker.wasm", tmp_path)
    answer = worker.ask("/you?there")
    assert (answer.status, answer.body) == (200, b"hello from C\nyou asked for /you\n")
    assert answer.headers == [("content-type", b"text/plain"), ("content-length", b"32")]
    assert answer.finished.usage.host_calls == 8
    worker.close()

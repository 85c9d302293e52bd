"""Python workers: WSGI and raw handlers inside their components, and stock frameworks on top of them."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.store_file import StoreFile
from everwarm.build import BuildError, build
from everwarm.build.toolchain import PYTHON
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.built_worker import TOOLCHAINS, BuiltWorker, needs
from tests.file_stores import FileStores

WORKER = """
import os, random, sys, hashlib
from wsgiref.validate import validator

SEEDED = random.random()

def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]

def stream(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for number in range(3):
        yield b"%d\\n" % number
    yield b"x" * 200_000

def echo(environ, start_response):
    start_response("200 OK", [("Content-Type", environ["CONTENT_TYPE"])])
    return iter(lambda: environ["wsgi.input"].read1(65536), b"")

def digest(environ, start_response):
    start_response("200 OK", [])
    return [hashlib.sha256(environ["wsgi.input"].read()).hexdigest().encode()]

def fail(environ, start_response):
    raise RuntimeError("for the log only")

def breaks(environ, start_response):
    start_response("200 OK", [])
    yield b"part"
    raise RuntimeError("in the middle")

def leave(environ, start_response):
    sys.exit(3)

def prints(environ, start_response):
    print("a", 1)
    print("no newline", end="")
    environ["wsgi.errors"].write("to stderr\\n")
    start_response("204 No Content", [])
    return []

def tells(environ, start_response):
    start_response("418 Teapot", [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])
    return [repr((os.environ["GREETING"], environ["everwarm.vars"]["GREETING"], environ["PATH_INFO"])).encode()]

def chance(environ, start_response):
    start_response("200 OK", [])
    return [repr((SEEDED, random.random())).encode()]

def short(environ, start_response):
    start_response("200 OK", [("Content-Length", "70")])
    return [b"short"]

def badvalue(environ, start_response):
    start_response("200 OK", [("X", "a\\r\\nb: c")])
    return [b"x"]

def checked(environ, start_response):
    return validator(hello)(environ, start_response)

def app(environ, start_response):
    return globals()[environ["PATH_INFO"].strip("/").split("/")[0]](environ, start_response)
"""

RAW = """
import os
from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports.types import Fields, OutgoingBody, OutgoingResponse, ResponseOutparam

app = None

class IncomingHandler(exports.IncomingHandler):
    def handle(self, request, response_out):
        with request:
            response = OutgoingResponse(Fields.from_list([("x-var", os.environ["A"].encode())]))
            ResponseOutparam.set(response_out, Ok(response))
"""


def manifest(name: str, **variables: str) -> str:
    lines = [f'name = "{name}"', 'language = "python"', 'entry = "app.py"', "[vars]"]
    return "\n".join([*lines, *(f"{key} = {json.dumps(value)}" for key, value in variables.items())]) + "\n"


def folder_of(path: Path, source: str, name: str, **variables: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "app.py").write_text(source)
    (path / "everwarm.toml").write_text(manifest(name, **variables))
    return path


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of(tmp_path_factory.mktemp("python"), WORKER, "checks", GREETING="hello é")
    return build(folder, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None).component


@pytest.fixture(scope="module")
def worker(component: Path) -> Iterator[BuiltWorker]:
    worker = BuiltWorker.of_component(component, variables=(("GREETING", "hello é"),))
    worker.ask("/hello")
    yield worker
    worker.close()


@pytest.mark.toolchain
@needs(PYTHON)
class TestInAComponent:
    def test_hello_in_twelve_calls(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/hello")
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers == [("content-type", b"text/plain"), ("content-length", b"5")]
        assert answer.finished.usage.host_calls == 12
        assert answer.finished.verdict is Verdict.KEEP

    def test_it_streams_out_in_pieces_as_large_as_the_host_takes(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/stream")
        assert answer.body == b"0\n1\n2\n" + b"x" * 200_000
        assert len(answer.conversation.sent) <= 3 + 4
        assert answer.finished.usage.host_calls <= 12 + 2 + 2 * 4 + 1

    def test_it_streams_through(self, worker: BuiltWorker) -> None:
        body = [os.urandom(50_000) for _ in range(5)]
        headers = (("content-type", b"x/y"),)
        answer = worker.ask("/echo", method="POST", headers=headers, body=body)
        assert answer.body == b"".join(body)
        assert answer.header("content-type") == b"x/y"
        answer = worker.ask("/digest", method="POST", body=body)
        assert answer.body == hashlib.sha256(b"".join(body)).hexdigest().encode()

    def test_a_body_that_breaks_off_is_an_error(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/digest", method="POST", body=[b"part"], body_breaks=True)
        assert answer.finished.outcome is Outcome.EXCEPTION
        assert "OSError: the request's body broke off" in answer.log

    @pytest.mark.parametrize(
        ("path", "logged"),
        [("/fail", "RuntimeError: for the log only"), ("/leave", "SystemExit: 3"), ("/badvalue", "InvalidSyntax")],
    )
    def test_errors_are_for_the_log(self, worker: BuiltWorker, path: str, logged: str) -> None:
        answer = worker.ask(path)
        assert answer.finished.outcome is Outcome.EXCEPTION
        assert answer.conversation.response is None
        assert len(answer.finished.logs) == 1, "one event, not one for each line"
        assert logged in answer.log
        assert worker.ask("/hello").body == b"hello", "the instance is as good as before"

    @pytest.mark.parametrize("path", ["/breaks", "/short"])
    def test_half_an_answer_never_looks_whole(self, worker: BuiltWorker, path: str) -> None:
        answer = worker.ask(path)
        assert answer.finished.outcome is Outcome.RESPONSE_STREAM_DISCONNECTED
        assert not answer.conversation.finished

    def test_head(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/hello", method="HEAD")
        assert (answer.body, answer.header("content-length")) == (b"", b"5")

    def test_vars_and_cookies(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/tells/%C3%A9")
        assert answer.status == 418
        assert answer.body == "('hello é', 'hello é', '/tells/Ã©')".encode()
        assert [value for name, value in answer.headers if name == "set-cookie"] == [b"a=1", b"b=2"]

    def test_each_instance_has_its_own_variables(self, worker: BuiltWorker, component: Path) -> None:
        """They were rehearsed, and at the top level there was the manifest's; at run time there is the deploy's."""
        other = BuiltWorker.of_component(component, variables=(("GREETING", "other"), ("KEY", "s3cret")))
        assert other.ask("/tells").body == b"('other', 'other', '/tells')"
        assert worker.ask("/tells").body == "('hello é', 'hello é', '/tells')".encode()
        other.close()

    def test_what_is_printed_is_in_the_log_of_its_request(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/prints")
        assert [(line.stream, line.text) for line in answer.finished.logs] == [
            ("stdout", "a 1\n"),
            ("stderr", "to stderr\n"),
            ("stdout", "no newline"),
        ]

    def test_instances_do_not_share_their_chance(self, worker: BuiltWorker, component: Path) -> None:
        other = BuiltWorker.of_component(component)
        first, second = eval(worker.ask("/chance").body), eval(other.ask("/chance").body)
        assert first[0] == second[0], "this one is in the snapshot"
        assert first[1] != second[1]
        other.close()

    def test_the_validator_is_content(self, worker: BuiltWorker) -> None:
        assert worker.ask("/checked").body == b"hello"

    def test_no_handle_is_left(self, worker: BuiltWorker) -> None:
        worker.ask("/prints")
        worker.ask("/fail")
        before = worker.isolate.guest.resources
        for path in ("/hello", "/stream", "/fail", "/breaks", "/digest", "/short"):
            worker.ask(path, method="POST", body=[b"x"])
        assert worker.isolate.guest.resources == before


@pytest.mark.toolchain
@needs(PYTHON)
class TestOtherShapes:
    def test_a_raw_handler_goes_on_working(self, tmp_path: Path) -> None:
        worker = BuiltWorker.of(folder_of(tmp_path / "w", RAW, "raw", A="1"))
        answer = worker.ask("/")
        assert (answer.status, answer.header("x-var"), answer.body) == (200, b"1", b"")
        worker.close()

    def test_a_module_with_neither(self, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "w", "application = 3\n", "neither")
        with pytest.raises(BuildError, match=r"app\.py defines neither app \(or application\), a WSGI application"):
            build(folder, cache_dir=tmp_path / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None)


STORE = """
from wit_world.imports import atomics, store

def app(environ, start_response):
    with store.open("sessions") as bucket:
        hits = atomics.increment(bucket, "hits", 1)
        bucket.set("last", environ["PATH_INFO"].encode())
        last = bucket.get("last")
    start_response("200 OK", [("content-type", "text/plain")])
    return [f"{hits} {last.decode()}".encode()]
"""


@pytest.mark.toolchain
@needs(PYTHON)
def test_a_key_value_store(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "store", STORE, "store")
    with (folder / "everwarm.toml").open("a") as bound:
        bound.write('[[bindings.kv]]\nname = "sessions"\nstore = "shop-sessions"\n')
    built = build(folder, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None)
    file = StoreFile(tmp_path / "stores.sqlite")
    worker = BuiltWorker.of_component(built.component, stores=FileStores(file))
    assert [worker.ask(path).body for path in ("/one", "/two")] == [b"1 /one", b"2 /two"]
    worker.close()
    file.close()


FRAMEWORKS = """
import os
import bottle, flask

flasky = flask.Flask(__name__)
bottled = bottle.Bottle()

@flasky.get("/flask")
def hello():
    return {"hello": os.environ["WHO"], "q": flask.request.args.get("q"), "host": flask.request.host}

@flasky.post("/flask/form")
def form():
    return flask.render_template_string("<b>{{ name }}</b>", name=flask.request.form["name"])

@flasky.post("/flask/upload")
def upload():
    return str(len(flask.request.stream.read()))

@flasky.get("/flask/stream")
def stream():
    return flask.Response((f"{number}\\n" for number in range(3)), mimetype="text/plain")

@flasky.get("/flask/fail")
def fail():
    raise RuntimeError("on purpose")

@bottled.get("/bottle/<name>")
def named(name):
    bottle.response.set_cookie("a", "1")
    bottle.response.set_cookie("b", "2")
    return {"hello": name}

@bottled.post("/bottle/json")
def posted():
    return bottle.request.json

def app(environ, start_response):
    return (flasky if environ["PATH_INFO"].startswith("/flask") else bottled)(environ, start_response)
"""


@pytest.fixture(scope="module")
def frameworks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltWorker]:
    """Flask and Bottle as pip brings them, in the folder of a worker."""
    folder = folder_of(tmp_path_factory.mktemp("frameworks"), FRAMEWORKS, "frameworks", WHO="world")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    packages = ["flask==3.1.2", "bottle==0.13.4"]
    installed = subprocess.run([*pip, "--target", str(folder), *packages], capture_output=True, check=False)
    if installed.returncode != 0:
        pytest.skip("Flask and Bottle cannot be installed here")
    worker = BuiltWorker.of(folder)
    yield worker
    worker.close()


@pytest.mark.toolchain
@needs(PYTHON)
class TestFrameworks:
    def form(self, worker: BuiltWorker, path: str, kind: bytes, body: bytes) -> bytes:
        headers = (("content-type", kind), ("content-length", b"%d" % len(body)))
        return worker.ask(path, method="POST", headers=headers, body=[body]).body

    def test_flask(self, frameworks: BuiltWorker) -> None:
        answer = frameworks.ask("/flask?q=%C3%A9")
        assert json.loads(answer.body) == {"hello": "world", "q": "é", "host": "test.localhost"}
        assert frameworks.ask("/flask").finished.usage.host_calls <= 12
        form = b"application/x-www-form-urlencoded"
        assert self.form(frameworks, "/flask/form", form, b"name=a%3Cb") == b"<b>a&lt;b</b>"
        assert self.form(frameworks, "/flask/upload", b"x/y", b"." * 100_000) == b"100000"
        assert frameworks.ask("/flask/stream").body == b"0\n1\n2\n"
        assert frameworks.ask("/flask", method="HEAD").body == b""

    def test_an_upload_without_a_length(self, frameworks: BuiltWorker) -> None:
        answer = frameworks.ask("/flask/upload", method="POST", body=[b"a" * 70_000, b"b"])
        assert answer.body == b"70001"

    def test_an_error_in_flask(self, frameworks: BuiltWorker) -> None:
        answer = frameworks.ask("/flask/fail")
        assert answer.status == 500
        assert b"on purpose" not in answer.body
        assert "RuntimeError: on purpose" in answer.log

    def test_bottle(self, frameworks: BuiltWorker) -> None:
        answer = frameworks.ask("/bottle/you")
        assert json.loads(answer.body) == {"hello": "you"}
        assert [value for name, value in answer.headers if name == "set-cookie"] == [b"a=1", b"b=2"]
        assert json.loads(self.form(frameworks, "/bottle/json", b"application/json", b'{"a":[1]}')) == {"a": [1]}
        assert frameworks.ask("/nowhere").status == 404

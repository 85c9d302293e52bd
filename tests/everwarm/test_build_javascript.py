"""JavaScript workers: the wrapper between wasi:http and `export default { fetch }`, and a stock Hono app upon it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.store_file import StoreFile
from everwarm.build import BuildError, build
from everwarm.build.toolchain import JAVASCRIPT
from isolates.limits import Verdict
from isolates.outcome import Outcome
from tests.built_worker import TOOLCHAINS, BuiltWorker, needs
from tests.file_stores import FileStores

pytestmark = [
    pytest.mark.toolchain,
    needs(JAVASCRIPT),
    pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed"),
]

WORKER = """
const encoder = new TextEncoder();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const count = (from) => {
  let left = from;
  return new ReadableStream({
    async pull(controller) {
      if (left === 0) return controller.close();
      await pause(1);
      controller.enqueue(encoder.encode(`${left--}\\n`));
    },
  });
};
const routes = {
  '/hello': () => new Response('hello'),
  '/async': async () => new Response('hello'),
  '/json': () => Response.json({ a: 1 }, { status: 201, headers: { 'x-a': 'b' } }),
  '/types': () => {
    class Mine extends Response {}
    const made = Response.json(1, { headers: { 'content-type': 'x/y' } });
    return Response.json([
      made.headers.get('content-type'), made instanceof Response, made.constructor === Response,
      new Mine('x') instanceof Mine, new Mine('x') instanceof Response, made.clone().headers.get('content-type'),
    ]);
  },
  '/null': () => new Response(null, { status: 204 }),
  '/empty': () => new Response(''),
  '/bytes': () => new Response(encoder.encode('bytes')),
  '/text': () => new Response('\\u00e9\\ud800'),
  '/large': () => new Response('x'.repeat(200000)),
  '/cookies': () => {
    const response = new Response('c');
    response.headers.append('set-cookie', 'a=1');
    response.headers.append('set-cookie', 'b=2');
    return response;
  },
  '/stream': () => new Response(count(3)),
  '/echo': (request) =>
    new Response(request.body, { headers: { 'content-type': request.headers.get('content-type') } }),
  '/upper': async (request) => new Response((await request.text()).toUpperCase()),
  '/ignored': (request) => new Response('ignored'),
  '/info': (request, env) =>
    Response.json({ url: request.url, method: request.method, headers: [...request.headers], env }),
  '/piped': () => {
    const original = new Response('ab');
    const twice = new TransformStream({
      transform(chunk, controller) {
        controller.enqueue(chunk);
        controller.enqueue(chunk);
      },
    });
    return new Response(original.body.pipeThrough(twice), original);
  },
  '/hop': () => new Response('hop', { headers: { connection: 'close', 'transfer-encoding': 'chunked', x: 'y' } }),
  '/used': async () => {
    const response = new Response('used');
    await response.text();
    return response;
  },
  '/throw': () => {
    throw new Error('for the log only');
  },
  '/reject': async () => {
    await pause(1);
    throw new Error('for the log only');
  },
  '/notresponse': () => 'for the log only',
  '/half': () => {
    let pulled = 0;
    return new Response(
      new ReadableStream({
        pull(controller) {
          if (pulled++ > 0) throw new Error('in the middle');
          controller.enqueue(encoder.encode('half'));
        },
      }),
    );
  },
  '/length': () => new Response(count(1), { headers: { 'content-length': '70' } }),
  '/later': (request, env, ctx) => {
    ctx.waitUntil(pause(1).then(() => ctx.waitUntil(pause(1).then(() => console.log('later')))));
    ctx.waitUntil(Promise.reject(new Error('rejected later')));
    return new Response('now');
  },
  '/throwlater': (request, env, ctx) => {
    ctx.waitUntil(pause(1).then(() => console.log('later')));
    throw new Error('first');
  },
  '/fetch': () => fetch('https://nowhere.invalid/').then(() => new Response('?'), () => new Response('refused')),
};
export default {
  fetch(request, env, ctx) {
    return routes[new URL(request.url).pathname](request, env, ctx);
  },
};
"""

STORE = """
import { open } from 'wasi:keyvalue/store@0.2.0-draft';
import { increment } from 'wasi:keyvalue/atomics@0.2.0-draft';
export default {
  fetch(request) {
    const bucket = open('sessions');
    const hits = increment(bucket, 'hits', 1n);
    bucket.set('last', new TextEncoder().encode(new URL(request.url).pathname));
    return new Response(`${hits} ${new TextDecoder().decode(bucket.get('last'))}`);
  },
};
"""

HONO = """
import { Hono } from 'hono';
import { etag } from 'hono/etag';
import { setCookie } from 'hono/cookie';
import { streamText } from 'hono/streaming';

const app = new Hono();
app.use('/etag', etag());
app.get('/', (c) => c.json({ hello: c.env.WHO, host: c.req.header('host') }));
app.get('/etag', (c) => c.text('tagged'));
app.get('/users/:id', (c) => c.text(`user ${c.req.param('id')}`));
app.post('/echo', async (c) => c.json(await c.req.json()));
app.get('/cookies', (c) => {
  setCookie(c, 'a', '1');
  setCookie(c, 'b', '2');
  return c.redirect('/');
});
app.get('/stream', (c) =>
  streamText(c, async (stream) => {
    for (const line of ['one', 'two']) {
      await stream.writeln(line);
      await stream.sleep(1);
    }
  }),
);
app.get('/fail', () => {
  throw new Error('for the log only');
});
app.get('/later', (c) => {
  c.executionCtx.waitUntil(Promise.resolve().then(() => console.log('later')));
  return c.body(null, 204);
});
export default app;
"""


def folder_of(path: Path, source: str, name: str, **variables: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "worker.js").write_text(source)
    lines = [f'name = "{name}"', 'language = "javascript"', 'entry = "worker.js"', "[vars]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in variables.items()]
    (path / "everwarm.toml").write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = folder_of(tmp_path_factory.mktemp("js"), WORKER, "checks", A="1")
    return build(folder, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None).component


@pytest.fixture(scope="module")
def worker(component: Path) -> Iterator[BuiltWorker]:
    worker = BuiltWorker.of_component(component, variables=(("A", "1"),))
    # The first request and the first line of each log set the engine up.
    worker.ask("/later")
    yield worker
    worker.close()


class TestAnswers:
    @pytest.mark.parametrize(("path", "calls"), [("/hello", 22), ("/async", 31)])
    def test_hello_and_what_it_costs(self, worker: BuiltWorker, path: str, calls: int) -> None:
        answer = worker.ask(path)
        assert (answer.status, answer.body) == (200, b"hello")
        assert answer.headers == [("content-type", b"text/plain;charset=UTF-8"), ("content-length", b"5")]
        # Most of them are the engine's looks at its clock, so a little room.
        assert answer.finished.usage.host_calls <= calls + 2

    @pytest.mark.parametrize(
        ("path", "status", "body", "length"),
        [
            ("/json", 201, b'{"a":1}', b"7"),
            ("/types", 200, b'["x/y",true,true,true,true,"x/y"]', b"33"),
            ("/null", 204, b"", None),
            ("/empty", 200, b"", b"0"),
            ("/bytes", 200, b"bytes", b"5"),
            ("/text", 200, "é\ufffd".encode(), b"5"),
            ("/large", 200, b"x" * 200_000, b"200000"),
            ("/stream", 200, b"3\n2\n1\n", None),
            ("/piped", 200, b"abab", None),
        ],
    )
    def test_bodies(self, worker: BuiltWorker, path: str, status: int, body: bytes, length: bytes | None) -> None:
        answer = worker.ask(path)
        assert (answer.status, answer.body, answer.header("content-length")) == (status, body, length)

    @pytest.mark.parametrize(("path", "length"), [("/hello", b"5"), ("/stream", None), ("/null", None)])
    def test_head(self, worker: BuiltWorker, path: str, length: bytes | None) -> None:
        answer = worker.ask(path, method="HEAD")
        assert (answer.body, answer.header("content-length")) == (b"", length)

    def test_headers(self, worker: BuiltWorker) -> None:
        cookies = [value for name, value in worker.ask("/cookies").headers if name == "set-cookie"]
        assert cookies == [b"a=1", b"b=2"]
        names = [name for name, _ in worker.ask("/hop").headers]
        assert names == ["content-type", "x", "content-length"]

    def test_wait_until(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/later")
        assert answer.body == b"now"
        assert "later\n" in answer.log
        assert "Error: rejected later" in answer.log

    def test_fetch_is_there(self, worker: BuiltWorker) -> None:
        assert worker.ask("/fetch").body == b"refused"


class TestRequests:
    def test_what_the_worker_sees(self, worker: BuiltWorker) -> None:
        headers = (("host", b"a.test:1"), ("x-a", b"1"), ("x-a", b"2"), ("cookie", b"c=d"), ("x-latin", b"\xe9"))
        seen = json.loads(worker.ask("/info?q=%20", method="PROPFIND", headers=headers).body)
        assert seen["url"] == "https://a.test:1/info?q=%20"
        assert seen["method"] == "PROPFIND"
        assert seen["env"] == {"A": "1"}
        assert dict(seen["headers"]) == {"host": "a.test:1", "x-a": "1, 2", "cookie": "c=d", "x-latin": "é"}

    def test_each_instance_has_its_own_variables(self, worker: BuiltWorker, component: Path) -> None:
        """All begin as they were left by the same rehearsal, which had none."""
        other = BuiltWorker.of_component(component, variables=(("A", "2"), ("KEY", "s3cret")))
        assert json.loads(other.ask("/info").body)["env"] == {"A": "2", "KEY": "s3cret"}
        assert json.loads(worker.ask("/info").body)["env"] == {"A": "1"}
        other.close()

    def test_a_body_streams_through(self, worker: BuiltWorker) -> None:
        body = [os.urandom(50_000) for _ in range(5)]
        answer = worker.ask("/echo", method="POST", headers=(("content-type", b"x/y"),), body=body)
        assert (answer.body, answer.header("content-type")) == (b"".join(body), b"x/y")
        assert worker.ask("/upper", method="POST", body=[b"a", b"b"]).body == b"AB"

    def test_a_body_that_is_not_read_is_not_asked_for(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/ignored", method="POST", body=[b"x"])
        assert answer.body == b"ignored"
        assert answer.conversation.pulled_bytes == 0

    def test_a_body_that_breaks_off(self, worker: BuiltWorker) -> None:
        answer = worker.ask("/upper", method="POST", body=[b"part"], body_breaks=True)
        assert answer.finished.outcome is Outcome.EXCEPTION
        assert "TypeError: the request body was cut short" in answer.log


class TestFailures:
    @pytest.mark.parametrize("path", ["/throw", "/reject", "/notresponse", "/used", "/throwlater"])
    def test_an_error_is_for_the_log_and_the_instance_lives(self, worker: BuiltWorker, path: str) -> None:
        answer = worker.ask(path)
        assert answer.finished.outcome is Outcome.EXCEPTION
        assert answer.finished.verdict is not Verdict.KILL
        assert answer.conversation.response is None
        assert "Error: " in answer.log
        assert "  at " in answer.log
        assert ("later" in answer.log) == (path == "/throwlater")
        assert worker.ask("/hello").body == b"hello"

    @pytest.mark.parametrize("path", ["/half", "/length"])
    def test_half_an_answer_never_looks_whole(self, worker: BuiltWorker, path: str) -> None:
        answer = worker.ask(path)
        assert answer.finished.outcome is Outcome.RESPONSE_STREAM_DISCONNECTED
        assert not answer.conversation.finished

    def test_no_handle_is_left(self, worker: BuiltWorker) -> None:
        worker.ask("/throw")
        before = worker.isolate.guest.resources
        for path in ("/hello", "/null", "/stream", "/echo", "/ignored", "/throw", "/half", "/length", "/later"):
            worker.ask(path, method="POST", body=[b"x"] * 3)
            assert worker.isolate.guest.resources == before, path

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("export default { fecth() {} };", "the default export has no function fetch()"),
            ("export default {", "found end of file"),
            ("import x from 'missing'; export default { fetch: x };", 'Could not resolve "missing"'),
        ],
    )
    def test_a_build_that_fails(self, source: str, message: str, tmp_path: Path) -> None:
        folder = folder_of(tmp_path / "w", source, "broken")
        with pytest.raises(BuildError) as caught:
            build(folder, cache_dir=tmp_path / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None)
        assert message in caught.value.message
        assert str(tmp_path) not in caught.value.detail


@pytest.fixture(scope="module")
def hono(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltWorker]:
    folder = folder_of(tmp_path_factory.mktemp("hono"), HONO, "hono-app", WHO="world")
    (folder / "package.json").write_text('{"private": true, "dependencies": {"hono": "4.13.19"}}')
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    if subprocess.run(npm, cwd=folder, capture_output=True, check=False).returncode != 0:
        pytest.skip("Hono cannot be installed here")
    worker = BuiltWorker.of(folder)
    yield worker
    worker.close()


class TestHono:
    def test_a_stock_app(self, hono: BuiltWorker) -> None:
        assert json.loads(hono.ask("/").body) == {"hello": "world", "host": "test.localhost"}
        assert hono.ask("/users/7").body == b"user 7"
        assert hono.ask("/stream").body == b"one\ntwo\n"
        assert hono.ask("/nowhere").status == 404
        assert hono.ask("/users/7", method="HEAD").body == b""
        headers = (("content-type", b"application/json"),)
        assert json.loads(hono.ask("/echo", method="POST", headers=headers, body=[b'{"a":[1]}']).body) == {"a": [1]}

    def test_its_middleware(self, hono: BuiltWorker) -> None:
        tagged = hono.ask("/etag")
        assert tagged.body == b"tagged"
        tag = tagged.header("etag")
        assert tag is not None
        assert hono.ask("/etag", headers=(("host", b"a"), ("if-none-match", tag))).status == 304
        cookies = [value for name, value in hono.ask("/cookies").headers if name == "set-cookie"]
        assert cookies == [b"a=1; Path=/", b"b=2; Path=/"]

    def test_its_errors_and_what_it_does_later(self, hono: BuiltWorker) -> None:
        failed = hono.ask("/fail")
        assert (failed.status, failed.body) == (500, b"Internal Server Error")
        assert "for the log only" in failed.log
        later = hono.ask("/later")
        assert (later.status, later.body, later.log) == (204, b"", "later\n")


def test_a_key_value_store(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "store", STORE, "store")
    with (folder / "everwarm.toml").open("a") as manifest:
        manifest.write('[[bindings.kv]]\nname = "sessions"\nstore = "shop-sessions"\n')
    built = build(folder, cache_dir=TOOLCHAINS / "cache", toolchain_dir=TOOLCHAINS, progress=lambda line: None)
    file = StoreFile(tmp_path / "stores.sqlite")
    worker = BuiltWorker.of_component(built.component, stores=FileStores(file))
    assert [worker.ask(path).body for path in ("/one", "/two")] == [b"1 /one", b"2 /two"]
    worker.close()
    file.close()

"""The platform of workers/platform, as its components are checked in: who answers what, and what the audit writes."""

import re

import pytest
from complete_servers import PLATFORM, CompleteServers, Got, Play, Scenario, component, request, upload, wait_until

from actors.exchange import RequestHead
from actors.view import decode_plain, encode_plain
from actors.worker_names import user_worker
from everwarm.build.manifest import read_manifest
from tracing.trace import Attr
from tracing.wire import decode_spans


@pytest.fixture
def play_platform(play: Play) -> Play:
    """Play a scenario on two servers that have the platform."""

    def run(scenario: Scenario) -> None:
        async def with_platform(cluster: CompleteServers) -> None:
            for folder in PLATFORM:
                said = read_manifest(folder)
                job = await cluster.deploy(
                    user_worker(said.namespace, said.name), (folder / "worker.wasm").read_bytes(),
                    said.bindings, **said.limits.of_version(),
                )  # fmt: skip
                assert job["error"] is None, job
            await scenario(cluster)

        play(with_platform)

    return run


async def ask(cluster: CompleteServers, path: str, method: str = "GET", data: bytes = b"", **headers: str) -> Got:
    """A request to the dispatcher, through server 1."""
    fields, body = upload(data)
    asked = request("dispatcher", path, method, **fields)
    named = tuple((name.replace("_", "-"), text.encode()) for name, text in headers.items())
    head = RequestHead(method, asked.head.scheme, asked.head.authority, path, named)
    return await cluster[1].ask(type(asked)(asked.request_id, asked.worker, head, "", **fields), body)


async def audited(cluster: CompleteServers, path: str) -> list[str]:
    """The lines that the audit writes of the request for ``path``."""
    desk = cluster[1].server._traces
    found: list[str] = []

    async def told() -> bool:
        for summary in decode_plain(await desk.traces(encode_plain({"limit": 100}))):
            spans = decode_spans(await desk.trace(encode_plain({"trace_id": summary["trace_id"]})))
            assert isinstance(spans, list)
            lines = [str(event.attributes[Attr.LOG_TEXT]).rstrip("\n") for span in spans for event in span.events]
            if summary["worker"] == "audit" and lines and f"{path} " in lines[0]:
                found[:] = lines
        return bool(found)

    await wait_until(told, f"the audit has heard of {path}")
    return found


def cost(line: str) -> tuple[str, float]:
    """A line of the audit without what differs each time, and that: CPU time in ms."""
    found = re.fullmatch(r"(.*), CPU ([0-9.]+) ms(.*)", line)
    assert found is not None, line
    return found[1] + found[3], float(found[2])


def test_what_each_request_becomes_and_what_the_audit_writes(play_platform: Play) -> None:
    front = "https://dispatcher.localhost"

    async def scenario(cluster: CompleteServers) -> None:
        async def visit(path: str) -> tuple[int, str, list[str]]:
            got = await ask(cluster, path)
            assert got.served is not None
            costs = [cost(line) for line in await audited(cluster, path)]
            # The dispatcher's limit, and no customer's own, which is 100 times as much.
            assert all(cpu_ms < 1_000 for _, cpu_ms in costs), costs
            return got.served.status, got.body.decode(), [line for line, _ in costs]

        assert await visit("/alice/hello") == (
            200,
            "hello from alice, in C: you asked for /hello\n",
            [
                f"dispatcher ok, GET {front}/alice/hello -> 200",
                "  customers/alice ok, GET http://alice.dispatch.internal/hello -> 200, log lines: 1",
            ],
        )
        assert await visit("/bob") == (
            200,
            "hello from bob, in Zig: it is tea time\n",
            [
                f"dispatcher ok, GET {front}/bob -> 200",
                "  customers/bob ok, GET http://bob.dispatch.internal/ -> 200",
                "    guard ok, GET http://time.example.com/now -> 200, log lines: 1",
            ],
        )
        assert await visit("/bob/steal") == (
            200,
            'hello from bob, in Zig: I was told "bob may not ask prices.example.net" (403)\n',
            [
                f"dispatcher ok, GET {front}/bob/steal -> 200",
                "  customers/bob ok, GET http://bob.dispatch.internal/steal -> 200",
                "    guard ok, GET http://prices.example.net/secret -> 403, log lines: 1",
            ],
        )
        assert await visit("/bob/spin") == (
            429,
            "Sorry: bob's worker wants more than a request may have (exceededCpu).\n",
            [
                f"dispatcher ok, GET {front}/bob/spin -> 429",
                "  customers/bob exceededCpu, GET http://bob.dispatch.internal/spin",
            ],
        )
        assert await visit("/nobody/") == (
            404,
            "There is no customer nobody.\n",
            [
                f"dispatcher ok, GET {front}/nobody/ -> 404",
                "  customers/nobody scriptNotFound, GET http://nobody.dispatch.internal/",
            ],
        )

    play_platform(scenario)


def test_only_a_customers_name_is_one(play_platform: Play) -> None:
    paths = {
        200: ["/", "//alice/", "/?alice"],
        404: ["/Alice/", "/bob.alice/", "/-/", f"/{'a' * 64}/", "/1/", "/%61lice/", "/alice@bob/"],
    }

    async def scenario(cluster: CompleteServers) -> None:
        for status, those in paths.items():
            for path in those:
                got = await ask(cluster, path)
                assert got.served is not None
                assert (got.served.status, b"hello" in got.body) == (status, False), path

    play_platform(scenario)


def test_bodies_pass_both_ways_at_once(play_platform: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await cluster.deploy("customers/echo", component("echo"), cpu_ms=10_000)
        # More than a window, and little enough for the 50 ms of CPU that the platform gives, on a busy machine too.
        data = bytes(range(256)) * 384
        got = await ask(cluster, "/echo/", "POST", data, content_type="x/y")
        assert got.served is not None
        assert (got.served.status, got.body == data, got.whole) == (200, True, True), got.ended
        assert dict(got.served.headers)["content-type"] == b"x/y"

    play_platform(scenario)


def test_the_guard_is_told_by_the_dispatcher_alone_and_lets_nobody_write(play_platform: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        await cluster.deploy("customers/mallory", component("fetch"), cpu_ms=10_000)
        forged = {"everwarm_parameter_customer": "bob", "everwarm_limits": "cpu_ms=10000"}
        got = await ask(cluster, "/mallory/?url=http://bank.example/", **forged)
        assert got.body == b"mallory may not ask bank.example"
        got = await ask(cluster, "/mallory/?url=http://example.com/", "POST", b"taken", **forged)
        assert got.body == b"mallory may read from example.com, and no more"
        got = await ask(cluster, "/mallory/?url=http://time.example.com:8080/")
        assert got.body == b"mallory may not ask time.example.com:8080"
        # What one call is lent comes back a little after its answer: whoever needs it waits for that.
        got = await ask(cluster, "/mallory/?times=10&url=http://time.example.com/")
        assert got.body == b"5 HTTP-request-denied\n"

    play_platform(scenario)

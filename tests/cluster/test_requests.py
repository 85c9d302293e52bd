"""Requests through a real cluster: HTTPS in, isolates on three servers, Ray between them, traces out."""

import asyncio
import hashlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import prometheus_text
import pytest
from cluster_site import Site, until
from crowd import CLIENTS, MIX, REQUESTS_EACH, crowd
from https_client import Connection, fetch
from tracing_receiver import OtlpReceiver

import everwarm

ROOT = Path(everwarm.__file__).parent.parent
WORKERS = ROOT / "workers" / "zig"
WINDOW_BYTES = 64 * 1024
HEAD_BYTES_MAX = 8 * 1024
HOSTS = ("host", "host-2")


def spans_of(site: Site, request_id: str):
    """The exported spans of a request, once its root has arrived."""

    spans = site.receiver.wait_for(
        lambda spans: any(s.attributes.get("everwarm.request_id") == request_id for s in spans), 10.0, "the root span"
    )
    root = next(s for s in spans if s.attributes.get("everwarm.request_id") == request_id)
    return [s for s in spans if s.trace_id == root.trace_id]


def test_hello_over_https_from_every_server(site: Site) -> None:
    for port in site.cluster.ports.values():
        answer = fetch(site.cluster.tls(), port, "hello.localhost", "/a/path?with=query")
        assert answer.status == 200
        assert answer.body.startswith(b"hello from Zig")
        assert len(answer.headers["everwarm-request-id"]) == 16
        assert {"start", "queue", "cpu", "server"} <= answer.timing.keys()


def test_a_request_away_from_home_runs_at_home_and_its_trace_says_so(site: Site) -> None:
    home = site.homes["hello"]
    away = site.away_from(home)
    answer = fetch(site.cluster.tls(), site.cluster.ports[away], "hello.localhost")
    assert answer.timing["server"] == home
    assert answer.timing["home"] == home
    assert "hop" in answer.timing

    spans = spans_of(site, answer.headers["everwarm-request-id"])
    by_name = {span.name: span for span in spans}
    assert {"request", "route", "hop", "handler"} <= by_name.keys()
    assert by_name["request"].resource["service.instance.id"] == away
    assert by_name["handler"].resource["service.instance.id"] == home
    assert by_name["handler"].parent_span_id == by_name["hop"].span_id
    assert by_name["hop"].parent_span_id == by_name["request"].span_id
    assert not by_name["request"].parent_span_id


def test_a_request_at_home_makes_no_hop(site: Site) -> None:
    home = site.homes["hello"]
    answer = fetch(site.cluster.tls(), site.cluster.ports[home], "hello.localhost")
    assert answer.timing["server"] == home
    assert "hop" not in answer.timing


def test_a_refused_upload_runs_here_and_the_home_saw_only_the_window(site: Site) -> None:
    client, home = site.cluster.client, site.homes["echo"]
    away = site.away_from(home)
    body = bytes(range(256)) * 4096  # 1 MiB
    chunks = [body[i : i + 10_000] for i in range(0, len(body), 10_000)]
    before = client.statistics()[f"{away}/server"]["sharded"]
    client.configure_admission(home, in_flight_max=0)
    try:
        answer = fetch(
            site.cluster.tls(), site.cluster.ports[away], "echo.localhost", "/?digest", method="POST", body=iter(chunks)
        )
    finally:
        client.configure_admission(home, in_flight_max=128)
    assert answer.status == 200
    assert answer.body.decode().split()[0] == "sha256=" + hashlib.sha256(body).hexdigest()
    assert answer.timing["server"] == away
    assert answer.timing["refused"] == "busy"

    after = client.statistics()[f"{away}/server"]
    assert after["sharded"]["offered"] == before["offered"] + 1
    assert after["sharded"]["refused"] == before["refused"] + 1
    assert after["sharded"]["sent_bytes"] - before["sent_bytes"] <= HEAD_BYTES_MAX + WINDOW_BYTES
    assert after["lent_out"] == 0

    # The refusal sticks: this server has its own isolate now, and does not ask again while it lives.
    again = fetch(site.cluster.tls(), site.cluster.ports[away], "echo.localhost", "/", method="POST", body=b"once more")
    assert again.body == b"once more"
    assert again.timing["server"] == away
    assert client.statistics()[f"{away}/server"]["sharded"]["offered"] == before["offered"] + 1

    spans = spans_of(site, answer.headers["everwarm-request-id"])
    hop = next(span for span in spans if span.name == "hop")
    handler = next(span for span in spans if span.name == "handler")
    assert hop.attributes["everwarm.refused"] == "busy"
    assert handler.resource["service.instance.id"] == away
    assert sum(span.name == "handler" for span in spans) == 1


def test_an_accepted_upload_is_streamed_to_the_home(site: Site) -> None:
    home = site.homes["stream"]
    assert home
    client = site.cluster.client
    client.deploy("upload", WORKERS / "echo" / "worker.wasm", plan="paid", limits={"cpu_ms": 30_000})
    home = site.homes["upload"]
    body = b"0123456789abcdef" * (3 << 16)  # 3 MiB
    answer = fetch(
        site.cluster.tls(), site.cluster.ports[site.away_from(home)], "upload.localhost", method="POST", body=body
    )
    assert answer.timing["server"] == home
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
    assert client.statistics()[f"{home}/shard"]["in_flight"] == 0


def deploy_cold(site: Site, worker: str, zig: str) -> None:
    """Deploy a worker and use up the isolate that a deploy starts: one of this version serves two requests."""
    site.cluster.client.deploy(worker, WORKERS / zig / "worker.wasm", reuse={"max_requests": 2})
    port = site.cluster.ports[site.homes[worker]]
    starts = [fetch(site.cluster.tls(), port, f"{worker}.localhost", server_name="localhost") for _ in range(2)]
    assert [answer.timing["start"] for answer in starts] == ["preload", "warm"]


@pytest.mark.parametrize("server", ["server-1", "server-2", "server-3"])
def test_a_cold_worker_over_a_new_tls_connection_is_prewarmed(site: Site, server: str) -> None:
    worker = f"fresh-{server}"
    deploy_cold(site, worker, "slow_start")
    home = site.homes[worker]
    before = site.in_hosts(home, "isolates")
    # The client hello names the worker, and that alone starts it where its request will run.
    connection = Connection(site.cluster.tls(), site.cluster.ports[server], f"{worker}.localhost")
    until("it is started", lambda: site.in_hosts(home, "isolates") != before)
    assert site.in_hosts(home, "isolates") == before + 1
    answer = connection.fetch(f"{worker}.localhost")
    connection.close()
    assert (answer.status, answer.timing["start"], answer.timing["server"]) == (200, "prewarm", home)


def test_without_the_name_in_the_handshake_a_cold_worker_starts_cold(site: Site) -> None:
    deploy_cold(site, "unnamed", "hello")
    port = site.cluster.ports[site.homes["unnamed"]]
    answer = fetch(site.cluster.tls(), port, "unnamed.localhost", server_name="localhost")
    assert answer.timing["start"] == "cold"
    assert fetch(site.cluster.tls(), port, "unnamed.localhost", server_name="localhost").timing["start"] == "warm"


@pytest.mark.parametrize(
    ("worker", "status", "code"),
    [
        ("spin", 503, "exceededCpu"),
        ("hoard", 503, "exceededMemory"),
        ("trap", 500, "exception"),
        ("silent", 500, "hung"),
        ("no-such-worker", 404, "scriptNotFound"),
    ],
)
def test_every_bad_ending_has_its_page_from_every_server(site: Site, worker: str, status: int, code: str) -> None:
    for port in site.cluster.ports.values():
        answer = fetch(site.cluster.tls(), port, f"{worker}.localhost", headers={"accept": "application/json"})
        assert answer.status == status
        assert f'"code":"{code}"'.encode() in answer.body
        assert b"Traceback" not in answer.body
        assert b"/" not in answer.body.replace(b'"', b"")
        assert "server-timing" in answer.headers


def test_a_worker_that_failed_serves_the_next_request(site: Site) -> None:
    port = site.cluster.ports["server-1"]
    for _ in range(3):
        assert fetch(site.cluster.tls(), port, "trap.localhost").status == 500
        assert fetch(site.cluster.tls(), port, "trap.localhost", "/?ok").status == 200


def test_a_stream_arrives_while_it_is_written(site: Site) -> None:
    home = site.homes["stream"]
    for server in (home, site.away_from(home)):
        connection = Connection(site.cluster.tls(), site.cluster.ports[server], "stream.localhost")
        connection._inner.request("GET", "/?chunks=4&interval_ms=150", headers={"host": "stream.localhost"})
        answer = connection._inner.getresponse()
        at = []
        while line := answer.readline():
            at.append((time.monotonic(), line))
        connection.close()
        assert [line for _, line in at] == [f"chunk {i}\n".encode() for i in range(4)]
        # Three waits of 150 ms lie between the first and the last chunk, unless they were held back to the end.
        assert at[-1][0] - at[0][0] > 0.3


def test_a_client_that_leaves_stops_its_guest(site: Site) -> None:
    home = site.homes["stream"]
    for server in (home, site.away_from(home)):
        connection = Connection(site.cluster.tls(), site.cluster.ports[server], "stream.localhost")
        connection._inner.request("GET", "/?chunks=1000&interval_ms=1000", headers={"host": "stream.localhost"})
        connection._inner.getresponse().readline()
        assert site.in_hosts(home, "running") == 1
        connection.close()
        until("the guest has stopped", lambda: site.in_hosts(home, "running") == 0, within_s=5.0)
        counters = site.cluster.client.statistics()
        assert counters[f"{server}/server"]["lent_out"] == 0
        assert counters[f"{home}/shard"]["in_flight"] == 0


def test_keep_alive_serves_many_requests_on_one_connection(site: Site) -> None:
    connection = Connection(site.cluster.tls(), site.cluster.ports["server-2"], "hello.localhost")
    for i in range(20):
        assert connection.fetch("hello.localhost", f"/{i}").status == 200
    connection.close()


def test_malformed_http_is_answered_with_400_and_closed(site: Site) -> None:
    connection = Connection(site.cluster.tls(), site.cluster.ports["server-1"], "hello.localhost")
    raw = connection._inner.sock
    raw.sendall(b"NONSENSE\x00\r\n\r\n")
    received = b""
    while chunk := raw.recv(65536):
        received += chunk
    assert received.startswith(b"HTTP/1.1 400 ")
    connection.close()


def test_traceparent_is_continued(site: Site) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    answer = fetch(
        site.cluster.tls(),
        site.cluster.ports["server-3"],
        "hello.localhost",
        headers={"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"},
    )
    spans = spans_of(site, answer.headers["everwarm-request-id"])
    root = next(span for span in spans if span.name == "request")
    assert root.trace_id == trace_id
    assert root.parent_span_id == "b7ad6b7169203331"


def test_traces_can_be_sent_elsewhere_and_back_while_it_runs(site: Site) -> None:
    with OtlpReceiver() as elsewhere:
        site.cluster.client.export_traces_to(elsewhere.url)
        answer = site.cluster.client.fetch("hello", server="server-1")
        assert {s.trace_id for s in elsewhere.wait_for_spans(1)} == {answer.trace_id}
        site.cluster.client.export_traces_to("")
    back = site.cluster.client.fetch("hello", server="server-1")
    site.receiver.wait_for(lambda spans: any(s.trace_id == back.trace_id for s in spans))
    assert all(s.trace_id != answer.trace_id for s in site.receiver.spans)


def test_the_driver_sees_where_each_request_ran(site: Site) -> None:
    client, home = site.cluster.client, site.homes["hello"]
    for server in client.servers:
        answer = client.fetch("hello", "/x", server=server)
        assert (answer.status, answer.outcome, answer.home) == (200, "ok", home)
        assert answer.hop == (answer.server != server)
        assert client.wait_for_trace(answer.trace_id)
    lost = client.fetch("nobody-home")
    assert (lost.status, lost.outcome) == (404, "scriptNotFound")
    with pytest.raises(everwarm.EverwarmError, match="There is no server"):
        client.fetch("hello", server="server-9")


def test_the_platform_of_nested_workers_as_a_user_runs_it(site: Site) -> None:
    example = [sys.executable, str(ROOT / "examples" / "nested_workers.py")]
    ran = subprocess.run(example, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    alice, bob, steal, spin, nobody = ran.stdout.split("\n--- GET ")[1:]
    for visit, answer, stages in (
        (alice, "200 hello from alice, in C: you asked for /hello\n", ["dispatcher ok", "customers/alice ok"]),
        (bob, "200 hello from bob, in Zig: it is tea time\n", ["dispatcher ok", "customers/bob ok", "guard ok"]),
        (steal, "(403)\n", ["dispatcher ok", "customers/bob ok", "guard ok"]),
        (spin, "429 Sorry: bob's worker wants more", ["dispatcher ok", "customers/bob exceededCpu"]),
        (nobody, "404 There is no customer nobody.\n", ["dispatcher ok", "customers/nobody scriptNotFound"]),
    ):
        shown, heard = visit.split("\nthe audit heard:\n")
        assert answer in shown
        told = [line.strip().partition(",")[0] for line in heard.splitlines() if ", CPU " in line]
        assert told == stages
        drawn = [line for line in shown.splitlines() if "request  " in line.partition("/")[0]]
        assert len(drawn) == len(stages), shown


def test_a_crowd_of_good_and_bad_leaves_nothing_behind(site: Site) -> None:
    seed = int(os.environ.get("EVERWARM_TEST_SEED") or secrets.randbits(32))
    print(f"EVERWARM_TEST_SEED={seed}")
    seen = asyncio.run(crowd(site.cluster.ports, site.cluster.tls(), seed))
    expected = {worker: status for worker, _, _, _, status in MIX}
    wrong = {what: n for what, n in seen.items() if what.status not in ("left", expected[what.worker])}
    assert wrong == {}
    assert sum(seen.values()) == CLIENTS * REQUESTS_EACH

    def left() -> dict[str, int]:
        counters = site.cluster.client.statistics()
        return {
            f"{address} {name}": counted[name]
            for address, counted in counters.items()
            for name in ("lent_out", "in_flight", "running", "queued")
            if counted.get(name)
        }

    until("nothing is left", lambda: not left())


def test_a_worker_is_watched_live_from_a_command_line(site: Site) -> None:
    command = [sys.executable, "-m", "everwarm.cli", "tail", "hello", "--json", "--search", "/watched"]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert watching.stdout is not None
    assert watching.stderr is not None
    try:
        assert watching.stderr.readline().startswith("watching hello on server-1, server-2, server-3")
        found: dict[str, dict[str, object]] = {}
        ran_at: dict[str, str] = {}
        # Twice from each server: without a lease and with one, at home and away from it.
        for server, port in [*site.cluster.ports.items()] * 2:
            answer = fetch(site.cluster.tls(), port, "hello.localhost", f"/watched/{server}?secret=x")
            event = json.loads(watching.stdout.readline())
            assert event["request_id"] == answer.headers["everwarm-request-id"]
            assert event["url"] == f"https://hello.localhost/watched/{server}?secret=REDACTED"
            found[event["request_id"]] = event
            ran_at[event["request_id"]] = answer.timing["server"]
        assert {request: event["server"] for request, event in found.items()} == ran_at
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20.0) == 0
        assert watching.stderr.read() == ""
    finally:
        watching.kill()
        watching.wait()
    live = [site.cluster.client.statistics()[f"{server}/server"]["live"]["open"] for server in site.cluster.ports]
    assert live == [0, 0, 0]


def test_each_server_tells_its_metrics(site: Site) -> None:
    counters = site.cluster.client.statistics()
    ended = 0.0
    for server, port in site.cluster.ports.items():
        fetch(site.cluster.tls(), port, "hello.localhost", "/counted")
        with urllib.request.urlopen(f"http://{counters[f'{server}/server']['metrics']}/metrics", timeout=10) as answer:
            families = prometheus_text.read(answer.read().decode())
        assert families["everwarm_server_info"].value(server=server) == 1
        up = families["everwarm_role_up"]
        assert [up.value(role=role) for role in ("server", *HOSTS, "shard", "ingress")] == [1] * 5
        assert families["everwarm_requests_total"].value(outcome="ok") >= 1
        for host in HOSTS:
            assert families["everwarm_process_memory_bytes"].value(role=host) > 1 << 20
            ended += families["everwarm_invocations_total"].value(host=host, outcome="ok")
    assert ended >= 3

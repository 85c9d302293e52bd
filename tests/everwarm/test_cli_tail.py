"""`everwarm tail` without a cluster: how events look, what it refuses, and how it ends."""

import json
from collections.abc import Generator

import pytest
from click.testing import CliRunner

from actors.live_tail import LiveEvent, LiveFilter
from actors.stage_report import Ending, Line
from everwarm import cli_tail
from everwarm.cli import main
from everwarm.live_reader import Away, LiveNews, Missed
from isolates.outcome import Outcome

EVENT = LiveEvent(
    "shop", "v1", "server-2", "r1", "0af7651916cd43dd8448eb211c80319c", True,
    Ending(
        Outcome.EXCEEDED_CPU, 10.04, 12.0, "cold", "deploy", 1_795_000_000_123, "GET",
        "https://shop.localhost/\x1b[2J?k=REDACTED", 503, "exceededCpu",
        (Line(1, "stdout", "ready\n"), Line(2, "stderr", "\x1b]0;title\x07gone")),
    ),
)  # fmt: skip


class Cluster:
    """A client whose stream is what a test says."""

    servers = ("server-1", "server-2")

    def __init__(self, news: list[LiveNews], end: type[BaseException] = KeyboardInterrupt) -> None:
        self._news = news
        self._end = end
        self.closed = False
        self.wanted: LiveFilter | None = None

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *raised: object) -> None:
        assert self.closed or self.wanted is None, "a reader is closed before its client is"

    def describe(self, name: str) -> dict[str, object] | None:
        return {} if name == "shop" else None

    def tail(self, worker: str, wanted: LiveFilter) -> Generator[LiveNews, None, None]:
        self.wanted = wanted

        def read() -> Generator[LiveNews, None, None]:
            try:
                yield from self._news
                raise self._end
            finally:
                self.closed = True

        return read()


def run(monkeypatch: pytest.MonkeyPatch, cluster: Cluster, *arguments: str):
    monkeypatch.setattr(cli_tail, "connected", lambda: cluster)
    return CliRunner().invoke(main, ["tail", "shop", *arguments])


def test_people_get_a_line_a_request_and_its_log_below(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([EVENT, Missed("server-1", 3), Away("server-2", "it took too long")])
    result = run(monkeypatch, cluster)
    assert result.exit_code == 0
    request, out, error = result.stdout.splitlines()
    assert request[8:].startswith(".123  GET  https://shop.localhost/·[2J?k=REDACTED  503  exceededCpu  cold (deploy)")
    assert request.endswith("cpu 10.0 ms  server-2  nested  0af76519")
    assert (out, error) == ("    stdout: ready", "    stderr: ·]0;title·gone")
    assert "\x1b" not in result.stdout
    assert result.stderr.splitlines() == [
        "watching shop on server-1, server-2; Ctrl-C ends it",
        "3 events of server-1 came faster than they were read",
        "server-2 is away: it took too long",
    ]
    assert cluster.closed


def test_programs_get_a_document_a_line_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, Cluster([EVENT, Missed("server-1", 3), EVENT]), "--json")
    assert result.exit_code == 0
    one, other = map(json.loads, result.stdout.splitlines())
    assert one == other
    assert (one["outcome"], one["status"], one["nested"]) == ("exceededCpu", 503, True)
    assert one["logs"][0] == {"at_ms": 1, "level": "stdout", "text": "ready\n"}


def test_on_a_terminal_it_is_coloured() -> None:
    assert "\x1b[31m503" in next(cli_tail.pretty(EVENT))


def test_a_log_that_is_long_is_cut_and_says_where_the_rest_is() -> None:
    ending = Ending(Outcome.OK, lines=tuple(Line(1, "stdout", str(n)) for n in range(50)))
    lines = list(cli_tail.pretty(LiveEvent("shop", "v", "s", "r", EVENT.trace_id, False, ending)))
    assert len(lines) == 42
    assert lines[-1] == "    (10 more lines; see: everwarm traces 0af7651916cd)"


def test_filters_are_understood_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster([])
    options = "--status 404 --status 5xx --method post --outcome ok --search tea --sampling 0.5".split()
    assert run(monkeypatch, cluster, *options).exit_code == 0
    assert cluster.wanted == LiveFilter(((404, 404), (500, 599)), ("POST",), ("ok",), "tea", 0.5)
    assert run(monkeypatch, again := Cluster([]), "--header", "X-Canary: on", "--header", "accept").exit_code == 0
    assert again.wanted == LiveFilter(headers=(("x-canary", "on"), ("accept", "")))
    secret = run(monkeypatch, Cluster([]), "--header", "Cookie:session=abc")
    assert secret.stderr == (
        "everwarm: cookie is redacted, as all headers that may hold a secret, and nobody can look for it\n"
    )
    for wrong in (["--status", "9xx"], ["--outcome", "fine"], ["--sampling", "0"], ["--header", "a b:c"]):
        result = run(monkeypatch, Cluster([]), *wrong)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_a_worker_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_tail, "connected", lambda: Cluster([]))
    result = CliRunner().invoke(main, ["tail", "shp"])
    assert (result.exit_code, result.stderr) == (1, "everwarm: There is no worker shp. See: everwarm list\n")

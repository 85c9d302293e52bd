"""What a root span and the server-timing header say."""

from dataclasses import replace

import pytest
from msgspec import structs

from actors.exchange import Ended, Request, RequestHead, Served
from actors.stage import is_error, root_attributes, server_timing
from isolates.outcome import Outcome
from tracing.trace import Attr

SERVED = Served(200, (), "server-2", "warm", 0.126, 1.0)
HEAD = RequestHead("GET", "https", "hello.localhost", "/a/b?token=abc&x=1", ())
REQUEST = Request("r-1", "hello", HEAD, "")


@pytest.mark.parametrize(
    ("served", "text"),
    [
        (SERVED, b'start;desc="warm", queue;dur=0.13, cpu;dur=1.00, server;desc="server-2"'),
        (
            structs.replace(SERVED, home="server-2", hop=True),
            b'start;desc="warm", queue;dur=0.13, cpu;dur=1.00, server;desc="server-2", home;desc="server-2", hop',
        ),
        (
            structs.replace(SERVED, server="server-1", start_type="cold", home="server-2", refused="busy"),
            b'start;desc="cold", queue;dur=0.13, cpu;dur=1.00, server;desc="server-1", home;desc="server-2",'
            b' refused;desc="busy"',
        ),
    ],
)
def test_server_timing(served: Served, text: bytes) -> None:
    assert server_timing(served) == text


def test_the_root_of_an_answer() -> None:
    served = structs.replace(SERVED, home="server-2", hop=True)
    said = root_attributes(REQUEST, served, Ended(Outcome.OK, cpu_ms=1.23456), 200)
    assert said[Attr.WORKER] == "hello"
    assert said[Attr.HTTP_STATUS] == 200
    assert said[Attr.OUTCOME] == "ok"
    assert said[Attr.CPU_MS] == 1.235
    assert said[Attr.URL_PATH] == "/a/b"
    assert said[Attr.SERVER] == said[Attr.HOME] == "server-2"
    assert said[Attr.HOP] is True
    assert Attr.REFUSED not in said


def test_secrets_stay_out_of_the_root() -> None:
    said = root_attributes(REQUEST, SERVED, Ended(Outcome.OK), 200)
    assert "abc" not in str(said)
    assert "x=1" in str(said[Attr.URL_QUERY])


def test_the_root_of_a_request_that_ended_without_a_head() -> None:
    plain = structs.replace(REQUEST, head=replace(HEAD, path="/" + 5_000 * "x", authority=300 * "h"))
    said = root_attributes(plain, None, Ended(Outcome.EXCEEDED_CPU), 503)
    assert not {Attr.SERVER, Attr.START_TYPE, Attr.URL_QUERY} & set(said)
    assert len(str(said[Attr.URL_PATH])) == 2_048
    assert len(str(said[Attr.SERVER_ADDRESS])) == 255


def test_only_failures_are_errors() -> None:
    assert {outcome for outcome in Outcome if not is_error(outcome)} == {Outcome.OK, Outcome.CANCELED}

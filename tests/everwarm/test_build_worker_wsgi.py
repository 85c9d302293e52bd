"""WSGI as `worker_wsgi` speaks it: every kind of application, against an exchange that lists what was sent."""

import sys
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType
from typing import Any
from wsgiref.validate import validator

import pytest

from everwarm.build.worker_wsgi import CHUNK_BYTES_MAX, serve

App = Callable[[dict[str, Any], Any], Iterable[bytes]]
PLAIN = [("Content-Type", "text/plain")]


class ListedExchange:
    """An exchange whose request is given, and whose answer is a list of what was sent."""

    scheme = "https"

    def __init__(
        self,
        method: str = "GET",
        target: str = "/",
        headers: tuple[tuple[str, bytes], ...] = (("host", b"a.test:8443"),),
        body: tuple[bytes, ...] = (),
        *,
        taken_bytes: int = 10**9,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = list(headers)
        self.status = 0
        self.sent_headers: list[tuple[str, bytes]] = []
        self.has_body: bool | None = None
        self.written: list[bytes] = []
        self.ended = ""
        self._body = list(body)
        self._taken_bytes = taken_bytes

    def authority(self) -> str:
        return "authority.test"

    def read(self, bytes_max: int) -> bytes:
        if not self._body:
            return b""
        chunk = self._body.pop(0)
        if len(chunk) > bytes_max:
            self._body.insert(0, chunk[bytes_max:])
        return chunk[:bytes_max]

    def send_head(self, status: int, headers: list[tuple[str, bytes]], *, has_body: bool) -> None:
        assert not self.status, "a second head"
        self.status, self.sent_headers, self.has_body = status, headers, has_body

    def write(self, data: bytes) -> None:
        assert self.has_body
        assert not self.ended
        assert data, "an empty write is a call for nothing"
        if sum(map(len, self.written)) + len(data) > self._taken_bytes:
            raise ConnectionError("gone")
        self.written.append(data)

    def finish(self) -> None:
        assert not self.ended
        self.ended = "whole"

    def give_up(self) -> None:
        assert not self.ended
        self.ended = "given up"


def answered(app: App, *arguments: Any, **named: Any) -> ListedExchange:
    exchange = ListedExchange(*arguments, **named)
    serve(app, MappingProxyType({"A": "1"}), exchange)
    return exchange


def replying(*pieces: bytes, status: str = "200 OK", headers: list[tuple[str, str]] = PLAIN) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, headers)
        return list(pieces)

    return app


class Pieces:
    """An iterable that remembers how far it was read, and whether it was closed."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = iter(pieces)
        self.read = 0
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece = next(self.pieces)
        self.read += 1
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.closed += 1


def starting(pieces: Pieces) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", PLAIN)
        return pieces

    return app


def environ_of(*arguments: Any, **named: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        seen.update(environ)
        start_response("204 No Content", [])
        return []

    answered(app, *arguments, **named)
    return seen


class TestEnviron:
    def test_the_request_line(self) -> None:
        environ = environ_of("PROPFIND", "/a%20b/%C3%A9?q=%20&q")
        assert environ["REQUEST_METHOD"] == "PROPFIND"
        assert environ["PATH_INFO"] == "/a b/Ã©", "bytes as latin-1, by PEP 3333"
        assert environ["QUERY_STRING"] == "q=%20&q"
        assert environ["REQUEST_URI"] == "/a%20b/%C3%A9?q=%20&q"
        assert environ["everwarm.vars"] == {"A": "1"}
        assert type(environ_of()) is dict

    def test_headers(self) -> None:
        environ = environ_of(
            headers=(
                ("content-type", b"a/b"), ("content-length", b"3"), ("x-a", b"1"), ("x-a", b"2"), ("cookie", b"a=1"),
                ("cookie", b"b=2"), ("x_a", b"spoofed"), ("proxy", b"http://evil"), ("x-latin", b"\xe9"),
            )
        )  # fmt: skip
        assert environ["CONTENT_TYPE"] == "a/b"
        assert environ["CONTENT_LENGTH"] == "3"
        assert environ["HTTP_X_A"] == "1, 2"
        assert environ["HTTP_COOKIE"] == "a=1; b=2"
        assert environ["HTTP_X_LATIN"] == "é"
        assert "HTTP_PROXY" not in environ

    @pytest.mark.parametrize(
        ("host", "name", "port"),
        [(b"a.test", "a.test", "443"), (b"a:1", "a", "1"), (b"[::1]:8", "[::1]", "8"), (b"[::1]", "[::1]", "443")],
    )  # fmt: skip
    def test_the_server_is_the_host_that_was_asked(self, host: bytes, name: str, port: str) -> None:
        environ = environ_of(headers=(("host", host),))
        assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == (name, port)

    def test_without_a_host_header(self) -> None:
        assert environ_of(headers=())["SERVER_NAME"] == "authority.test"

    def test_the_body_is_asked_for_when_it_is_read(self) -> None:
        exchange = ListedExchange("POST", body=(b"one\ntw", b"o\nthree", b"x" * 100_000))

        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"]
            assert exchange._body[0] == b"one\ntw", "nothing was asked for yet"
            lines = [body.readline(), body.readline(), body.read(5)]
            assert len(exchange._body) >= 1
            start_response("200 OK", [])
            return [*lines, body.read(), body.read(), body.read(1)]

        serve(app, {}, exchange)
        assert b"".join(exchange.written) == b"one\ntwo\nthree" + b"x" * 100_000

    def test_all_ways_to_read(self) -> None:
        def reading(how: Callable[[Any], bytes]) -> bytes:
            def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
                start_response("200 OK", [])
                return [how(environ["wsgi.input"])]

            return b"".join(answered(app, "POST", body=(b"a\nb", b"\nc")).written)

        assert reading(lambda body: body.read()) == b"a\nb\nc"
        assert reading(lambda body: body.read(-1)) == b"a\nb\nc"
        assert reading(lambda body: b"|".join(body)) == b"a\n|b\n|c"
        assert reading(lambda body: b"|".join(body.readlines())) == b"a\n|b\n|c"
        assert reading(lambda body: b"|".join(iter(lambda: body.read1(100), b""))) == b"a\nb|\nc"


class TestAnswer:
    def test_a_list_is_measured_and_leaves_in_one_piece(self) -> None:
        exchange = answered(replying(b"one", b"", b"two"))
        assert exchange.status == 200
        assert exchange.sent_headers == [("content-type", b"text/plain"), ("content-length", b"6")]
        assert exchange.written == [b"onetwo"]
        assert exchange.ended == "whole"

    def test_a_long_list_is_measured_and_not_copied(self) -> None:
        pieces = [b"x" * CHUNK_BYTES_MAX, b"y"]
        exchange = answered(replying(*pieces))
        assert exchange.written == pieces
        assert exchange.sent_headers[-1] == ("content-length", b"%d" % (CHUNK_BYTES_MAX + 1))

    def test_a_length_that_was_set_stays(self) -> None:
        exchange = answered(replying(b"abc", headers=[("Content-Length", "3")]))
        assert exchange.sent_headers == [("content-length", b"3")]

    def test_pieces_leave_as_they_come_and_close_is_called(self) -> None:
        pieces = Pieces(b"", b"one", b"", b"two")
        exchange = answered(starting(pieces))
        assert exchange.written == [b"one", b"two"]
        assert exchange.sent_headers == [("content-type", b"text/plain")]
        assert (exchange.ended, pieces.closed) == ("whole", 1)

    def test_the_head_waits_for_the_first_byte(self) -> None:
        exchange = ListedExchange()
        seen: list[int] = []

        def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b""
            seen.append(exchange.status)
            yield b"x"
            seen.append(exchange.status)

        serve(app, {}, exchange)
        assert seen == [0, 200]

    @pytest.mark.parametrize(("method", "length"), [("GET", [("content-length", b"0")]), ("HEAD", [])])
    def test_nothing(self, method: str, length: list[tuple[str, bytes]]) -> None:
        exchange = answered(replying(headers=[]), method)
        assert (exchange.has_body, exchange.sent_headers, exchange.ended) == (False, length, "whole")

    def test_head_has_the_length_and_no_body(self) -> None:
        exchange = answered(replying(b"body"), "HEAD")
        assert (exchange.has_body, exchange.written, exchange.ended) == (False, [], "whole")
        assert exchange.sent_headers[-1] == ("content-length", b"4")

    def test_head_reads_no_further_than_the_head(self) -> None:
        pieces = Pieces(b"one", b"two")
        exchange = answered(starting(pieces), "HEAD")
        assert (pieces.read, pieces.closed, exchange.ended) == (1, 1, "whole")

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_statuses_without_a_body(self, status: str) -> None:
        exchange = answered(replying(b"ignored", status=status, headers=[]))
        assert (exchange.has_body, exchange.sent_headers, exchange.written) == (False, [], [])

    def test_write(self) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            write = start_response("200 OK", [])
            write(b"pushed")
            write(b"")
            return [b" and ", b"returned"]

        exchange = answered(app)
        assert (exchange.written, exchange.ended) == ([b"pushed", b" and returned"], "whole")
        assert exchange.sent_headers == []

    def test_a_second_start_with_exc_info_replaces_the_first(self) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            try:
                start_response("200 OK", [("X-First", "1")])
                raise KeyError("late")
            except KeyError:
                start_response("503 Sorry", [("X-Second", "2")], sys.exc_info())
            return [b"sorry"]

        exchange = answered(app)
        assert exchange.status == 503
        assert exchange.sent_headers == [("x-second", b"2"), ("content-length", b"5")]

    def test_with_exc_info_after_the_head_the_error_comes_back(self, capsys: pytest.CaptureFixture[str]) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"part"
            try:
                raise KeyError("too late")
            except KeyError:
                start_response("500 Oh", [], sys.exc_info())
            raise AssertionError("not reached")

        exchange = answered(app)
        assert (exchange.status, exchange.written, exchange.ended) == (200, [b"part"], "given up")
        assert "KeyError: 'too late'" in capsys.readouterr().err


class TestFailures:
    def failing(self, app: App, capsys: pytest.CaptureFixture[str]) -> str:
        exchange = answered(app)
        assert (exchange.status, exchange.ended) == (0, "given up")
        return capsys.readouterr().err

    @pytest.mark.parametrize("failure", [RuntimeError("secret"), SystemExit(3), KeyboardInterrupt()])
    def test_what_the_application_raises_is_for_its_log(
        self, failure: BaseException, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            raise failure

        assert self.failing(app, capsys).startswith("Traceback")

    def test_no_start_response(self, capsys: pytest.CaptureFixture[str]) -> None:
        for result in ([b"x"], []):
            assert "start_response" in self.failing(lambda environ, start_response, r=result: r, capsys)  # type: ignore[misc]

    @pytest.mark.parametrize(
        ("status", "headers", "message"),
        [
            ("OK", [], "a status is a number"),
            ("100 Continue", [], "a status is a number"),
            ("2000", [], "a status is a number"),
            ("200 OK", [("Connection", "close")], "Connection belongs to the connection"),
            ("200 OK", [("X", "\u20ac")], "UnicodeEncodeError"),
        ],
    )
    def test_a_bad_head(
        self, status: str, headers: list[tuple[str, str]], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in self.failing(replying(b"x", status=status, headers=headers), capsys)

    def test_start_response_twice(self, capsys: pytest.CaptureFixture[str]) -> None:
        def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            start_response("200 OK", [])
            return []

        assert "called again" in self.failing(app, capsys)

    def test_after_the_head_the_answer_is_broken_off(self, capsys: pytest.CaptureFixture[str]) -> None:
        pieces = Pieces(b"part", ValueError("mid"))
        exchange = answered(starting(pieces))
        assert (exchange.status, exchange.written, exchange.ended) == (200, [b"part"], "given up")
        assert pieces.closed == 1
        assert "ValueError: mid" in capsys.readouterr().err

    def test_a_client_that_leaves_is_no_error_of_the_application(self, capsys: pytest.CaptureFixture[str]) -> None:
        pieces = Pieces(b"one", b"two", b"three")
        exchange = answered(starting(pieces), taken_bytes=5)
        assert (exchange.ended, pieces.read, pieces.closed) == ("given up", 2, 1)
        assert capsys.readouterr().err == ""

    def test_another_connection_that_breaks_is_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        answered(starting(Pieces(b"one", ConnectionError("the origin"))))
        assert "ConnectionError: the origin" in capsys.readouterr().err

    def test_an_error_in_close_is_logged_and_the_answer_stays_whole(self, capsys: pytest.CaptureFixture[str]) -> None:
        class Sour(Pieces):
            def close(self) -> None:
                raise OSError("sour")

        assert answered(starting(Sour(b"x"))).ended == "whole"
        assert "OSError: sour" in capsys.readouterr().err


class TestValidator:
    """The standard library's own idea of what a server may do, wrapped around applications of every kind."""

    def kinds(self) -> list[App]:
        def generator(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", PLAIN)
            yield b"one"
            yield b"two"

        def writer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", PLAIN)(b"one")
            return [b"two"]

        def reader(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            body = environ["wsgi.input"]
            read = [body.read(2), body.readline(), *body.readlines(), *body]
            environ["wsgi.errors"].write("seen\n")
            environ["wsgi.errors"].flush()
            start_response("200 OK", PLAIN)
            return [b"".join(read)]

        return [replying(b"one", b"two"), generator, writer, reader]

    @pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
    def test_every_kind_of_application(self, method: str, capsys: pytest.CaptureFixture[str]) -> None:
        for app in self.kinds():
            headers = (("host", b"a"), ("content-length", b"6"), ("x-b", b"c"))
            exchange = answered(validator(app), method, "/p?q", headers, (b"onetwo",))
            assert exchange.ended == "whole", capsys.readouterr().err
            assert b"".join(exchange.written) == (b"" if method == "HEAD" else b"onetwo")
        assert "Traceback" not in capsys.readouterr().err

"""The host's end of the way out, against a socket whose other end says what the test wants."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.connection import FRAME_BYTES_MAX, HEADER, Frame, FrameReader, frame
from actors.egress_frames import ANSWER_HEAD, decode_failed, encode_failed
from actors.egress_line import HostOutgoing
from actors.wire import Undecodable
from isolates.conversation import ResponseHead
from isolates.egress import AnswerLost, ErrorCode

HEAD = ResponseHead(200, (("x", b"y"),))
HEAD_FRAME = frame(Frame.HEAD, ANSWER_HEAD.encode(HEAD))
LOST: ErrorCode = ("connection-terminated", None)


@contextmanager
def line() -> Iterator[tuple[HostOutgoing, socket.socket]]:
    ours, theirs = socket.socketpair()
    outgoing = HostOutgoing(ours)
    try:
        yield outgoing, theirs
    finally:
        outgoing.close()
        theirs.close()


def drain(outgoing: HostOutgoing, bytes_max: int) -> tuple[bytes, bool]:
    """What can be read now, and whether that was the end."""
    pieces = []
    while outgoing.body_ready():
        data = outgoing.read_body(bytes_max)
        if data is None:
            return b"".join(pieces), True
        assert 1 <= len(data) <= bytes_max
        pieces.append(data)
    assert outgoing.read_body(bytes_max) == b""
    return b"".join(pieces), False


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 17), st.integers(1, 50))
def test_an_answer_in_pieces_of_any_size(bodies: list[bytes], step: int, bytes_max: int) -> None:
    said = HEAD_FRAME + b"".join(frame(Frame.DATA, body) for body in bodies) + frame(Frame.END)
    came, ended = b"", False
    with line() as (outgoing, peer):
        for start in range(0, len(said), step):
            assert not ended
            peer.sendall(said[start : start + step])
            data, ended = drain(outgoing, bytes_max)
            came += data
        assert outgoing.head() == HEAD
    assert (came, ended) == (b"".join(bodies), True)


@given(st.binary(max_size=60))
def test_nonsense_is_a_lost_answer(junk: bytes) -> None:
    with line() as (outgoing, peer):
        peer.sendall(junk)
        peer.close()
        while (head := outgoing.head()) is None:
            pass
        if isinstance(head, tuple):
            with pytest.raises(AnswerLost):
                outgoing.read_body(1)
        assert outgoing.writable()
        assert not outgoing.send(b"x")


@pytest.mark.parametrize(
    "said",
    [
        frame(Frame.DATA, b"before the head"),
        frame(Frame.END),
        frame(Frame.HEAD, b"nonsense"),
        frame(Frame.FAILED, b"nonsense"),
        frame(Frame.PULL),
        HEADER.pack(FRAME_BYTES_MAX + 1, Frame.HEAD),
        HEADER.pack(0, 99),
    ],
)
def test_frames_out_of_place(said: bytes) -> None:
    with line() as (outgoing, peer):
        peer.sendall(said)
        head = outgoing.head()
        assert isinstance(head, tuple)
        assert head[0] == "internal-error"


def test_a_second_head_is_out_of_place() -> None:
    with line() as (outgoing, peer):
        peer.sendall(HEAD_FRAME + HEAD_FRAME)
        assert outgoing.head() == HEAD
        with pytest.raises(AnswerLost):
            outgoing.read_body(1)


def test_a_failure_before_the_head_is_the_head() -> None:
    with line() as (outgoing, peer):
        assert outgoing.head() is None
        peer.sendall(frame(Frame.FAILED, encode_failed(LOST)))
        assert outgoing.head() == LOST
        assert outgoing.body_ready()


def test_a_failure_after_the_head_breaks_the_body_off() -> None:
    with line() as (outgoing, peer):
        peer.sendall(HEAD_FRAME + frame(Frame.DATA, b"some") + frame(Frame.FAILED, encode_failed(LOST)))
        peer.close()
        assert outgoing.head() == HEAD
        assert outgoing.read_body(100) == b"some"
        with pytest.raises(AnswerLost) as lost:
            outgoing.read_body(100)
        assert lost.value.code == LOST
        assert outgoing.head() == HEAD


def test_a_body_goes_out_in_frames_and_its_end_is_said() -> None:
    with line() as (outgoing, peer):
        data = bytes(range(256)) * 300
        assert outgoing.send(data)
        outgoing.finish()
        peer.settimeout(5)
        reader, frames = FrameReader(), list[tuple[Frame, bytes]]()
        while not frames or frames[-1][0] is not Frame.BODY_END:
            frames += reader.feed(peer.recv(1 << 16))
        assert b"".join(payload for _, payload in frames) == data
        assert max(len(payload) for _, payload in frames) <= 65_536


def test_writable_says_whether_64_kib_would_be_taken() -> None:
    with line() as (outgoing, peer):
        while outgoing.writable():
            before = outgoing.send(bytes(65_536))  # would wait for ever if it did not fit: nobody reads
            assert before
        peer.close()
        assert outgoing.writable()
        assert not outgoing.send(b"x")


def test_after_the_end_nothing_more_is_taken() -> None:
    with line() as (outgoing, peer):
        peer.sendall(HEAD_FRAME + frame(Frame.END))
        assert outgoing.read_body(10) is None
        assert outgoing.writable()
        assert not outgoing.send(b"x")
        outgoing.close()
        outgoing.close()
        assert outgoing.read_body(10) is None


@pytest.mark.parametrize("code", [LOST, ("DNS-error", ("NXDOMAIN", None)), ("HTTP-request-body-size", 7)])
def test_codes_go_there_and_back(code: ErrorCode) -> None:
    assert decode_failed(encode_failed(code)) == code


@given(st.binary(max_size=30))
def test_codes_that_are_none(data: bytes) -> None:
    try:
        case, _ = decode_failed(data)
    except Undecodable:
        return
    assert isinstance(case, str)

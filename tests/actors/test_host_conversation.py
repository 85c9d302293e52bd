"""The host's end of a link, over a real socket pair."""

import socket
import time
from collections.abc import Iterator

import pytest

from actors.connection import Frame, FrameReader, frame
from actors.exchange import Request, RequestHead, Served
from actors.host_conversation import HostConversation, LinkSocket
from isolates.conversation import BodyLost, ConversationLost, ResponseHead

REQUEST = Request("id", "worker", RequestHead("POST", "https", "worker.localhost", "/"), "")


@pytest.fixture
def pair() -> Iterator[tuple[LinkSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    link = LinkSocket(ours)
    yield link, theirs
    link.close()
    theirs.close()


def conversation(link: LinkSocket, request: Request = REQUEST) -> HostConversation:
    return HostConversation(link, request, lambda head: Served(head.status, head.headers, "server-1", "warm", 0.0, 0.0))


def frames(peer: socket.socket) -> list[Frame]:
    peer.settimeout(5)
    return [kind for kind, _ in FrameReader().feed(peer.recv(1 << 20))]


def test_a_small_answer_leaves_in_one_piece(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link)
    talk.send_head(ResponseHead(200))
    talk.send(b"hello")
    talk.finish()
    assert link.socket.fileno() >= 0
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(1)
    talk.flush()
    assert frames(peer) == [Frame.HEAD, Frame.DATA, Frame.END]


def test_a_guest_whose_client_left_is_told(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link)
    assert talk.listening()
    peer.close()
    assert not talk.listening()
    with pytest.raises(ConversationLost):
        talk.wait(5.0, for_body=False)


def test_after_a_whole_answer_the_client_may_leave(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link)
    talk.send_head(ResponseHead(200))
    talk.send(b"all of it")
    talk.finish()
    peer.close()
    talk.flush()
    assert talk.listening()
    began = time.monotonic()
    talk.wait(0.05, for_body=False)
    assert time.monotonic() - began >= 0.04


def test_the_body_is_pulled_one_chunk_at_a_time(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link, Request("id", "w", REQUEST.head, "", body_first=b"first", body_complete=False))
    assert talk.read_body(3) == b"fir"
    assert talk.read_body(64) == b"st"
    assert talk.read_body(64) == b""
    assert frames(peer) == [Frame.PULL]
    peer.sendall(frame(Frame.BODY, b"second"))
    talk.wait(5.0, for_body=True)
    assert talk.read_body(64) == b"second"
    assert not talk.body_ready()
    assert frames(peer) == [Frame.PULL]
    peer.sendall(frame(Frame.BODY_END))
    talk.wait(5.0, for_body=True)
    assert talk.read_body(64) is None
    assert talk.body_read_bytes == len(b"firstsecond")


def test_a_body_that_breaks_off_is_not_a_short_body(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link, Request("id", "w", REQUEST.head, "", body_first=b"", body_complete=False))
    peer.sendall(frame(Frame.BODY_LOST))
    talk.wait(5.0, for_body=True)
    with pytest.raises(BodyLost):
        talk.read_body(64)


def test_one_wait_is_for_the_link_and_for_others(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link, Request("id", "w", REQUEST.head, "", body_first=b"", body_complete=False))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        talk.wait(5.0, for_body=False, writable=[ours.fileno()])
        theirs.send(b"x")
        for for_body in (False, True):
            talk.wait(5.0, for_body=for_body, readable=[ours.fileno()])
        assert frames(peer) == [Frame.PULL]
        peer.sendall(frame(Frame.BODY, b"late")[:7])
        ours.recv(1)
        assert talk.read_body(64) == b"", "a piece of a frame is no body yet"
        peer.sendall(frame(Frame.BODY, b"late")[7:])
        talk.wait(5.0, for_body=True, readable=[ours.fileno()])
        assert talk.read_body(64) == b"late"
        peer.close()
        with pytest.raises(ConversationLost):
            talk.wait(5.0, for_body=False, readable=[ours.fileno()])


def test_after_a_whole_answer_others_are_still_waited_for(pair: tuple[LinkSocket, socket.socket]) -> None:
    link, peer = pair
    talk = conversation(link)
    talk.send_head(ResponseHead(200))
    talk.finish((("checksum", b"1"),))
    peer.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        talk.wait(5.0, for_body=False, readable=[ours.fileno()])
    assert talk.trailers() is None
    talk.inform(ResponseHead(103))

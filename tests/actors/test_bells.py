"""Bells between threads."""

import select

from actors.bells import Bells


def test_bells_are_used_again_and_ring_no_more() -> None:
    bells = Bells()
    first = bells.take()
    first.listen()
    first.ring()
    bells.give_back(first)
    again = bells.take()
    assert again is first
    poll = select.poll()
    poll.register(again.fileno(), select.POLLIN)
    assert not poll.poll(0)
    again.ring()
    assert not poll.poll(0), "nobody listens"
    again.close()

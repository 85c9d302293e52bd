"""What a driver is told of an answer."""

from actors.exchange import Chunk, Ended, Outcome, Request
from everwarm.answers import response_of
from isolates.conversation import RequestHead


def test_an_ending_without_a_head_says_where_it_ran_and_what_it_took() -> None:
    request = Request("id", "spin", RequestHead("GET", "https", "spin.localhost", "/"), "")
    ended = Ended(
        Outcome.EXCEEDED_CPU, cpu_ms=10.5, server="server-1", start_type="cold", queue_ms=0.5, home="server-1", hop=True
    )
    answer = response_of(request, None, Chunk(ended=ended), b"", "trace")
    assert (answer.status, answer.outcome) == (503, "exceededCpu")
    assert answer.text == "503 exceededCpu: The worker used more CPU time than it may.\n"
    assert (answer.server, answer.home, answer.start_type, answer.hop) == ("server-1", "server-1", "cold", True)
    assert (answer.queue_ms, answer.cpu_ms) == (0.5, 10.5)

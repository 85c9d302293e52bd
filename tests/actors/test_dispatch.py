"""The journey table, walked over all pairs, and what follows from it."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.dispatch import IDEMPOTENT, Command, Event, IllegalStep, Journey, Phase, lost_event, step

#: phase, event -> phase, command. What is not listed is illegal.
TABLE = """
ARRIVED       ROUTED_HERE      RUNNING_HERE  RUN_HERE
ARRIVED       ROUTED_HOME      OFFERED       OFFER
ARRIVED       CLIENT_GONE      DONE          FINISH

OFFERED       BODY_READ        AT_HOME       KEEP_READING
OFFERED       REFUSED          RUNNING_HERE  RUN_HERE_AND_REMEMBER
OFFERED       UNREACHABLE      RUNNING_HERE  RUN_HERE
OFFERED       LOST_REPEATABLE  RUNNING_HERE  RUN_HERE
OFFERED       LOST             DONE          FAIL_HOME_LOST
OFFERED       ANSWERED         RELAYING      RELAY
OFFERED       CLIENT_GONE      DONE          ABORT_HOME

AT_HOME       BODY_READ        AT_HOME       KEEP_READING
AT_HOME       LOST_REPEATABLE  RUNNING_HERE  RUN_HERE
AT_HOME       LOST             DONE          FAIL_HOME_LOST
AT_HOME       ANSWERED         RELAYING      RELAY
AT_HOME       CLIENT_GONE      DONE          ABORT_HOME

RELAYING      BODY_READ        RELAYING      KEEP_READING
RELAYING      LOST_REPEATABLE  DONE          BREAK_OFF
RELAYING      LOST             DONE          BREAK_OFF
RELAYING      ENDED            DONE          FINISH
RELAYING      CLIENT_GONE      DONE          ABORT_HOME

RUNNING_HERE  BODY_READ        RUNNING_HERE  KEEP_READING
RUNNING_HERE  ENDED            DONE          FINISH
RUNNING_HERE  CLIENT_GONE      DONE          FINISH

DONE          BODY_READ        DONE          KEEP_READING
DONE          CLIENT_GONE      DONE          FINISH
"""
LEGAL = {
    (Phase[words[0]], Event[words[1]]): (Phase[words[2]], Command[words[3]])
    for words in (line.split() for line in TABLE.splitlines())
    if words
}


@pytest.mark.parametrize(("phase", "event"), list(product(Phase, Event)), ids=lambda value: value.name)
def test_every_pair(phase: Phase, event: Event) -> None:
    if (phase, event) in LEGAL:
        assert step(phase, event) == LEGAL[phase, event]
    else:
        with pytest.raises(IllegalStep, match=rf"^{event.name} in {phase.name}$"):
            step(phase, event)


@pytest.mark.parametrize(
    ("method", "delivered", "body_intact", "event"),
    [
        ("POST", False, False, Event.UNREACHABLE),
        ("POST", False, True, Event.UNREACHABLE),
        ("GET", False, True, Event.UNREACHABLE),
        ("GET", None, True, Event.LOST_REPEATABLE),
        ("get", None, True, Event.LOST_REPEATABLE),
        ("PUT", None, True, Event.LOST_REPEATABLE),
        ("PUT", None, False, Event.LOST),
        ("GET", True, True, Event.LOST_REPEATABLE),
        ("POST", None, True, Event.LOST),
        ("POST", True, True, Event.LOST),
        ("PATCH", None, True, Event.LOST),
        ("CONNECT", None, True, Event.LOST),
    ],
)
def test_what_a_loss_means(method: str, delivered: bool | None, body_intact: bool, event: Event) -> None:
    assert lost_event(method, delivered=delivered, body_intact=body_intact) is event


METHODS = st.sampled_from([*sorted(IDEMPOTENT), "POST", "PATCH"])
EVENTS = st.lists(st.sampled_from(Event), max_size=12)


def walk(journey: Journey, events: list[Event]) -> list[tuple[Event, Command]]:
    """Take the legal ones of ``events``."""
    taken = []
    for event in events:
        try:
            taken.append((event, journey.on(event)))
        except IllegalStep:
            continue
    return taken


@given(METHODS, EVENTS)
def test_a_refused_request_is_never_relayed_nor_offered_again(method: str, events: list[Event]) -> None:
    journey = Journey(method)
    taken = walk(journey, events)
    refused = [i for i, (event, _) in enumerate(taken) if event is Event.REFUSED]
    if refused:
        after = [command for _, command in taken[refused[0] + 1 :]]
        assert Command.RELAY not in after
        assert Command.OFFER not in after


@given(METHODS, EVENTS)
def test_a_journey_ends_once_and_runs_here_at_most_once(method: str, events: list[Event]) -> None:
    commands = [command for _, command in walk(Journey(method), events)]
    assert sum(c in (Command.RUN_HERE, Command.RUN_HERE_AND_REMEMBER) for c in commands) <= 1
    assert sum(c in (Command.FAIL_HOME_LOST, Command.BREAK_OFF, Command.ABORT_HOME) for c in commands) <= 1
    if Command.FAIL_HOME_LOST in commands:  # the client got its answer: nothing may run after it
        after = commands[commands.index(Command.FAIL_HOME_LOST) + 1 :]
        assert set(after) <= {Command.KEEP_READING, Command.FINISH}


@given(METHODS, st.integers(1, 5), st.sampled_from([None, True]))
def test_a_body_that_was_read_cannot_be_sent_again(method: str, reads: int, delivered: bool | None) -> None:
    journey = Journey(method)
    journey.on(Event.ROUTED_HOME)
    for _ in range(reads):
        journey.on(Event.BODY_READ)
    assert journey.on_lost(delivered=delivered) is Command.FAIL_HOME_LOST
    assert journey.phase is Phase.DONE


@given(METHODS)
def test_a_refusal_leaves_the_body_whole(method: str) -> None:
    journey = Journey(method)
    journey.on(Event.ROUTED_HOME)
    assert journey.on(Event.REFUSED) is Command.RUN_HERE_AND_REMEMBER
    assert journey.body_intact
    journey.on(Event.BODY_READ)  # by the run here
    assert journey.body_intact


@pytest.mark.parametrize("event", [Event.BODY_READ, Event.REFUSED, Event.ANSWERED, Event.ENDED])
def test_an_illegal_step_leaves_the_journey_as_it_was(event: Event) -> None:
    journey = Journey("GET")
    with pytest.raises(IllegalStep):
        journey.on(event)
    assert (journey.phase, journey.body_intact) == (Phase.ARRIVED, True)

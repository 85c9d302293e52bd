"""A tail worker hears of its own part of a tree, by name of what is its owner's, and in the shape that it knows."""

import json
from dataclasses import replace
from typing import Any

from actors.budget import Budget
from actors.context import Caps, Context, Layer, Outbound, Owner
from actors.stage_report import Ending, Line, Stage
from actors.tail_events import TailBatch, Told, batches
from actors.worker import Limits, Plan
from isolates.outcome import Outcome

BUDGET = Budget.of(Limits.for_plan(Plan.PAID))
OK = Ending(
    Outcome.OK, 1.2345, 6.7891, "cold", "first-ever", 1_700_000_000_000, "GET", "/a?q=1&token=abc", 200,
    lines=(Line(1_700_000_000_001, "log", "hello"),),
)  # fmt: skip


def platform() -> dict[str, Stage]:
    """A dispatcher calls alice, who asks bob of the same namespace, her private store, and the world."""
    shop = Context(f"{1:016x}", BUDGET)
    dispatching = Layer(shop.stage, Owner("shop"), Caps(cpu_ms=5), tails=("tail",), outbound=Outbound("guard"))
    alice = shop.call(dispatching, f"{2:016x}", BUDGET)
    own = Layer(alice.stage, Owner("users/alice"), tails=("spy",))
    bob, store, fetch = (alice.call(own, f"{number:016x}", BUDGET) for number in (3, 4, 5))
    way = fetch.outbound()
    assert way is not None
    worker, guard = way
    return {
        "shop": replace(shop.as_stage("shop"), version="ab", tails=("tail",), dispatches=("users",)),
        "alice": replace(alice.as_stage("users/alice"), tails=("spy",)),
        "bob": bob.as_stage("users/bob"),
        "store": store.as_stage("store"),
        "guard": guard.as_stage(worker),
    }


def told(stages: dict[str, Stage], ending: Ending = OK) -> dict[str, list[dict[str, Any]]]:
    found: list[TailBatch] = batches([Told(stage, ending, True) for stage in stages.values()])
    assert len({batch.worker for batch in found}) == len(found), "one batch for each tail worker"
    return {batch.worker: batch.events for batch in found}


def test_a_dispatchers_tail_hears_all_that_is_below_it() -> None:
    events = told(platform())["tail"]
    assert [event["scriptName"] for event in events] == ["shop", "alice", "bob", None, "guard"]
    assert [event["dispatchNamespace"] for event in events] == [None, "users", "users", None, None]


def test_whom_a_users_worker_is_bound_to_is_its_own_business() -> None:
    store = told(platform())["tail"][3]
    assert (store["outcome"], store["cpuTime"], store["everwarm"]["startType"]) == ("ok", 1.234, "cold")
    assert (store["event"], store["logs"], store["exceptions"], store["scriptVersion"]) == (None, [], [], None)
    assert "store" not in json.dumps(store)


def test_a_users_tail_hears_neither_of_its_dispatcher_nor_of_the_guard() -> None:
    events = told(platform())["spy"]
    assert [event["scriptName"] for event in events] == ["alice", "bob", "store"]
    assert events[0]["everwarm"]["parent"] is None, "nor that anybody called"
    assert [event["everwarm"]["parent"] for event in events[1:]] == [events[0]["everwarm"]["stage"]] * 2


def test_a_tail_that_two_stages_name_is_called_once() -> None:
    stages = platform()
    stages["alice"] = replace(stages["alice"], tails=("tail",))
    found = told(stages)
    assert list(found) == ["tail"]
    assert [event["scriptName"] for event in found["tail"]] == ["shop", "alice", "bob", "store", "guard"]


def test_the_shape_of_an_event() -> None:
    event = told({"shop": platform()["shop"]}, replace(OK, exception="it broke", truncated=True))["tail"][0]
    assert event == {
        "event": {"request": {"method": "GET", "url": "/a?q=1&token=REDACTED"}, "response": {"status": 200}},
        "eventTimestamp": 1_700_000_000_000,
        "scriptName": "shop",
        "scriptVersion": {"id": "ab"},
        "dispatchNamespace": None,
        "outcome": "ok",
        "cpuTime": 1.234,
        "wallTime": 6.789,
        "logs": [{"timestamp": 1_700_000_000_001, "level": "log", "message": ["hello"]}],
        "exceptions": [{"timestamp": 1_700_000_000_000, "name": "Error", "message": "it broke"}],
        "diagnosticsChannelEvents": [],
        "truncated": True,
        "executionModel": "stateless",
        "everwarm": {
            "stage": f"{1:016x}",
            "parent": None,
            "startType": "cold",
            "coldCause": "first-ever",
            "runs": 1,
            "reported": True,
        },
    }
    assert json.loads(json.dumps(event)) == event


def test_a_tree_without_tails_is_told_to_nobody() -> None:
    assert told({"shop": replace(platform()["shop"], tails=())}) == {}

"""A tree is told once, when it is over, with one event a stage, in whatever order and however often it is reported."""

import random
from dataclasses import dataclass, replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.exchange import Capability
from actors.flow import Flow, FlowCounts, FlowLimits, Flows
from actors.stage_report import Call, Ending, Line, Report, Stage
from isolates.outcome import Outcome

OK = Ending(Outcome.OK, cpu_ms=1.5, start_type="warm", method="GET", url="/", status=200)
ORPHANS_S, UNHEARD_S = 2.0, 60.0


def sid(number: int) -> str:
    return f"{number + 1:016x}"


def stage(number: int, parent: int | None = None, **known: object) -> Stage:
    made = Stage(sid(number), "" if parent is None else sid(parent), f"w{number}", machine=f"m{number}")
    return replace(made, **known)  # type: ignore[arg-type]  # a test's own words


ROOT = stage(0, tails=("tail",))
USER = stage(1, 0, under=(sid(0),))
GUARD = stage(2, 1, under=(sid(0),))


def outcomes(flow: Flow) -> dict[str, object]:
    ((worker, events),) = [(batch.worker, batch.events) for batch in flow.tail_events()]
    assert worker == "tail"
    told = [(str(event["everwarm"]["stage"]), event["outcome"]) for event in events]  # type: ignore[index]
    assert len(dict(told)) == len(told), "one event a stage"
    return dict(told)


# -------------------------------------------------------------------------------------------------------- one by one


def test_a_tree_is_over_with_the_last_report() -> None:
    flow = Flow(ROOT)
    flow.report(Report(ROOT, OK, (Call(USER, OK),)), 0.0)
    flow.report(Report(GUARD, OK), 0.1)
    assert (flow.done, flow.holders) == (False, (sid(1),)), "the user's worker is in waitUntil"
    assert not flow.tick(30.0)
    flow.report(Report(USER, OK, (Call(GUARD, OK),)), 30.1)
    assert flow.done
    assert outcomes(flow) == {sid(0): "ok", sid(1): "ok", sid(2): "ok"}


def test_a_stage_that_was_refused_and_fell_back_reports_once() -> None:
    """Both machines have the same context; the one that refused has nothing to say."""
    flow = Flow(ROOT)
    flow.begin(USER, 0.0)
    fell_back = replace(USER, machine="m0")
    flow.report(Report(fell_back, replace(OK, start_type="cold", cold_cause="refused")), 0.1)
    flow.report(Report(ROOT, OK, (Call(fell_back, OK),)), 0.2)
    assert outcomes(flow) == {sid(0): "ok", sid(1): "ok"}


def test_a_killed_stage_is_heard_whatever_its_caller_answered() -> None:
    flow = Flow(ROOT)
    killed = Ending(Outcome.EXCEEDED_CPU, cpu_ms=5.4, lines=(Line(7, "stdout", "up to here"),))
    flow.report(Report(USER, killed), 0.0)
    flow.report(Report(ROOT, OK, (Call(USER, replace(killed, lines=())),)), 0.1)
    ((_, events),) = [(batch.worker, batch.events) for batch in flow.tail_events()]
    assert [(event["outcome"], event["cpuTime"]) for event in events] == [("ok", 1.5), ("exceededCpu", 5.4)]


def test_a_stage_that_never_ran_is_told_by_its_caller() -> None:
    flow = Flow(ROOT)
    shed = Call(USER, Ending(Outcome.LOAD_SHED), ran=False)
    flow.report(Report(ROOT, OK, (shed,)), 0.0)
    assert flow.done
    assert outcomes(flow) == {sid(0): "ok", sid(1): "loadShed"}


def test_the_machine_of_the_users_worker_dies_in_the_middle() -> None:
    flow = Flow(ROOT)
    flow.begin(USER, 0.0)
    flow.machine_lost("m1", 1.0)
    flow.report(Report(ROOT, OK, (Call(USER, Ending(Outcome.HOME_LOST)),)), 1.5)
    assert not flow.done, "what it had called may still report"
    flow.report(Report(GUARD, replace(OK, outcome=Outcome.CANCELED)), 1.6)
    assert flow.tick(1.5 + ORPHANS_S)
    assert outcomes(flow) == {sid(0): "ok", sid(1): "homeLost", sid(2): "canceled"}


def test_what_a_dead_machine_had_reported_stands() -> None:
    flow = Flow(ROOT)
    flow.machine_lost("m1", 0.0)
    flow.report(Report(USER, OK), 0.1)
    flow.report(Report(ROOT, OK, (Call(USER, OK),)), 0.2)
    assert flow.done
    assert outcomes(flow) == {sid(0): "ok", sid(1): "ok"}


@pytest.mark.parametrize("own_first", [True, False])
def test_what_was_lost_to_its_caller_was_lost(own_first: bool) -> None:
    flow = Flow(ROOT)
    reports = [Report(USER, OK), Report(ROOT, OK, (Call(USER, Ending(Outcome.HOME_LOST)),))]
    for report in reports if own_first else reversed(reports):
        flow.report(report, 0.0)
    assert flow.done
    assert outcomes(flow)[sid(1)] == "homeLost"
    ((_, events),) = [(batch.worker, batch.events) for batch in flow.tail_events()]
    assert events[1]["cpuTime"] == 1.5, "it cost what it cost"


def test_a_call_that_runs_again_is_one_stage() -> None:
    flow = Flow(ROOT)
    again = replace(USER, machine="m9", run=1)
    flow.begin(USER, 0.0)
    flow.lost(sid(1), 0.1)
    flow.begin(again, 0.2)
    flow.report(Report(USER, replace(OK, outcome=Outcome.EXCEPTION)), 0.3)
    flow.report(Report(ROOT, OK, (Call(again, OK),)), 0.4)
    assert (flow.done, flow.counts.stale) == (False, 1)
    flow.report(Report(again, OK), 0.5)
    assert outcomes(flow) == {sid(0): "ok", sid(1): "ok"}


def test_a_call_on_a_machine_that_is_known_to_be_dead() -> None:
    flow = Flow(ROOT)
    flow.machine_lost("m1", 0.0)
    flow.begin(USER, 0.1)
    assert flow.holders == (sid(0),)
    flow.report(Report(ROOT, OK), 0.2)
    assert flow.tick(0.1 + ORPHANS_S)
    assert outcomes(flow)[sid(1)] == "homeLost"


def test_a_lost_report_alone_is_waited_for_and_then_told_as_its_caller_saw_it() -> None:
    flow = Flow(ROOT)
    flow.report(Report(ROOT, OK, (Call(USER, replace(OK, outcome=Outcome.EXCEPTION)),)), 5.0)
    assert not flow.tick(5.0 + UNHEARD_S - 0.1)
    assert flow.tick(5.0 + UNHEARD_S)
    assert flow.counts.unheard == 1
    assert outcomes(flow)[sid(1)] == "exception"
    ((_, events),) = [(batch.worker, batch.events) for batch in flow.tail_events()]
    assert [event["everwarm"]["reported"] for event in events] == [True, False]  # type: ignore[index]


def test_late_doubled_and_too_many() -> None:
    flow = Flow(ROOT, FlowLimits(stages_max=2))
    flow.report(Report(USER, OK), 0.0)
    flow.report(Report(USER, replace(OK, outcome=Outcome.HUNG)), 0.0)
    flow.report(Report(GUARD, OK), 0.0)
    flow.report(Report(ROOT, OK, (Call(USER, OK),)), 0.0)
    assert flow.done
    flow.report(Report(GUARD, OK), 0.1)
    flow.begin(GUARD, 0.1)
    flow.lost(sid(1), 0.1)
    assert flow.counts == FlowCounts(late=3, doubled=1, dropped=1)
    assert outcomes(flow) == {sid(0): "ok", sid(1): "ok"}


def test_a_root_that_is_lost_closes_the_tree_too() -> None:
    flow = Flow(ROOT)
    flow.begin(USER, 0.0)
    flow.lost(sid(0), 0.1)
    flow.report(Report(USER, OK), 0.2)
    assert flow.tick(0.1 + ORPHANS_S)
    assert outcomes(flow) == {sid(0): "homeLost", sid(1): "ok"}


def test_logs_are_bounded_and_the_last_one_has_room_too() -> None:
    flow = Flow(ROOT, FlowLimits(log_bytes_max=4_000))
    lines = tuple(Line(0, "log", "x" * 36) for _ in range(100))
    flow.report(Report(USER, replace(OK, lines=lines)), 0.0)
    flow.report(Report(ROOT, replace(OK, lines=lines), (Call(USER, OK),)), 0.0)
    ((_, events),) = [(batch.worker, batch.events) for batch in flow.tail_events()]
    assert [(event["truncated"], event["event"] is not None) for event in events] == [(True, True), (True, False)]
    assert (flow.log_bytes, len(events[0]["logs"])) == (3_000, 10)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- all flows


def test_flows_are_told_once_and_released() -> None:
    flows = Flows("server-1/flows")
    capability = flows.open(ROOT)
    assert capability == Capability("server-1/flows", 1)
    flows.begin(1, USER, 0.0)
    flows.report(1, Report(USER, replace(OK, lines=(Line(0, "log", "x" * 36),))), 0.0)
    assert (flows.tick(0.0), flows.log_bytes) == ([], 100)
    flows.report(1, Report(ROOT, OK), 0.0)
    assert [batch.worker for batch in flows.tick(0.0)] == ["tail"]
    assert (flows.tick(0.0), len(flows), flows.log_bytes) == ([], 0, 0)
    flows.report(1, Report(USER, OK), 1.0)
    flows.begin(7, USER, 1.0)
    flows.lost(1, sid(1), 1.0)
    assert flows.counts.late == 3


def test_all_flows_hear_of_a_lost_machine() -> None:
    flows = Flows("server-1/flows")
    for key in (1, 2):
        assert flows.open(ROOT) is not None
        flows.begin(key, USER, 0.0)
        flows.report(key, Report(ROOT, OK), 0.0)
    flows.machine_lost("m1", 0.0)
    assert len(flows.tick(ORPHANS_S)) == 2


def test_too_many_flows_and_too_many_logs() -> None:
    flows = Flows("server-1/flows", FlowLimits(flows_max=2, flows_bytes_max=100))
    assert flows.open(ROOT) is not None
    assert flows.open(ROOT) is not None
    assert flows.open(ROOT) is None
    for key in (1, 2):
        flows.report(key, Report(ROOT, replace(OK, lines=(Line(0, "log", "x" * 36),))), 0.0)
    events = [event for batch in flows.tick(0.0) for event in batch.events]
    assert [event["truncated"] for event in events] == [False, True]


# --------------------------------------------------------------------------------------------------------- all orders


@dataclass(frozen=True)
class Tree:
    """What really happened: for each stage its caller, how it ended, and whether its machine died or its word was
    lost."""

    parents: tuple[int, ...]
    fates: tuple[str, ...]

    def stages(self) -> list[Stage]:
        made = [ROOT]
        for number, parent in enumerate(self.parents, 1):
            made.append(stage(number, parent, under=(*made[parent].under, sid(parent))))
        return made

    def ending(self, number: int) -> Ending:
        outcome = Outcome.HOME_LOST if self.fates[number] == "dies" else list(Outcome)[number % 3]
        return replace(OK, outcome=outcome, cpu_ms=float(number))

    def messages(self) -> list[object]:
        stages = self.stages()
        sent: list[object] = []
        for number, own in enumerate(stages):
            children = [child for child, parent in enumerate(self.parents, 1) if parent == number]
            calls = tuple(
                Call(stages[child], None if self.fates[child] == "silent" else self.ending(child)) for child in children
            )
            if self.fates[number] == "dies":
                sent.append(own.machine)
            elif self.fates[number] != "silent":
                sent.append(Report(own, self.ending(number), calls))
            sent += [call.stage for call in calls]
        return sent


def tell(flow: Flow, message: object, now_s: float) -> None:
    if isinstance(message, Report):
        flow.report(message, now_s)
    elif isinstance(message, Stage):
        flow.begin(message, now_s)
    else:
        flow.machine_lost(str(message), now_s)


def trees(fates: list[str]) -> st.SearchStrategy[Tree]:
    def made(seeds: list[tuple[int, str]]) -> Tree:
        parents = tuple(seed % (number + 1) for number, (seed, _) in enumerate(seeds))
        return Tree(parents, ("ends", *(fate for _, fate in seeds)))

    return st.lists(st.tuples(st.integers(0, 100), st.sampled_from(fates)), max_size=10).map(made)


few = settings(max_examples=60)


@few
@given(trees(["ends"]), st.integers(0, 1 << 30))
def test_the_order_of_reports_changes_nothing(tree: Tree, seed: int) -> None:
    order = random.Random(seed)
    messages = [message for message in tree.messages() if isinstance(message, Report) or order.random() < 0.5]
    messages += order.sample(messages, len(messages) // 2)
    order.shuffle(messages)
    in_order, shuffled = Flow(ROOT), Flow(ROOT)
    for message in tree.messages():
        tell(in_order, message, 0.0)
    missing = {report.stage.stage for report in tree.messages() if isinstance(report, Report)}
    for message in messages:
        assert shuffled.done is (not missing), "over with the last report, and not before"
        tell(shuffled, message, 0.0)
        if isinstance(message, Report):
            missing.discard(message.stage.stage)
    assert in_order.done
    assert shuffled.done
    assert shuffled.tail_events() == in_order.tail_events()
    assert len(outcomes(shuffled)) == len(tree.fates)


@few
@given(trees(["ends", "ends", "dies", "silent"]), st.integers(0, 1 << 30), st.floats(0, 0.5))
def test_a_tree_with_losses_is_over_in_the_end_with_one_event_a_stage(tree: Tree, seed: int, lost: float) -> None:
    order = random.Random(seed)
    messages = [message for message in tree.messages() if order.random() >= lost]
    messages += order.sample(messages, len(messages) // 2)
    order.shuffle(messages)
    flow, now_s = Flow(ROOT), 0.0
    counted: set[str] = {sid(0)}
    heard: dict[str, str] = {}
    for message in messages:
        if flow.done:
            break
        now_s += 0.01
        tell(flow, message, now_s)
        if isinstance(message, Report):
            counted |= {message.stage.stage, *(call.stage.stage for call in message.calls)}
            heard[message.stage.stage] = message.ending.outcome.value
        elif isinstance(message, Stage):
            counted.add(message.stage)
        if flow.tick(now_s):
            assert not flow.holders, "nobody holds it, and it is long before the last resort"
    if not heard.get(sid(0)):
        assert not flow.tick(now_s + 10 * UNHEARD_S), "a root that runs may run as long as its client likes"
        flow.lost(sid(0), now_s)
    flow.tick(now_s)
    flow.tick(now_s + UNHEARD_S)
    assert flow.tick(now_s + 2 * UNHEARD_S)
    told = outcomes(flow)
    assert told.keys() == counted
    for name, outcome in heard.items():
        assert told[name] in (outcome, "homeLost")


def test_reports_travel_as_plain_bytes() -> None:
    report = Report(USER, replace(OK, lines=(Line(1, "stderr", "ü"),)), (Call(GUARD, OK), Call(GUARD, None, ran=False)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=Report) == report

"""A request tree as an OpenTelemetry backend gets it: over two complete servers, through a real OTLP receiver."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from complete_servers import CompleteServers, Play, request
from msgspec.structs import replace
from request_trees import bound, drive
from tracing_receiver import OtlpReceiver, ReceivedSpan

from actors.bindings import Bindings, DispatchBinding, Outbound
from actors.exchange import Request
from actors.view import decode_plain, encode_plain
from actors.wire import CHUNK, REQUEST
from isolates.conversation import RequestHead
from tracing.trace import Attr, Role, Span, SpanName

Scenario = Callable[[CompleteServers, OtlpReceiver], Awaitable[None]]
CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def play_exported(play: Play) -> Callable[[Scenario], None]:
    """Play a scenario on two servers that send their traces to a receiver."""

    def run(scenario: Scenario) -> None:
        with OtlpReceiver() as receiver:

            async def exporting(cluster: CompleteServers) -> None:
                for machine in cluster.machines:
                    order = encode_plain({"url": receiver.url, "headers": {}})
                    await machine.server._traces.export_to(order)
                await scenario(cluster, receiver)

            play(exporting)

    return run


async def submit(cluster: CompleteServers, asked: Request) -> None:
    """A driver's request through the first server, read to its end."""
    submissions = cluster[1].server._submissions
    answer = decode_plain(await submissions.submit(REQUEST.encode(asked)))
    chunk = CHUNK.decode(answer["chunk"])
    while chunk.ended is None:
        chunk = CHUNK.decode(await submissions.read(answer["rest"]))


async def stages_of(receiver: OtlpReceiver, count: int) -> list[ReceivedSpan]:
    """All spans, once so many stages have arrived."""

    def enough(spans: list[ReceivedSpan]) -> bool:
        return sum(span.name == SpanName.REQUEST for span in spans) == count

    return await asyncio.to_thread(receiver.wait_for, enough, 10.0, f"{count} stages")


def test_a_tree_over_two_servers_is_one_trace_with_right_parents(play_exported: Play) -> None:
    async def scenario(cluster: CompleteServers, receiver: OtlpReceiver) -> None:
        guard = await cluster.deploy_at(1, "hello")
        user = await cluster.deploy_at(2, "fetch", namespace="customers")
        dispatcher = await cluster.deploy_at(
            1, "fetch", Bindings(dispatch=(DispatchBinding("customers", "customers"),), outbound=Outbound(guard))
        )
        name = user.partition("/")[2]
        path = f"/?url=http://{name}.dispatch.internal/?url=http://example.com/"
        assert (await drive(cluster, 1, dispatcher, path))[0] == 200
        spans = await stages_of(receiver, 3)

        assert len({span.trace_id for span in spans}) == 1
        by_id = {span.span_id: span for span in spans}
        assert len(by_id) == len(spans)
        (root,) = [span for span in spans if span.parent_span_id not in by_id]
        assert (root.name, root.parent_span_id, root.kind) == (SpanName.REQUEST, "", "SERVER")
        assert root.attributes[Attr.WORKER] == dispatcher

        def above(span: ReceivedSpan) -> list[str]:
            """The workers of the stages above a span, the nearest first."""
            found = []
            while span.parent_span_id:
                span = by_id[span.parent_span_id]
                if span.name == SpanName.REQUEST:
                    found.append(span.attributes[Attr.WORKER])
            return found

        handlers = {span.attributes[Attr.WORKER]: span for span in spans if span.name == SpanName.HANDLER}
        assert {worker: above(span) for worker, span in handlers.items()} == {
            dispatcher: [dispatcher], user: [user, dispatcher], guard: [guard, user, dispatcher],
        }  # fmt: skip
        # Each says where it ran, what it cost, and how its isolate came to be.
        ran_on = {worker: span.resource["service.instance.id"] for worker, span in handlers.items()}
        assert ran_on == {dispatcher: "server-1", user: "server-2", guard: "server-1"}
        for handler in handlers.values():
            assert handler.resource[Attr.ROLE] == Role.ISOLATE_HOST
            assert handler.attributes[Attr.START_TYPE] == "cold"
            assert handler.attributes[Attr.CPU_MS] > 0
        stages = {span.attributes[Attr.WORKER]: span for span in spans if span.name == SpanName.REQUEST}
        # What a stage calls hangs below its handler, and what is between two servers below a hop.
        assert by_id[stages[user].parent_span_id] == handlers[dispatcher]
        assert by_id[stages[guard].parent_span_id] == handlers[user]
        hops = [span for span in spans if span.name == SpanName.HOP]
        assert {(hop.resource["service.instance.id"], above(hop)[0]) for hop in hops} == {
            ("server-1", user), ("server-2", guard),
        }  # fmt: skip

    play_exported(scenario)


def test_the_trace_of_a_client_goes_on_below_it(play_exported: Play) -> None:
    async def scenario(cluster: CompleteServers, receiver: OtlpReceiver) -> None:
        callee = await cluster.deploy_at(2, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(api=callee))
        asked = request(caller, "/?url=http://api.binding.internal/")
        await submit(cluster, replace(asked, traceparent=CLIENT))
        spans = await stages_of(receiver, 2)
        assert {span.trace_id for span in spans} == {CLIENT[3:35]}
        assert [s.parent_span_id for s in spans if s.name == SpanName.REQUEST and Attr.DEPTH not in s.attributes] == [
            CLIENT[36:52]
        ]

    play_exported(scenario)


def test_no_secret_of_a_tree_reaches_a_backend(play_exported: Play) -> None:
    async def scenario(cluster: CompleteServers, receiver: OtlpReceiver) -> None:
        last = await cluster.deploy_at(2, "hello")
        middle = await cluster.deploy_at(2, "fetch", bound(last=last))
        first = await cluster.deploy_at(1, "fetch", bound(middle=middle))
        path = "/?url=http://middle.binding.internal/?url=http://last.binding.internal/?access_token=hunter2"
        headers = (
            ("cookie", b"session=hunter2"), ("authorization", b"Bearer hunter2"), ("x-api-key", b"hunter2"),
            ("user-agent", b"a test"),
        )  # fmt: skip
        head = RequestHead("GET", "https", f"{first}.localhost", path, headers)
        await submit(cluster, replace(request(first), head=head))
        spans = await stages_of(receiver, 3)
        assert "hunter2" not in repr(spans)
        queries = {s.attributes[Attr.WORKER]: s.attributes[Attr.URL_QUERY] for s in spans if s.name == SpanName.REQUEST}
        inner = "url=http://last.binding.internal/?access_token=REDACTED"
        assert queries == {
            first: f"url=http://middle.binding.internal/?{inner}", middle: inner, last: "access_token=REDACTED",
        }  # fmt: skip

    play_exported(scenario)


def test_a_tree_that_its_edge_does_not_keep_is_not_exported(play_exported: Play) -> None:
    """The edge judges the root alone; the stages below it tell of themselves in any case."""

    async def scenario(cluster: CompleteServers, receiver: OtlpReceiver) -> None:
        desk = cluster[1].server._traces
        for number, (sampled, start) in enumerate([(False, "warm"), (False, "cold"), (True, "warm")]):
            trace = f"{number + 1:032x}"
            desk.report([stage(trace, 2, 1, {Attr.START_TYPE: start})])
            root = {Attr.STAGES: 1, Attr.START_TYPE: "warm"}
            desk.report([stage(trace, 1, None, root if sampled else {**root, Attr.SAMPLED: False})])
        spans = await stages_of(receiver, 4)
        assert {span.trace_id[-1] for span in spans} == {"2", "3"}

    play_exported(scenario)


def stage(trace_id: str, number: int, parent: int | None, attributes: dict[str, Any]) -> Span:
    above = None if parent is None else f"{parent:016x}"
    return Span(
        trace_id, f"{number:016x}", above, SpanName.REQUEST, 10**18, 10**18 + 10**6, "server-1", Role.SERVER,
        {Attr.OUTCOME: "ok", **attributes},
    )  # fmt: skip

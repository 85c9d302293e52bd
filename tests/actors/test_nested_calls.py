"""Workers that call each other, on complete servers: real guests, real hosts, and peers that can be lost."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from complete_servers import CompleteServers, Pieces, Play, collect, component, request, upload, wait_until
from request_trees import bound, drive, spans_at

from actors.bindings import Bindings, DispatchBinding, Outbound
from actors.budget import Budget
from actors.context import Context
from actors.context_wire import decode_context, encode_context
from actors.egress_frames import Asked
from actors.exchange import Outcome, Request
from actors.handed_books import Handed
from actors.nested_answer import CallRefused
from actors.nested_calls import Aimed
from actors.view import encode_plain
from isolates.egress import OutgoingHead
from tracing.trace import Attr, SpanName
from tracing.wire import decode_spans


@pytest.mark.parametrize("callee_home", [1, 2])
def test_a_worker_calls_another_by_its_binding(play: Play, callee_home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(callee_home, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(api=callee))
        for _ in range(3):
            got = await cluster[1].ask(request(caller, "/?url=http://api.binding.internal/far"))
            assert got.served is not None
            assert (got.served.status, got.body) == (200, b"hello from Zig\nyou asked for /far\n")
            assert got.ended.outcome is Outcome.OK
        offered = (await cluster[1].sharded())["offered"]
        assert offered == (0 if callee_home == 1 else 3)

    play(scenario, servers=3)


def test_a_name_that_is_not_bound_reaches_nobody(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "hello")
        bound_to_it = await cluster.deploy_at(1, "fetch", bound(api=callee))
        bound_to_nothing = await cluster.deploy_at(1, "fetch")
        for caller, name in (
            (bound_to_it, "other.binding.internal"),
            (bound_to_it, f"{callee}.binding.internal"),
            (bound_to_it, f"{callee}.dispatch.internal"),
            (bound_to_nothing, "api.binding.internal"),
            (bound_to_nothing, "api.binding.internal."),
        ):
            got = await cluster[1].ask(request(caller, f"/?url=http://{name}/"))
            assert got.body == b"destination-not-found\n", name
        assert (await cluster[1].statistics())["nested"]["calls"] == 0

    play(scenario, servers=3)


def test_bodies_stream_both_ways_through_a_call(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(2, "echo")
        caller = await cluster.deploy_at(1, "fetch", bound(echo=callee))
        data = bytes(range(256)) * 4096
        fields, rest = upload(data)
        got = await cluster[1].ask(
            request(caller, "/?url=http://echo.binding.internal/", method="POST", **fields), rest
        )
        assert (got.ended.outcome, got.whole, len(got.body)) == (Outcome.OK, True, len(data)), got.ended.reason
        assert got.body == data

    play(scenario, servers=3)


def test_an_ending_of_a_callee_is_an_answer_for_its_caller(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        for zig, status in (("spin", 429), ("trap", 502), ("silent", 502)):
            callee = await cluster.deploy_at(2, zig, cpu_ms=20)
            caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
            got = await cluster[1].ask(request(caller, "/?url=http://callee.binding.internal/"))
            assert got.served is not None
            assert (got.served.status, got.ended.outcome) == (status, Outcome.OK), zig
        caller = await cluster.deploy_at(1, "fetch", bound(callee="nobody"))
        got = await cluster[1].ask(request(caller, "/?url=http://callee.binding.internal/"))
        assert got.served is not None
        assert got.served.status == 404

    play(scenario, servers=3)


def test_users_of_a_namespace_are_called_by_name_and_are_kept_apart(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        user = await cluster.deploy_at(2, "hello", namespace="customers")
        other = await cluster.deploy_at(2, "hello", namespace="others")
        dispatcher = await cluster.deploy_at(1, "fetch", Bindings(dispatch=(DispatchBinding("dispatch", "customers"),)))
        name = user.partition("/")[2]
        got = await cluster[1].ask(request(dispatcher, f"/?url=http://{name}.dispatch.internal/hi"))
        assert got.body == b"hello from Zig\nyou asked for /hi\n"
        for absent in (other.partition("/")[2], dispatcher):
            got = await cluster[1].ask(request(dispatcher, f"/?url=http://{absent}.dispatch.internal/"))
            assert got.served is not None
            assert got.served.status == 404

    play(scenario, servers=3)


def test_what_a_users_worker_fetches_goes_through_the_outbound_worker(play: Play) -> None:
    """There is no way around it: without one, the way out would look the name up, and find no such origin."""

    async def scenario(cluster: CompleteServers) -> None:
        user = await cluster.deploy_at(2, "fetch", namespace="customers")
        guard = await cluster.deploy_at(3, "hello")
        bindings = Bindings(dispatch=(DispatchBinding("dispatch", "customers"),), outbound=Outbound(guard))
        dispatcher = await cluster.deploy_at(1, "fetch", bindings)
        name = user.partition("/")[2]
        path = f"/?url=http://{name}.dispatch.internal/?url=http://origin.invalid/secret"
        status, body = await drive(cluster, 1, dispatcher, path)
        assert (status, body) == (200, b"hello from Zig\nyou asked for /secret\n")

        spans = await spans_at(cluster, 1, stages=3)
        stages = sorted((s for s in spans if s.name == SpanName.REQUEST), key=lambda s: s.start_ns)
        assert [s.attributes[Attr.WORKER] for s in stages] == [dispatcher, user, guard]
        assert [s.attributes.get(Attr.DEPTH) for s in stages] == [None, 1, 1]
        handlers = {s.span_id: s for s in spans if s.name == SpanName.HANDLER}
        for above, below in itertools.pairwise(stages):
            parent = handlers[below.parent_span_id or ""]
            assert parent.attributes[Attr.WORKER] == above.attributes[Attr.WORKER]
        assert {s.server for s in handlers.values()} == {"server-1", "server-2", "server-3"}
        known = {s.span_id for s in spans}
        assert [s.name for s in spans if s.parent_span_id not in known] == [SpanName.REQUEST]

    play(scenario, servers=3)


def test_a_callee_with_a_larger_limit_than_its_tree_has_calls_others_all_the_same(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        leaf = await cluster.deploy_at(1, "hello")
        middle = await cluster.deploy_at(1, "fetch", bound(leaf=leaf), cpu_ms=300_000)
        root = await cluster.deploy_at(1, "fetch", bound(middle=middle), cpu_ms=1_000)
        got = await cluster[1].ask(
            request(root, "/?url=http://middle.binding.internal/?url=http://leaf.binding.internal/")
        )
        assert got.body == b"hello from Zig\nyou asked for /\n"

    play(scenario, servers=1)


@pytest.mark.parametrize(("wall_ms", "is_bounded"), [(20_000, True), (None, False)])
def test_a_callee_has_the_time_that_its_caller_has_left(play: Play, wall_ms: int | None, is_bounded: bool) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        server, sent = cluster[1].server, list[Request]()
        answer = server.nested._answer

        async def seen(request: Request, *more: Any) -> Any:
            sent.append(request)
            return await answer(request, *more)

        server.nested._answer = seen
        limits = {} if wall_ms is None else {"wall_ms": wall_ms}
        leaf = await cluster.deploy_at(1, "hello")
        middle = await cluster.deploy_at(1, "fetch", bound(leaf=leaf))
        root = await cluster.deploy_at(1, "fetch", bound(middle=middle), **limits)
        got = await cluster[1].ask(
            request(root, "/?url=http://middle.binding.internal/?url=http://leaf.binding.internal/")
        )
        assert got.body == b"hello from Zig\nyou asked for /\n"
        left_ms = [decode_context(call.context).left_ms for call in sent]
        assert [call.limits["wall_ms"] for call in sent] == left_ms
        if is_bounded:
            # Each of them began later than its caller.
            assert wall_ms is not None
            assert [wall_ms, *left_ms] == sorted([wall_ms, *map(int, left_ms)], reverse=True)
            assert left_ms[1] > wall_ms - 15_000
        else:
            assert left_ms == [None, None]

    play(scenario, servers=1)


def test_whoever_may_be_guarded_does_not_get_out_without_its_version(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        context = encode_context(Context("1" * 16, Budget(10_000, 10, 10, 10, 1)))
        assert isinstance(context, bytes)
        head = OutgoingHead("GET", "http", "example.com", "/")
        forgotten = Asked(head, "gone", "0" * 16, traceparent=f"00-{'1' * 32}-{'2' * 16}-01")
        nested = cluster[1].server.nested
        assert await nested.aim(forgotten) is None  # a client's own request: it goes out, as the policy allows
        with pytest.raises(CallRefused) as refused:
            await nested.aim(replace(forgotten, context=context))
        assert refused.value.code == ("internal-error", None)

    play(scenario, servers=1)


@pytest.mark.parametrize("come", [True, False])
def test_books_that_are_on_their_way_are_waited_for(play: Play, come: bool) -> None:
    """A callee within the host hands over its caller's books on one connection, and its caller calls on another."""

    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(1, "hello")
        root = await cluster.deploy_at(1, "fetch", bound(api=callee))
        nested = cluster[1].server.nested
        version = nested._version_of(root, cluster.version_of(root))
        assert version is not None
        head = OutgoingHead("GET", "http", "api.binding.internal", "/")
        all_of_it, nothing = Budget.of(version.limits), Budget(0, 0, 0, 0, 0)
        context = encode_context(Context("2" * 16, all_of_it))
        assert isinstance(context, bytes)

        def asked(left: Budget, number: int) -> Asked:
            books = (Handed("2" * 16, root, version.version_id, context, left, number),)
            return Asked(head, root, version.version_id, traceparent=f"00-{'1' * 32}-{'2' * 16}-01", books=books)

        late = await nested.aim(asked(nothing, 2))
        assert isinstance(late, Aimed)
        afforded = asyncio.create_task(nested._afforded(late.stage, late.stage.calls.out))
        await asyncio.sleep(0)
        assert not afforded.done()
        if come:
            await nested.aim(asked(all_of_it, 1))
            assert await afforded is None
        else:
            assert await afforded is not None  # it was lost on its way
        nested.over("2" * 16, 0)

    play(scenario, servers=1)


@pytest.mark.parametrize("servers", [1, 3])
def test_a_worker_that_calls_itself_comes_to_an_end_at_the_sixteenth(play: Play, servers: int) -> None:
    """Each stage gets a share of what is left, far too little for sixteen, and asks for more."""

    async def scenario(cluster: CompleteServers) -> None:
        names = [f"ring-{i}" for i in range(servers)]
        for i, name in enumerate(names):
            bindings = bound(next=names[(i + 1) % servers])
            assert (await cluster.deploy(name, component("fetch"), bindings, cpu_ms=1_000))["error"] is None
        path = "/" + "?url=http://next.binding.internal/" * 20
        got = await cluster[1].ask(request(names[0], path))
        assert got.served is not None
        assert (got.ended.outcome, got.body) == (Outcome.OK, b"loop-detected\n")
        counts = [(await machine.statistics())["nested"] for machine in cluster.machines]
        assert sum(count["calls"] for count in counts) == 15
        assert sum(count["refused"] for count in counts) == 1

    play(scenario, servers)


def test_what_a_subtree_did_not_spend_comes_back(play: Play) -> None:
    """Whoever reads an answer to its end hears what the callee, and those that it called, spent."""

    async def scenario(cluster: CompleteServers) -> None:
        leaf = await cluster.deploy_at(3, "hello")
        middle = await cluster.deploy_at(2, "fetch", bound(leaf=leaf))
        root = await cluster.deploy_at(1, "fetch", bound(middle=middle))
        path = "/?url=http://middle.binding.internal/?url=http://leaf.binding.internal/"
        for _ in range(5):
            got = await cluster[1].ask(request(root, path))
            assert got.body == b"hello from Zig\nyou asked for /\n"
        await cluster.settled()
        for number in (1, 2):
            counts = (await cluster[number].statistics())["nested"]
            assert (counts["calls"], counts["shares_lost"], counts["lent_out"]) == (5, 0, 0)

    play(scenario, servers=3)


@pytest.mark.parametrize("home", [1, 2])
@pytest.mark.parametrize("guest", ["spin", "stream"])
def test_a_client_that_leaves_stops_all_stages(play: Play, guest: str, home: int) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(home, guest, cpu_ms=60_000)
        caller = await cluster.deploy_at(1, "fetch", bound(callee=callee))
        path = "/?url=http://callee.binding.internal/?chunks=100000&interval_ms=5"
        trace_id = "1" * 32
        traceparent = f"00-{trace_id}-{'2' * 16}-01"
        asked = msgspec.structs.replace(request(caller, path), edge="server-1", traceparent=traceparent)
        answer = await cluster[1].begin(asked, Pieces())
        await cluster.running(2)
        if guest == "stream":
            assert await answer.served() is not None
            assert await answer.read()
        answer.cancel()
        await cluster.settled()

        async def told() -> bool:
            """What both guests did is in the trace, although nobody waited for their answers."""
            spans = decode_spans(await cluster[1].server._traces.trace(encode_plain({"trace_id": trace_id})))
            assert isinstance(spans, list)
            return {s.attributes[Attr.WORKER] for s in spans if s.name == SpanName.HANDLER} == {caller, callee}

        await wait_until(told, "both handlers are in the trace")

    play(scenario, servers=3)


def test_a_lost_home_is_told_to_the_caller(play: Play) -> None:
    async def scenario(cluster: CompleteServers) -> None:
        callee = await cluster.deploy_at(2, "hello")
        caller = await cluster.deploy_at(1, "fetch", bound(api=callee))
        fields, rest = upload(b"once")
        cluster.lose("server-2/shard", "serve", delivered=None)
        answer = await cluster[1].begin(
            request(caller, "/?url=http://api.binding.internal/", method="POST", **fields), rest
        )
        got = await collect(answer)
        assert got.served is not None
        assert (got.served.status, got.ended.outcome) == (502, Outcome.OK)

    play(scenario, servers=3)

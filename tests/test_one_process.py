"""The one-process cluster: a sample of its seeds, that a seed is one run, and that its checkers can fail.

More seeds: ``python -m tests.one_process --seeds 2000``.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from actors import admission, dispatch
from actors.admission import Admission, Verdict
from actors.capability import Exports
from actors.dispatch import Command, Event, Phase
from actors.exchange import Capability, Chunk, Outcome, Refused, Request
from actors.link import Answer, BodySource, LinkAnswer
from actors.residency import Residency
from actors.route_finder import RouteFinder
from actors.shard_client import LentBody, Offer, ShardClient
from isolates.conversation import BodyLost
from tests.one_process import fresh_seed
from tests.simulation.cluster import play
from tests.simulation.virtual_loop import START_S, RunAway, Stalled, VirtualLoop

REPOSITORY = Path(__file__).resolve().parents[1]
#: Seeds of a sample. A machine that is so slow that fewer fit into half a minute tells nothing about races.
SEEDS_MIN = 8


def command(*arguments: str, hash_seed: str = "0") -> dict[str, Any]:
    """What the command sums up."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.one_process", *arguments, "--json"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    summed: dict[str, Any] = json.loads(done.stdout)
    return summed


# ------------------------------------------------------------------------------------------------------- the seeds


def test_every_rule_holds_in_a_sample_of_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    # As many as half a minute has room for, and others for each state of the code.
    summed = command("--fresh", "--seeds", "1000", "--within", "30")
    seeds = summed["seeds"]
    with capsys.disabled():
        print(f" {seeds} seeds from {summed['first']}", end=" ", flush=True)
    assert not summed["failing"], "\n".join(
        f"{failed['again']}: {failed['violations'][0]}" for failed in summed["failing"][:5]
    )
    assert summed["first"] == fresh_seed()
    # It would hold just as well if nothing went on.
    assert seeds >= SEEDS_MIN
    assert summed["requests"] > seeds * 900
    assert summed["offers"] > seeds * 150
    assert summed["refusals"] > seeds * 10
    assert summed["lost_calls"] > seeds * 3
    assert summed["evictions"] > seeds * 15
    assert summed["endings"]["ok"] > seeds * 500


def test_a_sweep_that_is_stopped_sums_up_what_it_has() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.one_process", "--seeds", "2000"],
        cwd=REPOSITORY, env={**os.environ, "PYTHONHASHSEED": "0"}, stdout=subprocess.PIPE, text=True,
    ) as sweep:  # fmt: skip
        assert sweep.stdout is not None
        assert sweep.stdout.readline() == "seeds from 0\n"
        sweep.send_signal(signal.SIGINT)
        told = sweep.stdout.read()
    assert sweep.returncode == 0
    assert re.search(r"stopped after \d+ of 2000 seeds\n\d+ seeds of 1000 requests in [\d.]+ s", told), told


def test_nothing_fails_on_a_calm_day() -> None:
    for seed in range(3):
        played = play(seed, 400, calm=True)
        assert not played.violations
        assert not {ending for ending in played.endings if "Lost" in ending or "internal" in ending}


def test_a_seed_is_one_run() -> None:
    first = [play(seed, 200).digest for seed in (11, 12)]
    assert [play(seed, 200).digest for seed in (12, 11)] == first[::-1]
    script = "from tests.simulation.cluster import play; print([play(seed, 200).digest for seed in (11, 12)])"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        told = subprocess.run(
            [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        assert json.loads(told.stdout) == first


def test_a_replay_tells_its_story() -> None:
    played = play(5, 100, telling=True)
    assert any("runs on" in line for _, line in played.lines)
    assert [at_s for at_s, _ in played.lines] == sorted(at_s for at_s, _ in played.lines)
    assert played.digest == play(5, 100).digest


# ---------------------------------------------------------------------------------------------- the virtual loop


def test_time_passes_only_when_nothing_is_ready() -> None:
    loop = VirtualLoop()
    seen: list[tuple[str, float]] = []
    loop.call_later(5.0, lambda: seen.append(("late", loop.time())))
    loop.call_later(5.0, lambda: seen.append(("later", loop.time())))
    loop.call_soon(lambda: seen.append(("soon", loop.time())))
    loop.call_later(3_600.0, loop.stop)
    loop.run_forever()
    assert seen == [("soon", START_S), ("late", START_S + 5), ("later", START_S + 5)]
    assert loop.time() == START_S + 3_600
    loop.close()


def test_a_wait_for_nothing_is_seen() -> None:
    loop = VirtualLoop()
    with pytest.raises(Stalled):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_circle_at_one_moment_is_seen() -> None:
    loop = VirtualLoop()

    def again() -> None:
        loop.call_soon(again)

    loop.call_soon(again)
    with pytest.raises(RunAway):
        loop.run_forever()
    loop.close()


# --------------------------------------------------------------------------------------- the checkers can fail

Break = Callable[[pytest.MonkeyPatch], None]


def forget_refusals(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(dispatch._TABLE[Phase.OFFERED], Event.REFUSED, (Phase.RUNNING_HERE, Command.RUN_HERE))


def ask_a_second_home(patch: pytest.MonkeyPatch) -> None:
    async def refused(self: ShardClient, offer: Offer, verdict: Refused, request: Request, body: BodySource) -> Answer:
        offer.journey.on(Event.REFUSED)
        offer.release("refused")
        other = "server-1" if offer._home != "server-1" else "server-2"
        return await self.send(request, body, other, 0, offer.recorder)

    patch.setattr(ShardClient, "_refused", refused)


def release_nothing(patch: pytest.MonkeyPatch) -> None:
    release = Exports.release

    def kept(self: Exports[Any], capability: Capability) -> None:
        if not self.owner.endswith("/server"):
            release(self, capability)

    patch.setattr(Exports, "release", kept)


def run_posts_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatch, "IDEMPOTENT", dispatch.IDEMPOTENT | {"POST", "PATCH"})


def give_up_after_any_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dispatch, "lost_event", lambda method, delivered, body_intact: Event.LOST)


def end_a_broken_body(patch: pytest.MonkeyPatch) -> None:
    async def read(self: LentBody, bytes_max: int) -> Chunk:
        self._journey.on(Event.BODY_READ)
        try:
            data = await self._body.read(bytes_max)
        except BodyLost:
            data = None
        return Chunk(end=True) if data is None else Chunk(data)

    patch.setattr(LentBody, "read", read)


def double_a_piece(patch: pytest.MonkeyPatch) -> None:
    read = LentBody.read

    async def twice(self: LentBody, bytes_max: int) -> Chunk:
        chunk = await read(self, bytes_max)
        return Chunk(chunk.data * 2, chunk.end, chunk.lost)

    patch.setattr(LentBody, "read", twice)


def admit_everybody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(admission, "decide", lambda *_, **__: Verdict(Admission.ADMIT))


def share_isolates(patch: pytest.MonkeyPatch) -> None:
    use = Residency._use

    def used_and_idle(self: Residency, ticket: Any, house: Any, now_s: float) -> Any:
        isolate = house.idle[-1]
        decision = use(self, ticket, house, now_s)
        house.idle.append(isolate)
        return decision

    patch.setattr(Residency, "_use", used_and_idle)


def answer_with_another_tenant(patch: pytest.MonkeyPatch) -> None:
    resolve = RouteFinder.resolve

    def resolved(self: RouteFinder, request: Request) -> Request | Outcome:
        found = resolve(self, request)
        view = self._keeper.view
        other = min(view.workers)
        if isinstance(found, Outcome) or request.worker == other:
            return found
        version = view.workers[other].versions[0]
        return replace(found, version=version.version_id)

    patch.setattr(RouteFinder, "resolve", resolved)


def swallow_pulls(patch: pytest.MonkeyPatch) -> None:
    async def feed(self: LinkAnswer, bytes_max: int) -> None:
        return None

    patch.setattr(LinkAnswer, "_feed", feed)


def raise_in_a_role(patch: pytest.MonkeyPatch) -> None:
    async def read(self: LentBody, bytes_max: int) -> Chunk:
        raise KeyError("sabotage")

    patch.setattr(LentBody, "read", read)


BROKEN: list[tuple[Break, str]] = [
    (forget_refusals, "again after a refusal that sticks"),
    (ask_a_second_home, "after server-"),
    (release_nothing, "has lent out"),
    (run_posts_twice, "runs again on"),
    (give_up_after_any_loss, "ends homeLost"),
    (end_a_broken_body, "sees the end of its body after"),
    (double_a_piece, "its guest reads"),
    (admit_everybody, "visits, of"),
    (share_isolates, "shares isolate"),
    (answer_with_another_tenant, "meets"),
    (swallow_pulls, "hangs"),
    (raise_in_a_role, "raised KeyError"),
]


@pytest.mark.parametrize(("sabotage", "cry"), BROKEN, ids=[sabotage.__name__ for sabotage, _ in BROKEN])
def test_a_broken_rule_is_seen(sabotage: Break, cry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch)
    for seed in range(16):
        violations = play(seed, 200).violations
        if any(cry in violation for violation in violations):
            return
    pytest.fail(f"no seed of 16 says {cry!r}")

"""The rules of a run that can only be judged when it is over: whole requests, and what is left behind.

``docs/ARCHITECTURE.md`` and the design's invariants: one answer per request; a guest runs it once, and again only where
something was lost and HTTP allows it; no request fails unless a fault explains it; everything that was lent is back;
every table keeps its bound.
"""

from actors.exchange import RefusalReason
from isolates.outcome import Outcome
from tests.simulation.guest import Reading
from tests.simulation.journal import Journal, Story
from tests.simulation.machine import Machine
from tests.simulation.network import Network

MACHINE_DIED = "its machine died"


def judge_story(story: Story, journal: Journal) -> str | None:
    """What is wrong with how a request ended, or None."""
    if not story.endings:
        return "has no ending"
    ending = story.endings[0]
    behaviour = story.behaviour
    if ending == MACHINE_DIED:
        return None
    if ending == Outcome.OK.value:
        if not story.runs:
            return "ends ok and no guest ran"
        return None
    if story.left or story.breaks:
        return None  # nobody looks at it; what it may have done is checked elsewhere
    own = behaviour.ends.value if not behaviour.after_head else f"broken off: {behaviour.ends.value}"
    if ending == own and story.runs:
        return None
    if ending == Outcome.EXCEPTION.value and story.start_failures:
        return None
    if ending == Outcome.LOAD_SHED.value and story.sheds:
        return None
    if ending == Outcome.SCRIPT_NOT_FOUND.value and story.worker in journal.gone_workers:
        return None
    return _judge_loss(story, ending, journal)


_FULL = frozenset({RefusalReason.BUSY.value, RefusalReason.QUEUE.value, RefusalReason.MEMORY.value})


def _judge_loss(story: Story, ending: str, journal: Journal) -> str | None:
    """A request that failed for no reason of its own: something that it needed was lost, and it could not be saved."""
    kills = journal.kills_that_hit(story)
    deaths = sum(loss.endswith(("dead", "died")) for loss in story.losses)
    away = journal.away_for(story)
    # A call that was lost with its peer's process is the same fault, seen from the other side.
    faults = len(story.losses) - deaths + max(deaths, kills) + away
    if story.entry in journal.hostless and not any(offer.verdict == "answered" for offer in story.offers):
        # It can run nothing itself, and the one that it asked took nothing. A full one is no failure of the platform.
        full = any(offer.verdict in _FULL for offer in story.offers)
        return "ends internalError for want of room" if full and ending == Outcome.INTERNAL_ERROR.value else None
    if not faults:
        return f"ends {ending}, and no fault explains it"
    how = ending.removeprefix("broken off: ")
    if how == Outcome.EXCEPTION.value:
        # What a guest makes of a body that breaks off, because the way to its client is lost.
        reads = story.upload_bytes and story.behaviour.reading is not Reading.NOTHING
        return None if reads else f"ends {ending}, which no fault explains"
    if how not in _LOST:
        return f"ends {ending}, which no fault explains"
    if faults > 1 or story.got_head or story.pulled or any(loss.startswith("read_response") for loss in story.losses):
        return None
    # One loss before any byte of the answer, and every byte of the body still here.
    if story.idempotent or not (story.runs or story.losses):
        return f"ends {ending} after one loss ({story.losses}, {kills} kills) that it should have survived"
    return None


_LOST = (Outcome.HOME_LOST.value, Outcome.INTERNAL_ERROR.value, Outcome.RESPONSE_STREAM_DISCONNECTED.value)


def judge_end(machines: list[Machine], network: Network, journal: Journal) -> None:
    """When all is quiet: what was lent is back, and nothing runs or waits."""
    for address in network.under_way():
        journal.broken(f"a call at {address} is still under way")
    for machine in machines:
        if machine.dead:
            continue
        server, shard = machine.server, machine.shard
        if len(server._exports):
            journal.broken(f"{machine.name} has lent out {server._exports!r}")
        if not machine.shard_is_dead and (shard._visits or len(shard._rests)):
            journal.broken(f"{machine.name}'s home has {list(shard._visits)} in work, and lent out {shard._rests!r}")
        for host in machine.hosts:
            if not host.dead and (host.running or host.residency.queued):
                journal.broken(f"{host.name}: {host.running} run, {host.residency!r}")


def judge_bounds(machines: list[Machine], visits_max: int, journal: Journal) -> None:
    """At any moment: no table is larger than it may be."""
    for machine in machines:
        if machine.dead:
            continue
        server, shard = machine.server, machine.shard
        sizes = (
            ("exports", len(server._exports), server._exports.OUT_MAX),
            ("visits", len(shard._visits), visits_max),
            ("rests", len(shard._rests), len(shard._visits)),
            ("refusals", len(server._client.refusals), server._client.refusals.REMEMBERED_MAX),
            ("side work", len(server._side._tasks), server._side.TASKS_MAX),
        )
        for what, size, most in sizes:
            if size > most:
                journal.broken(f"{machine.name}: {size} {what}, of {most}")
        for host in machine.hosts:
            limits, residency = host.residency.limits, host.residency
            if len(residency) > limits.isolates_max or residency.queued > limits.queued_max:
                journal.broken(f"{host.name}: {residency!r} is over its limits")

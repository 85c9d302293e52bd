"""What happened to each request of a run, as the outside world sees it, and the rules that are looked at on the way.

The journal stands between the roles: it sees every call between machines, every guest that runs and every ending. It
knows nothing of what the roles believe. A rule that is broken is noted at the moment when it is; rules about whole
requests and about the end are in ``checkers``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from actors.dispatch import IDEMPOTENT
from actors.exchange import Answered, Capability, RefusalReason, Refused
from actors.wire import CAPABILITY, CHUNK, decode_verdict
from tests.simulation.guest import Behaviour

#: Refusals that say nothing of the home's room, and so do not stick (semantics, section 4.9).
PASSING = frozenset({RefusalReason.DRAINING, RefusalReason.AWAY})
_REFUSED = frozenset(reason.value for reason in RefusalReason)
#: How long a peer may be taken for away after a loss: a probe goes out each second, and may itself take 5 s.
AWAY_S = 7.0
#: Broken rules that are kept; one is enough, and a storm of them is no more to learn from.
VIOLATIONS_MAX = 20


@dataclass(slots=True)
class Run:
    """One time that guest code ran."""

    machine: str
    host: str
    isolate: int
    began_s: float
    ended_s: float = 0.0


@dataclass(slots=True)
class Offer:
    """One time that a request was offered to another machine."""

    caller: str
    target: str
    at_s: float
    verdict: str = ""  # "answered", the reason of a refusal, or how it was lost; empty while nothing is known


@dataclass(slots=True)
class Story:
    """One request: what it was to be, and what became of it."""

    request_id: str
    worker: str
    method: str
    entry: str  # the machine whose client it is
    behaviour: Behaviour
    upload_bytes: int
    began_s: float
    leaves_after_s: float | None = None
    breaks: bool = False  # its client goes in the middle of the upload
    version: str = ""
    runs: list[Run] = field(default_factory=list)
    offers: list[Offer] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    sheds: int = 0
    start_failures: int = 0
    pulled: int = 0  # times that its client was asked for more than what rode with the head
    taken_bytes: int = 0  # of its body, from the client
    read_bytes: int = 0  # of its body, by the guest that runs it now
    left: bool = False
    endings: list[str] = field(default_factory=list)
    ended_s: float = 0.0
    got_head: bool = False
    whole: bool = False
    start_type: str = ""

    @property
    def idempotent(self) -> bool:
        return self.method in IDEMPOTENT

    @property
    def is_over(self) -> bool:
        return bool(self.endings)


class OfferSeen(msgspec.Struct):
    """What the journal reads of an offer."""

    request_id: str
    version: str
    body_first: bytes
    fallback: Capability


_OFFER = msgspec.msgpack.Decoder(OfferSeen)
WINDOW_BYTES = 64 * 1024


class Journal:
    """The stories of a run. ``telling``: every event is kept as a line, for a person who replays a seed."""

    def __init__(self, now: Callable[[], float], *, telling: bool = False) -> None:
        self._now = now
        self.telling = telling
        self.lines: list[tuple[float, str]] = []
        self.stories: dict[str, Story] = {}
        self.violations: list[str] = []
        #: What was killed, when: the machine, and the role or host.
        self.kills: list[tuple[float, str, str]] = []
        #: Machines that have no host any more: they have nothing to run a refused request on.
        self.hostless: set[str] = set()
        self.gone_workers: dict[str, list[float]] = {}
        self._lent: dict[Capability, Story] = {}
        self._rests: dict[Capability, Story] = {}
        self._refused: dict[tuple[str, str], float] = {}
        self._cold: dict[tuple[str, str], float] = {}
        self._away: list[tuple[float, str, str]] = []
        self._slept_s: dict[str, float] = {}
        self.offers = self.refusals = self.cold_starts = self.runs = self.evictions = 0

    # ------------------------------------------------------------------------------------------------ telling it

    def tell(self, line: str) -> None:
        """Something that a reader of the story wants to know."""
        if self.telling:
            self.lines.append((self._now(), line))

    def broken(self, rule: str) -> None:
        """A rule is broken."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(f"{self._now():.6f} {rule}")
        self.tell(f"BROKEN RULE: {rule}")

    # --------------------------------------------------------------------------------------------- calls that pass

    def call_begins(self, caller: str, address: str, method: str, payload: bytes) -> object:
        machine = caller.partition("/")[0]
        if method == "serve":
            return self._offer(machine, address.partition("/")[0], payload)
        if method == "read_body":
            story = self._lent.get(CAPABILITY.decode(payload))
            if story is not None and (not story.offers or story.offers[-1].target != machine):
                self.broken(f"{machine} reads the body of {story.request_id}, which was not offered to it")
            return story
        if method == "read_response":
            return self._rests.get(CAPABILITY.decode(payload))
        return None

    def _offer(self, machine: str, target: str, payload: bytes) -> object:
        seen = _OFFER.decode(payload)
        story = self.stories[seen.request_id]
        now_s = self._now()
        self.offers += 1
        if self.telling:
            self.tell(f"{seen.request_id}: {machine} offers it to {target}")
        if machine != story.entry:
            self.broken(f"{seen.request_id}: {machine} sends on what it got from {story.entry}: a second hop")
        for before in story.offers:
            if before.verdict in ("", "answered") or before.verdict in _REFUSED:
                verdict = before.verdict or "no verdict"
                self.broken(f"{seen.request_id}: offered to {target} after {before.target} ({verdict})")
        if len(seen.body_first) > WINDOW_BYTES:
            self.broken(f"{seen.request_id}: {len(seen.body_first)} bytes ride with the head")
        since_s = self._refused.get((machine, seen.version))
        if since_s is not None and since_s < now_s and machine not in self.hostless:
            slack_s = self._slept_s.get(machine, 0.0)
            if self._cold.get((machine, seen.version), -1.0) < since_s - slack_s:
                self.broken(f"{seen.request_id}: {machine} offers {seen.version} again after a refusal that sticks")
        story.version = seen.version
        offer = Offer(machine, target, now_s)
        story.offers.append(offer)
        self._lent[seen.fallback] = story
        return story, offer, seen

    def call_over(self, seen: object, caller: str, address: str, method: str, reply: bytes | None, lost: str) -> None:
        if reply is None:
            self._away.append((self._now(), caller.partition("/")[0], address.partition("/")[0]))
        if method == "serve":
            assert isinstance(seen, tuple)
            story, offer, offered = seen
            self._verdict(story, offer, offered, reply, lost)
        elif isinstance(seen, Story):
            if reply is None:
                seen.losses.append(f"{method} {lost}")
                self.tell(f"{seen.request_id}: {method} at {address} is lost ({lost})")
                return
            if method == "read_body":
                self._body_read(seen, reply)

    def _verdict(self, story: Story, offer: Offer, offered: OfferSeen, reply: bytes | None, lost: str) -> None:
        if reply is None:
            offer.verdict = lost
            story.losses.append(f"serve {lost}")
            self.tell(f"{story.request_id}: the offer to {offer.target} is lost ({lost})")
            return
        verdict = decode_verdict(reply)
        if isinstance(verdict, Answered):
            offer.verdict = "answered"
            if verdict.rest is not None:
                self._rests[verdict.rest] = story
            return
        self._refusal(story, offer, offered, verdict)

    def _refusal(self, story: Story, offer: Offer, offered: OfferSeen, refused: Refused) -> None:
        offer.verdict = refused.reason.value
        self.refusals += 1
        if self.telling:
            self.tell(f"{story.request_id}: {offer.target} refuses it ({refused.reason.value})")
        if refused.fallback != offered.fallback:
            self.broken(f"{story.request_id}: the refusal gives back another capability than it was lent")
        # One whose host died under a request that may run twice hands it back, and has done nothing that counts.
        died = refused.reason is RefusalReason.AWAY and story.idempotent and self.kills_that_hit(story)
        if not died and any(run.machine == offer.target for run in story.runs):
            self.broken(f"{story.request_id}: {offer.target} refuses what it has run")
        if refused.reason not in PASSING:
            self._refused[offer.caller, offered.version] = self._now()

    def _body_read(self, story: Story, reply: bytes) -> None:
        chunk = CHUNK.decode(reply)
        if len(chunk.data) > WINDOW_BYTES:
            self.broken(f"{story.request_id}: a piece of {len(chunk.data)} bytes of its body")
        if chunk.data and story.offers[-1].verdict in _REFUSED:
            self.broken(f"{story.request_id}: bytes of the body go to {story.offers[-1].target}, which refused it")

    def role_failed(self, address: str, method: str, fault: BaseException) -> None:
        self.broken(f"{address}.{method} raised {fault!r}")

    # --------------------------------------------------------------------------------------------- machines and hosts

    def killed(self, machine: str, what: str) -> None:
        """A process of a machine died."""
        self.kills.append((self._now(), machine, what))
        self.tell(f"{machine}'s {what} is killed")
        if what != "shard":
            for pair in [pair for pair in self._refused if pair[0] == machine]:
                del self._refused[pair]

    def slept(self, machine: str, seconds: float) -> None:
        """A machine does not read what it is sent, for a while."""
        self._slept_s[machine] = max(seconds, self._slept_s.get(machine, 0.0))
        self.tell(f"{machine} sleeps for {seconds:.3f} s")

    def went_cold(self, machine: str, version: str) -> None:
        """A host says that it has no isolate of a version any more."""
        self._cold[machine, version] = self._now()
        self._refused.pop((machine, version), None)

    # ------------------------------------------------------------------------------------------------------- guests

    def runs_at(self, story: Story, machine: str, host: str, isolate: int) -> Run:
        """Guest code begins to run a request."""
        self.runs += 1
        run = Run(machine, host, isolate, self._now())
        if self.telling:
            self.tell(f"{story.request_id}: runs on {host} in isolate {isolate}")
        if story.runs and not story.idempotent:
            self.broken(f"{story.request_id}: a {story.method} runs again on {host}, after {story.runs[-1].host}")
        if len(story.runs) > len(story.losses) + self.kills_that_hit(story):
            self.broken(f"{story.request_id}: runs again on {host}, and nothing was lost")
        story.runs.append(run)
        return run

    def kills_that_hit(self, story: Story) -> int:
        """Processes that died while the request was under way, on machines that it was sent to."""
        until_s = story.ended_s or self._now()
        machines = {story.entry, *(offer.target for offer in story.offers)}
        return sum(machine in machines and story.began_s <= at_s <= until_s for at_s, machine, _ in self.kills)

    def away_for(self, story: Story) -> int:
        """Whether one of the two machines of a request took the other for away, for the loss of another call."""
        pairs = {(offer.caller, offer.target) for offer in story.offers}
        pairs |= {(target, caller) for caller, target in pairs}
        since_s, until_s = story.began_s - AWAY_S, story.ended_s or self._now()
        return int(any((a, b) in pairs and since_s <= at_s <= until_s for at_s, a, b in self._away))

    def ended(self, story: Story, ending: str) -> None:
        """The client has its ending."""
        story.endings.append(ending)
        story.ended_s = self._now()
        if self.telling:
            self.tell(f"{story.request_id}: ends {ending}")
        if len(story.endings) > 1:
            self.broken(f"{story.request_id}: ends again, {ending} after {story.endings[0]}")

"""Leases and the notices that take them back: they come over different connections, and so in any order."""

import asyncio
import secrets
from contextlib import suppress
from pathlib import Path

from actors.catalog import Deployed
from actors.connection import FRAME_BYTES_MAX, Frame, LinkBroken
from actors.exchange import Ended, Lease, Outcome, Request, RequestHead
from actors.link import Links
from actors.live_tail import LIVE_EVENT, WATCHED, Watched
from actors.subscribers import Subscribers, added
from actors.worker import Deployment, Limits, Plan, Version
from ingress.authority import LocalAuthority
from ingress.ingress import Ingress


class Line:
    """A connection to a Server: what the Server sends is heard when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[Frame, bytes]] = []

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        self.sent.append((kind, payload))

    async def receive(self) -> tuple[Frame, bytes]:
        if not self.sent:
            raise LinkBroken("all was heard")
        return self.sent.pop(0)


class Edge:
    """An ingress that subscribed to a Server, without sockets."""

    def __init__(self, directory: Path) -> None:
        self.ingress = Ingress(
            "server-1",
            address="127.0.0.1",
            port=0,
            server_socket=directory / "server.sock",
            links=Links(),
            authority=LocalAuthority.open(directory / "authority"),
            certificates=None,
            entropy=secrets.token_bytes,
        )
        self.subscribers = Subscribers()
        self._line = Line()
        self.subscribers.add(self._line, [])  # type: ignore[arg-type]

    def lease(self, worker: str) -> Lease:
        """A lease as the Server gives it now."""
        told = self.subscribers.told
        return Lease(worker, f"version of {worker}", "digest", "free", {}, "socket", "server-1", issued=told)

    def hear(self) -> None:
        """All that was said until now is heard."""

        async def heard() -> None:
            with suppress(LinkBroken):
                await self.ingress._hear(self._line, asyncio.Event())  # type: ignore[arg-type]

        asyncio.run(heard())


def test_a_lease_that_comes_after_its_end_is_not_kept(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    edge.hear()
    late = edge.lease("w")
    edge.subscribers.tell({"revoke": [late.version]})
    edge.hear()
    edge.ingress.keep_lease(late)
    assert edge.ingress.lease("w") is None
    edge.ingress.keep_lease(edge.lease("w"))
    assert edge.ingress.lease("w") is not None


def test_a_lease_of_before_everything_was_told_anew_is_not_kept(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    late = edge.lease("w")
    edge.subscribers.greet_all([])
    edge.hear()
    edge.ingress.keep_lease(late)
    assert edge.ingress.lease("w") is None


def test_a_lease_that_overtakes_older_news_is_kept_until_they_say_otherwise(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    edge.subscribers.tell({"revoke": ["another version"]})
    lease = edge.lease("w")
    edge.ingress.keep_lease(lease)
    edge.hear()  # the greeting among it, which takes all leases back
    edge.ingress.keep_lease(lease)
    assert edge.ingress.lease("w") == lease
    edge.subscribers.tell({"revoke": [lease.version]})
    edge.hear()
    assert edge.ingress.lease("w") is None


def deployed(worker: str, *routes: str) -> Deployed:
    version = Version(worker, "a" * 16, "5e" * 32, Limits.for_plan(Plan.FREE), Plan.FREE, 0, "ada")
    return Deployed(1, Deployment.whole(worker, "a" * 16, routes), (version,))


def test_a_deploys_routes_lead_to_its_worker(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    edge.subscribers.tell(added([deployed("shop", "shop.example.com"), deployed("api", "shop.example.com/api/*")]))
    edge.subscribers.tell(added([deployed("plain"), deployed("production/user")]))
    edge.hear()
    routes = edge.ingress._routes
    assert [routes.find("shop.example.com", path) for path in ("/", "/api/x")] == ["shop", "api"]
    assert [routes.find(f"{name}.localhost") for name in ("shop", "api", "plain", "user")] == [
        "shop", "api", "plain", None,
    ]  # fmt: skip
    assert edge.ingress._pattern_of("shop.example.com") == "shop.example.com"
    edge.subscribers.tell(added([deployed("shop", "*.shop.example.com"), deployed("api")]))
    edge.hear()
    routes = edge.ingress._routes
    assert [routes.find("shop.example.com"), routes.find("a.shop.example.com")] == [None, "shop"]
    assert routes.find("api.localhost", "/api/x") == "api"
    edge.subscribers.tell({"remove": ["shop"]})
    edge.hear()
    assert edge.ingress._routes.find("a.shop.example.com") is None


def test_of_two_workers_with_one_route_the_later_has_it(tmp_path: Path) -> None:
    """Pages of what is deployed may be of different moments: the first still has the route that the second took."""
    edge = Edge(tmp_path)
    edge.subscribers.greet_all([deployed("old", "a.example"), deployed("new", "a.example")])
    edge.subscribers.tell(added([deployed("old")]))
    edge.hear()
    assert edge.ingress._routes.find("a.example") == "new"
    assert edge.ingress._routes.find("old.localhost") == "old"


def test_a_greeting_of_many_routes_fits_its_frames(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    route = "a" * 60 + ".example/" + "/".join(["p" * 60] * 2)
    many = [deployed(f"w-{i}", *(f"{route}/{i}-{j}/*" for j in range(64))) for i in range(100)]
    edge.subscribers.greet_all(many)
    assert max(len(payload) for _, payload in edge._line.sent) < FRAME_BYTES_MAX / 2
    edge.hear()
    assert len(edge.ingress._routes) == 100 * 65


def test_the_hello_of_a_route_warms_its_worker(tmp_path: Path) -> None:
    edge = Edge(tmp_path)
    edge.subscribers.tell(added([deployed("shop", "shop.example.com"), deployed("api", "api.example.com/v1/*")]))
    edge.hear()
    warmed: list[str] = []

    async def prewarm(worker: str) -> None:
        warmed.append(worker)

    async def hellos() -> None:
        edge.ingress._prewarm = prewarm  # type: ignore[method-assign]
        for name in ("shop.example.com", "api.example.com", "nobody.example.com"):
            edge.ingress._on_server_name(name)
        await asyncio.sleep(0)  # the prewarms that this began have their turn

    asyncio.run(hellos())
    assert warmed == ["shop"], "whose path it will be, nobody knows yet"


def test_a_request_that_no_host_told_of_is_told_by_the_edge_if_somebody_watches(tmp_path: Path) -> None:
    edge, told = Edge(tmp_path), Told()
    edge.ingress.links = told  # type: ignore[assignment]
    head = RequestHead("GET", "https", "shop.localhost", "/?sid=abc")
    lost = Ended(Outcome.HOME_LOST)

    async def scenario() -> None:
        shop = Request("r1", "shop", head, "")
        edge.ingress.ended(shop, lost, 7_000_000)
        edge.subscribers.tell({"watched": WATCHED.encode(Watched(1, ("shop",)))})
        with suppress(LinkBroken):
            await edge.ingress._hear(edge._line, asyncio.Event())  # type: ignore[arg-type]
        edge.ingress.ended(shop, lost, 7_000_000)
        edge.ingress.ended(shop, Ended(Outcome.OK, server="server-1"), 7_000_000)  # its host has told
        edge.ingress.ended(Request("r2", "blog", head, ""), lost, 7_000_000)
        await asyncio.sleep(0)  # what is told has its turn

    asyncio.run(scenario())
    ((path, kind, payload),) = told.sent
    event = LIVE_EVENT.decode(payload)
    assert (path, kind) == (edge.ingress.server, Frame.LIVE)
    assert (event.request_id, event.ending.status, event.ending.at_ms) == ("r1", 502, 7)
    assert event.ending.url == "https://shop.localhost/?sid=REDACTED"
    assert asyncio.run(edge.ingress.statistics())["outcomes"] == {"homeLost": 3, "ok": 1}


class Told:
    """Links that remember what was told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Frame, bytes]] = []

    async def tell(self, path: str, kind: Frame, payload: bytes) -> None:
        self.sent.append((path, kind, payload))

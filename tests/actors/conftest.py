"""Complete servers and ways out, for every module that plays scenarios on them.

What they are made of is imported where it is used, so that tests of pure files load no engine.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from complete_servers import Compiled, Play, Scenario
    from way_out import Make, Way


@pytest.fixture
def seed(zig: "Compiled") -> Path:
    """The ControlPlane's directory that clusters begin with. A module with a guest of its own adds it to this."""
    return zig.directory


@pytest.fixture
def play(seed: Path, tmp_path: Path) -> "Play":
    """Play a scenario on a fresh cluster of two servers, or as many as are said, made with what else is said."""
    from complete_servers import CompleteServers

    def run(scenario: "Scenario", servers: int = 2, **made_with: Any) -> None:
        async def whole() -> None:
            made = CompleteServers(tmp_path, servers, seed, **made_with)
            # Some play for seconds; what takes a minute hangs.
            async with asyncio.timeout(60) as limit, made as cluster:
                cluster.limit = limit
                await scenario(cluster)

        asyncio.run(whole())

    return run


@pytest.fixture
def make(tmp_path: Path) -> Iterator["Make"]:
    """Make a way out with an origin behind it."""
    from way_out import ways

    with ways(tmp_path) as one:
        yield one


@pytest.fixture(params=["http", "https", "http2"])
def way(request: pytest.FixtureRequest, make: "Make") -> "Way":
    return make(request.param)

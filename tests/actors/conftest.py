"""Complete servers, for every module that plays scenarios on them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from complete_servers import Compiled, CompleteServers, Play, Scenario


@pytest.fixture
def seed(zig: Compiled) -> Path:
    """The ControlPlane's directory that clusters begin with. A module with a guest of its own adds it to this."""
    return zig.directory


@pytest.fixture
def play(seed: Path, tmp_path: Path) -> Play:
    """Play a scenario on a fresh cluster of two servers, or as many as are said, made with what else is said."""

    def run(scenario: Scenario, servers: int = 2, **made_with: Any) -> None:
        async def whole() -> None:
            made = CompleteServers(tmp_path, servers, seed, **made_with)
            # Some play for seconds; what takes a minute hangs.
            async with asyncio.timeout(60) as limit, made as cluster:
                cluster.limit = limit
                await scenario(cluster)

        asyncio.run(whole())

    return run

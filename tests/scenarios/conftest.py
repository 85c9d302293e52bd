import asyncio

import pytest
from complete_servers import Compiled, compiled_zig


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-transcripts", action="store_true", help="write what was said to tests/scenarios/transcripts"
    )


@pytest.fixture(scope="session")
def zig(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return asyncio.run(compiled_zig(tmp_path_factory.mktemp("compiled")))

import asyncio

import pytest
from complete_servers import Compiled, compiled_zig


@pytest.fixture(scope="session")
def zig(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return asyncio.run(compiled_zig(tmp_path_factory.mktemp("compiled")))

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from actors.deployer import Stored
from one_process import ZIG, compiled_zig


@dataclass(frozen=True)
class Compiled:
    """The example workers, compiled: the directory that seeds a ControlPlane, and each worker's artifact."""

    directory: Path
    workers: dict[str, Stored]


@pytest.fixture(scope="session")
def zig(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    directory = tmp_path_factory.mktemp("compiled")
    names = sorted(path.parent.name for path in ZIG.glob("*/worker.wasm"))
    return Compiled(directory, asyncio.run(compiled_zig(directory, names)))

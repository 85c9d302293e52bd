import gc
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from complete_servers import Compiled

# A commit passes or it does not, on a machine with other work to do as well: the same examples each time, and no limits
# of wall time. `--hypothesis-profile default` rolls the dice.
settings.register_profile(
    "everwarm", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("everwarm")


def pytest_collection_finish() -> None:
    """What all modules and tests made lives to the end. A full collection, which looks at it, is charged to the guest
    whose thread it meets, and a test's guest may have 20 ms."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def zig(tmp_path_factory: pytest.TempPathFactory) -> "Compiled":
    from complete_servers import compiled_zig  # here, so that tests of pure files load no engine

    return compiled_zig(tmp_path_factory.mktemp("compiled"))

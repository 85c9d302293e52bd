"""Real clusters: one that several modules share, and one a module for those that need it otherwise.

A process has one Ray at a time. So the modules that share come last, whatever their names, and of them those that kill
something come after the others.
"""

from collections.abc import Iterator

import pytest
from cluster_site import HOSTS, Site, until_gone
from tracing_receiver import OtlpReceiver

from benchmarks.local_cluster import local_cluster
from everwarm.examples import deploy_examples
from isolates import engine

#: In this order. ``test_request_tree`` ends a server, ``test_host_loss`` hosts of those that are left.
SHARING = (
    "test_requests.py", "test_commands.py", "test_large_upload.py", "test_request_tree.py", "test_host_loss.py"
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SHARING.index(item.path.name) + 1 if item.path.name in SHARING else 0)


@pytest.fixture(scope="session", autouse=True)
def no_isolates_in_this_process() -> None:
    """Connecting to Ray replaces the signal handlers that wasmtime's traps need: the next trap would end pytest."""
    if engine._sandbox is not None:
        pytest.fail("isolates have been started in this process: run tests/cluster by itself, as ./dev test does")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """What it deploys has names of its own in each module. Nobody is restarted: who is killed is missed."""
    options = ("--servers", "3", "--hosts", str(HOSTS), "--no-restarts")
    with OtlpReceiver() as receiver:
        with local_cluster(*options, "--otlp", receiver.url) as cluster:
            deploy_examples(cluster.client, cluster.home, with_js=False, with_python=False, progress=lambda line: None)
            yield Site(cluster, receiver)
        until_gone(cluster.home.directory)

"""One real cluster a module."""

from collections.abc import Iterator

import pytest
from cluster_site import Site
from tracing_receiver import OtlpReceiver

from benchmarks.local_cluster import local_cluster
from everwarm.examples import deploy_examples
from isolates import engine


@pytest.fixture(scope="session", autouse=True)
def no_isolates_in_this_process() -> None:
    """Connecting to Ray replaces the signal handlers that wasmtime's traps need: the next trap would end pytest."""
    if engine._sandbox is not None:
        pytest.fail("isolates have been started in this process: run tests/cluster by itself, as ./dev test does")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with OtlpReceiver() as receiver, local_cluster("--servers", "3", "--otlp", receiver.url) as cluster:
        deploy_examples(cluster.client, cluster.home, with_js=False, with_python=False, progress=lambda line: None)
        yield Site(cluster, receiver)

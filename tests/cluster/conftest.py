"""One real cluster a module."""

from collections.abc import Iterator

import pytest
from cluster_site import Site
from tracing_receiver import OtlpReceiver

from benchmarks.local_cluster import local_cluster
from everwarm.examples import deploy_examples


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with OtlpReceiver() as receiver, local_cluster("--servers", "3", "--otlp", receiver.url) as cluster:
        deploy_examples(cluster.client, cluster.home, with_js=False, with_python=False, progress=lambda line: None)
        yield Site(cluster, receiver)

"""A machine joins three under load, another one leaves, on machines of namespaces: ``benchmarks/joining.py``, judged.

Four minutes each, so not every time that all tests run. With nodes of Ray on one machine ``test_nodes.py`` does the
same in seconds.
"""

import os

import pytest

from benchmarks.joining import bounds_missed, measure, town
from tests.cluster.hosts.machines import missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("EVERWARM_LONG_TESTS"), reason="minutes more: EVERWARM_LONG_TESTS=1"),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.mark.parametrize("leave_by", ["everwarm", "ray"])
def test_no_client_notices_that_a_machine_joins_and_another_leaves(leave_by: str) -> None:
    with town(workers=96, rps=50.0) as place:
        found = measure(place, leave_by)
    print(found)
    assert bounds_missed(found) == []

"""What a host says of how busy it is."""

import math

import pytest

from actors.exchange import Load
from actors.host_gauge import Filled, HostGauge


def test_cpu_is_the_share_of_the_cores_in_the_last_second() -> None:
    gauge = HostGauge(cores=2)
    gauge.used(10.0, 100.0)
    assert gauge.cpu_load == 0.0
    gauge.used(10.5, 100.5)
    assert gauge.cpu_load == 0.5
    for tenth in range(6, 30):  # idle
        gauge.used(10.5, 100.0 + tenth / 10)
    assert gauge.cpu_load == 0.0


def test_one_measurement_a_minute_is_what_there_is() -> None:
    gauge = HostGauge(cores=1)
    for minute in range(5):
        gauge.used(30.0 * minute, 60.0 * minute)
    assert gauge.cpu_load == 0.5


def test_cpu_is_never_more_than_all() -> None:
    gauge = HostGauge(cores=1)
    gauge.used(0.0, 0.0)
    gauge.used(5.0, 0.5)
    assert gauge.cpu_load == 1.0


@pytest.mark.parametrize("near", ["queue", "memory", "connections", ""])
def test_one_bound_is_enough_to_be_nearly_full(near: str) -> None:
    load = HostGauge(cores=1).load(
        running=3,
        queue=Filled(81 if near == "queue" else 80, 100),
        queue_ms=1.5,
        isolates=7,
        memory_bytes=95,
        memory_in_use=Filled(81 if near == "memory" else 80, 100),
        connections=Filled(81 if near == "connections" else 80, 100),
        residence_s=math.inf,
    )
    assert load == Load(3, 81 if near == "queue" else 80, 1.5, 7, 95, 0.0, 0.0, bool(near), 100)

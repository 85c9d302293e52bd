"""What is believed of a host, and for how long."""

from actors.exchange import Load
from actors.host_loads import HostLoads

BUSY = Load(running=4, queued=2, queue_ms=30.0, memory_bytes=7, residence_s=90.0, cpu_load=0.5)


def waited(queue_ms: float, queued: int = 1) -> Load:
    return Load(queued=queued, queue_ms=queue_ms)


def test_nothing_said_is_idle() -> None:
    loads = HostLoads()
    assert loads.of("a", 0.0) == loads.of(None, 0.0) == loads.worst(0.0) == Load()


def test_a_report_grows_old_at_two_speeds() -> None:
    loads = HostLoads()
    loads.note("a", BUSY, 10.0)
    assert loads.of("a", 10.9) == BUSY
    assert loads.of("a", 11.0) == Load(memory_bytes=7, residence_s=90.0)
    assert loads.of("b", 10.0) == Load()


def test_a_burst_does_not_stand() -> None:
    """One who did not wait is enough: the queue drained."""
    loads = HostLoads()
    for i, ms in enumerate((50.0, 80.0, 0.0, 60.0)):
        loads.note("a", waited(ms), 10.0 + i * 0.02)
    assert loads.of("a", 10.1).queue_ms == 0.0


def test_a_queue_that_stays_stands() -> None:
    loads = HostLoads()
    for i in range(30):
        loads.note("a", waited(50.0 + i % 3), 10.0 + i * 0.02)
    assert loads.of("a", 10.6).queue_ms == 50.0


def test_what_drained_long_ago_does_not_hide_a_new_queue() -> None:
    loads = HostLoads()
    loads.note("a", waited(0.0), 10.0)
    for i in range(12):
        loads.note("a", waited(70.0), 10.05 + i * 0.02)
    assert loads.of("a", 10.3).queue_ms == 70.0


def test_an_empty_line_has_no_delay() -> None:
    loads = HostLoads()
    loads.note("a", waited(70.0), 10.0)
    loads.note("a", waited(70.0, queued=0), 10.01)
    assert loads.of("a", 10.02).queue_ms == 0.0


def test_the_worst_of_several() -> None:
    loads = HostLoads()
    loads.note("a", waited(10.0), 10.0)
    loads.note("b", waited(20.0), 10.0)
    assert loads.worst(10.1).queue_ms == 20.0
    loads.forget("b")
    assert loads.worst(10.1).queue_ms == 10.0

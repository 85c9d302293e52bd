"""Which counters become which metrics, and that nothing a host says makes more of them."""

from pathlib import Path

from prometheus_text import ReadFamily, read

from actors.exchange import Ended, Outcome
from actors.host_counts import HostCounts
from actors.machine_metrics import _ROWS, ProcessUsage, Told, families
from tracing.metrics import POINTS_MAX, Family, prometheus_text

SERVER = {
    "pid": 1, "requests": 9, "sharded": {"offered": 4, "refused": 1, "lost": 0}, "routes": {"home": 5, "warm here": 4},
    "hottest": [["shop", 3.0]], "homes": {"shop": "server-1"}, "nested": {"calls": 2, "refused": 0},
    "traces": {"kept": 3, "sampled_out": 0, "export": {}}, "hosts_lost": 0,
}  # fmt: skip


def host(**more: object) -> dict[str, object]:
    counts = HostCounts()
    counts.ended(Ended(Outcome.OK, cpu_ms=1.5, start_type="cold", queue_ms=30.0))
    counts.ended(Ended(Outcome.EXCEEDED_CPU, cpu_ms=10.0, start_type="warm", queue_ms=0.2))
    counts.ended(Ended(Outcome.LOAD_SHED))
    return {"pid": 2, "states": {"warming": 0, "idle": 3, "busy": 1}, "evictions": 7, **counts.plain(), **more}


def scraped(roles: dict[str, Told], usage: dict[int, ProcessUsage] | None = None) -> dict[str, ReadFamily]:
    return read(prometheus_text(families("server-1", roles, usage or {})))


def test_what_hosts_counted() -> None:
    found = scraped({"server": SERVER, "host": host(), "host-2": host(evictions=1)})
    ended = found["everwarm_invocations_total"]
    assert ended.value(host="host", outcome="ok") == ended.value(host="host-2", outcome="exceededCpu") == 1
    assert ended.value(host="host", outcome="homeLost") == 0  # there before it happens, so that a rate sees it
    assert found["everwarm_evictions_total"].value(host="host") == 7
    assert found["everwarm_isolates"].value(host="host-2", state="idle") == 3
    assert found["everwarm_guest_cpu_time_seconds_total"].value(host="host") == 0.0115
    waited = found["everwarm_queue_time_seconds"]
    # Who was shed waited for nothing that came.
    assert waited.value("_count", host="host") == 2
    assert [waited.value("_bucket", host="host", le=le) for le in ("0.0005", "0.025", "0.05")] == [1, 1, 2]


def test_what_the_server_counted() -> None:
    found = scraped({"server": SERVER, "shard": {"refusals": {"busy": 2}, "in_flight": 1}})
    assert found["everwarm_server_info"].value(server="server-1") == 1
    assert found["everwarm_offers_total"].value() == 4
    assert found["everwarm_routes_total"].value(reason="warm here") == 4
    assert found["everwarm_refusals_total"].value(reason="busy") == 2
    assert found["everwarm_refusals_total"].value(reason="memory") == 0
    assert "everwarm_spans_exported_total" not in found  # without a backend nothing is exported


def test_a_role_that_is_away_says_so_and_nothing_else() -> None:
    found = scraped({"server": SERVER, "host": None, "ingress": {"outcomes": {"ok": 5}}})
    assert found["everwarm_role_up"].value(role="host") == 0
    assert found["everwarm_role_up"].value(role="ingress") == 1
    assert found["everwarm_requests_total"].value(outcome="ok") == 5
    assert "everwarm_invocations_total" not in found


def test_what_processes_use() -> None:
    found = scraped({"server": SERVER, "host": host(), "ingress": {"pid": 77}}, {2: ProcessUsage(1.25, 4096, 10**18)})
    assert found["everwarm_process_cpu_time_seconds_total"].samples.keys() == {
        ("everwarm_process_cpu_time_seconds_total", frozenset({("role", "host")}))
    }
    assert found["everwarm_process_memory_bytes"].value(role="host") == 4096
    counted = [f for f in families("s", {"host": host()}, {2: ProcessUsage(0, 0, 5)}) if f.name == "everwarm.evictions"]
    assert [point.since_ns for point in counted[0].points] == [5]


def test_no_worker_is_named() -> None:
    assert "shop" not in prometheus_text(families("server-1", {"server": SERVER, "host": host()}, {}))


def test_a_host_that_runs_amok_makes_no_more_series() -> None:
    wild = {f"reason {i}\n": i for i in range(100_000)}
    found = scraped({"host": host(outcomes=wild, states="none", evictions="many", cold_starts={"x" * 10_000: 1, 5: 1})})
    ended = found["everwarm_invocations_total"]
    assert len(ended.samples) == POINTS_MAX
    assert sum(ended.samples.values()) == sum(range(100_000))
    assert "everwarm_isolates" not in found
    assert "everwarm_evictions_total" not in found
    assert max(len(v) for _, labels in found["everwarm_cold_starts_total"].samples for _, v in labels) == 64


def test_the_page_about_metrics_has_them_all() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `everwarm_")]
    usage = {2: ProcessUsage(1.0, 1, 1)}
    fixed = [f for f in families("s", {"host": host()}, usage) if f.name not in {row.name for row in _ROWS}]
    table = [(f, [*f.points[0].labels]) for f in fixed]
    for row in _ROWS:
        labels = [*(["host"] if row.role == "host" else []), *([row.label] if row.label else [])]
        table.append((Family(row.name, row.kind, row.unit, row.about, ()), labels))
    assert rows == [
        f"| `{family.prometheus_name}` | {family.kind.value} | {', '.join(f'`{name}`' for name in labels)}"
        f" | {family.about} |"
        for family, labels in table
    ]

"""A process of the cluster, without Ray: how it ends a neighbour that hangs."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from cluster_site import until

from actors.process_stat import ProcessStat
from everwarm.role_process import RoleProcess
from everwarm.roles import ClusterConfig


def test_a_neighbour_that_is_stopped_is_ended_and_nobody_elses_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    process = RoleProcess("host", "a", ClusterConfig(home="/nowhere"), None, 0)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as neighbour:
        neighbour.send_signal(signal.SIGSTOP)
        asyncio.run(process.end(neighbour.pid))  # its parent is not ours
        assert neighbour.poll() is None
        monkeypatch.setattr(os, "getppid", os.getpid)
        asyncio.run(process.end(neighbour.pid))
        assert neighbour.wait(10.0) == -signal.SIGKILL
        asyncio.run(process.end(neighbour.pid))  # it is gone


def test_a_neighbour_is_looked_at_and_nobody_elses_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    process = RoleProcess("host", "a", ClusterConfig(home="/nowhere"), None, 0)
    # Its main thread waits, and another one runs now and then, as that of an event loop.
    turns = "import threading, time\ndef turn():\n while True: time.sleep(0.05)\n"
    turns += "threading.Thread(target=turn, daemon=True).start()\nprint(flush=True)\ninput()"

    def begun() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", turns], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with begun() as neighbour, begun() as other:
        for each in (neighbour, other):
            assert each.stdout is not None
            each.stdout.readline()

        def look(at: "subprocess.Popen[bytes]") -> int:
            return asyncio.run(process.ran_ns(at.pid))

        def is_stopped() -> bool:
            stat = ProcessStat.of(neighbour.pid)
            return stat is not None and stat.state == "T"

        assert look(neighbour) == 0  # its parent is not ours
        monkeypatch.setattr(os, "getppid", os.getpid)
        seen = look(neighbour)
        assert seen > 0
        until("it runs", lambda: look(neighbour) != seen, within_s=10.0)
        neighbour.send_signal(signal.SIGSTOP)
        until("it is stopped", is_stopped, within_s=10.0)
        seen = look(neighbour)
        for _ in range(5):  # as often as it would have turned itself
            before = look(other)
            until("the other one runs", lambda before=before: look(other) != before, within_s=10.0)  # type: ignore[misc]
        assert look(neighbour) == seen
        neighbour.kill()
        other.kill()
    assert look(neighbour) == 0  # it is gone

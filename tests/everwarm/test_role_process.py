"""A process of the cluster, without Ray: how it ends a neighbour that hangs."""

import asyncio
import os
import signal
import subprocess
import sys
import time

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
    with subprocess.Popen([sys.executable, "-c", turns], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()

        def look() -> int:
            return asyncio.run(process.ran_ns(neighbour.pid))

        def is_stopped() -> bool:
            stat = ProcessStat.of(neighbour.pid)
            return stat is not None and stat.state == "T"

        assert look() == 0  # its parent is not ours
        monkeypatch.setattr(os, "getppid", os.getpid)
        seen = look()
        assert seen > 0
        until("it runs", lambda: look() != seen, within_s=10.0)
        neighbour.send_signal(signal.SIGSTOP)
        until(
            "it is stopped", lambda: (ProcessStat.of(neighbour.pid) or pytest.fail("gone")).state == "T", within_s=10.0
        )
        seen = look()
        time.sleep(0.5)  # the time in which it would run
        assert look() == seen
        neighbour.kill()
    assert look() == 0  # it is gone

"""A process of the cluster, without Ray: how it ends a neighbour that hangs."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

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
    loops = "import time\nprint(flush=True)\nwhile time.process_time() < 1.0: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", loops], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as neighbour:
        assert neighbour.stdout is not None
        neighbour.stdout.readline()
        assert asyncio.run(process.cpu_s(neighbour.pid)) is None  # its parent is not ours
        monkeypatch.setattr(os, "getppid", os.getpid)
        before_s = asyncio.run(process.cpu_s(neighbour.pid))
        neighbour.stdout.readline()
        after_s = asyncio.run(process.cpu_s(neighbour.pid))
        assert before_s is not None
        assert after_s is not None
        assert before_s < 0.95 <= after_s
        neighbour.kill()
    assert asyncio.run(process.cpu_s(neighbour.pid)) is None  # it is gone

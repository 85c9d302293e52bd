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

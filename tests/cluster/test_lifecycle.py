"""The life of a cluster from the command line: up, a deploy, Ctrl-C, up again, killed, down. In this order.

That ``down`` ends a cluster which is well is seen wherever one ends (``conftest``).
"""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_site import ROOT, Shell, processes_of, until, until_gone

from everwarm.home import Home

HELLO = ROOT / "workers" / "zig" / "hello" / "worker.wasm"


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("home"))
    yield shell
    shell.run("down")


@pytest.fixture(scope="module")
def foreground(shell: Shell) -> Iterator[subprocess.Popen[str]]:
    process = shell.start("up", "--servers", "1", "--port", "0")
    said = []
    for line in process.stdout or ():
        said.append(line)
        if "Everwarm is up" in line:
            break
    else:
        pytest.fail("".join(said))
    # What it says later must not fill the pipe.
    threading.Thread(target=lambda: list(process.stdout or ()), daemon=True).start()
    yield process
    if process.poll() is None:
        process.kill()


def test_without_a_cluster_commands_say_what_to_do(shell: Shell) -> None:
    for command in (["list"], ["fetch", "hello"], ["traces"], ["deploy", str(HELLO)]):
        done = shell.run(*command)
        assert done.returncode == 1
        assert done.stderr == (
            "everwarm: No cluster runs from this state directory. Start one with: everwarm up --detach\n"
        )
    assert shell.run("status").returncode == 3


def test_a_component_is_deployed_and_fetched(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    assert shell.json("deploy", str(HELLO), "--name", "greeter")["servers"] == ["server-1"]
    assert shell.json("fetch", "greeter", "/before")["status"] == 200


def test_ctrl_c_leaves_no_process_behind(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    assert processes_of(shell.home)
    foreground.send_signal(signal.SIGINT)
    assert foreground.wait(timeout=40) == 0
    until_gone(shell.home)


def test_deployments_survive_a_restart_of_everything(shell: Shell) -> None:
    """With a server more than before, which gets what is deployed."""
    done = shell.run("up", "--detach", "--servers", "2", "--port", "0")
    assert done.returncode == 0, done.stderr
    assert "Everwarm is up (pid " in done.stdout
    answer = shell.json("fetch", "greeter", "/after")
    assert (answer["status"], answer["start_type"]) == (200, "cold")
    assert sorted(shell.json("status")["membership"]["servers"]) == ["server-1", "server-2"]


def test_down_ends_what_is_left_of_a_killed_cluster_and_says_so(shell: Shell) -> None:
    owner = Home(shell.home).running()
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    until("nobody says that it runs", lambda: shell.run("status").returncode != 0)
    assert shell.run("down").stdout == "Everwarm is down.\n"
    until_gone(shell.home)
    assert shell.run("down").stdout == "No cluster runs from this state directory.\n"


def test_a_port_in_use_is_one_clear_line(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = shell.run("up", "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"everwarm: Port {port} on 127.0.0.1 cannot be used (Address already in use). Choose another with --port.\n"
    )


def test_a_state_directory_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    done = Shell(blocker / "home").run("status")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not writable" in done.stderr
    assert "Set EVERWARM_HOME to another." in done.stderr


def test_certificates_from_nowhere_are_one_clear_line(shell: Shell) -> None:
    done = shell.run("up", "--certificates", "/nonexistent/certificates")
    assert done.returncode == 1
    assert done.stderr == "everwarm: There is no directory /nonexistent/certificates to read certificates from.\n"

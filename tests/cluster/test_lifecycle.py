"""The command line and the life of a cluster: up, deploys good and bad, Ctrl-C, up again, down. In this order."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from wasmtime import wat2wasm

import everwarm
from everwarm.home import Home

ROOT = Path(__file__).resolve().parent.parent.parent
HELLO = ROOT / "workers" / "zig" / "hello" / "worker.wasm"
EVERWARM = [sys.executable, "-m", "everwarm.cli"]


class Shell:
    """A user with a state directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {**os.environ, "EVERWARM_HOME": str(home)}

    def run(self, *arguments: str, timeout_s: float = 90) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*EVERWARM, *arguments], env=self.environment, capture_output=True, text=True, timeout=timeout_s, cwd=ROOT
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*EVERWARM, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def json(self, *arguments: str) -> dict:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    shell = Shell(tmp_path_factory.mktemp("home"))
    yield shell
    shell.run("down")


@pytest.fixture(scope="module")
def foreground(shell: Shell) -> Iterator[subprocess.Popen[str]]:
    process = shell.start("up", "--servers", "2", "--port", "0")
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


def processes_of(home: Path) -> list[str]:
    """Processes that mention this state directory in their environment: every one of its cluster does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                environment = (entry / "environ").read_bytes()
                if str(home).encode() in environment and b"EVERWARM_HOME" in environment:
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:120])
            except OSError:
                continue
    return [line for line in found if line]


def wait_until_gone(home: Path, timeout_s: float = 20) -> list[str]:
    until = time.monotonic() + timeout_s
    while (left := processes_of(home)) and time.monotonic() < until:
        threading.Event().wait(0.1)
    return left


def test_without_a_cluster_commands_say_what_to_do(shell: Shell) -> None:
    for command in (["list"], ["fetch", "hello"], ["traces"], ["deploy", str(HELLO)]):
        done = shell.run(*command)
        assert done.returncode == 1
        assert done.stderr == (
            "everwarm: No cluster runs from this state directory. Start one with: everwarm up --detach\n"
        )
    assert shell.run("status").returncode == 3


def test_a_component_is_deployed_listed_and_fetched(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    done = shell.json("deploy", str(HELLO), "--name", "greeter")
    assert done["worker"] == "greeter"
    assert done["servers"] == ["server-1", "server-2"]
    assert [w["deployment"]["worker"] for w in json.loads(shell.run("list", "--json").stdout)] == ["greeter"]
    answer = shell.json("fetch", "greeter", "/from/the/cli")
    assert answer["status"] == 200
    assert "you asked for /from/the/cli" in answer["body"]
    assert any(t["trace_id"] == answer["trace_id"] for t in json.loads(shell.run("traces", "--json").stdout))
    drawn = shell.run("traces", answer["trace_id"][:12])
    assert "handler" in drawn.stdout
    assert "request" in drawn.stdout


NO_HANDLER = "(component)"
UNKNOWN_IMPORT = """
    (component
      (import "acme:cache/store@1.0.0" (instance (export "get" (func))))
      (core module $m (func (export "handle") (param i32 i32)))
      (core instance $i (instantiate $m))
      (instance $h)
      (export "wasi:http/incoming-handler@0.2.0" (instance $h)))
"""
WASI_03 = '(component (import "wasi:http/types@0.3.0" (instance)))'
CORE_MODULE = "(module)"


BAD_INPUT: dict[str, tuple[bytes | str, str, str]] = {
    "empty": (b"", "notAComponent", "This is not a WebAssembly component: the file is empty."),
    "script": (b"#!/bin/sh\n", "notAComponent", "This is not a WebAssembly component."),
    "core module": (CORE_MODULE, "coreModule", "This is a core WebAssembly module, not a component."),
    "no handler": (NO_HANDLER, "missingExport", "does not export wasi:http/incoming-handler@0.2.x"),
    "unknown import": (UNKNOWN_IMPORT, "unknownImport", "acme:cache/store@1.0.0"),
    "wasi 0.3": (WASI_03, "wasi03", "This component is built for WASI 0.3 (wasi:http/types@0.3.0)"),
    "broken": (HELLO.read_bytes() + b"\0" * 64, "invalid", "does not compile"),
    "too large": (b"\0asm\x0d\0\1\0" + bytes(70 << 20), "tooLarge", "the limit is 67,108,864"),
}


def test_bad_input_is_refused_with_a_reason_and_changes_nothing(
    shell: Shell, foreground: subprocess.Popen[str]
) -> None:
    with everwarm.connect(Home(shell.home)) as client:
        before = client.workers()
        for case, (content, code, says) in BAD_INPUT.items():
            data = bytes(wat2wasm(content)) if isinstance(content, str) else content
            with pytest.raises(everwarm.DeployFailed) as refused:
                client.deploy("candidate", data)
            assert refused.value.code == code, case
            assert says in str(refused.value), case
            assert refused.value.advice, case
            assert str(shell.home) not in str(refused.value), case
        assert client.workers() == before


def test_the_command_line_says_why_and_exits_with_1(
    shell: Shell, foreground: subprocess.Popen[str], tmp_path: Path
) -> None:
    file = tmp_path / "candidate.wasm"
    file.write_bytes(bytes(wat2wasm(CORE_MODULE)))
    done = shell.run("deploy", str(file))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "everwarm: candidate was not deployed, nothing is changed. This is a core WebAssembly module, not a component."
    )
    assert "Traceback" not in done.stderr


def test_a_component_that_fails_to_start_is_refused(
    shell: Shell, foreground: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "everwarm.toml").write_text(
        'name = "slow"\nlanguage = "component"\nentry = "worker.wasm"\n[limits]\nstartup_cpu_ms = 20\n'
    )
    slow = ROOT / "workers" / "zig" / "slow_start" / "worker.wasm"
    (tmp_path / "worker.wasm").write_bytes(slow.read_bytes())
    done = shell.run("deploy", str(tmp_path))
    assert done.returncode == 1
    assert "The component does not start: it used more than its 20 ms of startup CPU." in done.stderr


def test_a_second_cluster_from_the_same_directory_is_refused(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    done = shell.run("up", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith("everwarm: A cluster already runs from this state directory (pid ")


def test_status_shows_servers_and_homes(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    shown = shell.run("status").stdout
    assert "server-1" in shown
    assert "server-2" in shown
    assert "greeter at server-" in shown
    assert shell.json("status")["running"] is True


def test_nothing_listens_beyond_loopback(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    pids = {int(e.name) for e in Path("/proc").iterdir() if e.name.isdigit() and _belongs(e, shell.home)}
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    beyond = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes and not _is_loopback(fields[1].split(":")[0]):
                beyond.append(fields[1])
    assert pids
    assert beyond == []


def _belongs(entry: Path, home: Path) -> bool:
    try:
        return str(home).encode() in (entry / "environ").read_bytes()
    except OSError:
        return False


def _is_loopback(address: str) -> bool:
    """Of /proc/net's hexadecimal addresses: 127.x, ::1, and 127.x mapped into IPv6."""
    if len(address) == 8:
        return address.endswith("7F")
    return address == "0" * 24 + "01000000" or (address.startswith("0" * 16 + "FFFF0000") and address.endswith("7F"))


def test_ctrl_c_leaves_no_process_behind(shell: Shell, foreground: subprocess.Popen[str]) -> None:
    assert processes_of(shell.home)
    foreground.send_signal(signal.SIGINT)
    assert foreground.wait(timeout=40) == 0
    assert wait_until_gone(shell.home) == []


def test_deployments_survive_a_restart_of_everything(shell: Shell) -> None:
    done = shell.run("up", "--detach", "--servers", "2", "--port", "0")
    assert done.returncode == 0, done.stderr
    assert "Everwarm is up (pid " in done.stdout
    answer = shell.json("fetch", "greeter", "/after")
    assert (answer["status"], answer["start_type"]) == (200, "cold")


def test_down_ends_it_and_says_so(shell: Shell) -> None:
    assert shell.run("down").stdout == "Everwarm is down.\n"
    assert wait_until_gone(shell.home) == []
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


def test_what_is_left_of_a_killed_cluster_is_ended(shell: Shell) -> None:
    up = shell.json("up", "--detach", "--servers", "1", "--port", "0")
    os.kill(up["pid"], signal.SIGKILL)
    until = time.monotonic() + 10
    while shell.run("status").returncode == 0 and time.monotonic() < until:
        threading.Event().wait(0.1)
    shell.run("down")
    assert wait_until_gone(shell.home) == []

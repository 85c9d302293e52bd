"""Commands as a user types them at a cluster that runs: deploys good and bad, and what they say of it."""

import json
import os
from pathlib import Path

import pytest
from cluster_site import ROOT, Shell, Site
from wasmtime import wat2wasm

import everwarm

HELLO = ROOT / "workers" / "zig" / "hello" / "worker.wasm"


@pytest.fixture(scope="module")
def shell(site: Site) -> Shell:
    return Shell(site.cluster.home.directory)


def test_a_component_is_deployed_listed_and_fetched(shell: Shell) -> None:
    done = shell.json("deploy", str(HELLO), "--name", "greeter")
    assert done["worker"] == "greeter"
    assert done["servers"] == ["server-1", "server-2", "server-3"]
    assert "greeter" in [w["deployment"]["worker"] for w in json.loads(shell.run("list", "--json").stdout)]
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


def test_bad_input_is_refused_with_a_reason_and_changes_nothing(site: Site) -> None:
    client = site.cluster.client
    before = client.workers()
    for case, (content, code, says) in BAD_INPUT.items():
        data = bytes(wat2wasm(content)) if isinstance(content, str) else content
        with pytest.raises(everwarm.DeployFailed) as refused:
            client.deploy("candidate", data)
        assert refused.value.code == code, case
        assert says in str(refused.value), case
        assert refused.value.advice, case
        assert str(site.cluster.home.directory) not in str(refused.value), case
    assert client.workers() == before


def test_the_command_line_says_why_and_exits_with_1(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "candidate.wasm"
    file.write_bytes(bytes(wat2wasm(CORE_MODULE)))
    done = shell.run("deploy", str(file))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "everwarm: candidate was not deployed, nothing is changed. This is a core WebAssembly module, not a component."
    )
    assert "Traceback" not in done.stderr


def test_a_component_that_fails_to_start_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "everwarm.toml").write_text(
        'name = "slow"\nlanguage = "component"\nentry = "worker.wasm"\n[limits]\nstartup_cpu_ms = 20\n'
    )
    slow = ROOT / "workers" / "zig" / "slow_start" / "worker.wasm"
    # With a custom section of no meaning: the example itself was deployed before, and is not started once more.
    (tmp_path / "worker.wasm").write_bytes(slow.read_bytes() + b"\0\x05\x04none")
    done = shell.run("deploy", str(tmp_path))
    assert done.returncode == 1
    assert "The component does not start: it used more than its 20 ms of startup CPU." in done.stderr


def test_a_second_cluster_from_the_same_directory_is_refused(shell: Shell) -> None:
    done = shell.run("up", "--port", "0")
    assert done.returncode == 1
    assert done.stderr.startswith("everwarm: A cluster already runs from this state directory (pid ")


def test_status_shows_servers_and_homes(shell: Shell) -> None:
    shown = shell.run("status").stdout
    assert "server-1" in shown
    assert "server-2" in shown
    assert "greeter at server-" in shown
    assert shell.json("status")["running"] is True


def test_nothing_listens_beyond_loopback(shell: Shell) -> None:
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

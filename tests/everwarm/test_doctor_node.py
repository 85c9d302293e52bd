"""The program that looks at a machine, on this one: as a function, and as the text that is sent over ssh."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from everwarm.doctor import node
from everwarm.doctor.ray_up import RayUp, decode_look


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN_PATH", "EVERWARM_HOME", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write_token(home: Path, text: str, mode: int) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


def test_versions_of_what_is_installed(home: Path) -> None:
    versions = node.look()["versions"]
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(versions[name] for name in node.PACKAGES)
    assert "+" in versions["everwarm"]


def test_a_token_is_told_by_mode_and_digest_alone(home: Path) -> None:
    assert node.look()["token"] == {"path": "~/.ray/auth_token", "mode": None, "digest": ""}
    write_token(home, "0123456789abcdef", 0o640)
    token = node.look()["token"]
    assert token["mode"] == 0o640
    write_token(home, "0123456789abcdef\n", 0o640)
    assert node.look()["token"] == token  # Ray takes a line's end off, too
    write_token(home, "f123456789abcdef", 0o640)
    assert node.look()["token"]["digest"] != token["digest"]
    assert "f123456789abcdef" not in json.dumps(node.look())


def test_the_disk_of_a_directory_that_is_not_there_yet(home: Path) -> None:
    state, temporary = node.look()["disks"]
    assert state["path"] == str(home / ".everwarm")
    assert 0 < state["free_bytes"] <= state["total_bytes"]
    assert temporary["holds"] == "Ray's files"


def test_ports_that_are_open_and_closed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_server(("127.0.0.1", 0)) as ends:
        targets = [listening.getsockname(), ends.getsockname()]
        ends.close()
        open_port, closed_port = node.reach(targets)
    assert open_port == ""
    assert "refused" in closed_port
    assert node.reach([]) == []


def test_it_runs_where_nothing_is_installed(home: Path) -> None:
    """As over ssh: from its text, with a Python that has no packages."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-"],
        input=Path(node.__file__).read_text(),
        capture_output=True,
        text=True,
        env={"HOME": str(home), "PATH": os.environ["PATH"]},
        check=True,
    )
    found = decode_look(f"a greeting of the machine\n{done.stdout}")
    assert found["versions"]["ray"] == ""
    assert found["hostname"] == socket.gethostname()


@pytest.mark.parametrize("said", ["", "Welcome!", "[]", "{}"])
def test_what_is_no_look_is_refused(said: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode_look(said)


def test_what_ray_up_left_on_a_head(home: Path) -> None:
    assert RayUp.here() is None
    config = {
        "provider": {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2", "10.0.0.3"]},
        "auth": {"ssh_user": "everwarm", "ssh_private_key": "~/ray_bootstrap_key.pem"},
    }
    file = home / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps(config))
    assert RayUp.here() == RayUp("10.0.0.1", "everwarm", "~/ray_bootstrap_key.pem", ("10.0.0.2", "10.0.0.3"))
    file.write_text(json.dumps({**config, "provider": {"type": "aws"}}))
    found = RayUp.here()
    assert found is not None
    assert found.workers is None  # a cloud decides them
    file.write_text("provider: {type: local")
    assert RayUp.here() is None

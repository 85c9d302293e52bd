"""cluster.yaml, read by Ray's own launcher. Nothing is started; running it needs machines."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
FILE = REPOSITORY / "cluster.yaml"
START_LISTS = ("head_start_ray_commands", "worker_start_ray_commands")
#: A word that begins with a slash: a place on somebody's machine. `~/x` and `a/b` are none.
MACHINE_PATH = re.compile(r"""(?:^|[\s"'=:\[,])/[A-Za-z]""")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def starts(config: dict[str, Any]) -> list[str]:
    return [line for name in START_LISTS for line in config[name] if "ray start" in line]


def setting(line: str, name: str) -> str | None:
    """The value of an environment variable that is set in front of a command."""
    before, _, _ = line.partition("ray start")
    found = re.search(rf"(?:^|\s){re.escape(name)}=(\S+)", before)
    return found and found[1]


def test_rays_own_validator_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"])
    assert "docker" not in config


def test_the_validator_would_say_so(config: dict[str, Any]) -> None:
    misspelt = {**prepare_config(config), "setup_comands": []}
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(misspelt)


def test_every_start_sets_the_authentication_mode(config: dict[str, Any]) -> None:
    assert len(starts(config)) == len(START_LISTS)
    for line in starts(config):
        assert setting(line, "RAY_AUTH_MODE") == "token"
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_keepalive_is_equal_on_all_nodes(config: dict[str, Any]) -> None:
    for name in ("RAY_grpc_client_keepalive_time_ms", "RAY_grpc_client_keepalive_timeout_ms"):
        head, worker = (setting(line, name) for line in starts(config))
        assert head is not None
        assert head == worker


def test_the_head_starts_at_the_address_it_is_reached_at(config: dict[str, Any]) -> None:
    head = starts(config)[0]
    assert f"--node-ip-address={config['provider']['head_ip']} " in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_the_wheel_and_the_lock_file_are_this_repositorys(config: dict[str, Any]) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    mounted = config["file_mounts"]
    assert mounted[f"~/everwarm/everwarm-{version}-py3-none-any.whl"] == f"build/everwarm-{version}-py3-none-any.whl"
    assert (REPOSITORY / mounted["~/everwarm/requirements.lock"]).is_file()


def test_no_line_names_a_place_on_a_machine() -> None:
    assert [line for line in FILE.read_text().splitlines() if MACHINE_PATH.search(line)] == []


@pytest.mark.parametrize("text", ["/opt/x", "ray --x=/opt", "cp /a b", "a:/b"])
def test_a_machine_path_would_be_seen(text: str) -> None:
    assert MACHINE_PATH.search(text)

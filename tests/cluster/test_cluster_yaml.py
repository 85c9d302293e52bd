"""cluster.yaml and the templates for clouds, read by Ray's own launcher. test_ray_up.py starts what they say."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from ray.autoscaler._private.util import prepare_config, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = ("cluster.yaml", "cluster.aws.yaml", "cluster.gcp.yaml")
START_LISTS = ("head_start_ray_commands", "worker_start_ray_commands")
#: Commands of which one file has more than another: what machines of one's own have to be told, and clouds not.
OF_MACHINES_OF_ONES_OWN = (r" --node-ip-address=\$\([^)]*\)", r" --node-ip-address=\S+")
#: A word that begins with a slash: a place on somebody's machine. `~/x` and `a/b` are none.
MACHINE_PATH = re.compile(r"""(?:^|[\s"'=:\[,])/[A-Za-z]""")
#: A disk's name in a cloud is none either.
DEVICE = "DeviceName: /dev/xvda"


def load(file: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((REPOSITORY / file).read_text())
    return loaded


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def config(file: str) -> dict[str, Any]:
    return load(file)


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
    assert not config.get("docker")


def test_all_addresses_are_workers_that_stay() -> None:
    config = load("cluster.yaml")
    (node_type,) = prepare_config(config)["available_node_types"].values()
    assert node_type["min_workers"] == node_type["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("file", FILES[1:])
def test_a_cloud_keeps_as_many_workers_as_it_may_have(file: str) -> None:
    config = load(file)
    worker = config["available_node_types"]["worker"]
    assert worker["min_workers"] == worker["max_workers"] == config["max_workers"] > 0
    head = config["available_node_types"]["head"]
    assert worker["node_config"] == head["node_config"]  # one kind of processor: artifacts are compiled for it


def test_the_validator_would_say_so(config: dict[str, Any]) -> None:
    misspelt = {**prepare_config(config), "setup_comands": []}
    with pytest.raises(Exception, match="setup_comands"):
        validate_config(misspelt)


def test_every_start_sets_the_authentication_mode(config: dict[str, Any]) -> None:
    assert len(starts(config)) == len(START_LISTS)
    for line in starts(config):
        assert setting(line, "RAY_AUTH_MODE") == "token"
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]


def test_keepalive_is_equal_on_all_nodes(config: dict[str, Any]) -> None:
    for name in ("RAY_grpc_client_keepalive_time_ms", "RAY_grpc_client_keepalive_timeout_ms"):
        head, worker = (setting(line, name) for line in starts(config))
        assert head is not None
        assert head == worker


def test_the_head_starts_at_the_address_it_is_reached_at() -> None:
    config = load("cluster.yaml")
    head = starts(config)[0]
    assert f"--node-ip-address={config['provider']['head_ip']} " in head
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head


def test_the_runtime_comes_up_by_itself_and_by_no_runtime_environment(config: dict[str, Any]) -> None:
    down, stop, start, up = config["head_start_ray_commands"]
    assert down.endswith("everwarm down")
    assert stop.endswith("ray stop")
    assert "ray start --head" in start
    assert "everwarm up --ray-address auto --detach" in up
    assert "runtime-env" not in yaml.safe_dump(config)


def test_the_wheel_and_the_lock_file_are_this_repositorys(config: dict[str, Any]) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    mounted = config["file_mounts"]
    assert mounted[f"~/everwarm/everwarm-{version}-py3-none-any.whl"] == f"dist/everwarm-{version}-py3-none-any.whl"
    assert (REPOSITORY / mounted["~/everwarm/requirements.lock"]).is_file()


@pytest.mark.parametrize("file", FILES[1:])
def test_a_cloud_does_what_machines_of_ones_own_do(file: str) -> None:
    def plain(config: dict[str, Any]) -> str:
        text = yaml.safe_dump([config[name] for name in ("file_mounts", "setup_commands", *START_LISTS)], width=10_000)
        for more in OF_MACHINES_OF_ONES_OWN:
            text = re.sub(more, "", text)
        return text

    assert plain(load(file)) == plain(load("cluster.yaml"))


def test_no_line_names_a_place_on_a_machine(file: str) -> None:
    lines = (REPOSITORY / file).read_text().splitlines()
    assert [line for line in lines if MACHINE_PATH.search(line.replace(DEVICE, ""))] == []


@pytest.mark.parametrize("text", ["/opt/x", "ray --x=/opt", "cp /a b", "a:/b"])
def test_a_machine_path_would_be_seen(text: str) -> None:
    assert MACHINE_PATH.search(text)

"""A disk that is really full, and a file that is really damaged: a clear word about that machine, and nobody's error.

``full_disk_scenario.py`` plays it on complete servers with small file systems, which takes root or a kernel that gives
user namespaces to anybody.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_SCENARIO = Path(__file__).with_name("full_disk_scenario.py")
_TRIED = (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"])


def _namespace() -> list[str]:
    """What a program is run with to mount a file system that only it sees."""
    why = ""
    for prefix in _TRIED:
        try:
            tried = [*prefix, "mount", "-t", "tmpfs", "full-disk-test", "/mnt"]
            subprocess.run(tried, check=True, capture_output=True, text=True, timeout=10.0)
        except FileNotFoundError as missing:
            why = f"no {missing.filename}"
        except subprocess.CalledProcessError as refused:
            why = refused.stderr.strip()
        else:
            return prefix
    pytest.skip(f"no small file system can be mounted here: {why}")


@pytest.fixture(scope="module")
def saw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [*_namespace(), sys.executable, str(_SCENARIO), str(tmp_path_factory.mktemp("disks"))]
    played = subprocess.run(command, capture_output=True, text=True, timeout=120.0, check=False)
    assert played.returncode == 0, played.stderr[-4_000:]
    told: dict[str, Any] = json.loads(played.stdout)
    return told


_NO_ROOM = {
    "code": "noRoom",
    "message": "The ControlPlane could not keep it: its disk is full.",
    "advice": "What was deployed before goes on. Make room on the cluster's head, and deploy again.",
}


def test_a_deploy_goes_on_without_the_server_whose_disk_is_full_and_says_so(saw: dict[str, Any]) -> None:
    assert saw["before"] == [None, [[200, "server-2"]]]
    assert saw["deployed_while_full"] == [None, {"server-2": "its disk is full"}]
    assert saw["deployed_anew_while_full"] == [None, None, ["server-2"]]
    assert saw["member_while_full"] == ["joining", False, "its disk is full"]


def test_its_clients_are_answered_by_the_others_with_what_is_deployed_now(saw: dict[str, Any]) -> None:
    assert saw["asked_while_full"] == {"server-1": [[200, "server-1"]] * 10, "server-2": [[200, "server-1"]] * 10}


def test_with_room_again_it_is_home_again_with_all_that_it_missed(saw: dict[str, Any]) -> None:
    assert saw["asked_with_room"] == [[200, "server-2"]] * 2
    assert saw["member_with_room"] == ""


def test_a_full_head_refuses_deploys_and_serves(saw: dict[str, Any]) -> None:
    assert saw["deploy_on_full_head"] == _NO_ROOM
    assert saw["deploy_on_nearly_full_head"] == [_NO_ROOM, "compiling 1 of 1"]
    assert saw["deploy_of_known_code_on_full_head"] == _NO_ROOM
    assert saw["served_by_full_head"] == [[200, "server-1"]] * 3
    assert saw["catalog_opened_on_full_head"] == ""
    assert saw["deploy_with_room"] is None


def test_a_full_head_takes_no_secrets_and_no_writes_to_stores(saw: dict[str, Any]) -> None:
    assert saw["secret_on_full_head"] == {"error": "the ControlPlane could not keep it: its disk is full"}
    assert saw["stores_on_full_head"] == ["other", "the stores cannot be written now"]
    assert saw["read_of_full_store"] is None
    assert saw["secret_with_room"] == {"versions": []}
    assert saw["store_with_room"] is None


def test_a_damaged_piece_is_fetched_anew_by_the_next_deploy_and_by_a_join(saw: dict[str, Any]) -> None:
    assert saw["flipped_then_deployed"] == [None, [], True]
    assert [status for status, _ in saw["asked_while_mended"]] == [200]
    assert saw["flipped_then_joined"] == [True, [[200, "server-2"]]]

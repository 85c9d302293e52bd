"""The head's machine is killed: its raylet, Ray's GCS, the ControlPlane and the owner, at once. The others serve for as
long as Ray lets them, and with the head comes all that was deployed.

What happens is in ``head_gone_scenario.py``, which needs a network of its own: the facts are judged here, and are what
docs/cluster.md says.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from nodes_site import played, said

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get("EVERWARM_LONG_TESTS"), reason="two minutes: EVERWARM_LONG_TESTS=1"),
]

#: Ray ends its nodes 7 to 9 s after, by what ``nodes_site`` sets; what is sent before that is answered.
SERVED_S = 6.0


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return played(Path(__file__).with_name("head_gone_scenario.py"))


def test_clients_of_the_other_machines_lose_nothing_while_ray_lets_them_serve(facts: dict[str, Any]) -> None:
    assert len(said(facts["up"])["servers"]) == 3
    gone_s = facts["gone_s"]
    seen = [request for request in facts["seen"] if request["sent_s"] < gone_s + SERVED_S]
    assert [request for request in seen if request["status"] != 200] == []
    after = [request for request in seen if request["sent_s"] > gone_s]
    # Of all three homes: that of the head as well.
    assert {facts["homes"][request["worker"]] for request in after} == set(said(facts["up"])["servers"])


def test_a_deploy_says_that_the_head_does_not_answer(facts: dict[str, Any]) -> None:
    assert facts["deploy"]["code"] == 1
    assert facts["deploy"]["err"].startswith("everwarm: Ray's head at 127.0.0.1:")
    assert "does not answer: Connection refused" in facts["deploy"]["err"]


def test_ray_ends_the_other_machines_and_its_setting_says_when(facts: dict[str, Any]) -> None:
    assert SERVED_S < facts["edges_ended_after_s"] < 25.0


def test_with_the_head_comes_what_was_deployed(facts: dict[str, Any]) -> None:
    assert len(said(facts["up_again"])["servers"]) == 3
    assert facts["answers_again_after_s"] is not None
    assert facts["down"]["code"] == 0

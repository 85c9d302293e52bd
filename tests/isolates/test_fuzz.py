"""A few hundred guests made by dice (``fuzz_component``) in a process of their own (``fuzz``), which survives them.

More of them: ``python -m tests.isolates.fuzz --first 1000 --seeds 3000``.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.isolates.conftest import ROOT
from tests.isolates.fuzz import Fault, Fuzz
from tests.isolates.fuzz_world import RecordedWorld

#: Some 20 s; a number in the environment makes it more.
SEEDS = int(os.environ.get("EVERWARM_FUZZ_SEEDS", "100"))
#: Functions that a guest has no way to: methods of what it can not have. Those of the packages that are denied.
_DENIED = ("wasi:filesystem/types@", "wasi:sockets/")


@pytest.fixture(scope="module")
def ran() -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.isolates.fuzz", "--seeds", str(SEEDS)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + SEEDS)


def test_no_guest_ends_the_process_or_is_more_than_a_guest(ran: "subprocess.CompletedProcess[str]") -> None:
    seeds = [line for line in ran.stdout.splitlines() if line.startswith("seed ")]
    assert ran.returncode == 0, f"{seeds[-1]}, exit {ran.returncode}\n{ran.stdout[-500:]}\n{ran.stderr[-3_000:]}"
    assert seeds == [f"seed {seed}" for seed in range(SEEDS)]
    assert ran.stdout.splitlines()[-1].startswith("done: ")


def test_guests_get_everywhere(ran: "subprocess.CompletedProcess[str]") -> None:
    """Or else dice that roll well prove nothing: every ending occurs, and nearly every function is entered."""
    lines = ran.stdout.splitlines()
    never = next(line for line in lines if line.startswith("never entered:")).split()[2:]
    # Two that end the worker, one that is reached by forging only, and room for bad luck.
    assert len([name for name in never if not name.startswith(_DENIED)]) <= 5, never
    endings = {line.split()[1] for line in lines if line.startswith("  ")}
    assert {"ok", "hung", "exception", "exceededCpu", "canceled", "responseStreamDisconnected"} <= endings


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    return Fuzz(tmp_path_factory.mktemp("fuzz"))


def test_a_seed_makes_the_same_component_every_time(fuzz: Fuzz) -> None:
    for seed in range(20):
        assert fuzz.program(seed).text == fuzz.program(seed).text
    assert len({fuzz.program(seed).text for seed in range(20)}) == 20


class _Broken(Counter[str]):
    """Counts like others and then fails, inside of a host function."""

    def __setitem__(self, name: str, value: int) -> None:
        super().__setitem__(name, value)
        raise RuntimeError("a fault of the host's own")


class _BrokenWorld(RecordedWorld):
    def __init__(self) -> None:
        super().__init__()
        self.called = _Broken()


def test_a_fault_of_the_host_would_be_noticed(tmp_path: Path) -> None:
    seed = 4  # one whose guest gets to a host function
    with pytest.raises(Fault, match=r"internalError: the host failed \(RuntimeError\)"):
        Fuzz(tmp_path, _BrokenWorld).run(seed)


def test_a_process_that_dies_would_be_noticed_with_its_seed() -> None:
    """The dump of the fault handler, and how to run the seed again, are what one gets."""
    program = "import os, tests.isolates.fuzz as f; f.Fuzz.run = lambda self, seed: os.abort(); f.main(['--seed', '7'])"
    died = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert died.returncode == -signal.SIGABRT
    assert died.stdout.splitlines()[-1] == "seed 7"

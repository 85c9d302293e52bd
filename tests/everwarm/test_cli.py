"""The command line, without a cluster: what it offers, how it fails, and that it answers at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from everwarm.cli import main

SLOW = ["ray", "wasmtime", "opentelemetry", "cryptography", "uvicorn", "httpcore"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_commands_are_those_of_all_nouns() -> None:
    assert {"up", "down", "status", "build", "deploy", "remove", "list", "fetch", "traces", "viewer"} <= set(
        main.commands
    )


@pytest.mark.parametrize("name", sorted(main.commands))
def test_each_command_says_what_it_does(name: str) -> None:
    command = main.commands[name]
    assert command.help
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: main {name}")


def test_nothing_slow_is_imported_before_a_command_runs() -> None:
    code = f"import sys, everwarm.cli; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("arguments", [["list"], ["traces"], ["fetch", "w"], ["remove", "w"]])
def test_without_a_cluster_a_command_is_one_line_and_exit_code_1(home: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("everwarm: ")
    assert result.stderr.count("\n") == 1


def test_status_tells_a_script_that_nothing_runs(home: Path) -> None:
    result = CliRunner().invoke(main, ["status", "--json"])
    assert (result.exit_code, result.output) == (3, '{"running": false}\n')


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--otlp-header", "novalue"], "--otlp-header takes NAME=VALUE"),
        (["up", "--certificates", "absent"], "There is no directory absent"),
        (["up", "--egress-allow", "example.com"], "--egress-allow"),
        (["fetch", "w", "-H", "nocolon"], "--header takes NAME:VALUE"),
    ],
)
def test_what_is_wrong_with_an_option_is_said_before_anything_starts(
    home: Path, arguments: list[str], said: str
) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert said in result.stderr

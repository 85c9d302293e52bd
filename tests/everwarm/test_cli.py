"""The command line, without a cluster: what it offers, how it fails, and that it answers at once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from click.testing import CliRunner

from actors.bindings import Bindings, DispatchBinding, KvBinding, Outbound, ServiceBinding, Tail
from actors.catalog import Deployed
from actors.view import deployed_to_plain
from actors.worker import Deployment, Limits, Plan, Version
from everwarm import cli_secrets, cli_workers
from everwarm.answers import EverwarmError
from everwarm.cli import main

SHOP = Bindings(
    services=(ServiceBinding("auth", "auth-worker"),),
    dispatch=(DispatchBinding("customers", "production"),),
    kv=(KvBinding("sessions", "shop-sessions"),),
    vars=(("COLOR", "green"),),
    secrets=("STRIPE_KEY",),
    outbound=Outbound("guard", ("customer",)),
    tail=Tail(("logs",)),
)
SLOW = ["ray", "wasmtime", "opentelemetry", "cryptography", "uvicorn", "httpcore"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EVERWARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_commands_are_those_of_all_nouns() -> None:
    assert {"up", "down", "status", "build", "deploy", "remove", "list", "fetch", "tail", "traces", "viewer"} <= set(
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


@pytest.mark.parametrize("arguments", [["list"], ["traces"], ["tail", "w"], ["fetch", "w"], ["remove", "w"]])
def test_without_a_cluster_a_command_is_one_line_and_exit_code_1(home: Path, arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("everwarm: ")
    assert result.stderr.count("\n") == 1


def test_the_manifests_schema_is_one_document() -> None:
    result = CliRunner().invoke(main, ["manifest", "schema"])
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert {"name", "bindings", "outbound", "tail"} <= set(schema["properties"])


def test_a_manifest_is_checked_without_building(tmp_path: Path) -> None:
    file = tmp_path / "everwarm.toml"
    file.write_text('name = "x"\nlanguage = "zig"\nentry = "w.zig"\nplan = "paid"\nlimits.cpu_ms = 400000\n')
    result = CliRunner().invoke(main, ["manifest", "check", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    said = "everwarm.toml:5:17: limits.cpu_ms: 400000 is more than the paid plan allows, 300000"
    assert result.stderr == f"everwarm: {said}\n"
    file.write_text(file.read_text().replace("400000", "300000"))
    result = CliRunner().invoke(main, ["manifest", "check", str(tmp_path)])
    assert (result.exit_code, result.output) == (0, "")


def test_what_is_deployed_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    version = Version("shop", "a" * 16, "5e" * 32, Limits.for_plan(Plan.PAID), Plan.PAID, 0, "ada", bindings=SHOP)
    deployed = Deployed(1, Deployment.whole("shop", "a" * 16, ("shop.example.com",)), (version,))
    found = {"deployed": deployed_to_plain(deployed), "missing": ["logs"], "unset_secrets": ["STRIPE_KEY"]}

    class Known:
        def __enter__(self) -> "Known":
            return self

        def __exit__(self, *raised: object) -> None: ...

        def describe(self, name: str) -> dict[str, object] | None:
            return found if name == "shop" else None

    monkeypatch.setattr(cli_workers, "connected", Known)
    shown = CliRunner().invoke(main, ["describe", "shop"])
    assert shown.exit_code == 0
    lines = [line.split(None, 1) for line in shown.output.splitlines()[2:]]
    assert lines == [
        ["plan", "paid, 50 ms of CPU, cordon default"],
        ["service", "http://auth.binding.internal/ -> auth-worker"],
        ["dispatch", "http://USER.customers.dispatch.internal/ -> production/USER"],
        ["kv", "sessions -> shop-sessions"],
        ["outbound", "guard, parameters: customer"],
        ["tail", "logs"],
        ["vars", "COLOR"],
        ["secrets", "STRIPE_KEY"],
        ["route", "shop.example.com"],
        ["unset", "STRIPE_KEY: everwarm secret put STRIPE_KEY --worker shop"],
        ["missing", "logs: not deployed"],
    ]
    assert json.loads(CliRunner().invoke(main, ["describe", "shop", "--json"]).stdout) == found
    unknown = CliRunner().invoke(main, ["describe", "shp"])
    assert (unknown.exit_code, unknown.stderr) == (1, "everwarm: There is no worker shp. See: everwarm list\n")


class Secrets:
    """A client that keeps what it is told."""

    kept: ClassVar[dict[tuple[str, str], str]] = {}

    def __enter__(self) -> "Secrets":
        return self

    def __exit__(self, *raised: object) -> None: ...

    def put_secret(self, worker: str, name: str, value: str) -> list[str]:
        if not value:
            raise EverwarmError(f"{name}: a value is text of at least one character, without NUL")
        self.kept[worker, name] = value
        return ["f" * 16] if worker == "shop" else []

    def delete_secret(self, worker: str, name: str) -> bool:
        return self.kept.pop((worker, name), None) is not None

    def secrets(self, worker: str) -> dict[str, object]:
        names = [{"name": name, "at_ms": 0, "author": "ada"} for of, name in self.kept if of == worker]
        return {"secrets": names, "unset": ["UNSET"] if worker == "shop" else []}


def test_a_secrets_value_comes_from_stdin_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_secrets, "connected", Secrets)
    monkeypatch.setattr(Secrets, "kept", {})

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str]:
        done = CliRunner().invoke(main, ["secret", *arguments], input=stdin)
        return done.exit_code, done.output

    said = [run("put", "KEY", "--worker", "shop", stdin=b" s3cret \xc3\xa9\n\n")]
    assert Secrets.kept == {("shop", "KEY"): " s3cret é\n"}, "one line end is the file's and not the value's"
    assert said[0] == (0, f"KEY is set. shop begins anew with it: version {'f' * 16}\n")
    said.append(run("put", "KEY", "--worker", "other", "--json", stdin=b"s3cret\r\n"))
    assert Secrets.kept["other", "KEY"] == "s3cret"
    assert json.loads(said[1][1]) == {"worker": "other", "name": "KEY", "versions": []}
    said.append(run("list", "--worker", "shop"))
    assert said[2][1].splitlines()[1].split(None, 1) == [
        "UNSET",
        "no value yet: everwarm secret put UNSET --worker shop",
    ]
    assert not any("s3cret" in output for _, output in said)
    assert run("delete", "KEY", "--worker", "shop") == (0, "KEY is forgotten.\n")
    assert run("delete", "KEY", "--worker", "shop")[0] == 1
    assert run("put", "KEY", "--worker", "shop", stdin=b"\xff") == (1, "everwarm: KEY: is not UTF-8 text\n")
    assert run("put", "KEY", "--worker", "shop", stdin=b"x" * 70_000) == (
        1, "everwarm: KEY: is longer than 65536 bytes\n",
    )  # fmt: skip
    assert run("put", "KEY", "--worker", "shop", stdin=b"\n")[0] == 1
    assert run("put", "KEY", "s3cret", "--worker", "shop")[0] == 2, "a value is no argument"


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

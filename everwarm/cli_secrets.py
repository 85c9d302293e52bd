"""Commands about a worker's secrets: put, list, delete. A value comes from stdin, and is never given out again."""

import json
import sys

import click

from everwarm.console import JSON, connected, fail, when

_WORKER = click.option("--worker", required=True, help="Whose secret it is: NAME, or NAMESPACE/USER.")
#: More than a value may have, so that the platform says what is wrong with it and not we.
_READ_BYTES_MAX = 64 * 1024


@click.group()
def secret() -> None:
    """The values of secrets, for the workers whose everwarm.toml names them."""


@secret.command("put")
@click.argument("name")
@_WORKER
@JSON
def put(name: str, worker: str, as_json: bool) -> None:
    """Set secret NAME to what stdin says; one line end at its end is not part of it.

    A worker that is deployed and names the secret is deployed once more, as a new version of the same code.
    """
    from everwarm.answers import EverwarmError

    if sys.stdin.isatty():
        value = click.prompt(f"The value of {name}", hide_input=True, err=True)
    else:
        data = sys.stdin.buffer.read(_READ_BYTES_MAX + 1)
        if len(data) > _READ_BYTES_MAX:
            fail(f"{name}: is longer than {_READ_BYTES_MAX} bytes")
        try:
            value = data.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            fail(f"{name}: is not UTF-8 text")
    with connected() as client:
        try:
            versions = client.put_secret(worker, name, value)
        except EverwarmError as refused:
            fail(refused)
    if as_json:
        click.echo(json.dumps({"worker": worker, "name": name, "versions": versions}))
    elif versions:
        click.echo(f"{name} is set. {worker} begins anew with it: version {', '.join(versions)}")
    else:
        click.echo(f"{name} is set, for the next deploy of {worker} whose everwarm.toml has it in secrets.")


@secret.command("list")
@_WORKER
@JSON
def list_secrets(worker: str, as_json: bool) -> None:
    """The names of the secrets that have a value, and of those that the worker asks for and that have none."""
    from everwarm.answers import EverwarmError

    with connected() as client:
        try:
            found = client.secrets(worker)
        except EverwarmError as failed:
            fail(failed)
    if as_json:
        click.echo(json.dumps(found))
        return
    for entry in found["secrets"]:
        click.echo(f"{entry['name']:<32}{when(entry['at_ms'])}  by {entry['author']}")
    for name in found["unset"]:
        click.echo(f"{name:<32}no value yet: everwarm secret put {name} --worker {worker}")
    if not found["secrets"] and not found["unset"]:
        click.echo(f"{worker} has no secrets.")


@secret.command("delete")
@click.argument("name")
@_WORKER
def delete(name: str, worker: str) -> None:
    """Forget secret NAME. A worker that has it begins anew without it."""
    from everwarm.answers import EverwarmError

    with connected() as client:
        try:
            deleted = client.delete_secret(worker, name)
        except EverwarmError as failed:
            fail(failed)
    if not deleted:
        fail(f"{worker} has no secret {name}. See: everwarm secret list --worker {worker}")
    click.echo(f"{name} is forgotten.")


COMMANDS: tuple[click.Command, ...] = (secret,)

"""What all commands share: how they fail, what they open, how they tell a time."""

import sys
import time
from typing import TYPE_CHECKING, NoReturn

import click

from everwarm.home import Home, HomeUnusable

if TYPE_CHECKING:
    from everwarm.client import Client

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def fail(message: object) -> NoReturn:
    """One clear line on stderr, and exit code 1."""
    click.echo(f"everwarm: {message}", err=True)
    sys.exit(1)


def open_home() -> Home:
    """The state directory, or the end of the command."""
    try:
        return Home.open()
    except HomeUnusable as unusable:
        fail(unusable)


def connected() -> "Client":
    """A client of the cluster that runs from the state directory, or the end of the command."""
    from everwarm.answers import NotRunning
    from everwarm.client import connect

    try:
        return connect(open_home())
    except NotRunning as missing:
        fail(missing)
    except (ConnectionError, ValueError) as refused:
        fail(f"The cluster does not answer ({refused}). See: everwarm status")


def progress(line: str) -> None:
    """What goes on, on stderr: stdout is for the result."""
    click.echo(line, err=True)


def when(at_ms: int) -> str:
    """A time of the catalog (Unix time, ms), in the time zone of whoever reads it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))

"""Commands about the servers of a cluster that runs: add one, remove one; and how `status` shows them."""

import json
from collections.abc import Mapping
from typing import Any

import click

from everwarm.console import JSON, connected, fail, open_home, progress


@click.group()
def servers() -> None:
    """Add a server to the cluster that runs, or remove one."""


@servers.command()
@JSON
def add(as_json: bool) -> None:
    """Start one more server on this machine, or on the nodes of a Ray whose servers were removed.

    It gets all code, and the workers that it takes over are started there before their requests come.
    """
    _order({"do": "add"}, "is a member", as_json=as_json)


@servers.command()
@click.argument("name", required=False)
@JSON
def remove(name: str | None, as_json: bool) -> None:
    """Remove the server NAME; on a node of a cluster that several machines are in, without a NAME this machine's.

    Its workers are started elsewhere first, what runs there finishes, and then it ends.
    """
    if name is None:
        joined = open_home().joined()
        if joined is None:
            fail("There is no server of this machine that others are in a cluster with. Name one: everwarm status")
        name = joined.server
    _order({"do": "remove", "server": name}, "is removed", as_json=as_json)


def _order(order: dict[str, str], done: str, *, as_json: bool) -> None:
    home = open_home()
    if home.running() is not None:
        from everwarm.owner import OrderFailed, ask_owner

        try:
            server = ask_owner(home, order, progress)
        except OrderFailed as failed:
            fail(failed)
        running = home.running()
        ports = {} if running is None else running.servers
    else:
        from everwarm.answers import EverwarmError

        with connected() as client:
            try:
                server = client.order(order)
            except EverwarmError as failed:
                fail(failed)
            client.refresh()
            ports = client.running.servers
    if as_json:
        click.echo(json.dumps({"server": server, "servers": ports}))
        return
    port = f" on port {ports[server]}" if server in ports else ""
    click.echo(f"{server} {done}{port}. Servers: {', '.join(sorted(ports))}")


def membership_text(membership: Mapping[str, Any]) -> str:
    """Who is in the cluster, a line each, for `status`: as ``Client.members`` tells it."""
    homes, handed = len(membership["servers"]), membership["handed_over"]
    lines = [f"ring: epoch {membership['epoch']}, {homes} {'server' if homes == 1 else 'servers'}"]
    if handed["moved"]:
        lines[0] += f"; of {handed['moved']} warm workers that it moved, {handed['warm']} were started ahead"
    wide = max([10, *(len(member["server"]) for member in membership["members"])]) + 2
    lines.append(f"{'server':<{wide}}{'state':<24}{'weight':>7}{'for s':>9}{'heard s ago':>13}")
    for member in membership["members"]:
        state = f"{member['state']} ({member['why']})" if member["why"] else member["state"]
        lines.append(
            f"{member['server']:<{wide}}{state:<24}{member['weight']:>7}{member['since_s']:>9.0f}"
            f"{member['heard_ago_s']:>13.1f}"
        )
    return "\n".join(lines)


COMMANDS: tuple[click.Command, ...] = (servers,)

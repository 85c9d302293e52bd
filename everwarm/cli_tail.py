"""The command that watches a worker live."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import click

from everwarm.console import connected, fail

if TYPE_CHECKING:
    from actors.live_tail import LiveEvent
    from everwarm.live_reader import LiveNews

_SHOWN_MAX = 40  # lines of one event's log; all of them are in its trace


@click.command()
@click.argument("worker")
@click.option("--status", multiple=True, metavar="STATUS", help="404, 5xx or 400-499; may be repeated.")
@click.option("--method", multiple=True, metavar="METHOD", help="GET, POST, ...; may be repeated.")
@click.option("--outcome", multiple=True, metavar="OUTCOME", help="ok, exception, exceededCpu, ...; may be repeated.")
@click.option("--header", multiple=True, metavar="KEY:VALUE", help="With VALUE in the header KEY; may be repeated.")
@click.option("--search", default="", metavar="TEXT", help="Only with this text in url, log or exception.")
@click.option("--sampling", default=1.0, show_default=True, metavar="SHARE", help="This share of the traces.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
def tail(
    worker: str,
    status: tuple[str, ...],
    method: tuple[str, ...],
    outcome: tuple[str, ...],
    header: tuple[str, ...],
    search: str,
    sampling: float,
    as_json: bool,
) -> None:
    """Watch what WORKER does, on all servers, until Ctrl-C.

    One line for each request that ends, those of other workers among them, with what it logged below it.
    """
    from actors.live_tail import parse_filter
    from everwarm.answers import EverwarmError

    try:
        wanted = parse_filter(
            statuses=status, methods=method, outcomes=outcome, search=search, sampling=sampling, headers=header
        )
    except ValueError as wrong:
        fail(wrong)
    with connected() as client:
        try:
            if client.describe(worker) is None:
                fail(f"There is no worker {worker}. See: everwarm list")
            with closing(client.tail(worker, wanted)) as news:
                click.echo(f"watching {worker} on {', '.join(client.servers)}; Ctrl-C ends it", err=True)
                for each in news:
                    _print(each, as_json=as_json)
        except EverwarmError as failed:
            fail(failed)
        except KeyboardInterrupt:
            pass  # that is how one ends it
        except BrokenPipeError:
            # Whoever read this has enough. Python would complain of what is left when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(news: "LiveNews", *, as_json: bool) -> None:
    from actors.live_tail import plain_event
    from everwarm.live_reader import Away, Missed

    if isinstance(news, Missed):
        click.echo(f"{news.count} events of {news.server} came faster than they were read", err=True)
    elif isinstance(news, Away):
        click.echo(f"{news.server} is away: {news.why}", err=True)
    elif as_json:
        click.echo(json.dumps(plain_event(news), ensure_ascii=False))
        sys.stdout.flush()
    else:
        for line in pretty(news):
            click.echo(line)  # without colours unless it is a terminal
        sys.stdout.flush()


def pretty(event: "LiveEvent") -> Iterator[str]:
    """An event for people, a line for the request and one for each line of its log."""
    ending = event.ending
    clock = time.strftime("%H:%M:%S", time.localtime(ending.at_ms / 1000)) + f".{ending.at_ms % 1000:03d}"
    how = ending.outcome.value
    facts = [
        click.style(clock, dim=True),
        ending.method,
        _plain(ending.url),
        click.style(str(ending.status or "-"), fg=_colour(ending.status)),
        how if how == "ok" else click.style(how, fg="red"),
        (ending.start_type or "not started") + (f" ({ending.cold_cause})" if ending.cold_cause else ""),
        f"cpu {ending.cpu_ms:.1f} ms",
        event.server,
        *(["nested"] if event.nested else []),
        click.style(event.trace_id[:8], dim=True),
    ]
    yield "  ".join(facts)
    if ending.exception not in ("", how):
        yield "    " + click.style(_plain(ending.exception), fg="red")
    for line in ending.lines[:_SHOWN_MAX]:
        yield f"    {line.level}: {_plain(line.text)}"
    left = len(ending.lines) - _SHOWN_MAX
    if left > 0 or ending.truncated:
        yield f"    ({f'{left} more lines' if left > 0 else 'more'}; see: everwarm traces {event.trace_id[:12]})"


def _colour(status: int | None) -> str:
    return "yellow" if status is None else {4: "yellow", 5: "red"}.get(status // 100, "green")


def _plain(text: str) -> str:
    """What a tenant wrote, without characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else "·" for letter in text.rstrip("\n"))


COMMANDS: tuple[click.Command, ...] = (tail,)

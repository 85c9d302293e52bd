"""Commands about requests: fetch, traces, viewer."""

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import click

from everwarm.console import JSON, connected, fail, open_home, progress
from everwarm.home import Home


@click.command()
@click.argument("worker")
@click.argument("path", default="/")
@click.option("-X", "--method", default=None, help="Default: GET, or POST with --data.")
@click.option("-H", "--header", multiple=True, metavar="K:V", help="A request header; may be repeated.")
@click.option("-d", "--data", default=None, help="The request body; @FILE reads a file.")
@click.option("--server", default=None, help="The server to send it through. Default: in turn.")
@JSON
def fetch(
    worker: str,
    path: str,
    method: str | None,
    header: tuple[str, ...],
    data: str | None,
    server: str | None,
    as_json: bool,
) -> None:
    """Send a request to WORKER through the cluster, without HTTPS."""
    from everwarm.answers import EverwarmError

    headers = {}
    for line in header:
        name, colon, value = line.partition(":")
        if not colon:
            fail(f"--header takes NAME:VALUE, not {line!r}")
        headers[name.strip()] = value.strip()
    body = b""
    if data is not None:
        try:
            body = Path(data[1:]).read_bytes() if data.startswith("@") else data.encode()
        except OSError as unreadable:
            fail(f"{data[1:]} cannot be read ({unreadable.strerror})")
    with connected() as client:
        try:
            answer = client.fetch(
                worker, path, method=method or ("POST" if data is not None else "GET"), headers=headers, body=body,
                server=server,
            )  # fmt: skip
        except EverwarmError as failed:
            fail(failed)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "status": answer.status,
                    "headers": answer.headers,
                    "body": answer.text,
                    "outcome": answer.outcome,
                    "server": answer.server,
                    "home": answer.home,
                    "start_type": answer.start_type,
                    "hop": answer.hop,
                    "refused": answer.refused,
                    "queue_ms": answer.queue_ms,
                    "cpu_ms": answer.cpu_ms,
                    "request_id": answer.request_id,
                    "trace_id": answer.trace_id,
                }
            )
        )
    else:
        click.echo(
            f"{answer.status} {answer.outcome}, {answer.start_type or 'not started'} on {answer.server or 'no server'}"
            f" (home {answer.home or 'none'}{', hop' if answer.hop else ''}"
            f"{', refused: ' + answer.refused if answer.refused else ''}), trace {answer.trace_id[:12]}",
            err=True,
        )
        sys.stdout.buffer.write(answer.body)
        sys.stdout.buffer.flush()
    if answer.outcome != "ok":
        sys.exit(1)


@click.command()
@click.argument("trace_id", required=False)
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="How many, without an id.")
@JSON
def traces(trace_id: str | None, limit: int, as_json: bool) -> None:
    """The latest requests, or the waterfall of the one whose TRACE_ID begins so."""
    import msgspec

    from tracing.summary import TraceSummary
    from tracing.waterfall import SUMMARY_HEADER, draw, summary_line

    with connected() as client:
        if trace_id is not None:
            spans = client.wait_for_trace(trace_id, 1.0)
            if not spans:
                fail(f"Nobody knows a trace {trace_id}. Traces are kept for the last 1,000 requests of each server.")
            click.echo(json.dumps(msgspec.to_builtins(spans)) if as_json else draw(spans, _bar_chars()))
            return
        latest = client.traces(limit)
    if as_json:
        click.echo(json.dumps(latest))
        return
    if not latest:
        click.echo("No requests yet.")
        return
    click.echo(SUMMARY_HEADER)
    zone = time.localtime().tm_gmtoff
    for plain in latest:
        click.echo(summary_line(msgspec.convert(plain, TraceSummary), _zone(zone)))


def _zone(offset_s: int) -> Any:
    from datetime import timedelta, timezone

    return timezone(timedelta(seconds=offset_s))


def _bar_chars() -> int:
    return max(20, min(60, shutil.get_terminal_size().columns - 100))


@click.command()
@click.option("--port", default=15000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--install-only", is_flag=True, help="Only install it (850 MB, some minutes).")
def viewer(port: int, install_only: bool) -> None:
    """Install and run a trace viewer for the browser, on loopback, and send it the cluster's traces."""
    import subprocess

    from everwarm.viewer import (
        ViewerFailed,
        install,
        otlp_settings,
        serve_command,
        serve_environment,
        traces_url,
        wait_until_ready,
    )

    home = open_home()
    try:
        install(home.viewer, progress)
    except ViewerFailed as failed:
        fail(failed)
    if install_only:
        return
    process = subprocess.Popen(
        serve_command(home.viewer, port), cwd=home.viewer, env=serve_environment(os.environ),
        stdout=subprocess.DEVNULL, stderr=(home.viewer / "viewer.log").open("ab"),
    )  # fmt: skip
    try:
        wait_until_ready(port, lambda: process.poll() is None)
        url, headers = otlp_settings(port)
        home.set_viewing(url, dict(headers))
        click.echo(f"The viewer is at {traces_url(port)}")
        if _send_traces_to(home, url, dict(headers)):
            click.echo("The cluster that runs from this state directory sends its traces there now.")
        else:
            click.echo("A cluster that is started now (./dev serve, everwarm up) sends its traces there.")
        click.echo("Ctrl-C ends it.")
        process.wait()
    except ViewerFailed as failed:
        fail(failed)
    except KeyboardInterrupt:
        pass  # that is how one ends it
    finally:
        home.clear_viewing()
        _send_traces_to(home, "", {})
        process.terminate()
        process.wait()


def _send_traces_to(home: Home, url: str, headers: dict[str, str]) -> bool:
    """Point the cluster that runs from here, if one does, at another backend."""
    from everwarm.answers import EverwarmError
    from everwarm.client import connect

    try:
        with connect(home) as client:
            client.export_traces_to(url, headers)
    except (EverwarmError, ConnectionError):
        return False
    return True


COMMANDS: tuple[click.Command, ...] = (fetch, traces, viewer)

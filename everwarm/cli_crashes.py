"""Commands about what broke: the crash reports of this machine's hosts, and who is kept out for them."""

import json
import time
from typing import Any

import click

from everwarm.console import JSON, open_home, when


@click.command()
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 100), help="The latest so many.")
@JSON
def crashes(limit: int, as_json: bool) -> None:
    """Hosts of this machine that crashed: when, of what, and which workers were running.

    A version that was running in three crashes of the last hour, as the only one or in most of them, is kept out for a
    minute, and for longer each time.
    """
    from actors.crash_blame import quarantined
    from actors.crash_reports import CrashReports, crashes_of

    reports = CrashReports(open_home().crashes).read()
    out = quarantined(crashes_of(reports), time.time())
    if as_json:
        click.echo(json.dumps({"crashes": reports[:limit], "quarantined": out}))
        return
    if not reports:
        click.echo("No host of this machine has crashed.")
    for report in reports[:limit]:
        click.echo(_lines(report))
    workers = {one["version"]: one["worker"] for report in reports for one in report["running"] if one["worker"]}
    for version, until_s in sorted(out.items()):
        click.echo(f"{workers.get(version, 'a worker')} ({version}) is kept out until {when(int(until_s * 1_000))}")


def _lines(report: dict[str, Any]) -> str:
    """One report, as `everwarm crashes` shows it."""
    died = report["signal"] or "killed, or ended without a word"
    lines = [
        f"{when(report['at_ms'])}  {report['host']} (pid {report['pid']}, lived {report['lived_s']:.0f} s): {died}"
    ]
    lines += [
        f"    {one['doing']} {one['worker'] or '?'} ({one['version']}) for {one['for_ms']} ms"
        + (f", request {one['request']}" if one["request"] else "")
        for one in report["running"]
    ]
    if report["running_more"]:
        lines.append(f"    and {report['running_more']} more")
    return "\n".join(lines if report["running"] else [*lines, "    nothing was running"])


COMMANDS: tuple[click.Command, ...] = (crashes,)

"""Commands about what broke: the crash reports of this machine's hosts, and who is kept out for them."""

import json
import time
from typing import Any

import click

from everwarm.console import JSON, open_home, when
from everwarm.home import Home


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


def supervision_lines(home: Home) -> list[str]:
    """For `status`: roles that were restarted or do not run, a line each. Nothing on another machine than the owner's,
    and when all is as it was."""
    from everwarm.owner import OrderFailed, ask_roles

    try:
        roles = ask_roles(home)
    except OrderFailed:
        return []
    return [
        f"{address}: {role['state']}"
        + (f", restarted {role['restarts']} times, back after {role['took_s'][-1]:.1f} s" if role["restarts"] else "")
        for address, role in roles.items()
        if role.get("restarts") or role["state"] not in ("running", "ready")
    ]


COMMANDS: tuple[click.Command, ...] = (crashes,)

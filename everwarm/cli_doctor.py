"""Commands about a cluster's machines: `doctor` says what is wrong with them, `stop-nodes` stops Ray on all."""

import json
import subprocess
import sys
import time
from dataclasses import asdict

import click

from everwarm.console import JSON, fail, open_home, progress


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """Examine the cluster's machines: ssh, tokens, versions, Ray, clocks, disks, actors, ports.

    Call it on the head. A line each: what is well, or what is wrong and what to do. Exit code 1 when something is.
    """
    from everwarm.doctor.examination import NothingToExamine, examine
    from everwarm.doctor.findings import Level, by_level, judge

    began_s = time.monotonic()
    try:
        facts = examine(open_home(), progress)
    except NothingToExamine as nothing:
        click.echo(json.dumps({"ok": False, "findings": [], "error": str(nothing)}) if as_json else str(nothing))
        sys.exit(3)
    findings = judge(facts)
    counts = by_level(findings)
    if as_json:
        plain = {
            "ok": not counts[Level.WRONG],
            "seconds": round(time.monotonic() - began_s, 2),
            "findings": [asdict(finding) for finding in findings],
            "nodes": {
                node.address: {
                    "hostname": node.hostname,
                    "versions": dict(node.versions),
                    "clock_ahead_s": round(node.clock.ahead_s, 4),
                    "clock_error_s": round(node.clock.error_s, 4),
                }
                for node in facts.nodes
            },
        }
        click.echo(json.dumps(plain))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<9}{finding.check:<10}{finding.says}")
            if finding.do:
                click.echo(f"{'':<19}-> {finding.do}")
        took_s = time.monotonic() - began_s
        click.echo(f"\n{counts[Level.WRONG]} wrong, {counts[Level.WARNING]} warnings, {took_s:.1f} s")
    sys.exit(1 if counts[Level.WRONG] else 0)


@click.command(name="stop-nodes")
def stop_nodes() -> None:
    """Stop Ray on this head, and over ssh on all its workers.

    `ray down` stops the head alone when the machines are one's own; in a cloud it ends them all.
    """
    from everwarm.doctor.ray_up import RayUp

    ray_up = RayUp.here()
    if ray_up is None:
        fail("`ray up` has not made this machine a head.")
    # The head first: its autoscaler would start what is stopped elsewhere.
    stopping = [sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"]
    stopped = subprocess.run(stopping, capture_output=True, text=True)
    if stopped.returncode:
        progress(f"the head: {stopped.stdout.strip()} {stopped.stderr.strip()}")
    failed = bool(stopped.returncode)
    for worker in ray_up.stop_ray(ray_up.workers or ()):
        if worker.refused:
            failed = True
            progress(f"{worker.address}: {worker.refused}")
    if failed:
        fail("Ray was not stopped everywhere.")
    click.echo(f"Ray is stopped on the head and on {len(ray_up.workers or ())} workers.")


COMMANDS: tuple[click.Command, ...] = (doctor, stop_nodes)

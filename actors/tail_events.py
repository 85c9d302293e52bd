"""What each tail worker of a request tree hears of it. Pure.

**Who hears what.** The tail of a stage hears that stage and all that run under its layer (``context``): an outbound
worker is under its dispatcher, not under the user's worker that fetched. Of those it hears that they ran, how they
ended, and what they cost. Names, requests and logs are for the owner's eyes: of the stage itself, of whomever it
called by name, and of the workers in the namespace that it dispatches into. Whom a user's worker is bound to is that
user's business.

**The shape** of an event is the one that Cloudflare gives to its tail handlers (TraceItem), because that is what
people who write tail workers know, and their code then runs unchanged. Ours is under one key, ``everwarm``.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from actors.stage_report import Ending, Stage
from actors.worker_names import namespace_of
from tracing.redaction import redact_query


@dataclass(frozen=True, slots=True)
class Told:
    """One stage of a tree that is over. ``reported``: whoever was to tell how has told; else it is a guess from
    outside, without logs and costs."""

    stage: Stage
    ending: Ending
    reported: bool


@dataclass(frozen=True, slots=True)
class TailBatch:
    """What one tail worker hears of one tree: ``events`` are plain data, parents before their children."""

    worker: str
    events: list[dict[str, object]]


def batches(tree: Sequence[Told]) -> list[TailBatch]:
    """One batch for each tail worker in the tree. ``tree``: all stages, in the order in which they are to be told."""
    by_worker: dict[str, dict[str, bool]] = {}  # the stages that it hears, and whether by name
    for listening in tree:
        for worker in listening.stage.tails:
            heard = by_worker.setdefault(worker, {})
            for told in tree:
                if _hears(listening.stage, told.stage):
                    stage = told.stage.stage
                    heard[stage] = heard.get(stage, False) or _knows(listening.stage, told.stage)
    return [
        TailBatch(worker, [_event(told, heard[told.stage.stage], heard) for told in tree if told.stage.stage in heard])
        for worker, heard in by_worker.items()
    ]


def _hears(listening: Stage, stage: Stage) -> bool:
    return stage.stage == listening.stage or listening.stage in stage.under


def _knows(listening: Stage, stage: Stage) -> bool:
    if listening.stage in (stage.stage, stage.chosen_by):
        return True
    return namespace_of(stage.worker) in listening.dispatches


def _event(told: Told, by_name: bool, heard: Collection[str]) -> dict[str, object]:
    """A stage as a tail worker gets it. ``by_name``: with what is its owner's."""
    stage, ending = told.stage, told.ending
    event: dict[str, object] = {
        "event": None,
        "eventTimestamp": ending.at_ms or None,
        "scriptName": None,
        "scriptVersion": None,
        "dispatchNamespace": None,
        "outcome": ending.outcome.value,
        "cpuTime": round(ending.cpu_ms, 3),
        "wallTime": round(ending.wall_ms, 3),
        "logs": [],
        "exceptions": [],
        "diagnosticsChannelEvents": [],
        "truncated": ending.truncated,
        "executionModel": "stateless",
        "everwarm": {
            "stage": stage.stage,
            "parent": stage.parent if stage.parent in heard else None,
            "startType": ending.start_type or None,
            "coldCause": ending.cold_cause or None,
            "runs": stage.run + 1,
            "reported": told.reported,
        },
    }
    if by_name:
        if ending.method:
            path, query, secret = ending.url.partition("?")
            response = None if ending.status is None else {"status": ending.status}
            request = {"method": ending.method, "url": path + query + redact_query(secret)}
            event["event"] = {"request": request, "response": response}
        event["scriptName"] = stage.worker.rpartition("/")[2]
        event["scriptVersion"] = {"id": stage.version} if stage.version else None
        event["dispatchNamespace"] = namespace_of(stage.worker) or None
        event["logs"] = [
            {"timestamp": line.at_ms, "level": line.level, "message": [line.text]} for line in ending.lines
        ]
        if ending.exception:
            event["exceptions"] = [{"timestamp": ending.at_ms, "name": "Error", "message": ending.exception}]
    return event

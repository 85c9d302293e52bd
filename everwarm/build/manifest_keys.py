"""The keys of everwarm.toml: each defined once, for the reader (`manifest`) and for editors (`manifest_schema`).

P. The bounds are those of the values that the keys become: `actors.worker.Limits` by plan, `actors.bindings.LIMITS`.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from actors.bindings import LIMITS, PARAMETER, VARIABLE
from actors.worker import REUSE_IDLE_S_MAX, REUSE_REQUESTS_MAX, ROUTE, ROUTE_CHARS_MAX, ROUTES_MAX, Limits, Plan
from actors.worker_names import LABEL
from everwarm.build.shape import Key, Needs, Table, TableList, Text, TextList, TextMap, When, Whole, schema_of

MANIFEST_FILE: Final = "everwarm.toml"
_MIB: Final = 1 << 20


class Language(StrEnum):
    ZIG = "zig"
    C = "c"
    JAVASCRIPT = "javascript"
    PYTHON = "python"
    COMPONENT = "component"


_ENTRY_SUFFIXES: Final[Mapping[Language, tuple[str, ...]]] = {
    Language.ZIG: (".zig",),
    Language.C: (".c",),
    Language.JAVASCRIPT: (".js", ".mjs", ".ts"),
    Language.PYTHON: (".py",),
    Language.COMPONENT: (".wasm",),
}
_WITHOUT_MODULES: Final = (Language.JAVASCRIPT, Language.PYTHON, Language.COMPONENT)

#: By key of `[limits]`: the field of `actors.worker.Limits`, and the key's unit in the field's.
LIMIT_FIELDS: Final[Mapping[str, tuple[str, int]]] = {
    "cpu_ms": ("cpu_ms", 1),
    "memory_mib": ("memory_soft_bytes", _MIB),
    "startup_cpu_ms": ("startup_cpu_ms", 1),
    "subrequests": ("subrequests_max", 1),
}
_LIMITS_ABOUT: Final[Mapping[str, str]] = {
    "cpu_ms": "CPU time in guest code for one request, in milliseconds; waiting is free",
    "memory_mib": "memory of one isolate, in MiB; over it the isolate goes after its answer",
    "startup_cpu_ms": "CPU time for an isolate's start, in milliseconds",
    "subrequests": "outgoing requests and calls of bindings for one request",
}

_NAME_RULE: Final = "be lower-case letters, digits and dashes, a letter first, at most 63"
_LABEL: Final = Text(_NAME_RULE, LABEL)
_VARIABLE: Final = Text("be letters, digits and underscores, no digit first, at most 128", VARIABLE)
_VALUE: Final = Text("have no NUL", r"[^\x00]*", (), LIMITS.var_bytes_max)
_PATH: Final = Text("be a path relative to the folder, with forward slashes", r"(?!/)[^\\\x00-\x1f\x7f]+", (), 1024)
_INSIDE: Final = Text(
    "be a path inside the folder, with forward slashes",
    r"(?!/)(?!(?:[^\\\x00-\x1f]*/)?\.\.(?:/|$))[^\\\x00-\x1f\x7f]+",
    (),
    1024,
)

_NO_MODULES: Final = TextList(_PATH, 0, must="are for Zig and C workers only")


def _most(key: str, plan: Plan) -> int:
    field, unit = LIMIT_FIELDS[key]
    most: int = getattr(Limits.ceiling_for_plan(plan), field)
    return most // unit


def _limit(key: str, plan: Plan) -> Whole:
    return Whole(_most(key, plan), by=f"the {plan.value} plan")


def _limit_of_any_plan(key: str) -> Whole:
    return _limit(key, max(Plan, key=lambda plan: _most(key, plan)))


def _suffixes(language: Language) -> Text:
    suffixes = _ENTRY_SUFFIXES[language]
    endings = "|".join(re.escape(suffix) for suffix in suffixes)
    return Text(f"end in {' or '.join(suffixes)} for {language.value}", rf"[^\n]*(?:{endings})")


def _bound(second: str, about: str, most: int) -> TableList:
    name = Key(_LABEL, "the name by which the worker's code asks for it", required=True)
    elsewhere = {
        "binding": "name", "service": "worker", "script_name": "worker", "id": "store", "namespace_id": "store",
        "dispatch_namespace": "namespace", "outbound": "the table [outbound], for all dispatch bindings",
    }  # fmt: skip
    return TableList(Table({"name": name, second: Key(_LABEL, about, required=True)}, elsewhere), most)


MANIFEST: Final = Table(
    {
        "name": Key(_LABEL, "the worker's name, a part of its host name", required=True),
        "language": Key(Text("", choices=tuple(Language)), "what it is written in, or component", required=True),
        "entry": Key(_INSIDE, "the file that it begins with", required=True),
        "modules": Key(TextList(_PATH, 256), "further files of Zig and C workers, imported by their names"),
        "namespace": Key(_LABEL, "the dispatch namespace whose user this worker is; it has no host name then"),
        "plan": Key(Text("", choices=tuple(Plan)), "whose defaults and ceilings its limits have; free if not given"),
        "routes": Key(
            TextList(
                Text(
                    "be a host name or *. and one, in lower case, without a port; a path behind it ends in /*",
                    ROUTE,
                    (),
                    ROUTE_CHARS_MAX,
                ),
                ROUTES_MAX,
            ),
            "host names, or parts of them, that lead to it beside its own name",
        ),
        "secrets": Key(
            TextList(_VARIABLE, LIMITS.secrets_max), "names of secrets that it gets; values are never in this file"
        ),
        "limits": Key(
            Table(
                {key: Key(_limit_of_any_plan(key), about) for key, about in _LIMITS_ABOUT.items()},
                {"cpu": "cpu_ms", "memory": "memory_mib", "memory_mb": "memory_mib"},
            ),
            "what one request and one isolate may use",
        ),
        "reuse": Key(
            Table(
                {
                    "max_requests": Key(Whole(REUSE_REQUESTS_MAX), "requests that an isolate serves; 1: one each"),
                    "idle_s": Key(Whole(REUSE_IDLE_S_MAX), "seconds without a request after which an isolate goes"),
                }
            ),
            "how long an isolate serves; if not given, as long as there is room",
        ),
        "vars": Key(
            TextMap(_VARIABLE, _VALUE, LIMITS.vars_max),
            "what its environment has: strings that are no secret",
        ),
        "bindings": Key(
            Table(
                {
                    "service": Key(
                        _bound("worker", "the worker that answers", LIMITS.services_max),
                        "workers that it may call as http://NAME.binding.internal/",
                    ),
                    "dispatch": Key(
                        _bound("namespace", "the namespace with the users' workers", LIMITS.dispatch_max),
                        "namespaces whose users' workers it may call as http://USER.NAME.dispatch.internal/",
                    ),
                    "kv": Key(
                        _bound("store", "the store that is opened", LIMITS.kv_max),
                        "key-value stores that it may open as NAME",
                    ),
                },
                {"services": "service", "dispatch_namespaces": "dispatch", "kv_namespaces": "kv"},
            ),
            "what it may call and open, and by which name",
        ),
        "outbound": Key(
            Table(
                {
                    "worker": Key(_LABEL, "the worker that outgoing requests of users' workers go to", required=True),
                    "parameters": Key(
                        TextList(
                            Text("be lower-case letters, digits, dashes and underscores, a letter first", PARAMETER),
                            LIMITS.parameters_max,
                        ),
                        "names of what this worker may pass to it with a call",
                    ),
                },
                {"service": "worker"},
            ),
            "what stands between the workers that this one dispatches to, and the world",
        ),
        "tail": Key(
            Table(
                {
                    "workers": Key(
                        TextList(_LABEL, LIMITS.tails_max, items_min=1),
                        "workers that hear of every request after it ended",
                        required=True,
                    )
                },
                {"service": "workers", "worker": "workers"},
            ),
            "who hears of this worker's requests",
        ),
    },
    elsewhere={
        "main": "entry",
        "services": "[[bindings.service]]",
        "dispatch_namespaces": "[[bindings.dispatch]]",
        "kv_namespaces": "[[bindings.kv]]",
        "tail_consumers": "workers in [tail]",
        "route": "routes",
        "env": "vars",
    },
    rules=(
        *(When("language", (language.value,), ("entry",), _suffixes(language)) for language in Language),
        When("language", _WITHOUT_MODULES, ("modules",), _NO_MODULES),
        *(
            When("plan", (plan.value,), ("limits", key), _limit(key, plan), or_absent=plan is Plan.FREE)
            for plan in Plan
            for key in LIMIT_FIELDS
            if _limit(key, plan) != _limit_of_any_plan(key)
        ),
        Needs("outbound", ("bindings", "dispatch"), "is for what a [[bindings.dispatch]] calls, and there is none"),
    ),
)


def manifest_schema() -> dict[str, Any]:
    """The manifest in JSON Schema 2020-12: what an editor checks while it is written."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": MANIFEST_FILE,
        "description": "A worker of Everwarm",
        **schema_of(MANIFEST),
    }

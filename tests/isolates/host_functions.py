"""The host functions of a world, to be called without a guest's machine code in between."""

import os
from collections.abc import Callable
from typing import Any

from isolates.component_value import Ok
from isolates.engine import Sandbox
from isolates.isolate import RunningGuest
from isolates.limits import IsolateLimits
from isolates.wasi.http.fields import Fields
from isolates.wasi.http.response import OutgoingResponse, Outparam
from tests.scripted_conversation import ScriptedConversation

Host = Callable[..., Any]


class Functions:
    """The functions of one interface, called with a guest, without a guest's machine code in between."""

    def __init__(self, box: Sandbox, interface: str) -> None:
        self._functions = box.world.interfaces[f"wasi:{interface}@0.2.12"].functions

    def __getitem__(self, name: str) -> Host:
        return self._functions[name]


def guest_for(conversation: ScriptedConversation | None = None, **limits: Any) -> RunningGuest:
    guest = RunningGuest(IsolateLimits(**limits), os.urandom)
    guest.begin(conversation, wall_ms=limits.get("wall_ms", 30_000))
    return guest


def case_of(result: Any) -> Any:
    """``ok`` or the case of the error."""
    if isinstance(result, Ok):
        return "ok"
    return result.value if result.value is None else result.value[0]


def response_of(types: Functions, guest: RunningGuest, *headers: tuple[str, bytes]) -> OutgoingResponse:
    response: OutgoingResponse = types["[constructor]outgoing-response"](guest, Fields(list(headers), mutable=True))
    return response


def answer(types: Functions, guest: RunningGuest, response: OutgoingResponse) -> None:
    types["[static]response-outparam.set"](guest, Outparam(), Ok(response))

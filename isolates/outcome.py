"""The closed list of how a request can end (semantics, section 2).

It stands on the sandbox's floor because the sandbox is the lowest place that ends requests; everything above only
adds the endings that happen before a guest is reached (``loadShed``, ``scriptNotFound``, ...). How an ending looks to
an HTTP client is decided once, at the edge, by ``actors.exchange.status_of``.
"""

from enum import StrEnum


class Outcome(StrEnum):
    """How one stage of a request ended. The value is the name in traces and tail events."""

    OK = "ok"
    EXCEPTION = "exception"
    EXCEEDED_CPU = "exceededCpu"
    EXCEEDED_MEMORY = "exceededMemory"
    EXCEEDED_WALL_TIME = "exceededWallTime"
    LOAD_SHED = "loadShed"
    SCRIPT_NOT_FOUND = "scriptNotFound"
    CANCELED = "canceled"
    HOME_LOST = "homeLost"
    RESPONSE_STREAM_DISCONNECTED = "responseStreamDisconnected"
    HUNG = "hung"
    KILL_SWITCH = "killSwitch"
    INTERNAL_ERROR = "internalError"

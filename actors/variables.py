"""What a guest finds in its environment: its version's variables, and the values of the secrets that it names.

They are not in a request. Whoever starts an isolate asks its machine's Server for them, once, over the Server's
socket, and the isolate holds them from then on:

    host ─► VARIABLES  worker, version          ◄─ VARIABLES  known, (name, text) pairs

A version's id stands for one set of values. Variables are part of it; and when a secret's value changes, the
ControlPlane makes a new version of the same code (``secret_keeper``), so an isolate never outlives what it was given.

Only versions that have some are asked for (``Request.has_variables``): most have none, and start without asking.
"""

import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from actors.bindings import Bindings
from actors.connection import Frame, LinkBroken, frame
from actors.host_conversation import LinkSocket
from actors.wire import Codec, Undecodable

#: (name, text) pairs.
Variables = tuple[tuple[str, str], ...]

#: The Server answers from memory, or after one question to the ControlPlane when it missed a deploy.
_ANSWER_S_MAX = 5.0


class VariablesAsked(msgspec.Struct, frozen=True):
    """Whose variables."""

    worker: str
    version: str


class VariablesTold(msgspec.Struct, frozen=True):
    """The answer. ``known``: whether this machine knows the version."""

    known: bool
    pairs: Variables = ()


ASKED = Codec(VariablesAsked)
TOLD = Codec(VariablesTold)


class VariablesAway(Exception):
    """Nobody on this machine could say what a version's variables are."""


def variables_of(bindings: Bindings, secrets: Mapping[str, str]) -> Variables:
    """A guest's environment, sorted by name. A secret without a value is not there; one that the version does not name
    does not reach it."""
    named = ((name, secrets[name]) for name in bindings.secrets if name in secrets)
    return tuple(sorted((*bindings.vars, *named)))


def ask_variables(server_socket: Path, worker: str, version: str) -> Variables:
    """Ask the Server at ``server_socket``, on this thread. ``VariablesAway`` when it does not know, or is away."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link = LinkSocket(connected)
    try:
        connected.connect(str(server_socket))
        link.send(frame(Frame.VARIABLES, ASKED.encode(VariablesAsked(worker, version))))
        received = link.receive(_ANSWER_S_MAX)
        if received is None:
            raise VariablesAway("no answer in time")
        told = TOLD.decode(received[1])
    except (OSError, LinkBroken, Undecodable) as away:
        raise VariablesAway(str(away)) from away
    finally:
        link.close()
    if not told.known:
        raise VariablesAway("the version is not known here")
    return told.pairs

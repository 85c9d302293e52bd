"""The isolates of a host as things: started from mapped code, closed, and the code given back with the last of them.

Which to start and which to close is decided by ``residency``; numbers are its numbers. Called from any thread of the
host, outside its lock, and for each number from one thread at a time.
"""

import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from actors.mapped_code import Loan, MappedCode, MappedCodeLimits
from actors.starts_ahead import Recipe
from actors.stores import HostStores
from actors.variables import Variables, VariablesAway, ask_variables
from isolates.artifact import ArtifactStore, Mapped
from isolates.engine import sandbox
from isolates.isolate import Isolate, StartFailed
from isolates.outcome import Outcome
from isolates.stores import NoStores, Stores

_log = logging.getLogger("everwarm.host")


@dataclass(frozen=True, slots=True)
class Began:
    """A start that succeeded: Unix times in ns of its parts, and what it took."""

    isolate: Isolate
    mapping_ns: int
    instantiating_ns: int
    ready_ns: int

    @property
    def cost_ms(self) -> float:
        """What the next start will take. Mapping is not in it: the code stays mapped when the isolate goes."""
        return (self.ready_ns - self.instantiating_ns) / 1e6


class Living:
    """The isolates of one host, by number."""

    def __init__(self, code_directory: Path, limits: MappedCodeLimits, server_socket: Path | None = None) -> None:
        """``server_socket``: of this machine's Server, which knows what a version's guests find in their environment
        and what their stores are. Without one they have neither."""
        self._server_socket = server_socket
        self._box = sandbox()
        self._artifacts = ArtifactStore(code_directory)
        self._code: MappedCode[Mapped] = MappedCode(self._map, self._artifacts.forget, self._own_bytes, limits)
        self._isolates: dict[int, tuple[Isolate, Loan[Mapped]]] = {}

    def start(self, number: int, recipe: Recipe) -> Began | StartFailed:
        """Start an isolate on this thread, under its limits."""
        mapping_ns = time.time_ns()
        try:
            loan = self._code.take(recipe.component_digest)
        except FileNotFoundError:
            return StartFailed(Outcome.INTERNAL_ERROR, "its code is not on this machine.")
        except Exception as fault:
            return _failed(recipe, fault)
        instantiating_ns = time.time_ns()
        try:
            started: Isolate | StartFailed = Isolate.start(
                self._box,
                loan.code,
                recipe.isolate_limits,
                secrets.token_bytes,
                self._variables_of(recipe),
                self._stores_of(recipe),
            )
        except VariablesAway as away:
            _log.error("%s was not started without its variables: %s", recipe.version, away)
            started = StartFailed(Outcome.INTERNAL_ERROR, "its variables could not be had.")
        except Exception as fault:
            started = _failed(recipe, fault)
        if isinstance(started, StartFailed):
            self._code.give_back(loan)
            return started
        self._isolates[number] = (started, loan)
        return Began(started, mapping_ns, instantiating_ns, time.time_ns())

    def _variables_of(self, recipe: Recipe) -> Variables:
        """``VariablesAway`` when nobody can tell."""
        if not recipe.has_variables:
            return ()
        if self._server_socket is None:
            raise VariablesAway("this host has no Server to ask")
        return ask_variables(self._server_socket, recipe.worker, recipe.version)

    def _stores_of(self, recipe: Recipe) -> Stores:
        if self._server_socket is None:
            return NoStores()
        return HostStores(self._server_socket, recipe.worker, recipe.version)

    def __getitem__(self, number: int) -> Isolate:
        return self._isolates[number][0]

    def close(self, number: int) -> None:
        """Delete an isolate; nothing happens when it is none."""
        isolate, loan = self._isolates.pop(number, (None, None))
        if isolate is not None and loan is not None:
            isolate.close()
            del isolate  # its code goes with the last reference to it
            self._code.give_back(loan)

    def put_away_idle_code(self) -> None:
        """Memory is short, and no idle isolate is left that could go."""
        self._code.put_away_idle()

    def code_statistics(self) -> dict[str, int]:
        """Where starts found their code, and how much of it is mapped."""
        return self._code.statistics()

    def _map(self, digest: str) -> Mapped:
        return self._artifacts.map(self._box, digest)

    def _own_bytes(self, digest: str) -> int:
        compiled = self._artifacts.compiled(digest)
        return 0 if compiled is None else compiled.own_bytes


def _failed(recipe: Recipe, fault: Exception) -> StartFailed:
    _log.error("starting %s failed in the host", recipe.version, exc_info=fault)
    return StartFailed(Outcome.INTERNAL_ERROR, f"the host failed to start it ({type(fault).__name__}).")

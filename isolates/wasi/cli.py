"""wasi:cli: variables as environment, standard streams that become log events, and an exit that is an end."""

from typing import Any

from isolates.component_value import Err, GuestTrap
from isolates.guest import Guest
from isolates.outcome import Outcome
from isolates.wasi.io import ALWAYS, WRITE_BYTES_MAX, EmptyInput, Pollable
from isolates.wit import World


class LogOutput:
    """stdout or stderr: what is written becomes log events of the stage."""

    __slots__ = ("stream",)

    def __init__(self, stream: str) -> None:
        self.stream = stream

    def room(self, guest: Guest) -> int:
        return WRITE_BYTES_MAX

    def write(self, guest: Guest, data: bytes) -> bool:
        if data:
            guest.log(self.stream, data.decode("utf-8", "replace"))
        return True

    def flush(self, guest: Guest) -> bool:
        return True

    def pollable(self) -> Pollable:
        return ALWAYS


def define(world: World) -> None:
    """wasi:cli/environment, exit, stdin, stdout, stderr and the terminal interfaces."""
    environment = world.interface("wasi:cli/environment@0.2.12")

    @environment.func("get-environment: func() -> list<tuple<string, string>>")
    def get_environment(guest: Guest) -> list[tuple[str, str]]:
        return list(guest.variables)

    @environment.func("get-arguments: func() -> list<string>")
    def get_arguments(guest: Guest) -> list[str]:
        return []

    @environment.func("initial-cwd: func() -> option<string>")
    def initial_cwd(guest: Guest) -> str | None:
        return None

    leave = world.interface("wasi:cli/exit@0.2.12")

    def exited(guest: Guest, how: str) -> None:
        guest.log("stderr", f"the worker called exit ({how})")
        guest.end(Outcome.EXCEPTION)
        raise GuestTrap("exit")

    @leave.func("exit: func(status: result)")
    def exit_with_result(guest: Guest, status: Any) -> None:
        exited(guest, "failure" if isinstance(status, Err) else "success")

    @leave.func("exit-with-code: func(status-code: u8)")
    def exit_with_code(guest: Guest, code: int) -> None:
        exited(guest, f"code {code}")

    stdin = world.interface("wasi:cli/stdin@0.2.12")
    stdin.use_resource("input-stream", "input-stream")

    @stdin.func("get-stdin: func() -> own<input-stream>")
    def get_stdin(guest: Guest) -> EmptyInput:
        return EmptyInput()

    _define_output(world, "stdout")
    _define_output(world, "stderr")
    for direction, streams in (("input", ("stdin",)), ("output", ("stdout", "stderr"))):
        resource = f"terminal-{direction}"
        world.interface(f"wasi:cli/{resource}@0.2.12").resource(resource)
        for stream in streams:
            _define_terminal(world, stream, resource)


def _define_output(world: World, stream: str) -> None:
    interface = world.interface(f"wasi:cli/{stream}@0.2.12")
    interface.use_resource("output-stream", "output-stream")

    @interface.func(f"get-{stream}: func() -> own<output-stream>")
    def get_output(guest: Guest) -> LogOutput:
        return LogOutput(stream)


def _define_terminal(world: World, stream: str, resource: str) -> None:
    interface = world.interface(f"wasi:cli/terminal-{stream}@0.2.12")
    interface.use_resource(resource, resource)

    @interface.func(f"get-terminal-{stream}: func() -> option<own<{resource}>>")
    def get_terminal(guest: Guest) -> None:
        return None

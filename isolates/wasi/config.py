"""wasi:config: a version's variables and secrets by name. The same as its environment, for guests that ask this way.

The package never left its drafts, and toolchains ship three of them. No two drafts are compatible, so each is defined
by its full name; what differs is what they call the interface, and its error, which is never given here.
"""

from isolates.component_value import Ok
from isolates.guest import Guest
from isolates.wit import World

_DRAFTS = ("wasi:config/store@0.2.0-rc.1", "wasi:config/store@0.2.0-draft", "wasi:config/runtime@0.2.0-draft")


def define(world: World) -> None:
    """wasi:config/store, and runtime, as it was called before."""

    def get(guest: Guest, key: str) -> Ok[str | None]:
        return Ok(dict(guest.variables).get(key))

    def get_all(guest: Guest) -> Ok[list[tuple[str, str]]]:
        return Ok(list(guest.variables))

    for draft in _DRAFTS:
        interface = world.interface(draft)
        interface.variant("config-error", {"upstream": "string", "io": "string"})
        interface.func("get: func(key: string) -> result<option<string>, config-error>")(get)
        interface.func("get-all: func() -> result<list<tuple<string, string>>, config-error>")(get_all)

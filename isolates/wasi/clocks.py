"""wasi:clocks. Both clocks stand still while guest code runs: they show the time of the last input or output."""

import time

from isolates.guest import Guest
from isolates.wasi.io import Timer
from isolates.wit import World

#: The clocks move at input and output only, so a finer resolution would promise what they do not keep.
RESOLUTION_NS = 1_000
_U64_MAX = (1 << 64) - 1


def define(world: World) -> None:
    """wasi:clocks/monotonic-clock, wasi:clocks/wall-clock."""
    monotonic = world.interface("wasi:clocks/monotonic-clock@0.2.12")
    monotonic.use_resource("pollable", "pollable")
    monotonic.alias("instant", "u64")
    monotonic.alias("duration", "u64")

    @monotonic.func("now: func() -> instant")
    def now(guest: Guest) -> int:
        return guest.monotonic_ns

    @monotonic.func("resolution: func() -> duration")
    def resolution(guest: Guest) -> int:
        return RESOLUTION_NS

    @monotonic.func("subscribe-instant: func(when: instant) -> own<pollable>")
    def subscribe_instant(guest: Guest, when_ns: int) -> Timer:
        return Timer(when_ns)

    @monotonic.func("subscribe-duration: func(when: duration) -> own<pollable>")
    def subscribe_duration(guest: Guest, duration_ns: int) -> Timer:
        # From the real now, which the guest cannot read: counted from its standing clock, a guest that computes for
        # longer than it then sleeps would not sleep at all.
        return Timer(min(time.monotonic_ns() + duration_ns, _U64_MAX))

    wall = world.interface("wasi:clocks/wall-clock@0.2.12")
    wall.record("datetime", {"seconds": "u64", "nanoseconds": "u32"})

    @wall.func("now: func() -> datetime")
    def wall_now(guest: Guest) -> tuple[int, int]:
        return divmod(guest.wall_ns, 1_000_000_000)

    @wall.func("resolution: func() -> datetime")
    def wall_resolution(guest: Guest) -> tuple[int, int]:
        return 0, RESOLUTION_NS

"""wasi:random. All three interfaces draw from the same cryptographic source: weaker would gain nothing here."""

from isolates.component_value import GuestTrap
from isolates.guest import Guest
from isolates.wit import World

#: Bytes in one call. Random bytes are a published way to exhaust a host (CVE-2026-27204); engines ask for 32 to seed.
RANDOM_BYTES_MAX = 64 * 1024


def define(world: World) -> None:
    """wasi:random/random, insecure, insecure-seed."""

    def some_bytes(guest: Guest, length: int) -> bytes:
        if length > RANDOM_BYTES_MAX:
            raise GuestTrap(f"more than {RANDOM_BYTES_MAX} random bytes in one call")
        return guest.entropy(length)

    def some_u64(guest: Guest) -> int:
        return int.from_bytes(guest.entropy(8), "little")

    secure = world.interface("wasi:random/random@0.2.12")
    secure.func("get-random-bytes: func(len: u64) -> list<u8>")(some_bytes)
    secure.func("get-random-u64: func() -> u64")(some_u64)

    insecure = world.interface("wasi:random/insecure@0.2.12")
    insecure.func("get-insecure-random-bytes: func(len: u64) -> list<u8>")(some_bytes)
    insecure.func("get-insecure-random-u64: func() -> u64")(some_u64)

    seed = world.interface("wasi:random/insecure-seed@0.2.12")

    @seed.func("insecure-seed: func() -> tuple<u64, u64>")
    def insecure_seed(guest: Guest) -> tuple[int, int]:
        return some_u64(guest), some_u64(guest)

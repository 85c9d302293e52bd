"""The CPU that code is compiled for: a level that all machines of a cluster have, not the CPU of this one.

Compiled code may use whatever instructions its target has, and wasmtime refuses to load it where one is lacking. Code
for exactly the CPU that compiles would be of no use on a machine of the next generation, and machines of one cluster
are bought over years. So the target is one of a few *levels*, as compilers and distributions name them; a machine with
more than its level runs the very same files.

::

    machine          has                              its target            shares code with
    Xeon of 2024     AVX-512, AMX, all of v2          x86-64-v2             every x86-64 server since 2009
    Opteron of 2010  v2 but for SSSE3, SSE 4          x86-64-v2 without …   others that lack the same
    Graviton, Ampere                                  aarch64               every aarch64

Where targets differ nothing can be shared, and the machine is told apart by name (``distribution.OtherEngine``).
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

#: What an operator may set, on every node of a cluster alike, to have another level than the default.
SETTING: Final = "EVERWARM_CPU"

#: Of each level beyond x86-64 itself: Cranelift's name of an instruction set and the kernel's, in /proc/cpuinfo.
_V2: Final = (
    ("has_cmpxchg16b", "cx16"), ("has_popcnt", "popcnt"), ("has_sse3", "pni"), ("has_ssse3", "ssse3"),
    ("has_sse41", "sse4_1"), ("has_sse42", "sse4_2"),
)  # fmt: skip
_V3: Final = (
    *_V2,
    ("has_avx", "avx"), ("has_avx2", "avx2"), ("has_bmi1", "bmi1"), ("has_bmi2", "bmi2"), ("has_fma", "fma"),
    ("has_lzcnt", "abm"),
)  # fmt: skip
_LEVELS: Final = {"x86-64": (), "x86-64-v2": _V2, "x86-64-v3": _V3}
LEVEL_DEFAULT: Final = "x86-64-v2"


@dataclass(frozen=True, slots=True)
class Target:
    """What code is compiled for. ``name`` is for people and says all of it; ``triple`` and ``flags`` are wasmtime's.
    Without a triple, wasmtime looks at the machine itself."""

    name: str
    triple: str = ""
    flags: tuple[str, ...] = ()


def target_of(machine: str, has: Collection[str], *, musl: bool = False, level: str = "") -> Target:
    """The target on a machine: ``machine`` as ``uname`` names it, ``has`` its CPU's flags as the kernel names them.

    ``level``: what the operator set, if anything. ``ValueError`` when that is none.
    """
    if level and level not in _LEVELS:
        raise ValueError(f"{SETTING} is {level[:40]!r}; there are {', '.join(_LEVELS)}")
    libc = "musl" if musl else "gnu"
    if machine == "aarch64":
        return Target("aarch64", f"aarch64-unknown-linux-{libc}")
    if machine != "x86_64":
        # wasmtime compiles for some more, and nobody has told levels of theirs apart: those that are equal share.
        return Target(" ".join((machine, *sorted(has))))
    name = level or LEVEL_DEFAULT
    lacking = [flag for _, flag in _LEVELS[name] if flag not in has]
    flags = tuple(cranelift for cranelift, flag in _LEVELS[name] if flag in has)
    return Target(f"{name} without {', '.join(lacking)}" if lacking else name, f"x86_64-unknown-linux-{libc}", flags)

"""What a process holds, as the kernel counts it."""

from pathlib import Path


def private_bytes(process: int | str = "self") -> int:
    """Memory that would be free if this process ended: its private pages, clean and dirty."""
    total_kib = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Clean:", "Private_Dirty:")):
            total_kib += int(line.split()[1])
    return total_kib * 1024


def mappings() -> int:
    """How many mappings this process has; the kernel allows ``mappings_max`` of them."""
    with open("/proc/self/maps", "rb") as maps:
        return sum(1 for _ in maps)


def mappings_max() -> int:
    """The kernel's limit for one process."""
    return int(Path("/proc/sys/vm/max_map_count").read_text())


def address_space_bytes() -> int:
    """How much address space this process has reserved (VmSize)."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * 4096

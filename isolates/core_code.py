"""Reading over the instructions of a core module, to know which ones it has.

One question is asked: could running this code change something that a memory and globals do not show, tables and
dropped segments? The answer errs on the side of yes: an instruction anywhere in the module counts, and so does one that
this reader does not know.

Source: WebAssembly core specification 2.0, chapter 5.4.
"""

from isolates.wasm_binary import CODE, CoreModule, Reader

#: Instructions without an immediate, one LEB number, two, by their first byte.
_NONE = frozenset([0x00, 0x01, 0x05, 0x0B, 0x0F, 0x1A, 0x1B, 0xD1, *range(0x45, 0xC5)])
_ONE = frozenset([0x02, 0x03, 0x04, 0x0C, 0x0D, 0x10, 0x12, *range(0x20, 0x26), 0x3F, 0x40, 0x41, 0x42, 0xD0, 0xD2])
_TWO = frozenset([0x11, 0x13])
_MEMORY_ACCESS = range(0x28, 0x3F)
#: Behind 0xFC: the conversions, memory.copy, memory.fill, table.size. The others change tables or segments.
_MORE = {**dict.fromkeys(range(8), 0), 10: 2, 11: 1, 16: 1}


def hides_no_state(module: CoreModule) -> bool:
    """Whether all that the module's code can change is memory and globals. Reads every instruction."""
    reader = Reader(module.payload(CODE) or b"\0")
    for _ in range(reader.number()):
        end = reader.number() + reader.at
        for _ in range(reader.number()):  # groups of locals
            reader.number()
            reader.byte()
        while reader.at < end:
            if not _known(reader):
                return False
    return True


def _known(reader: Reader) -> bool:
    """Read over one instruction. False when it is one that may change what is not seen."""
    code = reader.byte()
    if code in _NONE:
        return True
    if code in _ONE:
        reader.number()
    elif code in _MEMORY_ACCESS:
        _access(reader)
    elif code in _TWO:
        reader.number()
        reader.number()
    elif code == 0x0E:
        for _ in range(reader.number() + 1):
            reader.number()
    elif code == 0x1C:
        reader.take(reader.number())
    elif code in (0x43, 0x44):
        reader.take(4 if code == 0x43 else 8)
    elif code == 0xFC:
        numbers = _MORE.get(reader.number())
        if numbers is None:
            return False
        for _ in range(numbers):
            reader.number()
    elif code == 0xFD:
        _vector(reader)
    else:
        return False
    return True


def _access(reader: Reader) -> None:
    if reader.number() & 0x40:  # of a memory that is named
        reader.number()
    reader.number()


def _vector(reader: Reader) -> None:
    code = reader.number()
    if code <= 11 or code in (92, 93):
        _access(reader)
    elif code in (12, 13):
        reader.take(16)
    elif 21 <= code <= 34:
        reader.byte()
    elif 84 <= code <= 91:
        _access(reader)
        reader.byte()

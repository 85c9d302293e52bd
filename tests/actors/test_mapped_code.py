"""Which code stays mapped, against a store that knows what it has mapped."""

import pytest

from actors.mapped_code import Loan, MappedCode, MappedCodeLimits


class Files:
    """Code as files: mapped once, until it is forgotten."""

    def __init__(self) -> None:
        self.mapped: dict[str, object] = {}
        self.times_mapped = 0

    def map(self, digest: str) -> object:
        if digest == "missing":
            raise FileNotFoundError(digest)
        if digest not in self.mapped:
            self.times_mapped += 1
            self.mapped[digest] = object()
        return self.mapped[digest]

    def forget(self, digest: str) -> None:
        del self.mapped[digest]

    def bytes_of(self, digest: str) -> int:
        return 10 * int(digest)


def shelf(files: Files, **limits: int) -> MappedCode[object]:
    return MappedCode(files.map, files.forget, files.bytes_of, MappedCodeLimits(**limits))


def used(code: MappedCode[object], digest: str) -> Loan[object]:
    """Taken and given back."""
    loan = code.take(digest)
    code.give_back(loan)
    return loan


def test_code_outlives_its_last_isolate() -> None:
    files = Files()
    code = shelf(files)
    first = used(code, "1")
    again = code.take("1")
    assert (first.was_mapped, again.was_mapped) == (False, True)
    assert again.code is first.code
    assert files.times_mapped == 1
    seen = code.statistics()
    assert (seen["from_file"], seen["from_mapped"], seen["mapped"], seen["idle"]) == (1, 1, 1, 0)


def test_what_was_idle_for_longest_is_put_away() -> None:
    files = Files()
    code = shelf(files, idle_max=2)
    for digest in "1213":
        used(code, digest)
    assert set(files.mapped) == {"1", "3"}
    assert code.statistics()["put_away"] == 1


def test_idle_bytes_are_bounded() -> None:
    files = Files()
    code = shelf(files, idle_bytes_max=60)
    for digest in "1234":
        used(code, digest)
    assert set(files.mapped) == {"4"}
    assert code.statistics()["idle_bytes"] == 40
    used(code, "9")  # larger than all of the bound
    assert files.mapped == {}


def test_what_is_in_use_is_never_put_away() -> None:
    files = Files()
    code = shelf(files, idle_max=0)
    one, another = code.take("1"), code.take("1")
    code.give_back(one)
    assert code.put_away_idle() == 0
    assert set(files.mapped) == {"1"}
    code.give_back(another)
    assert files.mapped == {}


def test_memory_is_short() -> None:
    files = Files()
    code = shelf(files)
    held = code.take("1")
    for digest in "234":
        used(code, digest)
    assert code.put_away_idle() == 3
    assert set(files.mapped) == {held.digest}
    assert code.statistics()["idle_bytes"] == 0


def test_code_that_is_not_to_be_had_leaves_nothing() -> None:
    code = shelf(Files())
    with pytest.raises(FileNotFoundError):
        code.take("missing")
    assert code.statistics() == dict.fromkeys(code.statistics(), 0)

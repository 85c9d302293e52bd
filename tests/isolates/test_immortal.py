"""Marks go to what is an object still, and to nothing else."""

import struct
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from isolates.immortal import LIST_BYTES_MAX, with_immortals

#: How CPython marks counts on 32-bit machines; any value that no count has would do.
MARK = 0x3FFF_FFFF
FIRST_COUNT_THAT_IS_NONE = 1 << 20
KIND, OTHER_KIND = 0x0050_0000, 0x0060_0000


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def listed(*pairs: tuple[int, int], mark: int = MARK) -> bytes:
    return words(mark, *(number for pair in pairs for number in pair))


class TestMarks:
    @pytest.mark.parametrize("count", [1, 2, FIRST_COUNT_THAT_IS_NONE - 1])
    def test_an_object_whose_count_is_one(self, count: int) -> None:
        memory = words(7, count, KIND, 7)
        assert with_immortals(memory, listed((4, KIND))) == words(7, MARK, KIND, 7)

    @pytest.mark.parametrize("count", [0, FIRST_COUNT_THAT_IS_NONE, 0x0123_4560, MARK, 0xFFFF_FFFF])
    def test_not_what_was_freed_or_is_marked(self, count: int) -> None:
        """A block in a free list begins with the next one's address, the last with 0."""
        memory = words(count, KIND)
        assert with_immortals(memory, listed((0, KIND))) == memory

    def test_not_what_is_of_another_type_by_now(self) -> None:
        memory = words(1, OTHER_KIND, 1, KIND)
        assert with_immortals(memory, listed((0, KIND), (8, OTHER_KIND))) == memory

    def test_objects_at_both_ends_and_side_by_side(self) -> None:
        memory = words(1, KIND, 2, OTHER_KIND, 3, KIND)
        pairs = (0, KIND), (8, OTHER_KIND), (16, KIND)
        assert with_immortals(memory, listed(*pairs)) == words(MARK, KIND, MARK, OTHER_KIND, MARK, KIND)

    def test_what_is_looked_at_is_the_memory_as_it_was(self) -> None:
        """A list may name one object twice, and one in another: no mark is taken for a count or a type."""
        memory = words(1, 2, 3)
        assert with_immortals(memory, listed((0, 2), (0, 2), (4, 3), (0, MARK))) == words(MARK, MARK, 3)

    def test_an_empty_list(self) -> None:
        assert with_immortals(words(1, KIND), listed()) == words(1, KIND)
        assert with_immortals(b"", listed()) == b""

    def test_the_mark_is_the_lists(self) -> None:
        for mark in (FIRST_COUNT_THAT_IS_NONE, 5 << 28, 0xFFFF_FFFF):
            assert with_immortals(words(1, KIND), listed((0, KIND), mark=mark)) == words(mark, KIND)


class TestRefuses:
    @pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 9, 10, 11, 16, LIST_BYTES_MAX])
    def test_a_length_that_is_none(self, size: int) -> None:
        """One that is as long as an answer is kept was cut off: its length is no list's."""
        assert with_immortals(bytes(64), bytes([0xFF]) * size) is None

    @pytest.mark.parametrize("mark", [0, 1, FIRST_COUNT_THAT_IS_NONE - 1])
    def test_a_mark_that_could_be_a_count(self, mark: int) -> None:
        assert with_immortals(words(1, KIND), listed((0, KIND), mark=mark)) is None

    @pytest.mark.parametrize("at", [1, 2, 3, 5, 7])
    def test_an_address_between_words(self, at: int) -> None:
        assert with_immortals(bytes(64), listed((0, KIND), (at, 0))) is None

    @pytest.mark.parametrize("at", [60, 64, 68, 1 << 31, 0xFFFF_FFFC])
    def test_an_object_that_is_not_all_in_the_memory(self, at: int) -> None:
        assert with_immortals(bytes(64), listed((56, KIND))) == bytes(64)
        assert with_immortals(bytes(64), listed((56, KIND), (at, 0))) is None

    @pytest.mark.parametrize("size", [0, 4, 7])
    def test_a_memory_too_small_for_an_object(self, size: int) -> None:
        assert with_immortals(bytes(size), listed((0, 0))) is None


def model(memory: list[int], mark: int, pairs: Iterable[tuple[int, int]]) -> list[int] | None:
    """The same with a memory of words."""
    if mark < FIRST_COUNT_THAT_IS_NONE:
        return None
    marked = {}
    for at, kind in pairs:
        place = at // 4
        if at != place * 4 or place + 1 >= len(memory):
            return None
        if memory[place + 1] == kind and 1 <= memory[place] < FIRST_COUNT_THAT_IS_NONE:
            marked[place] = mark
    return [marked.get(place, word) for place, word in enumerate(memory)]


WORD = st.sampled_from([0, 1, 2, FIRST_COUNT_THAT_IS_NONE - 1, FIRST_COUNT_THAT_IS_NONE, KIND, MARK])
#: Some beyond the memory and some between its words, but most of them good: one bad address spoils all of a list.
ADDRESS = st.one_of(*[st.integers(0, 9).map(lambda word: 4 * word)] * 20, st.integers(0, 50))


@given(st.lists(WORD, max_size=12), WORD | st.just(MARK), st.lists(st.tuples(ADDRESS, WORD), max_size=8))
@example([1] * 12, MARK, [(0, 1), (0, 1), (4, 1)])
def test_it_does_what_the_model_does(memory: list[int], mark: int, pairs: list[tuple[int, int]]) -> None:
    expected = model(memory, mark, pairs)
    found = with_immortals(words(*memory), listed(*pairs, mark=mark))
    assert found == (None if expected is None else words(*expected))


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_of_anything_at_all_it_makes_a_memory_of_the_same_length_or_nothing(memory: bytes, anything: bytes) -> None:
    found = with_immortals(memory, anything)
    assert found is None or len(found) == len(memory)

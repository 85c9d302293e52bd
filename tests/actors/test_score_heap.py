"""The heap against a dictionary that is searched from end to end."""

from hypothesis import given
from hypothesis import strategies as st

from actors.score_heap import ScoreHeap

STEPS = st.lists(st.tuples(st.sampled_from(["put", "discard", "first"]), st.integers(0, 9), st.integers(0, 5)))


@given(STEPS)
def test_the_first_is_the_lowest(steps: list[tuple[str, int, int]]) -> None:
    heap, scores = ScoreHeap(), dict[int, float]()
    for what, item, score in steps:
        if what == "put":
            heap.put(item, score)
            scores[item] = score
        elif what == "discard":
            heap.discard(item)
            scores.pop(item, None)
        assert heap.first() == (min((s, i) for i, s in scores.items()) if scores else None)
        assert len(heap) == len(scores)


def test_stale_entries_do_not_pile_up() -> None:
    heap = ScoreHeap()
    for i in range(100_000):
        heap.put(i % 10, float(i))
    assert heap.entries <= 2 * 10 + 64
    assert heap.first() == (99_990.0, 0)

"""A set of numbers ordered by score: the one with the lowest score is found without looking at the others. Pure.

A binary heap cannot take out what lies in its middle. So what is discarded, or put again with another score, stays in
the heap as a stale entry and is skipped when it comes up; the dictionary of scores says what is true. When most of the
heap is stale it is built anew, which costs no more than the pushes that made it so: every operation is O(log n) in
the long run, and the heap is never much larger than the set.
"""

import heapq

#: Stale entries that are not worth a rebuild, however small the set is.
_STALE_MAX = 64


class ScoreHeap:
    """Items (whole numbers) by score, lowest first; equal scores by item."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []
        self._scores: dict[int, float] = {}

    def put(self, item: int, score: float) -> None:
        """Add ``item``, or give it another score."""
        self._scores[item] = score
        heapq.heappush(self._entries, (score, item))
        if len(self._entries) > 2 * len(self._scores) + _STALE_MAX:
            self._entries = [(score, item) for item, score in self._scores.items()]
            heapq.heapify(self._entries)

    def discard(self, item: int) -> None:
        """Take ``item`` out, if it is in."""
        self._scores.pop(item, None)

    def first(self) -> tuple[float, int] | None:
        """The lowest score and its item; None when the set is empty."""
        entries, scores = self._entries, self._scores
        while entries and scores.get(entries[0][1]) != entries[0][0]:
            heapq.heappop(entries)
        return entries[0] if entries else None

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def entries(self) -> int:
        """Entries with the stale ones: what it costs in memory."""
        return len(self._entries)

"""A set of numbers ordered by score: the one with the lowest score is found without looking at the others. Pure.

A binary heap cannot take out or move what lies in its middle. So the dictionary of scores says what is true, and an
item's entry in the heap is a lower bound of it: what is discarded, or put again with a higher score, keeps its entry,
which is dropped or moved when it comes up. Scores here nearly always rise (an isolate that was used again is dearer,
and expires later), so the common ``put`` is two look-ups and no push. When most of the heap is stale it is built anew,
which costs no more than the pushes that made it so: every operation is O(log n) in the long run, and the heap is never
much larger than the set.
"""

import heapq

#: Stale entries that are not worth a rebuild, however small the set is.
_STALE_MAX = 64


class ScoreHeap:
    """Items (whole numbers) by score, lowest first; equal scores by item."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int]] = []
        self._scores: dict[int, float] = {}
        self._queued: dict[int, float] = {}  # the score under which an item is in the heap; other entries are void

    def put(self, item: int, score: float) -> None:
        """Add ``item``, or give it another score."""
        self._scores[item] = score
        queued = self._queued.get(item)
        if queued is not None and queued <= score:
            return
        self._queued[item] = score
        heapq.heappush(self._entries, (score, item))
        if len(self._entries) > 2 * len(self._scores) + _STALE_MAX:
            self._entries = [(score, item) for item, score in self._scores.items()]
            self._queued = dict(self._scores)
            heapq.heapify(self._entries)

    def discard(self, item: int) -> None:
        """Take ``item`` out, if it is in."""
        self._scores.pop(item, None)

    def first(self) -> tuple[float, int] | None:
        """The lowest score and its item; None when the set is empty."""
        entries, scores, queued = self._entries, self._scores, self._queued
        while entries:
            entry = entries[0]
            bound, item = entry
            if queued.get(item) != bound:
                heapq.heappop(entries)
            elif (score := scores.get(item)) is None:
                heapq.heappop(entries)
                del queued[item]
            elif score == bound:
                return entry
            else:
                queued[item] = score
                heapq.heapreplace(entries, (score, item))
        return None

    def score(self, item: int) -> float:
        """The score of an item that is in. ``KeyError`` when it is not."""
        return self._scores[item]

    def __contains__(self, item: int) -> bool:
        return item in self._scores

    def __len__(self) -> int:
        return len(self._scores)

    @property
    def entries(self) -> int:
        """Entries with the stale ones: what it costs in memory."""
        return len(self._entries)

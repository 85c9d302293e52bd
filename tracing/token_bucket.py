"""So many a second, and a burst of them at once. Pure: the clock is an argument."""

from __future__ import annotations


class TokenBucket:
    """`per_s` tokens come in each second; at most `burst_s` seconds of them are held."""

    def __init__(self, per_s: float, burst_s: float) -> None:
        self._per_s = per_s
        # A rate below one in two seconds still lets one through when its time has come.
        self._capacity = max(per_s * burst_s, 1.0) if per_s > 0 else 0.0
        self.level = self._capacity
        self._filled_s: float | None = None

    def take(self, now_s: float) -> bool:
        if self._filled_s is not None:
            self.level = min(self._capacity, self.level + max(0.0, now_s - self._filled_s) * self._per_s)
        self._filled_s = now_s if self._filled_s is None else max(self._filled_s, now_s)
        if self.level < 1.0:
            return False
        self.level -= 1.0
        return True

"""What one request can do with key-value stores: one operation at a time, carried out elsewhere.

The sandbox keeps nothing itself. Whoever runs an isolate hands it ``Stores``: on a server that is a line to the
machine's Server process, in a test a file. Where none is handed in, no store can be opened (``NoStores``).
"""

from dataclasses import dataclass
from typing import Protocol

#: A case of ``wasi:keyvalue/store.error`` with its payload: ``("no-such-store", None)``, ``("other", "why")``.
StoreError = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class StoreAsked:
    """One operation: ``open``, ``get``, ``set``, ``delete``, ``exists``, ``list`` or ``increment``.

    ``get``, ``set`` and ``delete`` take any number of keys, and ``set`` a value for each. ``list`` begins after
    ``cursor``.
    """

    op: str
    keys: tuple[str, ...] = ()
    values: tuple[bytes, ...] = ()
    delta: int = 0
    cursor: int | None = None


@dataclass(frozen=True, slots=True)
class StoreTold:
    """Its answer: of ``get`` a value or None for each key, of ``exists`` how many are there, of ``increment`` the new
    number, of ``list`` some keys and where to go on (None: these were the last). ``error``: nothing was done."""

    values: tuple[bytes | None, ...] = ()
    keys: tuple[str, ...] = ()
    number: int = 0
    cursor: int | None = None
    error: StoreError | None = None


class StoreCall(Protocol):
    """An operation under way, used by one thread; whoever began it closes it."""

    def fileno(self) -> int:
        """Readable when ``told`` may have the answer."""

    def told(self) -> StoreTold | None:
        """The answer, or None while it has not come. Does not wait."""

    def close(self) -> None:
        """Nobody waits for it any more; it may have been carried out all the same. Safe to call twice."""


class Stores(Protocol):
    """The stores of one version."""

    def begin(self, store: str, asked: StoreAsked) -> StoreCall | StoreTold:
        """Begin an operation on the store that the guest calls ``store``. Does not wait; an answer at once is a
        refusal."""


class NoStores:
    """No store is bound."""

    def begin(self, store: str, asked: StoreAsked) -> StoreTold:
        """There is none of that name."""
        return StoreTold(error=("no-such-store", None))

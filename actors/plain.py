"""Strict reading of plain data: dicts of strings, numbers and lists, as they travel between processes and rest on disk.

A field missing, one too many, or of a newer schema is a ValueError with the field's name, because what is half
understood would be half enforced. What was written before a field existed is read with what its absence meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_NO_FIELDS: Final[Mapping[int, Mapping[str, object]]] = {}


def checked_fields(
    plain: object,
    what: str,
    names: tuple[str, ...],
    *,
    schema: int | None = None,
    since: Mapping[int, Mapping[str, object]] = _NO_FIELDS,
) -> dict[str, object]:
    """`plain` as a new dict with exactly `names` in it. Raises ValueError naming the field that is wrong.

    `schema`: the highest schema number that is understood; the dict must have one, which is taken off. None for a dict
    inside another one, which has none of its own. `since`: by schema number, what those before it did not have, with
    what that meant.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"{what}: must be a dict")
    values: dict[str, object] = dict(plain)
    if schema is not None:
        number = values.pop("schema", None)
        if type(number) is not int or not 1 <= number <= schema:
            raise ValueError(f"schema: {what} has {number!r}, this program reads 1 to {schema}")
        later = {name: meant for n, added in since.items() if number < n for name, meant in added.items()}
        for name in later:
            if name in values:
                raise ValueError(f"{name!r}: unknown in a {what} of schema {number}")
        values |= later
    for name in names:
        if name not in values:
            raise ValueError(f"{name}: missing from {what}")
    for given in values:
        if given not in names:
            raise ValueError(f"{str(given)[:64]!r}: unknown in {what}")
    return values


def checked_list(plain: object, what: str, most: int) -> list[object]:
    """`plain` as a list of at most `most`. Raises ValueError naming `what`."""
    if not isinstance(plain, list | tuple) or len(plain) > most:
        raise ValueError(f"{what}: must be a list of at most {most}")
    return list(plain)

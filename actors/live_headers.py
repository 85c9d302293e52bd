"""Headers of requests in live events: which ones somebody may ask for, and what of them is told. Pure.

An event has those headers that a reader asks for, and no others: hosts are told their names along with who is watched.
What is named like a secret nobody can ask for, since whoever may guess often enough at what is redacted has read it in
the end. What looks like one, under whatever name, is redacted before it leaves the host that ran the request, and a
filter sees what is left.
"""

import re
from collections.abc import Collection, Iterable
from typing import Final

from actors.egress_policy import INTERNAL_PREFIX
from tracing.redaction import names_a_secret, redact_header

#: Names that hosts are told, of all readers of a machine; each costs a look at every header of a watched request.
NAMES_MAX: Final = 64
#: Of a value: a user agent, a referer, a list of languages. The rest is cut.
VALUE_CHARS_MAX: Final = 1_024
#: Of one event: a name may come as often as there is room for it in a head.
_VALUES_MAX: Final = 64
_TEXT_CHARS_MAX: Final = 256
_NAME: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}")

#: A header's name in lower case, and a text that its value has in it; "" is in all.
HeaderFilter = tuple[str, str]


def parse_header(text: str) -> HeaderFilter:
    """A filter as people write it: ``KEY:VALUE``, or ``KEY`` for requests that have such a header. ValueError says
    what is wrong."""
    name, _, value = text.partition(":")
    return checked_header((name.strip().lower(), value.strip()))


def checked_header(wanted: HeaderFilter) -> HeaderFilter:
    """The filter, if somebody may ask for it. ValueError says why not."""
    name, text = wanted
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"a header is like accept-language:de, not {name[:64]!r}")
    if names_a_secret(name) or name.startswith(INTERNAL_PREFIX):
        raise ValueError(f"{name} is redacted, as all headers that may hold a secret, and nobody can look for it")
    if len(text) > _TEXT_CHARS_MAX:
        raise ValueError(f"a header is looked through for at most {_TEXT_CHARS_MAX} characters")
    return wanted


def told_headers(headers: Iterable[tuple[str, bytes]], names: Collection[str]) -> tuple[tuple[str, str], ...]:
    """Those of a request's headers that are asked for: with lower-case names, redacted, and cut."""
    found: list[tuple[str, str]] = []
    for name, value in headers:
        lower = name.lower()
        if lower in names and len(found) < _VALUES_MAX:
            found.append((lower, redact_header(lower, value.decode("latin-1"))[:VALUE_CHARS_MAX]))
    return tuple(found)


def has_header(headers: Iterable[tuple[str, str]], wanted: Iterable[HeaderFilter]) -> bool:
    """Whether one of the filters finds its header."""
    told = tuple(headers)
    return any(name == there and text in value for name, text in wanted for there, value in told)

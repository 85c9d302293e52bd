"""What must not be in a trace: credentials in query strings and headers.

Redaction goes by the name of a parameter, split into words (`api_key`, `apiKey`, `X-Amz-Signature`), and, since not
everybody names a token so, by the form of the value. It errs to the side of hiding: `country_code=de` is hidden too.
Names and order of the parameters stay, so that a trace still tells which request it was.

Pure. Redact before a value becomes an attribute: nothing after that looks at it again.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_plus

# The word OpenTelemetry's conventions for `url.query` give for a hidden value.
REDACTED: Final = "REDACTED"

_SECRET_WORDS: Final = frozenset(
    {
        "auth",
        "authentication",
        "authorization",
        "oauth",
        "bearer",
        "code",
        "cookie",
        "cookies",
        "key",
        "keys",
        "otp",
        "pass",
        "passcode",
        "passwd",
        "password",
        "pin",
        "pwd",
        "secret",
        "secrets",
        "session",
        "sid",
        "sig",
        "sign",
        "signature",
        "token",
        "tokens",
        "apikey",
        "jwt",
        "saml",
        "assertion",
        "ticket",
        "credential",
        "credentials",
        "hmac",
        "nonce",
    }
)
# Parts that name a secret even when nothing marks the word: accesstoken, clientsecret, dbpassword.
_SECRET_PARTS: Final = ("token", "secret", "passw", "signature", "apikey", "credential", "session")
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_JWT: Final = re.compile(r"eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]*")
# 40 characters without a space, letters and digits mixed: longer than a UUID (36), as long as the shortest API keys.
_RANDOM: Final = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9_.~+/=-]{40,}")
_SEPARATOR: Final = re.compile(r"([&;])")


# A value may be an address, with a query that has one in it. Nobody nests them deeper in good faith.
_DEPTH_MAX: Final = 3
_USER_INFO: Final = re.compile(r"//[^/?#@]*@")


def redact_query(query: str) -> str:
    """A query string (without "?") with the values that look like secrets replaced by `REDACTED`.

    A value that is an address is looked through as well.
    """
    return _redacted(query, _DEPTH_MAX)


def _redacted(query: str, depth_left: int) -> str:
    return "".join(part if part in "&;" else _redact_pair(part, depth_left) for part in _SEPARATOR.split(query))


def redact_header(name: str, value: str) -> str:
    """A header's value, or `REDACTED` for cookies, authorization, and whatever is named or looks like a secret.

    Of a value that is an address, as a referer's, the query is redacted.
    """
    if names_a_secret(name) or any(_looks_random(word) for word in value.split()):
        return REDACTED
    address, question, query = value.partition("?")
    return f"{_USER_INFO.sub(f'//{REDACTED}@', address)}{question}{redact_query(query)}"


def _redact_pair(pair: str, depth_left: int) -> str:
    name, equals, value = pair.partition("=")
    if not equals:
        return REDACTED if _looks_random(unquote_plus(name)) else pair
    if value and (names_a_secret(unquote_plus(name)) or _looks_random(unquote_plus(value))):
        return f"{name}={REDACTED}"
    plain = unquote_plus(value)
    if _USER_INFO.search(plain):
        return f"{name}={REDACTED}"
    address, question, inner = plain.partition("?")
    if not question:
        return pair
    redacted = _redacted(inner, depth_left - 1) if depth_left > 0 else REDACTED
    if redacted == inner:
        return pair
    # What was written in another way is not written anew: nobody would know it again.
    return f"{name}={address}?{redacted}" if plain == value else f"{name}={REDACTED}"


def names_a_secret(name: str) -> bool:
    """Whether a parameter or a header of that name may hold a secret."""
    if any(word.lower() in _SECRET_WORDS for word in _WORD.findall(name)):
        return True
    # The whole name too: "PassWord" and "SID2" fall apart as words.
    lower = name.lower()
    return any(part in lower for part in _SECRET_PARTS) or lower in _SECRET_WORDS


def _looks_random(value: str) -> bool:
    return _JWT.fullmatch(value) is not None or _RANDOM.fullmatch(value) is not None

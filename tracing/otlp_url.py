"""Where a signal goes: the address that an operator gives may be an OTLP base, or that of one signal. Pure."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit, urlunsplit

_TRACES_PATH: Final = "/v1/traces"
_METRICS_PATH: Final = "/v1/metrics"


def traces_endpoint(url: str) -> str:
    """The full OTLP/HTTP address of a base url ("http://127.0.0.1:4318") or of one that is full already.

    ValueError when it is not an http or https url with a host.
    """
    return _endpoint(url, _TRACES_PATH)


def metrics_endpoint(url: str) -> str:
    """The same for metrics; of a full address for traces, the one beside it."""
    return _endpoint(url, _METRICS_PATH)


def _endpoint(url: str, signal: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an OTLP url looks like http://127.0.0.1:4318 or https://HOST/v1/traces")
    path = parts.path.rstrip("/")
    for known in (_TRACES_PATH, _METRICS_PATH):
        path = path.removesuffix(known)
    return urlunsplit(parts._replace(path=path + signal, fragment=""))

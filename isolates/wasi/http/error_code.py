"""``error-code``: the 39 ways in which HTTP can fail, and which of them is behind a failed stream."""

from typing import Any

from isolates.guest import Guest
from isolates.wasi.io import IoError
from isolates.wit import Interface

#: Case -> the type of its payload, or None.
CASES: dict[str, str | None] = {
    "DNS-timeout": None,
    "DNS-error": "DNS-error-payload",
    "destination-not-found": None,
    "destination-unavailable": None,
    "destination-IP-prohibited": None,
    "destination-IP-unroutable": None,
    "connection-refused": None,
    "connection-terminated": None,
    "connection-timeout": None,
    "connection-read-timeout": None,
    "connection-write-timeout": None,
    "connection-limit-reached": None,
    "TLS-protocol-error": None,
    "TLS-certificate-error": None,
    "TLS-alert-received": "TLS-alert-received-payload",
    "HTTP-request-denied": None,
    "HTTP-request-length-required": None,
    "HTTP-request-body-size": "option<u64>",
    "HTTP-request-method-invalid": None,
    "HTTP-request-URI-invalid": None,
    "HTTP-request-URI-too-long": None,
    "HTTP-request-header-section-size": "option<u32>",
    "HTTP-request-header-size": "option<field-size-payload>",
    "HTTP-request-trailer-section-size": "option<u32>",
    "HTTP-request-trailer-size": "field-size-payload",
    "HTTP-response-incomplete": None,
    "HTTP-response-header-section-size": "option<u32>",
    "HTTP-response-header-size": "field-size-payload",
    "HTTP-response-body-size": "option<u64>",
    "HTTP-response-trailer-section-size": "option<u32>",
    "HTTP-response-trailer-size": "field-size-payload",
    "HTTP-response-transfer-coding": "option<string>",
    "HTTP-response-content-coding": "option<string>",
    "HTTP-response-timeout": None,
    "HTTP-upgrade-failed": None,
    "HTTP-protocol-error": None,
    "loop-detected": None,
    "configuration-error": None,
    "internal-error": "option<string>",
}


def define(types: Interface) -> None:
    """The variant ``error-code`` with its payloads, and ``http-error-code``."""
    types.record("DNS-error-payload", {"rcode": "option<string>", "info-code": "option<u16>"})
    types.record("TLS-alert-received-payload", {"alert-id": "option<u8>", "alert-message": "option<string>"})
    types.record("field-size-payload", {"field-name": "option<string>", "field-size": "option<u32>"})
    types.variant("error-code", CASES)

    @types.func("http-error-code: func(err: borrow<io-error>) -> option<error-code>")
    def http_error_code(guest: Guest, error: IoError) -> Any:
        return error.code

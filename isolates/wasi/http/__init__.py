"""wasi:http: what a guest is asked, what it answers, and what it asks others.

A component answers by *setting* the response outparam with a head and then writing its body through streams; the
body may go on after the head, and even after ``set``. A body that is dropped without ``finish`` is broken on purpose:
the client must not take it for a whole one. The same holds, the other way round, for the requests it makes.

One file a noun: ``fields``, ``error_code``; ``incoming`` is the client's request, ``response`` the answer to it;
``request`` is one that the guest makes, ``exchange`` its way out and back, ``answer`` what came back. ``outgoing_body``
is what bodies of responses and of requests have in common.
"""

from isolates.wasi.http import answer, error_code, fields, incoming, outgoing_body, request, response
from isolates.wit import World


def define(world: World) -> None:
    """wasi:http/types, wasi:http/outgoing-handler."""
    types = world.interface("wasi:http/types@0.2.12")
    for name, original in (
        ("io-error", "error"), ("input-stream", "input-stream"), ("output-stream", "output-stream"),
        ("pollable", "pollable"),
    ):  # fmt: skip
        types.use_resource(name, original)
    for resource in (
        "fields", "incoming-request", "incoming-body", "outgoing-response", "outgoing-body", "response-outparam",
        "future-trailers", "outgoing-request", "request-options", "incoming-response", "future-incoming-response",
    ):  # fmt: skip
        types.resource(resource)
    types.use_resource("headers", "fields")
    types.use_resource("trailers", "fields")
    types.alias("status-code", "u16")
    types.variant("method", {**dict.fromkeys(incoming.METHODS), "other": "string"})
    types.variant("scheme", {"HTTP": None, "HTTPS": None, "other": "string"})
    types.variant("header-error", dict.fromkeys(("invalid-syntax", "forbidden", "immutable")))
    for part in (error_code, fields, incoming, outgoing_body, response, request, answer):
        part.define(types)

    handler = world.interface("wasi:http/outgoing-handler@0.2.12")
    for resource in ("outgoing-request", "request-options", "future-incoming-response"):
        handler.use_resource(resource, resource)
    answer.define_handler(handler)

"""A WSGI application as a worker: answers JSON, and echoes a body at /echo, as it comes."""

import json
import platform
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

READ_BYTES_MAX = 65536
# What a worker computes at its top level is done once, when it is built: this compiles a regular expression, which
# would cost every isolate's first request three milliseconds and a megabyte.
PYTHON_VERSION = platform.python_version()


def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/echo":
        start_response("200 OK", [("content-type", environ.get("CONTENT_TYPE", "application/octet-stream"))])
        return iter(lambda: environ["wsgi.input"].read1(READ_BYTES_MAX), b"")
    shown = {
        "hello": environ["everwarm.vars"]["GREETING"],
        "method": environ["REQUEST_METHOD"],
        "path": environ["PATH_INFO"],
        "python": PYTHON_VERSION,
    }
    start_response("200 OK", [("content-type", "application/json")])
    return [json.dumps(shown).encode()]

"""Why a batch did not arrive: OpenTelemetry's exporters say it to their log only."""

from __future__ import annotations

import logging
import re
import threading
from typing import Final

_STATUS_CODE: Final = re.compile(r"code: ([0-9]{3})\b")


class ErrorsOfThread(logging.Filter):
    """A line or more for each batch: those of one thread are caught here, and not printed.

    Only the status code is read: the rest of the text may contain the url with its keys.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread_id = -1
        self.last: str | None = None

    def follow_this_thread(self) -> None:
        """What is caught is from the calling thread."""
        self._thread_id = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.thread != self._thread_id:
            return True
        code = _STATUS_CODE.search(record.getMessage())
        if code is not None:
            self.last = f"status {code.group(1)}"
        return False

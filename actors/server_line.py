"""A host's line to its Server: single frames over the Server's socket, from any thread.

What is said here is news (this version is warm, that one is cold), worth no wait: when the Server is away the frame is
dropped, and the Server's picture is corrected by the next one or by an answer's start type.
"""

import socket
import threading
from pathlib import Path

from actors.connection import Frame, LinkBroken, frame
from actors.host_conversation import LinkSocket


class ServerLine:
    """One connection to the Server's socket, made when it is needed."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._lock = threading.Lock()
        self._link: LinkSocket | None = None

    def tell(self, kind: Frame, payload: bytes) -> None:
        """Send one frame; a second try on a new connection, since a Server may have been restarted."""
        with self._lock:
            for _ in range(2):
                try:
                    if self._link is None:
                        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                        made.connect(self._path)
                        self._link = LinkSocket(made)
                    self._link.send(frame(kind, payload))
                    return
                except (OSError, LinkBroken):
                    if self._link is not None:
                        self._link.close()
                        self._link = None

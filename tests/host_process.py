"""A host in a process of its own, that a test can kill: the real thing, without Ray.

Run as a program it is that process; it prints one line of statistics for each line that it reads.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]


class HostProcess:
    """The handle of such a process. One sibling a version, so that a second request waits in line."""

    def __init__(self, server: str, socket: Path, code: Path, server_socket: Path, cordon: str) -> None:
        self.socket = socket
        self.cordon = cordon
        self._arguments = [server, str(socket), str(code), str(server_socket), cordon]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "listening\n"

    def statistics(self) -> dict[str, Any]:
        """What the host counts."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("statistics\n")
        self._process.stdin.flush()
        counted: dict[str, Any] = json.loads(self._process.stdout.readline())
        return counted

    def kill(self) -> None:
        """End it as a crash of the engine would. Safe to call again."""
        process, self._process = self._process, None
        if process is not None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def main() -> None:
    """The process itself."""
    from actors.connection import Frame
    from actors.isolate_host import IsolateHost
    from actors.residency import ResidencyLimits
    from actors.server_line import ServerLine

    server, socket, code, server_socket, cordon = sys.argv[1:]
    line = ServerLine(Path(server_socket))
    host = IsolateHost(
        f"{server}/{Path(socket).stem}",
        Path(socket),
        Path(code),
        server=server,
        tell_server=line.tell,
        server_socket=Path(server_socket),
        residency_limits=ResidencyLimits(siblings_max=1),
        cordon=cordon,
    )
    line.tell(Frame.NOTICE, f"began {host.start()}".encode())
    print("listening", flush=True)
    for _ in sys.stdin:
        print(json.dumps(host.statistics()), flush=True)


if __name__ == "__main__":
    main()

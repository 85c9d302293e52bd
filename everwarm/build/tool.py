"""One run of a toolchain's program, and the one way in which a build fails.

What a tool says is shown to the worker's author, so it is kept (its tail, bounded) with the machine's paths replaced
by names that mean something to a reader.
"""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# The end of a tool's output is where it says what is wrong; more than this nobody reads.
DETAIL_CHARS_MAX = 8000
# The slowest build known takes 40 s on a busy machine; past this the tool hangs.
BUILD_TIMEOUT_S = 300.0


class BuildError(Exception):
    """A build that ended without a component. `message` is one line; `detail` what the tool printed, or ""."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail


def run(
    command: Sequence[str],
    *,
    failure: str,
    cwd: Path,
    shown_as: Mapping[Path, str],
    relevant: Callable[[str], str] = str.strip,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float = BUILD_TIMEOUT_S,
) -> bytes:
    """Runs a program to its end and returns its stdout. Raises BuildError, whose message begins with `failure`.

    `shown_as` maps folders to what they are called in the error; `relevant` picks, from what the tool printed, the part
    that is about the worker. `env` is the whole environment; without it the
    program sees only what a compiler needs.
    """
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=dict(env) if env is not None else tool_environment(cwd),
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise BuildError(f"{failure}: {Path(command[0]).name} is not there") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{failure}: {Path(command[0]).name} did not end within {timeout_s:.0f} s") from None
    if done.returncode == 0:
        return done.stdout
    detail = relevant(_readable(done.stderr + done.stdout, shown_as)).strip()[-DETAIL_CHARS_MAX:]
    raise BuildError(f"{failure}: {_telling_line(detail, done.returncode)}", detail)


def tool_environment(scratch: Path) -> dict[str, str]:
    """Enough for a compiler, and nothing of the caller's secrets: where programs are, and a place for waste."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(scratch), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}


def _readable(output: bytes, shown_as: Mapping[Path, str]) -> str:
    text = output.decode(errors="replace")
    # The longest first: one folder may lie in another.
    for folder in sorted(shown_as, key=lambda folder: len(str(folder)), reverse=True):
        text = text.replace(str(folder), shown_as[folder])
    return text


def _telling_line(detail: str, status: int) -> str:
    lines = [line.strip() for line in detail.splitlines() if line.strip()]
    # A Python traceback ends with its point; compilers mark theirs with "error", and the first is often the cause.
    marked = [line for line in lines if "error" in line.lower() and not detail.startswith("Traceback")]
    line = (marked[:1] or lines[-1:] or [f"ended with status {status}"])[0]
    return line.removeprefix("✘ [ERROR] ")

"""What a disk that cannot be written to is called, for people: no path, no number.

A full disk is a matter of one machine, and no bug: whoever writes says what it is, and goes on with what is there.
"""

import errno
import sqlite3

_OF_ERRNO = {
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "its disk's quota is used up",
    errno.EROFS: "its disk can only be read",
    errno.EIO: "its disk fails",
}
#: SQLite's primary codes. A write that fails for want of room may be an I/O error to it.
_OF_SQLITE = {
    sqlite3.SQLITE_FULL: "its disk is full",
    sqlite3.SQLITE_IOERR: "its disk fails, or is full",
    sqlite3.SQLITE_READONLY: "its disk can only be read",
}


def disk_trouble(error: BaseException) -> str:
    """What is wrong with a machine's disk, to be said of the machine; empty when the error is about something else."""
    if isinstance(error, sqlite3.OperationalError):
        return _OF_SQLITE.get(error.sqlite_errorcode & 0xFF, "")
    return _OF_ERRNO.get(error.errno or 0, "") if isinstance(error, OSError) else ""

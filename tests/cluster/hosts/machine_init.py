"""The first process of a machine: makes the machine's own world, starts its sshd, and waits for what ends there.

It is started in fresh namespaces. On stdin it gets one line of JSON, when its network is there; on stdout it says
``made`` at first and ``ready`` when its sshd answers. When sshd ends, so does the machine.

What a machine has of its own: name, address, processes, /tmp, /root, /run and /dev/shm. Everything else is the file
system of the machine that it runs on, read-only.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

_SSHD_S = 10.0
#: What a machine writes to. Devices are shared: terminals are made there.
_PRIVATE = ("/tmp", "/root", "/run", "/dev", "/proc", "/sys")


def do(*command: str, check: bool = True) -> None:
    """One system command. When it has to work and does not, the machine does not start, and says why."""
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def below(path: str, place: str) -> bool:
    """Whether ``path`` is ``place``, or somewhere in it."""
    return path == place or path.startswith(place + "/")


def make_file_system(own: Path, keep: list[str], hosts: str, shm_mib: int) -> None:
    """``own`` holds the machine's /tmp and /root. What ``keep`` names stays visible where it is, read-only."""
    do("mount", "--make-rprivate", "/")
    for path in keep:
        if below(path, "/tmp") or below(path, "/root"):
            seen = own / path.lstrip("/")
            seen.mkdir(parents=True, exist_ok=True)
            do("mount", "--bind", path, str(seen))
            do("mount", "-o", "remount,bind,ro", str(seen))
    # Whichever of the two holds `own` itself is covered last.
    for name in sorted(("tmp", "root"), key=lambda name: below(str(own), f"/{name}")):
        do("mount", "--rbind", str(own / name), f"/{name}")
    do("mount", "-t", "tmpfs", "-o", f"size={shm_mib}m,mode=1777", "tmpfs", "/dev/shm")
    do("mount", "-t", "tmpfs", "-o", "size=16m,mode=755", "tmpfs", "/run")
    for name, text in (("hosts", hosts), ("resolv.conf", "")):  # nobody can be asked for names
        Path("/run", name).write_text(text)
        if Path("/etc", name).exists():
            do("mount", "--bind", f"/run/{name}", os.path.realpath(f"/etc/{name}"))
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for target in mounted:
        if not any(below(target, private) for private in _PRIVATE):
            # A file system that refuses is one that nobody could write to: only the root's has to obey.
            do("mount", "-o", "remount,bind,ro", target, check=target == "/")


def start_sshd(address: str, key: str, host_key: str) -> subprocess.Popen[bytes]:
    """An sshd of the machine's own that lets one key in, and the way to wait for it."""
    ssh = Path("/run/ssh")
    ssh.mkdir(mode=0o700)
    Path("/run/sshd").mkdir(mode=0o755)  # where Debian's sshd shuts its unprivileged half in
    (ssh / "authorized_keys").write_text(key)
    (ssh / "host_key").touch(mode=0o600)
    (ssh / "host_key").write_text(host_key)
    (ssh / "sshd_config").write_text(
        f"ListenAddress {address}\n"
        "HostKey /run/ssh/host_key\n"
        "PidFile /run/ssh/sshd.pid\n"
        "AuthorizedKeysFile /run/ssh/authorized_keys\n"
        "PermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM no\n"
        "UseDNS no\n"
        "PrintMotd no\n"
        # Ray's launcher opens many sessions at once.
        "MaxStartups 50\n"
        "MaxSessions 50\n"
    )
    # In a place of the machine's own: a file that is open for writing would keep the rest from being read-only.
    log = os.open("/tmp/sshd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sshd = subprocess.Popen(
        ["/usr/sbin/sshd", "-D", "-e", "-f", "/run/ssh/sshd_config"],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
    )
    until_s = time.monotonic() + _SSHD_S
    while True:
        try:
            socket.create_connection((address, 22), timeout=1.0).close()
            return sshd
        except OSError:
            if sshd.poll() is not None or time.monotonic() > until_s:
                raise SystemExit("sshd did not come up") from None
            time.sleep(0.02)


def main() -> None:
    """Until sshd ends."""
    print("made", flush=True)
    given = json.loads(sys.stdin.readline())
    own = Path(given["own"])
    do("ip", "link", "set", "lo", "up")
    socket.sethostname(given["name"])
    make_file_system(own, given["keep"], given["hosts"], given["shm_mib"])
    os.chdir("/")
    sshd = start_sshd(given["address"], given["key"], given["host_key"])
    print("ready", flush=True)
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1):  # whoever started this may be gone tomorrow
        os.dup2(nothing, stream)
    while os.wait()[0] != sshd.pid:  # whose parents ended is ours to wait for
        pass


if __name__ == "__main__":
    main()

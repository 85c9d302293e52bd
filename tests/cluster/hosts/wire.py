"""A wire with a delay: carries Ethernet frames between two interfaces, each a fixed time later, both ways.

    python wire.py INTERFACE INTERFACE DELAY_US

The kernel's own way (``tc netem``) is not built into every kernel. Frames are taken with the header that says what the
network card is to compute (``PACKET_VNET_HDR``): on virtual links checksums and the cutting of large segments are left
open until then, and frames without it would arrive broken.
"""

import os
import select
import socket
import struct
import sys
import time
from collections import deque

_SOL_PACKET = 263
_PACKET_ADD_MEMBERSHIP = 1
_PACKET_MR_PROMISC = 1
_PACKET_VNET_HDR = 15
_PACKET_IGNORE_OUTGOING = 23
_ETH_P_ALL = 3
#: A segment that is not cut yet, and its headers.
_FRAME_BYTES_MAX = 1 << 17
#: More than a second of a busy link of these tests; beyond it frames are lost, as in any queue of a network.
_QUEUE_FRAMES_MAX = 65_536


def _open(interface: str) -> socket.socket:
    line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
    line.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    line.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    line.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE: bursts
    line.bind((interface, _ETH_P_ALL))
    member = struct.pack("iHH8s", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0, b"")
    line.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, member)
    return line


def main(first: str, second: str, delay_us: int) -> None:
    """Until it is killed."""
    lines = (_open(first), _open(second))
    waiting: tuple[deque[tuple[int, bytes]], deque[tuple[int, bytes]]] = (deque(), deque())
    delay_ns = delay_us * 1000
    while True:
        now_ns = time.monotonic_ns()
        for to, queue in zip(reversed(lines), waiting, strict=True):
            while queue and queue[0][0] <= now_ns:
                try:
                    os.write(to.fileno(), queue[0][1])
                except BlockingIOError:
                    break  # the next turn takes it
                except OSError:
                    pass  # the interface is down: lost, as on a wire
                queue.popleft()
        next_ns = min((queue[0][0] for queue in waiting if queue), default=None)
        wait_s = None if next_ns is None else max(0, next_ns - time.monotonic_ns()) / 1e9
        readable, _, _ = select.select(lines, (), (), wait_s)
        for line, queue in zip(lines, waiting, strict=True):
            while line in readable:
                try:
                    frame = line.recv(_FRAME_BYTES_MAX)
                except OSError:
                    break
                if len(queue) < _QUEUE_FRAMES_MAX:
                    queue.append((time.monotonic_ns() + delay_ns, frame))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""A process that is a link: it carries packets between two TUN devices, late and at a rate. Started by link.py.

    carrier.py FD FD DELAY RATE QUEUE      seconds one way, bytes a second each way, bytes that may wait for their turn

Each device is an end of the link in a network namespace of its own, so handshake, slow start and congestion control are the kernel's.
A packet that finds the queue full is dropped. What counts against the rate is what Ethernet would carry: 1,448 bytes
of a program's in 1,538 on the wire, 94 Mbit/s of 100.

The kernel hands over up to 64 KiB of one connection at once, as to a card that cuts them into packets (IFF_VNET_HDR), which is what
makes 1 Gbit/s possible from here; they are counted as the packets that they would be. It runs until its standard input ends.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

HEADER = struct.Struct("<BBHHHH")
"""virtio_net_hdr, in front of every packet: flags, type, header's length, segment's size, checksum's start and offset."""
MOST = HEADER.size + 65536
IP_AND_TCP = 52
"""With timestamps; once a segment."""
FRAME = 38
"""Preamble, addresses, type, checksum and the gap behind it; once a segment."""
BATCH = 64
"""Packets that are taken before those of the other way have their turn."""
PRIORITY = 10


class Way:
    """One direction."""

    def __init__(self, source: int, target: int, delay: float, rate: float, queue: float) -> None:
        self._source, self._target = source, target
        self._delay, self._rate, self._queue = delay, rate, queue
        self._carried: deque[tuple[float, bytes]] = deque()
        """With the moment at which they arrive."""
        self._free = 0.0
        """When the last one will have been sent."""

    def take(self) -> None:
        """What has come in since the last time."""
        for packet in self._received():
            now = time.monotonic()
            if (self._free - now) * self._rate < self._queue:
                self._free = max(now, self._free) + on_the_wire(packet) / self._rate
                self._carried.append((self._free + self._delay, packet))

    def _received(self) -> Iterator[bytes]:
        with suppress(BlockingIOError):
            for _ in range(BATCH):
                yield os.read(self._source, MOST)

    def give(self) -> float:
        """Hand over what has arrived; when the next one will have."""
        while self._carried and self._carried[0][0] <= time.monotonic():
            with suppress(OSError):  # the other end does not take it: it is lost, as on any link
                os.write(self._target, self._carried.popleft()[1])
        return self._carried[0][0] if self._carried else float("inf")


def on_the_wire(packet: bytes) -> int:
    """Bytes that its segments would take."""
    size, segment = len(packet) - HEADER.size, HEADER.unpack_from(packet)[3]
    segments = -(-(size - IP_AND_TCP) // segment) if segment else 1
    return size + (segments - 1) * IP_AND_TCP + segments * FRAME


def main() -> None:
    """Carry."""
    far, near = map(int, sys.argv[1:3])
    delay, rate, queue = map(float, sys.argv[3:6])
    with suppress(PermissionError):  # a machine that has much to do is not to be a slower link
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    ways = {far: Way(far, near, delay, rate, queue), near: Way(near, far, delay, rate, queue)}
    while True:
        due = min(way.give() for way in ways.values())
        patience = None if due == float("inf") else max(0.0, due - time.monotonic())
        ready, _, _ = select.select([0, *ways], [], [], patience)
        if 0 in ready and not os.read(0, 1):
            return
        for end, way in ways.items():
            if end in ready:
                way.take()


if __name__ == "__main__":
    main()

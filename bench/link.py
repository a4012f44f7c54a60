"""A link with a delay and a rate between two network namespaces, where the kernel has none to offer (netem is a module).

    far, 10.78.0.1 -- TUN device -- carrier.py -- TUN device -- near, 10.78.0.2

A process that enters a namespace opens its sockets and starts its programs there. The namespaces have no names: they end with the last
descriptor and program in them, and the carrier ends with this process, even if that is killed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Self

from lazyfs.kernel.libc import call
from tests.commands import run

FAR, NEAR = "10.78.0.1", "10.78.0.2"
QUEUE_S, QUEUE_LEAST = 0.1, 256 << 10
"""What waits for its turn before packets are dropped: a tenth of a second of the link's rate, at least so many bytes."""
PATIENCE_S = 60
_CLONE_NEWNET = 0x40000000
_DEVICE = "wire"
# From linux/if_tun.h.
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_CONNECTS = 9
_STEP = 1 << 20


class Observed(NamedTuple):
    """What a link turned out to be."""

    connect_ms: float
    mbit: float
    """Of a program's own bytes, towards the near end; after its start, which a new connection always has."""


class Namespace:
    """A network namespace with loopback, and a TUN device where one was added."""

    def __init__(self) -> None:
        found: list[int] = []

        def make() -> None:
            call("unshare", _CLONE_NEWNET)
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        maker = threading.Thread(target=make)
        maker.start()
        maker.join()
        (self._descriptor,) = found

    def __enter__(self) -> Self:
        with self.entered():
            run("ip", "link", "set", "lo", "up")
            # What one connection found out about the link is not for the next one to know, which is another system's.
            Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """For this thread, and the programs that it starts."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            call("setns", self._descriptor, _CLONE_NEWNET)
            try:
                yield
            finally:
                call("setns", home, _CLONE_NEWNET)
        finally:
            os.close(home)

    def add_device(self, address: str, at_once: int) -> int:
        """The descriptor of a new TUN device with this address; it is gone when that is closed. The kernel hands `at_once` bytes of one
        connection over together."""
        with self.entered():
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
                fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), flags))
                fcntl.ioctl(device, _TUNSETVNETHDRSZ, struct.pack("i", 10))
                fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
                run("ip", "address", "add", f"{address}/24", "dev", _DEVICE)
                run("ip", "link", "set", "dev", _DEVICE, "mtu", "1500", "txqueuelen", "1000", "gso_max_size", str(at_once), "up")
            except BaseException:
                os.close(device)
                raise
        return device


class Link(NamedTuple):
    """Both ends."""

    far: Namespace
    near: Namespace
    observed: Observed


@contextmanager
def link(round_trip_ms: float, mbit: float) -> Iterator[Link]:
    """A link that has been looked at: RuntimeError where it is not what was asked for, by more than a busy machine explains."""
    rate = mbit * 1e6 / 8
    # A millisecond of the link's time: more at once would come in bursts that no such link knows.
    at_once = int(min(65536, max(rate / 1000, 3000)))
    with ExitStack() as stack:
        far, near = (stack.enter_context(Namespace()) for _ in range(2))
        devices = [far.add_device(FAR, at_once), near.add_device(NEAR, at_once)]
        try:
            carrier = _start_carrier(devices, round_trip_ms / 2e3, rate)
        finally:
            for device in devices:
                os.close(device)
        stack.callback(_end, carrier)
        observed = Observed(_connect_ms(far, near), _mbit(far, near, rate))
        if not (round_trip_ms <= observed.connect_ms <= 1.5 * round_trip_ms + 1 and mbit / 2 <= observed.mbit <= mbit):
            raise RuntimeError(
                f"the link is not what was asked for, {round_trip_ms:g} ms and {mbit:g} Mbit/s: "
                f"connecting takes {observed.connect_ms:.1f} ms, and {observed.mbit:.0f} Mbit/s come through"
            )
        yield Link(far, near, observed)


def _start_carrier(devices: list[int], delay: float, rate: float) -> subprocess.Popen[bytes]:
    queue = max(rate * QUEUE_S, QUEUE_LEAST)
    program = str(Path(__file__).with_name("carrier.py"))
    command = [sys.executable, "-I", program, *map(str, (*devices, delay, rate, queue))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=devices)


def _end(carrier: subprocess.Popen[bytes]) -> None:
    assert carrier.stdin
    carrier.stdin.close()
    carrier.wait(PATIENCE_S)


def _connect_ms(far: Namespace, near: Namespace) -> float:
    """The median of a few: what a handshake takes."""
    with far.entered():
        server = socket.create_server((FAR, 0))
    taken = []
    with server, near.entered():
        for _ in range(_CONNECTS):
            start = time.perf_counter()
            socket.create_connection(server.getsockname(), timeout=PATIENCE_S).close()
            taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)


def _mbit(far: Namespace, near: Namespace, rate: float) -> float:
    """A second of the link's rate, by one connection; the second half of it."""
    amount = int(rate)

    def send() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(bytes(amount))

    with far.entered():
        server = socket.create_server((FAR, 0))
    server.settimeout(PATIENCE_S)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        with near.entered():
            connection = socket.create_connection(server.getsockname(), timeout=PATIENCE_S)
        with connection:
            received, half, start = 0, 0, 0.0
            while data := connection.recv(_STEP):
                received += len(data)
                if received > amount // 2 and not half:
                    half, start = received, time.perf_counter()
            return (received - half) * 8 / (time.perf_counter() - start) / 1e6
    finally:
        sender.join()
        server.close()

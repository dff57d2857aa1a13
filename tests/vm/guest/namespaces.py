# SPDX-License-Identifier: Apache-2.0
"""Network namespaces as containers have them: a process lives in one, and does there what it is told to.

Constants: include/uapi/linux/sched.h, sockios.h, if.h (6.1).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1
SECONDS = 90.0


class Namespace:
    """A process in a network namespace of its own, whose loopback is up; it calls ``act`` at each `work`."""

    def __init__(self, act: Callable[[], object]) -> None:
        order, self._order = os.pipe()
        self._answer, answer = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._order)
            try:
                _enter()
                os.write(answer, b"ok")
                while os.read(order, 1):
                    act()
                    os.write(answer, b"ok")
            except Exception as problem:  # whatever it is, `work` raises it in the other process
                os.write(answer, f"{type(problem).__name__}: {problem}".encode())
            os._exit(0)
        os.close(order)
        os.close(answer)
        self._wait()

    def _wait(self) -> None:
        if not select.select([self._answer], [], [], SECONDS)[0]:
            raise TimeoutError("no answer from the other network namespace")
        if (text := os.read(self._answer, 4096)) != b"ok":
            raise OSError(f"in another network namespace: {text.decode()}")

    def work(self) -> None:
        """Call ``act`` there.  Raises OSError with what it raised, TimeoutError when it takes too long."""
        os.write(self._order, b"1")
        self._wait()

    def end(self) -> None:
        """The process ends, and the kernel takes the namespace down."""
        os.close(self._order)
        os.close(self._answer)
        os.waitpid(self._child, 0)


def _enter() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "no new network namespace")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))

# SPDX-License-Identifier: Apache-2.0
"""Waiting for what the kernel does some time later: programs, maps and probes that were let go, probes optimized."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Poll until it holds; whether it does in the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@contextmanager
def meanwhile(actions: Sequence[Callable[[], object]]) -> Iterator[None]:
    """Do each action over and over, in a thread of its own."""
    stop = threading.Event()

    def repeat(action: Callable[[], object]) -> None:
        while not stop.is_set():
            action()

    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()

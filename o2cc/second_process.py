# SPDX-License-Identifier: Apache-2.0
"""Work that a second process does meanwhile: a thread would wait for the interpreter's lock, or for that of llvmlite.

The second process is a copy of this one, so that any function can be its work; what that gives comes back through a
pipe.  Where there can be no copy (no more processes; other threads, which a copy would not have), and where it ends
before its time for whatever reason, this process does the same work itself when the result is asked for.
"""

from __future__ import annotations

import ctypes
import faulthandler
import fcntl
import os
import pickle
import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, NoReturn, TypeVar

T = TypeVar("T")

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h
_PIPE = 1 << 20  # bytes that a process can leave behind when it ends, as far as everybody may have (pipe(7))


class Task(Generic[T]):
    """Work that has begun, or that is done when its result is asked for."""

    def __init__(self, work: Callable[[], T], child: tuple[int, int] | None) -> None:
        self._work = work
        self._child = child
        # Nobody may ask for the result; then nothing stays behind either.
        self._give_up = weakref.finalize(self, _stop, *child) if child is not None else None

    def result(self) -> T:
        """What the work gives; raises what it raises.  To be asked for once."""
        if self._child is not None and self._give_up is not None:
            child, reader = self._child
            with os.fdopen(reader, "rb", closefd=False) as stream:
                data = stream.read()
            self._give_up.detach()
            os.close(reader)
            if os.waitpid(child, 0)[1] == 0 and data:
                made: T = pickle.loads(data)
                return made
        return self._work()


def begin(work: Callable[[], T]) -> Task[T]:
    """Begin work in a second process.  It must be pure, and what it gives picklable."""
    # where the kernel reaps children by itself, nothing tells how one ended
    possible = _threads() == 1 and signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN
    return Task(work, _fork(work) if possible else None)


def _threads() -> int:
    """Threads of this process, those of libraries as well: one that holds a lock at the fork never gives it back there."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return threading.active_count()


def _fork(work: Callable[[], object]) -> tuple[int, int] | None:
    """The new process and the pipe with its result; None where there can be none."""
    try:
        reader, writer = os.pipe()
    except OSError:
        return None
    with suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE)
    parent = os.getpid()
    # An interrupt is no exception there, not even at once.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        child = os.fork()
        if child == 0:
            _run(work, writer, parent)
    except OSError:
        os.close(reader)
        return None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(writer)
    return child, reader


def _run(work: Callable[[], object], writer: int, parent: int) -> NoReturn:
    """Do the work in the new process and end it, without a word: this process says what is to be said."""
    status = 1
    try:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # else it has ended before that
            data = pickle.dumps(work(), pickle.HIGHEST_PROTOCOL)
            with os.fdopen(writer, "wb") as stream:
                stream.write(data)
            status = 0
    finally:
        os._exit(status)


def _stop(child: int, reader: int) -> None:
    """End a process whose result nobody wants."""
    os.close(reader)
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

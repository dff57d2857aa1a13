# SPDX-License-Identifier: Apache-2.0
"""Entry points of the installed commands: what happens before a command's modules are there, and after it has ended.

Imports nothing that takes long: until the command's own modules are imported, an interrupt ends the process quietly.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_INTERRUPTED = 130  # as `o2cc.cli.common.EXIT_INTERRUPTED`, which would have to be imported


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """An interrupt ends the process at once. Raised inside an import it would be a traceback, or be swallowed."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # somebody wants it ignored
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def one_thread() -> None:
    """Keep OpenBLAS, which comes with numpy, from starting a thread for each processor: small arrays gain nothing by
    them, and each takes a process of the user's limit (without any left OpenBLAS interrupts us) and address space.
    To be called before numpy is imported."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def o2cc() -> None:
    """The `o2cc` command.

    A compilation makes millions of objects that all stay until its end: looking for garbage among them, and taking
    them apart one by one at the end, is an eighth of its time.
    """
    gc.disable()
    one_thread()
    with quiet_interrupt():
        from o2cc.cli.common import run
        from o2cc.cli.o2cc import o2cc as command
    _leave(_to_the_end(lambda: run(command, "o2cc")))


def o2c() -> None:
    """The `o2c` command."""
    with quiet_interrupt():
        from o2cc.cli.common import run
        from o2cc.cli.o2c import o2c as command
    sys.exit(_to_the_end(lambda: run(command, "o2c")))


def _to_the_end(command: Callable[[], int]) -> int:
    """The exit status. A further interrupt, while the first is dealt with or the process ends, changes nothing."""
    try:
        status = command()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = _INTERRUPTED
    return status


def _leave(status: int) -> None:
    """End the process without the interpreter's own end."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or not there at all
            stream.flush()
    os._exit(status)

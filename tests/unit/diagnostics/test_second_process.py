# SPDX-License-Identifier: Apache-2.0
"""Work in a second process: the same result whatever becomes of that process, and nothing left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"

# Each case is a program of its own: the tests' own process may have threads.
_START = """
import os, signal, sys, threading, time
from o2cc.second_process import begin
signal.signal(signal.SIGINT, signal.default_int_handler)
me = os.getpid()
"""


def _python(code: str) -> str:
    """What a program prints; it must end well and leave neither processes nor open files behind."""
    check = """
try:
    os.waitpid(-1, os.WNOHANG)
    print("a process is left")
except ChildProcessError:
    pass
print("files:", len(os.listdir("/proc/self/fd")) - before)
"""
    begin = "before = len(os.listdir('/proc/self/fd'))\n"
    done = subprocess.run(
        [sys.executable, "-c", _START + begin + code + check],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    *lines, files = done.stdout.splitlines()
    assert files == "files: 0"
    return "\n".join(lines)


def test_the_work_is_done_elsewhere() -> None:
    assert (
        _python("print(begin(lambda: (os.getpid() == me, 'x' * 1000000)).result() == (False, 'x' * 1000000))")
        == "True"
    )


def test_several_at_a_time() -> None:
    code = "tasks = [begin(lambda n=n: n * n) for n in range(4)]; print([task.result() for task in tasks])"
    assert _python(code) == "[0, 1, 4, 9]"


@pytest.mark.parametrize(
    "end", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "os.abort()", "sys.exit(0)", "1 / 0"]
)
def test_a_process_that_dies_is_no_loss(end: str) -> None:
    code = f"""
def work():
    if os.getpid() != me:
        {end}
    return 'here'
print(begin(work).result())"""
    assert _python(code) == "here"


def test_what_the_work_raises_is_raised() -> None:
    code = """
task = begin(lambda: {}['missing'])
try:
    task.result()
except KeyError as problem:
    print(repr(problem))
del task"""
    assert _python(code) == "KeyError('missing')"


def test_what_cannot_be_sent_is_made_again() -> None:
    assert _python("print(begin(lambda: (lambda: 5)).result()())") == "5"


@pytest.mark.parametrize("name", ["fork", "pipe"])
def test_where_there_can_be_none(name: str) -> None:
    code = f"""
def refused():
    raise BlockingIOError
os.{name} = refused
print(begin(lambda: os.getpid() == me).result())"""
    assert _python(code) == "True"


def test_beside_other_threads_there_is_none() -> None:
    code = """
thread = threading.Thread(target=time.sleep, args=(0.3,))
thread.start()
print(begin(lambda: os.getpid() == me).result())
thread.join()"""
    assert _python(code) == "True"


def test_beside_threads_of_libraries_there_is_none() -> None:
    """Catches a lock that a thread which Python does not know holds for ever in the copy."""
    code = """
import ctypes
started = ctypes.c_ulong()
pause = ctypes.CDLL(None).usleep
assert ctypes.CDLL(None).pthread_create(ctypes.byref(started), None, pause, ctypes.c_void_p(300000)) == 0
assert threading.active_count() == 1
print(begin(lambda: os.getpid() == me).result())"""
    assert _python(code) == "True"


def test_a_result_that_nobody_wants() -> None:
    assert _python("task = begin(lambda: time.sleep(1000)); del task") == ""


def _gone(process: int) -> bool:
    """Whether a process ends within the next seconds."""
    for _ in range(500):
        try:
            if Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


_WAITING = (
    _START
    + """
def work():
    print(os.getpid(), flush=True)
    time.sleep(1000)
try:
    begin(work).result()
except KeyboardInterrupt:
    sys.exit(130)
"""
)


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_first_process(number: signal.Signals, group: bool) -> None:
    """Ctrl-C reaches both processes, `kill` the first one only."""
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    (os.killpg if group else os.kill)(process.pid, number)
    try:
        # The pipes have an end only when nobody is left that holds them.
        _, complaints = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert complaints == ""
    assert _gone(child)


def test_the_object_is_the_same_without_a_second_process(tmp_path: Path) -> None:
    refusal = "def refused():\n    raise BlockingIOError\nos.fork = refused\n"
    made = []
    for name, before in (("with", ""), ("without", refusal)):
        target = tmp_path / name
        arguments = ["o2cc", str(EXAMPLES / "cls_route.o2c"), "-k", "6.1.0-57-amd64", "-o", str(target)]
        code = f"import os, sys\n{before}sys.argv = {arguments}\nfrom o2cc.cli.start import o2cc\no2cc()"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        made.append(target.read_bytes())
    assert made[0] == made[1]

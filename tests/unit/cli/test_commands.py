# SPDX-License-Identifier: Apache-2.0
"""`o2cc` and `o2c` as a user runs them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from o2cc.cli.common import run
from o2cc.cli.o2c import COMMANDS, o2c
from o2cc.cli.o2cc import o2cc

GOOD = 'compartment a {\n    code   modules "m"\n}\n'
UGLY = 'compartment a{code modules "m"}'
BAD = "compartment a { heap private 5 }\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- o2c


def test_help_lists_commands_with_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2c, "o2c", ["--help"]) == 0
    shown = capsys.readouterr().out
    assert "fmt" in shown
    assert "Format policies." in shown


def test_help_imports_no_command() -> None:
    """Start-up must stay fast: what a subcommand needs is imported only when it runs."""
    code = (
        "import sys, o2cc.cli.o2c as m, o2cc.cli.common as c; c.run(m.o2c, 'o2c', ['--help']);"
        "print(sorted(set(sys.modules) & {'lark', 'llvmlite', 'sklearn', 'numpy', 'iced_x86', 'rich.markdown'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_help_takes_little_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "o2cc.cli.o2c", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6


def test_unknown_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2c, "o2c", ["fmtt"]) == 2
    assert "Did you mean `fmt`?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_on_offer_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(o2c, "o2c", ["--help"])
    offered = f"\n  {name} " in capsys.readouterr().out
    status = run(o2c, "o2c", [name, "--help"])
    shown = capsys.readouterr()
    if offered and status != 1:  # 1: a package of an extra is missing, which a diagnostic says
        assert status == 0
        assert "Usage:" in shown.out
    elif offered:
        assert "O2C0906" in shown.err
    else:
        assert status == 2


# ---------------------------------------------------------------- o2c fmt


def test_fmt_formats_in_place(here: Path) -> None:
    path = here / "a.o2c"
    path.write_text(UGLY)
    assert run(o2c, "o2c", ["fmt", "a.o2c"]) == 0
    assert path.read_text() == GOOD
    assert run(o2c, "o2c", ["fmt", "--check", "a.o2c"]) == 0


def test_fmt_check_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "a.o2c"
    path.write_text(UGLY)
    assert run(o2c, "o2c", ["fmt", "--check", "."]) == 1
    assert path.read_text() == UGLY
    assert "a.o2c: not formatted" in capsys.readouterr().err


def test_fmt_diff(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.o2c").write_text(UGLY)
    assert run(o2c, "o2c", ["fmt", "--diff", "a.o2c"]) == 0
    shown = capsys.readouterr().out
    assert f"-{UGLY}\n\\ No newline at end of file\n" in shown
    assert '+    code   modules "m"\n' in shown


def test_fmt_leaves_broken_files_and_does_the_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "bad.o2c").write_text(BAD)
    (here / "ugly.o2c").write_text(UGLY)
    assert run(o2c, "o2c", ["fmt", "bad.o2c", "missing.o2c", "ugly.o2c"]) == 1
    assert (here / "bad.o2c").read_text() == BAD
    assert (here / "ugly.o2c").read_text() == GOOD
    shown = capsys.readouterr().err
    assert "O2C0110" in shown
    assert "O2C0901" in shown


def test_fmt_standard_input() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "o2cc.cli.o2c", "fmt", "-"],
        input=UGLY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, GOOD)


def test_fmt_without_files_is_wrong_usage() -> None:
    assert run(o2c, "o2c", ["fmt"]) == 2


# ---------------------------------------------------------------- o2cc


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(o2cc, "o2cc", ["--explain", "O2C0101"]) == 0
    assert capsys.readouterr().out.startswith("# O2C0101: ")
    assert run(o2cc, "o2cc", ["--explain", "O2C0100"]) == 1
    assert "O2C0904" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["a", "b"], ["a", "--layout", "x"], ["a", "-W", "x"], ["--no-such-option"]]
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert run(o2cc, "o2cc", arguments) == 2


def _junk(here: Path) -> dict[str, Path]:
    (here / "directory.o2c").mkdir()
    files = {
        "missing": here / "missing.o2c",
        "directory": here / "directory.o2c",
        "binary": here / "binary.o2c",
        "not_utf8": here / "latin.o2c",
        "large": here / "large.o2c",
        "braces": here / "braces.o2c",
        "syntax": here / "syntax.o2c",
    }
    files["binary"].write_bytes(bytes(range(256)) * 10)
    files["not_utf8"].write_bytes(b"use std.linux // \xe9\n")
    files["large"].write_text("// " + "x" * (10 << 20))
    files["braces"].write_text("{" * 100_000)
    files["syntax"].write_text(BAD)
    return files


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("missing", "O2C0901"),
        ("directory", "O2C0901"),
        ("binary", "O2C0902"),
        ("not_utf8", "O2C0902"),
        ("large", "O2C0107"),
        ("braces", "O2C0109"),
        ("syntax", "O2C0110"),
    ],
)
def test_bad_input_gives_a_diagnostic_and_no_output(
    kind: str, code: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _junk(here)[kind]
    before = set(os.listdir(here))
    assert run(o2cc, "o2cc", [str(path), "-o", "out.bpf.o", "--stats", "stats.json"]) == 1
    shown = capsys.readouterr()
    assert f"error[{code}]" in shown.err
    assert "Traceback" not in shown.err
    assert len(shown.err) < 20_000
    assert shown.out == ""
    assert set(os.listdir(here)) == before


@pytest.mark.parametrize("arguments", [["o2c", "fmt", "--diff", "a.o2c"], ["o2cc", "--explain", "all"]])
def test_broken_pipe_is_quiet_and_has_a_status_of_its_own(here: Path, arguments: list[str]) -> None:
    (here / "a.o2c").write_text(UGLY)
    nobody, pipe = os.pipe()
    os.close(nobody)
    command = [sys.executable, "-m", f"o2cc.cli.{arguments[0]}", *arguments[1:]]
    result = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    os.close(pipe)
    assert (result.returncode, result.stderr) == (141, "")


def test_full_disk_behind_the_standard_output() -> None:
    command = [sys.executable, "-m", "o2cc.cli.o2cc", "--explain", "all"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "error[O2C0905]: cannot write the standard output: no space left on device" in result.stderr
    assert "O2C0999" not in result.stderr


@pytest.mark.parametrize(
    "arguments", [["o2cc", "--explain", "O2C0101"], ["o2c", "--help"], ["o2c", "fmt", "--diff", "a.o2c"]]
)
def test_closed_standard_output(here: Path, arguments: list[str]) -> None:
    (here / "a.o2c").write_text(UGLY)
    command = [
        "sh",
        "-c",
        'exec "$0" -m "$@" >&-',
        sys.executable,
        f"o2cc.cli.{arguments[0]}",
        *arguments[1:],
    ]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 1
    assert "error[O2C0905]: cannot write the standard output: bad file descriptor" in result.stderr
    assert result.stderr.count("\n") < 5


def test_closed_standard_output_that_is_not_needed(here: Path) -> None:
    (here / "a.o2c").write_text(UGLY)
    command = ["sh", "-c", 'exec "$0" -m o2cc.cli.o2c fmt a.o2c >&-', sys.executable]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "a.o2c: formatted\n")
    assert (here / "a.o2c").read_text() == GOOD


def test_interrupt(here: Path) -> None:
    program = "os.kill(os.getpid(), signal.SIGINT)"
    code = (
        "import os, signal, sys, click; from o2cc.cli.common import run\n"
        # a test run in the background inherits that interrupts are ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "@click.command()\n"
        f"def c(): {program}\n"
        "sys.exit(run(c, 'o2c', []))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert "Traceback" not in result.stderr


def _start(
    command: str, disposition: str, *, arguments: tuple[str, ...] = ("--version",), module: str = "click"
) -> subprocess.CompletedProcess[str]:
    """A command as it is installed, which gets an interrupt while a module is imported."""
    code = (
        "import os, signal, sys\n"
        f"signal.signal(signal.SIGINT, signal.{disposition})\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == '{module}': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        f"sys.argv = {[command, *arguments]}\n"
        f"from o2cc.cli.start import {command}\n"
        f"{command}()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["o2cc", "o2c"])
def test_interrupt_while_it_starts(command: str) -> None:
    result = _start(command, "default_int_handler")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("name", "module"), [("fmt", "o2cc.syntax.formatter"), ("test", "o2cc.simulation.policy_tests")]
)
def test_interrupt_while_a_command_is_imported(name: str, module: str) -> None:
    """Catches tracebacks out of imports that happen when the command already runs."""
    result = _start("o2c", "default_int_handler", arguments=(name, "a.o2c"), module=module)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize("command", ["o2cc", "o2c"])
def test_further_interrupts_change_nothing(command: str) -> None:
    """The second comes while the first is dealt with, the third while the process ends."""
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def interrupt(*_): os.kill(os.getpid(), signal.SIGINT)\n"
        "import o2cc.cli.common as common\n"
        "def run(*_):\n"
        "    try: interrupt()\n"
        "    except KeyboardInterrupt: interrupt()\n"
        "common.run = run\n"
        "class Stream:\n"
        "    flush = interrupt\n"
        "sys.stdout = Stream()\n"
        f"from o2cc.cli.start import {command}\n"
        f"{command}()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "")


def test_a_compilation_starts_no_threads() -> None:
    """Catches numpy's OpenBLAS, which starts a thread for each processor and fails where there may be none."""
    code = (
        "import os, sys\n"
        "leave = os._exit\n"
        "def count(status):\n"
        "    import numpy\n"  # as scanning does
        "    print(len(os.listdir('/proc/self/task')), flush=True)\n"
        "    leave(status)\n"
        "os._exit = count\n"
        "sys.argv = ['o2cc', '--version']\n"
        "from o2cc.cli.start import o2cc\n"
        "o2cc()"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout.splitlines()[-1]) == (0, "1")


@pytest.mark.parametrize("command", ["o2cc", "o2c"])
def test_ignored_interrupt_while_it_starts(command: str) -> None:
    result = _start(command, "SIG_IGN")
    assert result.returncode == 0
    assert result.stdout.startswith(f"{command}, version ")


def test_what_was_printed_is_there_after_the_quick_end(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['o2cc', '--explain', 'all']; from o2cc.cli.start import o2cc; o2cc()"
    quick = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    slow = subprocess.run(
        [sys.executable, "-m", "o2cc.cli.o2cc", "--explain", "all"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert quick.stdout == slow.stdout != ""
    closed = subprocess.run(
        [sys.executable, "-c", f"import os; os.close(2)\n{code}"], capture_output=True, check=False
    )
    assert closed.returncode == 0

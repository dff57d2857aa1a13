# SPDX-License-Identifier: Apache-2.0
"""What every command shares: `--error-format`, diagnostics to the user, exit statuses.

A command is written as

    @click.command()
    @diagnostic_command
    @click.argument("policy")
    def check(reporter: Reporter, policy: str) -> None:
        source = reporter.read_source(policy)
        reporter.extend(warnings_of(source))

It may raise DiagnosticError anywhere. When it ends, everything collected is printed by place to the
standard error, and the exit status is 1 if any of it is an error, else what the command returned or 0.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeGuard

import click

from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile, Span, error, has_errors
from o2cc.files import decode_source, read_bytes, read_source
from o2cc.report.render import ErrorFormat, write_diagnostics
from o2cc.report.warnings import WarningOptions
from o2cc.resources import resource_directory

EXIT_CLEAN = 0
EXIT_ERRORS = 1
EXIT_USAGE = 2
EXIT_INTERNAL = 70  # EX_SOFTWARE of sysexits.h: our fault, not the input's
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# The end of the help of `o2c` and of `o2cc`.
EXIT_AND_ENVIRONMENT = """\
\b
Exit status:
  0    nothing wrong, perhaps warnings
  1    errors in the input, or the operation failed; see the diagnostics
  2    wrong usage
  70   a bug in O2C itself
  130  interrupted
  141  the reader of the output went away

\b
Environment:
  O2C_ERROR_FORMAT  default of --error-format
  O2C_CACHE         descriptions, kernels and tables; by default ~/.cache/o2c
  O2C_DEBUG         when set, show the traceback of an internal error
  NO_COLOR          when set, no colours"""

P = ParamSpec("P")

CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Reporter:
    """Collects the diagnostics of one run and prints them at its end."""

    def __init__(self, format: ErrorFormat = ErrorFormat.TEXT) -> None:
        self.format = format
        self.diagnostics: list[Diagnostic] = []
        self.sources: dict[str, SourceFile] = {}
        self.warning_options = WarningOptions()

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep one for the end of the run."""
        self.diagnostics.append(diagnostic)

    def extend(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Keep several for the end of the run."""
        self.diagnostics.extend(diagnostics)

    def add_source(self, source: SourceFile) -> SourceFile:
        """Make a source's text known, so that its lines can be shown; gives it back."""
        self.sources[source.name] = source
        return source

    def read_source(self, path: str) -> SourceFile:
        """Read a source file and make it known. Raises DiagnosticError (O2C0901, O2C0902, O2C0903)."""
        return self.add_source(read_source(path))

    def finish(self) -> int:
        """Print everything, after what `-W` asks for; the exit status that it leads to."""
        self.diagnostics = list(self.warning_options.apply(self.diagnostics))
        if self.diagnostics or self.format.is_document:
            self._find_sources()
            write_diagnostics(self.diagnostics, self.sources, self.format, sys.stderr)
        return EXIT_ERRORS if has_errors(self.diagnostics) else EXIT_CLEAN

    @property
    def has_errors(self) -> bool:
        """Whether the run fails, by what was collected so far."""
        return has_errors(self.warning_options.apply(self.diagnostics))

    def _find_sources(self) -> None:
        """Read the sources that diagnostics point into and nobody made known, where they are files."""
        for span in _spans(self.diagnostics):
            path = _file_of(span.source)
            if span.source in self.sources or path is None:
                continue
            try:
                self.add_source(decode_source(span.source, read_bytes(path)))
            except DiagnosticError:
                continue  # shown without its lines


def _file_of(name: str) -> str | None:
    """The file of a source, if it is one; those of the standard library have names that fit every installation."""
    directory, _, rest = name.partition("/")
    if directory == "stdlib":
        try:
            name = os.fspath(resource_directory("stdlib") / rest)
        except FileNotFoundError:
            return None
    return name if os.path.isfile(name) else None


def _spans(diagnostics: Iterable[Diagnostic]) -> Iterable[Span]:
    for diagnostic in diagnostics:
        if diagnostic.primary:
            yield diagnostic.primary.span
        yield from (label.span for label in diagnostic.secondary)


def diagnostic_command(
    function: Callable[Concatenate[Reporter, P], int | None],
) -> Callable[P, None]:
    """Give a click command `--error-format` and a Reporter as its first argument."""

    @click.option(
        "--error-format",
        type=click.Choice([str(format) for format in ErrorFormat]),
        default=str(ErrorFormat.TEXT),
        envvar="O2C_ERROR_FORMAT",
        show_default=True,
        help="Form of the diagnostics on the standard error.",
    )
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        reporter = Reporter(ErrorFormat(str(kwargs.pop("error_format"))))
        status: int | None = None
        try:
            status = function(reporter, *args, **kwargs)
        except DiagnosticError as problem:
            reporter.extend(problem.diagnostics)
        asked = reporter.finish()
        click.get_current_context().exit(asked or status or EXIT_CLEAN)

    return wrapper


def run(command: click.Command, program: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status. Never lets a traceback out unless O2C_DEBUG is set."""
    if sys.stdout is None:
        # It was closed before the start (`>&-`). Python then prints nothing, and nobody would be told.
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # a write is EBADF
    try:
        result = command.main(
            args=arguments, prog_name=program, standalone_mode=False, color=False if _plain() else None
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_CLEAN
    except click.ClickException as problem:
        problem.show()
        return EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except SystemExit:
        return EXIT_BROKEN_PIPE  # all that click, asked not to, still ends the process for
    except BrokenPipeError:
        # The reader went away (`| head`). Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except DiagnosticError as problem:
        reporter = Reporter()
        reporter.extend(problem.diagnostics)
        return reporter.finish()
    except MemoryError:
        write_diagnostics((_NO_MEMORY,), {}, ErrorFormat.TEXT, sys.stderr)
        return EXIT_ERRORS
    except Exception as problem:  # the last resort: shown as our bug, see below
        if _is_lost_output(problem):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # as above
            full = error("O2C0905", f"cannot write the standard output: {str(problem.strerror).lower()}")
            write_diagnostics((full,), {}, ErrorFormat.TEXT, sys.stderr)
            return EXIT_ERRORS
        if os.environ.get("O2C_DEBUG"):
            traceback.print_exc()
        write_diagnostics((internal_error(program, problem),), {}, ErrorFormat.TEXT, sys.stderr)
        return EXIT_INTERNAL


_NO_MEMORY = error(
    "O2C0908",
    "not enough memory",
    help="`ulimit -v` and the limits of the control group show how much a process may have",
)


def _plain() -> bool:
    """Whether the user wants no colours (https://no-color.org), or the terminal has none; click does not ask."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def _is_lost_output(problem: Exception) -> TypeGuard[OSError]:
    """Whether a write to a stream failed for want of space, or since it was closed before; what names a file is told where it is written."""
    return (
        isinstance(problem, OSError)
        and problem.filename is None
        and problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
    )


def internal_error(program: str, problem: BaseException) -> Diagnostic:
    """The diagnostic for an exception that nobody expected."""
    frames = traceback.extract_tb(problem.__traceback__)
    where = (
        f" in {frames[-1].name} ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
        if frames
        else ""
    )
    text = str(problem)[:200]
    return error(
        "O2C0999",
        f"internal error: {type(problem).__name__}{': ' + text if text else ''}{where}",
        notes=(f"this is a bug in {program}, not in your input",),
        help="please report it with the command line, the input and the traceback that `O2C_DEBUG=1` shows",
    )

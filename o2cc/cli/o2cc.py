# SPDX-License-Identifier: Apache-2.0
"""`o2cc`: the compiler's command line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from o2cc import __version__
from o2cc.bpf.layout import Layout
from o2cc.cli.common import (
    CONTEXT_SETTINGS,
    EXIT_AND_ENVIRONMENT,
    EXIT_CLEAN,
    Reporter,
    diagnostic_command,
    run,
)
from o2cc.cli.completion import DIRECTORY, FILE, complete_code, complete_kernel
from o2cc.diagnostics import DiagnosticError, error
from o2cc.files import STANDARD_STREAM, require_writable, write_atomic
from o2cc.kernel.collection import without_collection
from o2cc.kernel.image import MODULE_SUFFIXES
from o2cc.options import CompileOptions, Degrade, Emit
from o2cc.report.explain import explain
from o2cc.report.warnings import WarningOptions, parse_warning_options

if TYPE_CHECKING:
    from o2cc.kernel.module_file import ModuleFile


def _explain_and_exit(context: click.Context, parameter: click.Parameter, code: str | None) -> None:
    if code is None or context.resilient_parsing:
        return
    page = explain(code)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(page))
    else:
        click.echo(page, nl=False)
    context.exit(EXIT_CLEAN)


def _passes(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _warnings(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> WarningOptions:
    try:
        return parse_warning_options(values)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


def _open_module(options: CompileOptions) -> ModuleFile | None:
    """The module that is the target, if it is one."""
    if options.kernel is None or not options.kernel.endswith(MODULE_SUFFIXES):
        return None
    from o2cc.kernel.module_file import open_module_file

    return open_module_file(options.kernel, caching=options.caching)


def _choices(kind: type[Emit] | type[Layout] | type[Degrade]) -> click.Choice[str]:
    return click.Choice([str(value) for value in kind])


@click.command(
    context_settings=CONTEXT_SETTINGS,
    epilog=f"{EXIT_AND_ENVIRONMENT}\n\n"
    "The language is described in docs/language.md; `o2c` has the tools around the compiler.",
)
@click.version_option(__version__, prog_name="o2cc")
@click.option(
    "--explain",
    metavar="CODE",
    shell_complete=complete_code,
    callback=_explain_and_exit,
    expose_value=False,
    is_eager=True,
    help="Print the page of a diagnostic, as in `--explain O2C0101`, or a list of `all`, and exit.",
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=FILE,
    help="Where to write; by default POLICY.bpf.o here, text to stdout.",
)
@click.option(
    "-k",
    "--kernel",
    metavar="RELEASE|FILE",
    shell_complete=complete_kernel,
    help="Target: a kernel release that a description is known for, a description (.o2k), or a module (.ko).",
)
@click.option(
    "--emit",
    type=_choices(Emit),
    default=str(Emit.OBJECT),
    show_default=True,
    help="What to write: the eBPF object, LLVM IR, our own IR, or nothing (check).",
)
@click.option(
    "--layout",
    type=_choices(Layout),
    default=str(Layout.SITE),
    show_default=True,
    help="One program a site, which any libbpf loader attaches, or one a shape, for `o2c load`.",
)
@click.option(
    "--degrade",
    type=_choices(Degrade),
    help="Accept this weaker action where the target cannot do what the policy asks for.",
)
@click.option(
    "-p", "--passes", metavar="PASS,...", callback=_passes, help="Run these passes instead of the default."
)
@click.option(
    "-I",
    "--include",
    "include",
    multiple=True,
    metavar="DIR",
    type=DIRECTORY,
    help="Look for modules of `use` here as well.",
)
@click.option(
    "--stats",
    metavar="FILE",
    type=FILE,
    help="Write figures about the compilation as JSON (`-`: stdout).",
)
@click.option("--no-cache", is_flag=True, help="Scan a module's file anew, and do not keep its description.")
@click.option(
    "-W",
    "warnings",
    multiple=True,
    metavar="WHAT",
    callback=_warnings,
    help="error, error=CODE, no-error=CODE: warnings as errors; no-CODE: hide a warning.",
)
@click.argument("policy", type=FILE)
@diagnostic_command
def o2cc(
    reporter: Reporter,
    policy: str,
    output: str | None,
    kernel: str | None,
    emit: str,
    layout: str,
    degrade: str | None,
    passes: tuple[str, ...] | None,
    include: tuple[str, ...],
    no_cache: bool,
    stats: str | None,
    warnings: WarningOptions,
) -> int:
    """Compile POLICY, an .o2c file (`-`: the standard input), to an eBPF object.

    Without root, without the network, and without the kernel that it is for: what is known of that
    kernel comes from a description, made by `o2c scan` or bundled. A module's file is scanned instead,
    if its kernel's boot image is found beside it or by its release, and its description is kept in the
    cache directory for the next time. The same input gives the same bytes.
    Nothing is written when there are errors.

    \b
    Examples:
      o2cc sctp.o2c -o sctp.bpf.o
      o2cc sctp.o2c -k 6.12.117+deb12-amd64 --stats -
      o2cc sctp.o2c -k /lib/modules/6.1.0-57-amd64/kernel/net/sctp/sctp.ko
      o2cc sctp.o2c --emit check -W error
      o2cc --explain O2C0101
    """
    reporter.warning_options = warnings
    target = None if emit == Emit.CHECK else output or _default_output(policy, Emit(emit))
    outputs = tuple(name for name in (target, stats) if name is not None)
    for name in outputs:
        if name != STANDARD_STREAM:
            require_writable(name)
    for directory in include:
        if not Path(directory).is_dir():
            raise DiagnosticError(error("O2C0901", f"there is no directory `{directory}`", path=directory))
    source = reporter.read_source(policy)
    options = CompileOptions(
        kernel=kernel,
        layout=Layout(layout),
        emit=Emit(emit),
        figures=stats is not None,
        degrade=Degrade(degrade) if degrade else None,
        passes=passes,
        search_path=include,
        caching=not no_cache,
        outputs=outputs,
    )
    with without_collection():
        # Late: `--help` and `--explain` need none of it, and the kernel unpacks while the rest is loaded.
        module = _open_module(options)
        from o2cc.driver import compile_policy

        compiled = compile_policy(source, options, module=module)
    reporter.extend(compiled.diagnostics)
    if reporter.has_errors:
        return EXIT_CLEAN  # the reporter turns it into 1
    made: dict[str, bytes | str] = {}
    if target is not None:
        made[target] = compiled.output
    if stats is not None:
        made[stats] = json.dumps(compiled.stats, indent=2, sort_keys=True) + "\n"
    # files last: where something else cannot be written there shall be none
    for name in sorted(made, key=_is_file):
        if name == STANDARD_STREAM:
            click.echo(made[name], nl=False)
        else:
            write_atomic(name, made[name])
    return EXIT_CLEAN


def _default_output(policy: str, emit: Emit) -> str:
    if emit.is_text:
        return STANDARD_STREAM
    return "policy.bpf.o" if policy == STANDARD_STREAM else f"{Path(policy).stem}.bpf.o"


def _is_file(output: str) -> bool:
    return output != STANDARD_STREAM and (not os.path.exists(output) or os.path.isfile(output))


def main() -> None:
    """Entry point of the `o2cc` command."""
    sys.exit(run(o2cc, "o2cc"))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""`o2c opt`: run passes over a module in its text form, from file to file."""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from o2cc.cli.common import Reporter, diagnostic_command
from o2cc.cli.completion import FILE
from o2cc.diagnostics import SourceFile
from o2cc.files import STANDARD_STREAM, read_bytes, require_distinct, write_atomic
from o2cc.ir import nodes as ir
from o2cc.ir.parser import parse_module
from o2cc.ir.printer import print_module
from o2cc.ir.verifier import require_valid, verify
from o2cc.kernel.codec import decode
from o2cc.passes.manager import Pass, PassContext, parse_pipeline, run_pipeline
from o2cc.passes.registry import PASSES, default_pipeline

_PASS_LIST = "\b\nPasses:\n" + "\n".join(
    f"  {name:24} {(kind.__doc__ or '').splitlines()[0].rstrip('.')}" for name, kind in sorted(PASSES.items())
)


@click.command("opt", epilog=_PASS_LIST)
@diagnostic_command
@click.argument("module", type=FILE)
@click.option(
    "-p", "--passes", "pipeline", metavar="PASS,PASS{OPTION=VALUE}", help="Passes to run, in order."
)
@click.option("--default", "use_default", is_flag=True, help="Run the compiler's own pipeline.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=FILE,
    default="-",
    show_default=True,
    help="Where the result goes; - is the standard output.",
)
@click.option(
    "--description",
    metavar="FILE",
    type=FILE,
    help="The target's description (.o2k), for passes over sites.",
)
@click.option(
    "--control-flow-kept", is_flag=True, help="State that all indirect calls and jumps are checked."
)
@click.option(
    "--violations-not-skipped", is_flag=True, help="State that the runtime does not step over denied stores."
)
@click.option(
    "--own-symbol", "own_symbols", multiple=True, metavar="NAME", help="A kernel object that is own data."
)
@click.option(
    "--constant", "constants", multiple=True, metavar="NAME=VALUE", help="Give a named constant its value."
)
@click.option("--print-after", is_flag=True, help="Print the module after each pass to the standard error.")
def opt(
    reporter: Reporter,
    module: str,
    pipeline: str | None,
    use_default: bool,
    output: str,
    description: str | None,
    control_flow_kept: bool,
    violations_not_skipped: bool,
    own_symbols: tuple[str, ...],
    constants: tuple[str, ...],
    print_after: bool,
) -> None:
    """Run passes over MODULE, a file in the text form of the intermediate representation.

    The verifier runs before the first pass and after each. Without passes it is all that runs.
    """
    if use_default and pipeline:
        raise click.UsageError("--default and --passes exclude each other")
    require_distinct([output], [module, *([description] if description else [])])
    source = reporter.read_source(module)
    given = parse_valid(source, parse_constants(constants))
    context = PassContext(
        decode(read_bytes(description), description) if description else None,
        control_flow_kept,
        not violations_not_skipped,
        frozenset(own_symbols),
    )
    steps = default_pipeline(context) if use_default else ()
    if pipeline:
        steps = parse_pipeline(pipeline, PASSES)

    def observe(step: Pass, result: ir.Module) -> None:
        if print_after:
            sys.stderr.write(f"; after {step}\n{print_module(result)}")

    text = print_module(run_pipeline(given, steps, context, observe))
    if output == STANDARD_STREAM:
        sys.stdout.write(text)
    else:
        write_atomic(output, text)


def parse_valid(source: SourceFile, constants: dict[str, int]) -> ir.Module:
    """The module of a text, verified; what is wrong with it is shown where it stands in the text.

    Raises `DiagnosticError`.
    """
    module = parse_module(source, constants)
    if verify(module):
        require_valid(_at_own_places(parse_module(source, constants, own_spans=True), source))
    return module


def _at_own_places(module: ir.Module, source: SourceFile) -> ir.Module:
    """Without the sites' spans of other sources, which nobody could be shown."""
    return replace(
        module,
        sites=tuple(
            s if s.span is None or s.span.source == source.name else replace(s, span=None)
            for s in module.sites
        ),
    )


def parse_constants(given: tuple[str, ...]) -> dict[str, int]:
    """``NAME=VALUE`` texts as a mapping; raises click.UsageError for one that is not of this form."""
    found: dict[str, int] = {}
    for text in given:
        name, equals, value = text.rpartition("=")
        try:
            found[name] = int(value, 0)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise click.UsageError(f"`{text}` is not of the form NAME=VALUE")
    return found

# SPDX-License-Identifier: Apache-2.0
"""`o2c scan` and `o2c show`: make and print descriptions of kernel code."""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from o2cc.cli.common import CONTEXT_SETTINGS, Reporter, diagnostic_command
from o2cc.cli.completion import DIRECTORY, FILE
from o2cc.cli.progress import ProgressBar
from o2cc.diagnostics import DiagnosticError, did_you_mean, error, warning
from o2cc.files import require_distinct
from o2cc.kernel import store
from o2cc.kernel.description import Description
from o2cc.kernel.errors import NO_FUNCTION, NO_KERNEL
from o2cc.kernel.fields import fields_at, members_of
from o2cc.kernel.image import MODULE_SUFFIXES
from o2cc.kernel.kernels import (
    Kernel,
    module_files,
    module_name,
    open_kernel,
    read_module,
)
from o2cc.kernel.module_file import kernel_of_module, open_module_file
from o2cc.kernel.show import as_json, function_lines, overview, site_lines
from o2cc.kernel.summary import all_problems, summarize, summary_as_json

PROGRESS_AFTER = 2.0
EXAMPLES = 40


kernel_option = click.option(
    "-k",
    "--kernel",
    "kernel_name",
    metavar="DIR|RELEASE|VMLINUZ",
    type=FILE,
    help="The kernel that the code belongs to.",
)


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.argument("module", required=False, type=FILE)
@click.option(
    "--builtin", metavar="PATTERNS", help="Describe functions of the kernel itself: `ip6_*,udpv6_*`."
)
@click.option(
    "--all",
    "directory",
    metavar="DIR",
    type=DIRECTORY,
    help="Scan every module below DIR and sum up; writes nothing.",
)
@kernel_option
@click.option(
    "--struct",
    "structs",
    multiple=True,
    metavar="NAME",
    help="Add a struct of the kernel that the policy names and the code gets at by casts only; repeat for more.",
)
@click.option("--name", help="Name of a built-in target; by default made of the patterns.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write; default NAME.o2k.",
)
@click.option("--limit", type=click.IntRange(1), help="With --all: only so many modules, evenly spread.")
@click.option("--json", "json_form", is_flag=True, help="Print the summary as JSON.")
def scan(
    reporter: Reporter,
    module: str | None,
    builtin: str | None,
    directory: str | None,
    kernel_name: str | None,
    structs: tuple[str, ...],
    name: str | None,
    output: Path | None,
    limit: int | None,
    json_form: bool,
) -> None:
    """Describe a kernel module (a file, or a name with --kernel) or built-in functions as X.o2k.

    The description holds what the compiler must know of the code: every instruction that writes memory, calls or
    jumps, where probes can go, types, symbols and sections. It holds no code. It is for exactly this build of the
    kernel and of the module.

    \b
    Examples:
      o2c scan sctp                                 the module of the kernel that runs
      o2c scan sctp -k 6.1.0-57-amd64 -o sctp.o2k   of another one, installed or unpacked
      o2c scan --builtin 'ip6_*' --name ip6_output  functions of the kernel itself
    """
    if sum(item is not None for item in (module, builtin, directory)) != 1:
        raise click.UsageError("Give one of: a module, --builtin PATTERNS, --all DIR.")
    if module == "":
        raise click.UsageError("The name of the module is empty.")
    if directory is not None:
        _scan_all(reporter, Path(directory), kernel_name, limit, json_form)
        return
    if output is not None:
        require_distinct([output], [path for path in (module, kernel_name) if path is not None])
    with _progress("scanning"):
        description = describe_target(module, builtin, kernel_name, name, structs)
    target = output or Path(f"{description.target.name}.o2k")
    size = store.save(description, target)
    problems = all_problems(description)
    if problems:
        reporter.add(
            warning(
                "O2C0430",
                f"{len(problems)} places of `{description.target.name}` are not understood",
                notes=tuple(problems[:5]),
                help=f"`o2c show {target}` lists them; sites there are checked without what is not known",
                path=str(target),
            )
        )
    if json_form:
        click.echo(
            json.dumps({"output": str(target), "bytes": size, **summary_as_json(description)}, indent=1)
        )
        return
    summary = summarize(description)
    click.echo(
        f"{target}: {description.target.name} of {description.release}, {summary.functions} functions, "
        f"{summary.sites} sites, {summary.stores} writes, {size} bytes"
    )


def describe_target(
    module: str | None,
    builtin: str | None,
    kernel_name: str | None,
    name: str | None,
    structs: Sequence[str] = (),
) -> Description:
    """The description that a module (a file or a name) or patterns of built-in functions stand for."""
    # Imported late: the analyses pull in the decoder.
    if builtin is not None:
        from o2cc.kernel.builtin import scan_builtin

        kernel = open_kernel(kernel_name) if kernel_name is not None else _running_kernel()
        patterns = tuple(part.strip() for part in builtin.split(",") if part.strip())
        return scan_builtin(kernel, patterns, name, structs)
    assert module is not None
    from o2cc.kernel.scan import scan_module

    path = Path(module)
    if kernel_name is not None:
        release = store.read_build_identity(path).release if path.is_file() else None
        kernel = open_kernel(kernel_name, release)
        if not path.exists() and "/" not in module and not module.endswith(MODULE_SUFFIXES):
            path = kernel.find_module(module)
        return scan_module(path, kernel, structs)
    if not path.exists() and "/" not in module and not module.endswith(MODULE_SUFFIXES):
        kernel = _running_kernel()
        return scan_module(kernel.find_module(module), kernel, structs)
    return open_module_file(path).describe(structs)


def _running_kernel() -> Kernel:
    import os

    return open_kernel(os.uname().release)


def _scan_all(
    reporter: Reporter, directory: Path, kernel_name: str | None, limit: int | None, json_form: bool
) -> None:
    from o2cc.kernel.scan import describe_module

    if not directory.is_dir():
        raise DiagnosticError(error(NO_KERNEL, "there is no such directory", path=str(directory)))
    files = module_files(directory)
    if not files:
        raise DiagnosticError(error(NO_KERNEL, "no modules below this directory", path=str(directory)))
    if limit is not None and limit < len(files):
        files = [files[index * len(files) // limit] for index in range(limit)]
    if kernel_name is not None:
        kernel = open_kernel(kernel_name)
    else:
        kernel = kernel_of_module(files[0], store.read_build_identity(files[0]).release)
    totals: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    refused: list[tuple[str, str]] = []
    examples: dict[str, list[str]] = {}
    started = time.monotonic()
    with ProgressBar() as progress:
        for done, path in enumerate(files):
            progress("modules", done, len(files))
            try:
                data = read_module(path)
                description = describe_module(data, str(path), module_name(path), kernel)
            except DiagnosticError as problem:
                refused.append((str(path), problem.diagnostics[0].message))
                continue
            except Exception as problem:  # a bug of ours in one module must not hide the other thousands
                refused.append((str(path), f"internal error: {type(problem).__name__}: {problem}"))
                totals["internal_errors"] += 1
                continue
            summary = summarize(description)
            totals["modules"] += 1
            for field in (
                "functions",
                "instructions",
                "sites",
                "stores",
                "probe_places",
                "jump_optimizable",
                "problems",
            ):
                totals[field] += getattr(summary, field)
            totals["modules_with_problems"] += bool(summary.problems)
            totals["functions_with_problems"] += sum(
                bool(function.problems) for function in description.functions
            )
            for problem_text in all_problems(description):
                reason = _reason(problem_text)
                reasons[reason] += 1
                if len(examples.setdefault(reason, [])) < EXAMPLES:
                    examples[reason].append(f"{description.target.name}: {problem_text}")
    seconds = time.monotonic() - started
    if json_form:
        found = {
            **totals,
            "seconds": round(seconds, 1),
            "refused": dict(refused),
            "reasons": dict(reasons.most_common()),
            "examples": examples,
        }
        click.echo(json.dumps(found, indent=1))
    else:
        for line in _totals(totals, seconds, reasons):
            click.echo(line)
    for name, message in refused:
        make = error if message.startswith("internal error") else warning
        reporter.add(make("O2C0431", f"not scanned: {message}", path=name))


def _totals(totals: Counter[str], seconds: float, reasons: Counter[str]) -> Iterator[str]:
    yield f"{totals['modules']} modules in {seconds:.0f} s, {totals['functions']} functions"
    yield f"{totals['instructions']} instructions, {totals['sites']} sites, {totals['stores']} writes"
    yield f"{totals['probe_places']} sites can carry a probe, {totals['jump_optimizable']} of them an optimized one"
    yield f"not understood: {totals['problems']} places in {totals['functions_with_problems']} functions"
    yield from (f"  {count:>7}  {reason}" for reason, count in reasons.most_common())


def _reason(problem: str) -> str:
    text = problem.partition(": ")[2] or problem
    return re.sub(r"`[^`]*`", "`...`", text)


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.argument("source", metavar="X.o2k", type=FILE)
@click.argument("place", metavar="[FUNCTION[+OFFSET]|STRUCT[+OFFSET|.FIELD]]", required=False)
@click.option("--json", "json_form", is_flag=True, help="Print JSON: all that is known.")
def show(reporter: Reporter, source: str, place: str | None, json_form: bool) -> None:
    """Print a description, one of its functions or sites, or what lies where in a struct.

    `STRUCT+OFFSET` names the field there, as a policy names it; `STRUCT.FIELD`
    tells the field's offset.
    """
    if place is not None and place.endswith(".o2k") and not source.endswith(".o2k"):
        raise click.UsageError(f"The description comes first: o2c show {place} {source}")
    description = store.load(source)
    if place is None:
        if json_form:
            click.echo(json.dumps(as_json(description), indent=1))
        else:
            _echo_all(overview(description))
        return
    name, _, offset_text = place.partition("+")
    function = description.function_by_name.get(name)
    if function is None:
        _show_struct(description, place, json_form, source)
        return
    if not offset_text:
        if json_form:
            click.echo(json.dumps(as_json(function), indent=1))
        else:
            _echo_all(function_lines(function))
        return
    offset = _offset(offset_text)
    site = function.site_by_offset.get(offset)
    if site is None:
        near = sorted(function.site_by_offset, key=lambda other: (abs(other - offset), other))[:3]
        help = "the nearest are " + ", ".join(f"+{other:#x}" for other in sorted(near)) if near else None
        raise DiagnosticError(
            error(NO_FUNCTION, f"`{name}` has no site at +{offset:#x}", help=help, path=source)
        )
    if json_form:
        click.echo(json.dumps(as_json(site), indent=1))
    else:
        _echo_all(site_lines(function, site))


def _offset(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.UsageError(f"`{text}` is not an offset.") from None


def _show_struct(description: Description, place: str, json_form: bool, source: str) -> None:
    """A struct, or the fields at an offset in it.  Raises DiagnosticError when the description has no such thing."""
    name, _, offset_text = place.removeprefix("struct ").strip().partition("+")
    struct, _, path = name.partition(".")
    types = description.types
    layout = types.struct_by_name.get(struct)
    if layout is None:
        known = {**description.function_by_name, **types.struct_by_name}
        raise _no_such(
            f"the description has no function or struct `{name}`", did_you_mean(name, known), source
        )
    if path or offset_text:
        field = types.find_field(struct, path) if path else None
        if path and field is None:
            likely = did_you_mean(path, types.field_names(struct))
            raise _no_such(f"`{layout.kind} {struct}` has no field `{path}`", likely, source)
        offset = field.offset if field is not None else 0
        if offset_text:
            offset += _offset(offset_text)
        found = fields_at(types, struct, offset)
        if not found:
            raise _no_such(
                f"`{layout.kind} {struct}` has {layout.size} bytes, and no field at {offset:#x}", None, source
            )
        head = f"{layout.kind} {struct}+{offset:#x}: "
    else:
        found, head = members_of(types, struct), ""
    if json_form:
        click.echo(json.dumps(as_json(found), indent=1))
        return
    if not head:
        click.echo(f"{layout.kind} {struct}, {layout.size} bytes")
    for item in found:
        bits = f" ({item.bits} bits)" if item.bits else ""
        text = f"{item.path}, {item.size} bytes{bits}, {item.type}"
        click.echo(f"{head}{text}" if head else f"  +{item.offset:#x} {text}")


def _no_such(message: str, help: str | None, source: str) -> DiagnosticError:
    return DiagnosticError(error(NO_FUNCTION, message, help=help, path=source))


def _echo_all(lines: Iterator[str]) -> None:
    click.echo("\n".join(lines))


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """Say what goes on, once it has taken longer than `PROGRESS_AFTER` (on a terminal only)."""
    if not sys.stderr.isatty():
        yield
        return
    import threading

    timer = threading.Timer(PROGRESS_AFTER, lambda: click.echo(f"{what} ...", err=True))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


__all__: Sequence[str] = ("scan", "show")

# SPDX-License-Identifier: Apache-2.0
"""`o2c tree`: import, show and check decision trees."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import click

from o2cc.diagnostics import Diagnostic, DiagnosticError, error, warning
from o2cc.report.render import ErrorFormat, write_diagnostics

P = ParamSpec("P")
R = TypeVar("R")

EXIT_DISAGREEMENT = 1
EXIT_BAD_INPUT = 2


def shows_diagnostics(command: Callable[P, R]) -> Callable[P, R]:
    """Turn a DiagnosticError of a command into messages and exit status 2."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except DiagnosticError as problem:
            write_diagnostics(problem.diagnostics, {}, ErrorFormat.TEXT, sys.stderr)
            raise SystemExit(EXIT_BAD_INPUT) from None

    return wrapper


def _say(*diagnostics: Diagnostic) -> None:
    write_diagnostics(diagnostics, {}, ErrorFormat.TEXT, sys.stderr)


@click.group()
def tree() -> None:
    """Import, show and check decision trees."""


@tree.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write; default SOURCE.tree.json."
)
@click.option("--trust-pickle", is_flag=True, help="Read a pickle. Pickles run code: only your own files.")
@shows_diagnostics
def import_tree(source: Path, output: Path | None, trust_pickle: bool) -> None:
    """Make an exact integer tree of a fitted scikit-learn tree.

    SOURCE is plain JSON (children_left, children_right, feature, threshold, value), or a pickle or joblib
    file of a fitted DecisionTreeClassifier. Reading a pickle runs any code that is in it.
    """
    from o2cc.trees.file import write_tree
    from o2cc.trees.importer import import_json, import_pickle, looks_like_pickle

    if looks_like_pickle(source):
        imported = import_pickle(source, trusted=trust_pickle)
    else:
        imported = import_json(source)
    target = output or source.with_suffix("").with_suffix(".tree.json")
    if target.resolve() == source.resolve():
        raise DiagnosticError(error("O2C0700", "the output would replace the source", path=str(target)))
    write_tree(imported.tree, target)
    tree = imported.tree
    click.echo(f"{target}: {len(tree.nodes)} nodes, depth {tree.depth}, {len(tree.classes)} classes")


@tree.command()
@click.argument("source", metavar="TREE.json", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shows_diagnostics
def show(source: Path, as_json: bool) -> None:
    """Print a tree: a summary, then one line for each node."""
    from o2cc.trees.importer import import_json
    from o2cc.trees.show import tree_as_json, tree_as_text

    shown = import_json(source).tree
    if as_json:
        click.echo(json.dumps(tree_as_json(shown), indent=1))
    else:
        click.echo("\n".join(tree_as_text(shown)))


@tree.command()
@click.argument("source", metavar="TREE.json", type=click.Path(path_type=Path))
@click.option(
    "--vectors", type=click.IntRange(1, 100_000_000), default=100_000, show_default=True, help="How many."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the vectors.")
@click.option(
    "--kernel/--no-kernel", "in_kernel", default=None, help="Insist on the kernel, or leave it out."
)
@click.option(
    "--form",
    type=click.Choice(["branches", "split", "table"]),
    help="Insist on one form of the compiled tree.",
)
@click.option("--budget", type=click.IntRange(1), help="Most BPF instructions; above it the form is a table.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@shows_diagnostics
def check(
    source: Path,
    vectors: int,
    seed: int,
    in_kernel: bool | None,
    form: str | None,
    budget: int | None,
    as_json: bool,
) -> None:
    """Compare a tree with scikit-learn's semantics, in integers and in the running kernel.

    TREE.json is an o2c tree or plain JSON as `o2c tree import` takes. Half of the vectors sit on the
    thresholds. Without --kernel or --no-kernel, the kernel is used when this is run by root. Exit status: 0
    all predictions agreed, 1 some did not (or the kernel rejected the program), 2 the input is broken or
    --kernel was not possible.
    """
    from o2cc.trees.check import NotInKernel, check_tree
    from o2cc.trees.check_report import check_as_json, check_as_text
    from o2cc.trees.compile import Form
    from o2cc.trees.importer import import_json

    imported = import_json(source)
    tries_kernel = os.geteuid() == 0 if in_kernel is None else in_kernel
    result = check_tree(
        imported, vectors, seed, in_kernel=tries_kernel, form=Form(form) if form else None, budget=budget
    )
    if as_json:
        click.echo(json.dumps(check_as_json(imported, result), indent=1))
    else:
        click.echo("\n".join(check_as_text(imported, result, skipped_as_asked=in_kernel is False)))
    status = 0 if result.is_complete else EXIT_DISAGREEMENT
    if isinstance(result.kernel, NotInKernel) and result.kernel.log:
        _say(
            error(
                "O2C0717",
                "the kernel rejects the compiled tree, which is a bug of o2c",
                path=str(source),
                notes=(result.kernel.reason, *result.kernel.log),
            )
        )
    elif in_kernel is not False and (result.kernel is None or isinstance(result.kernel, NotInKernel)):
        reason = result.kernel.reason if result.kernel else "not run by root"
        message = f"the tree was NOT run in the kernel: {reason}"
        help = "run it as root on a kernel from 5.17 on, or pass --no-kernel to leave the kernel out"
        if in_kernel:
            _say(error("O2C0716", message, path=str(source), help=help))
            status = status or EXIT_BAD_INPUT
        else:
            _say(warning("O2C0716", message, path=str(source), help=help))
    raise SystemExit(status)

# SPDX-License-Identifier: Apache-2.0
"""`o2c tree`: import, show and check decision trees."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from o2cc.cli.common import CONTEXT_SETTINGS, Reporter, diagnostic_command
from o2cc.diagnostics import error, warning
from o2cc.files import require_distinct
from o2cc.report.locate import printable
from o2cc.trees.check import Check, InKernel, NotInKernel, check_tree
from o2cc.trees.check_report import check_as_json, check_as_text
from o2cc.trees.compile import Form
from o2cc.trees.file import write_tree
from o2cc.trees.importer import import_json, import_pickle, looks_like_pickle
from o2cc.trees.show import tree_as_json, tree_as_text


@click.group(context_settings=CONTEXT_SETTINGS)
def tree() -> None:
    """Import, show and check decision trees."""


@tree.command("import")
@diagnostic_command
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where to write; default SOURCE.tree.json.",
)
@click.option("--trust-pickle", is_flag=True, help="Read a pickle. Pickles run code: only your own files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def import_tree(
    reporter: Reporter, source: Path, output: Path | None, trust_pickle: bool, as_json: bool
) -> None:
    """Make an exact integer tree of a fitted scikit-learn tree.

    SOURCE is plain JSON (children_left, children_right, feature, threshold, value), or a pickle or joblib
    file of a fitted DecisionTreeClassifier. Reading a pickle runs any code that is in it.
    """
    if looks_like_pickle(source):
        imported = import_pickle(source, trusted=trust_pickle)
    else:
        imported = import_json(source)
    reporter.extend(imported.notes)
    target = output or source.with_suffix("").with_suffix(".tree.json")
    require_distinct([target], [source])
    write_tree(imported.tree, target)
    tree = imported.tree
    if as_json:
        made = {
            "tree": str(target),
            "nodes": len(tree.nodes),
            "depth": tree.depth,
            "classes": list(tree.classes),
        }
        click.echo(json.dumps(made, indent=1))
        return
    click.echo(f"{target}: {len(tree.nodes)} nodes, depth {tree.depth}, {len(tree.classes)} classes")


@tree.command()
@diagnostic_command
@click.argument("source", metavar="TREE.json", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(reporter: Reporter, source: Path, as_json: bool) -> None:
    """Print a tree: a summary, then one line for each node."""
    shown = import_json(source).tree
    if as_json:
        click.echo(json.dumps(tree_as_json(shown), indent=1))
    else:
        click.echo(printable("\n".join(tree_as_text(shown))))


@tree.command()
@diagnostic_command
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
def check(
    reporter: Reporter,
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
    thresholds. Without --kernel or --no-kernel, the kernel is used when this is run by root. The exit status
    is 0 only when all predictions agreed; a program that the verifier rejects, and --kernel where it is not
    possible, are errors too.
    """
    imported = import_json(source)
    tries_kernel = os.geteuid() == 0 if in_kernel is None else in_kernel
    result = check_tree(
        imported, vectors, seed, in_kernel=tries_kernel, form=Form(form) if form else None, budget=budget
    )
    if as_json:
        click.echo(json.dumps(check_as_json(imported, result), indent=1))
    else:
        click.echo("\n".join(check_as_text(imported, result, skipped_as_asked=in_kernel is False)))
    if not result.all_agreed:
        reporter.add(error("O2C0715", "predictions disagree", path=str(source)))
    _report_kernel(reporter, source, result, in_kernel)


def _report_kernel(reporter: Reporter, source: Path, result: Check, in_kernel: bool | None) -> None:
    """Say loudly when the kernel rejected the program, or did not run it though it was not left out as asked."""
    kernel, path = result.kernel, str(source)
    if isinstance(kernel, NotInKernel) and kernel.log:
        message = "the kernel rejects the compiled tree, which is a bug of o2c"
        reporter.add(error("O2C0717", message, path=path, notes=(kernel.reason, *kernel.log)))
    elif in_kernel is not False and not isinstance(kernel, InKernel):
        message = f"the tree was NOT run in the kernel: {kernel.reason if kernel else 'this needs root'}"
        help = "run it as root on a kernel from 5.17 on, or pass --no-kernel to leave the kernel out"
        reporter.add((error if in_kernel else warning)("O2C0716", message, path=path, help=help))

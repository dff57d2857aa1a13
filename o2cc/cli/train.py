# SPDX-License-Identifier: Apache-2.0
"""`o2c train`: profiles -> decision tree and its quality report."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pyarrow  # noqa: F401  (here, so that a missing package is told before anything is read)
import sklearn  # noqa: F401  (likewise)

from o2cc.cli.common import CONTEXT_SETTINGS, Reporter, diagnostic_command
from o2cc.diagnostics import Diagnostic, DiagnosticError, error
from o2cc.files import require_distinct, require_writable, write_atomic
from o2cc.trees.dataset import MOMENTS, read_profiles
from o2cc.trees.file import write_tree
from o2cc.trees.report import report_as_text, write_plots
from o2cc.trees.study import Study, study
from o2cc.trees.train import Options, quick_options
from o2cc.trees.train import train as train_tree


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.argument(
    "profiles", nargs=-1, required=True, metavar="PROFILE.parquet...", type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The tree, NAME.tree.json.",
)
@click.option(
    "--report",
    "report_directory",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Directory for text, JSON, plots.",
)
@click.option(
    "--features",
    type=click.Choice(["classes", "raw", "size"]),
    default="classes",
    show_default=True,
    help="Classes of words, or a baseline: raw words, or size and cache flags.",
)
@click.option(
    "--moment",
    type=click.Choice([*MOMENTS, "all"]),
    default="all",
    show_default=True,
    help="Samples to use.",
)
@click.option(
    "--budget", type=click.IntRange(2), default=4096, show_default=True, help="Most BPF instructions."
)
@click.option(
    "--least", type=click.IntRange(1), default=10, show_default=True, help="Fewest samples of a class."
)
@click.option(
    "--macro-least",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Fewest samples of a class that counts in macro figures.",
)
@click.option(
    "--own", multiple=True, metavar="LABEL", help="A type that the compartment owns; repeat for more."
)
@click.option(
    "--families/--no-families",
    default=True,
    show_default=True,
    help="Compare with a forest, a linear model, a neural net.",
)
@click.option("--quick", is_flag=True, help="Search a few shapes only, to try things out.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of what is drawn at random."
)
def train(
    reporter: Reporter,
    profiles: tuple[Path, ...],
    output: Path,
    report_directory: Path | None,
    features: str,
    moment: str,
    budget: int,
    least: int,
    macro_least: int,
    own: tuple[str, ...],
    families: bool,
    quick: bool,
    as_json: bool,
    seed: int,
) -> None:
    """Train a decision tree on profiles of kernel objects.

    Depth, leaves and features are chosen by cross-validation over boots, within the budget. The report tells
    how well the tree does on boots, workloads and kernels that it has not seen.

    \b
    Example:
      o2c train boot1.parquet boot2.parquet boot3.parquet -o sctp.tree.json --report report --own sctp_chunk
    """
    require_writable(output)  # before the training
    if report_directory is not None:
        _make(report_directory)
    reports = [report_directory / name for name in _REPORTS] if report_directory is not None else []
    require_distinct([output, *reports], profiles)
    options = Options(
        features=features, moment=moment, budget=budget, least=least, seed=seed, guarded=frozenset(own)
    )
    trained = train_tree(
        read_profiles(profiles),
        quick_options(options) if quick else options,
        [path.name for path in profiles],
    )
    reporter.extend(trained.warnings)
    unknown = sorted(set(own) - set(trained.tree.classes))
    if unknown:
        raise DiagnosticError(
            error("O2C0727", f"--own names `{unknown[0]}`, which is no class of the profiles")
        )
    result = study(trained, own=frozenset(own), least=macro_least, seed=seed, families=families)
    text = "\n".join(report_as_text(trained, result))
    if report_directory is not None:
        _write_report(report_directory, text, result)
    write_tree(trained.tree, output)
    click.echo(json.dumps(result.as_json(), indent=1) if as_json else text)


_REPORTS = ("report.txt", "report.json")


def _make(directory: Path) -> None:
    """Raises DiagnosticError (O2C0905) where the directory of the report is none."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise DiagnosticError(
            error("O2C0905", "the report needs a directory, and this is a file", path=str(directory))
        ) from None
    except OSError as problem:
        raise DiagnosticError(_unwritten(directory, problem)) from None


def _unwritten(directory: Path, problem: OSError) -> Diagnostic:
    why = os.strerror(problem.errno or 0).lower()
    return error("O2C0905", f"cannot write the report: {why}", path=str(directory))


def _write_report(directory: Path, text: str, result: Study) -> None:
    try:
        write_plots(result, directory)
    except OSError as problem:
        raise DiagnosticError(_unwritten(directory, problem)) from None
    write_atomic(directory / "report.txt", text + "\n")
    write_atomic(directory / "report.json", json.dumps(result.as_json(), indent=1) + "\n")

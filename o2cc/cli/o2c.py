# SPDX-License-Identifier: Apache-2.0
"""`o2c`: the tool around the compiler."""

from __future__ import annotations

import sys

import click

from o2cc import __version__
from o2cc.cli.common import CONTEXT_SETTINGS, EXIT_AND_ENVIRONMENT, run
from o2cc.cli.lazy import LazyCommand, LazyGroup

COMMANDS = {
    "scan": LazyCommand("o2cc.cli.scan", "scan", "Describe a kernel module or built-in functions (.o2k)."),
    "show": LazyCommand("o2cc.cli.scan", "show", "Print a description for a person or as JSON."),
    "gates": LazyCommand("o2cc.cli.gates", "gates", "List a module's imports that the stdlib does not know."),
    "fmt": LazyCommand("o2cc.cli.fmt", "fmt", "Format policies."),
    "test": LazyCommand("o2cc.cli.test", "test", "Run a policy's tests, without a kernel and without root."),
    "explain": LazyCommand(
        "o2cc.cli.explain", "explain", "Say how a site is checked, or why it needs no check."
    ),
    "stats": LazyCommand("o2cc.cli.stats", "stats", "Show what was compiled, from `o2cc --stats`."),
    "opt": LazyCommand("o2cc.cli.opt", "opt", "Run passes over the intermediate representation."),
    "profile": LazyCommand(
        "o2cc.cli.profile", "profile", "Record objects of a running kernel for training.", "trees"
    ),
    "train": LazyCommand("o2cc.cli.train", "train", "Train a decision tree from profiles.", "trees"),
    "tree": LazyCommand("o2cc.cli.tree", "tree", "Inspect and evaluate decision trees.", "trees"),
    "load": LazyCommand("o2cc.cli.load", "load", "Load a policy into the running kernel."),
    "monitor": LazyCommand("o2cc.cli.monitor", "monitor", "Show violations as they happen."),
    "status": LazyCommand("o2cc.cli.status", "status", "Show loaded policies, counters and skipped checks."),
    "phase": LazyCommand("o2cc.cli.phase", "phase", "Show or change the phase of a loaded policy."),
    "unload": LazyCommand("o2cc.cli.unload", "unload", "Remove a policy from the kernel."),
    "doctor": LazyCommand("o2cc.cli.doctor", "doctor", "Check what this machine can enforce."),
}


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings=CONTEXT_SETTINGS,
    epilog=f"{EXIT_AND_ENVIRONMENT}\n\n`o2c COMMAND --help` describes a command. The compiler is `o2cc`.",
)
@click.version_option(__version__, prog_name="o2c")
def o2c() -> None:
    """Confine a vulnerable part of a running Linux kernel.

    A policy (.o2c) says what a kernel module, or a set of built-in functions, may write, call and jump
    to. `o2cc` compiles it to eBPF; these commands describe kernels, test policies, and load, watch and
    remove them.
    """


def main() -> None:
    """Entry point of the `o2c` command."""
    sys.exit(run(o2c, "o2c"))


if __name__ == "__main__":
    main()

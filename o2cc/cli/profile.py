# SPDX-License-Identifier: Apache-2.0
"""`o2c profile`: objects of the running kernel -> labelled samples."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import click
import pyarrow  # noqa: F401  (here, so that a missing package is told before anything is recorded)

from o2cc.cli.common import CONTEXT_SETTINGS, Reporter, diagnostic_command
from o2cc.diagnostics import DiagnosticError, error, warning
from o2cc.files import require_writable
from o2cc.profile.compartment import module_sections, own_bounds
from o2cc.profile.labels import share
from o2cc.profile.record import (
    PROBED_FUNCTIONS,
    record,
    running_btf,
    running_labeller,
    running_program,
    some_functions,
)
from o2cc.profile.write import at_most_per_class, profile_rows, write_profile

_SHOWN = 20


@click.command(context_settings=CONTEXT_SETTINGS)
@diagnostic_command
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The profile, NAME.parquet.",
)
@click.option("--workload", default="unnamed", show_default=True, help="Name of what is running meanwhile.")
@click.option(
    "--seconds", type=click.FloatRange(0.1), default=30.0, show_default=True, help="How long to record."
)
@click.option(
    "--per-class",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Most samples of each class (and of each allocation site) at each moment.",
)
@click.option(
    "--module",
    help="The compartment's module: its functions are watched, and its addresses told from other modules'.",
)
def profile(
    reporter: Reporter, output: Path, workload: str, seconds: float, per_class: int, module: str | None
) -> None:
    """Record what objects of the running kernel hold, and label each with its type.

    Objects are chosen when they are allocated, fewer and fewer of a site that allocates much, and read while in use
    and when they are freed. Needs root. What was lost is said. `o2c train` takes the file.
    """
    require_writable(output)  # before minutes of recording
    kernel = running_btf()
    program = running_program(kernel, per_site=per_class)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = own_bounds(module_sections(module)) if module else {}
    functions = some_functions(module, PROBED_FUNCTIONS, boot) if module else ()
    with _Progress(seconds) as progress:
        recording = record(program, seconds=seconds, functions=functions, progress=progress)
    if not recording.samples:
        raise DiagnosticError(
            error("O2C0721", "no object was sampled", help="record for longer, while the workload runs")
        )
    labeller = running_labeller(kernel)
    samples, labels = at_most_per_class(
        recording.samples, [labeller.label(sample) for sample in recording.samples], per_class
    )
    rows = profile_rows(
        samples,
        labels,
        kernel=os.uname().release,
        boot=boot,
        workload=workload,
        layout=replace(recording.layout, **own),
    )
    write_profile(output, rows)
    typed = share(samples, labels)
    click.echo(
        f"{output}: {typed.samples} samples of {len({label.name for label in labels})} classes; "
        f"{typed.typed_samples} of them and {typed.typed_sites} of {typed.sites} sites have a type"
    )
    for name, count in Counter(label.name for label in labels if label.is_type).most_common(_SHOWN):
        click.echo(f"  {count:6}  {name}")
    lost = recording.counters
    click.echo(
        f"dropped: {lost.lost_records} records (buffer full), {lost.lost_sites} sites and "
        f"{lost.lost_objects} objects (map full)"
    )
    if lost.lost_records:
        reporter.add(warning("O2C0851", f"{lost.lost_records} samples were lost, since the buffer was full"))


class _Progress:
    """A bar on a terminal: time, samples, and what was lost."""

    def __init__(self, seconds: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("recording"),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[samples]} samples, {task.fields[lost]} lost"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("recording", total=seconds, samples=0, lost=0)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, samples: int, lost: int) -> None:
        self._bar.update(self._task, completed=self._bar.tasks[0].elapsed or 0.0, samples=samples, lost=lost)

# SPDX-License-Identifier: Apache-2.0
"""The result of `o2c tree check` as text and JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from o2cc.trees.check import Agreement, Check, InKernel, NotInKernel
from o2cc.trees.importer import Imported


def _agreement(what: str, agreement: Agreement) -> Iterator[str]:
    verdict = "all agree" if agreement.is_complete else f"{agreement.vectors - agreement.agreed:,} DISAGREE"
    yield f"{what}: {agreement.agreed:,} of {agreement.vectors:,} predictions, {verdict}"
    for mismatch in agreement.mismatches:
        words = ", ".join(f"{name} = {word:#x}" for name, word in mismatch.words)
        yield f"    expected {mismatch.expected}, got {mismatch.predicted}, for {words}"


def check_as_text(imported: Imported, check: Check, *, skipped_as_asked: bool) -> Iterator[str]:
    """Lines for a terminal."""
    tree = imported.tree
    yield f"{len(tree.nodes):,} nodes, depth {tree.depth}, {len(tree.used_features)} features, {len(tree.classes)} classes"
    yield from _agreement("integer tree", check.integers)
    yield f"    {check.boundaries_tested:,} of {check.boundaries:,} words next to thresholds were among the vectors"
    for step in check.compiled.steps:
        yield f"compiler: {step}"
    yield from _agreement("compiled program, interpreted", check.interpreted)
    yield f"    {check.executed:.1f} instructions executed for {check.path:.1f} tests, on average"
    if isinstance(check.kernel, InKernel):
        kernel = check.kernel
        yield from _agreement(f"kernel {kernel.release}", kernel.agreement)
        yield (
            f"    {check.compiled.instruction_count:,} instructions, {kernel.nanoseconds:.1f} ns a prediction, "
            f"verifier walked {kernel.effort.processed:,} instructions, {kernel.effort.machine_bytes:,} bytes of machine code"
        )
    elif skipped_as_asked:
        yield "kernel: left out as asked"
    else:
        yield "kernel: NOT RUN, the compiled program was only interpreted"


def check_as_json(imported: Imported, check: Check) -> dict[str, object]:
    """In JSON types."""
    compiled, kernel = check.compiled, check.kernel
    in_kernel: dict[str, object] | None = None
    if isinstance(kernel, InKernel):
        in_kernel = {
            "release": kernel.release,
            "agreement": asdict(kernel.agreement),
            "nanoseconds": kernel.nanoseconds,
            "verifier_instructions": kernel.effort.processed,
            "machine_bytes": kernel.effort.machine_bytes,
        }
    return {
        "all_agreed": check.all_agreed,
        "nodes": len(imported.tree.nodes),
        "depth": imported.tree.depth,
        "integers": asdict(check.integers),
        "boundaries": check.boundaries,
        "boundaries_tested": check.boundaries_tested,
        "form": str(compiled.form),
        "instructions": compiled.instruction_count,
        "compiler": list(compiled.steps),
        "interpreted": asdict(check.interpreted),
        "executed_instructions": check.executed,
        "mean_path": check.path,
        "kernel": in_kernel,
        "kernel_refusal": kernel.reason if isinstance(kernel, NotInKernel) else None,
    }

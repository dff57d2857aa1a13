# SPDX-License-Identifier: Apache-2.0
"""The part of loading that o2c.ko has: a compartment there, its hooks at functions, and every site, committed at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from o2cc.bpf.info import ObjectInfo
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import enforcement, heap, running_kernel, state
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import EnforcerError
from o2cc.runtime.entry_points import Ends
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.libbpf import Program
from o2cc.runtime.plan import Plan, listed
from o2cc.runtime.progress import Progress


@dataclass(frozen=True)
class Load:
    """What is loaded: the object (``data``, ``info``), where its sites are (``planned``, and the target's ``symbols``), and how."""

    data: bytes
    info: ObjectInfo
    planned: Plan
    symbols: running_kernel.Symbols
    use: enforcement.Use
    accept_gaps: bool
    progress: Progress


@contextmanager
def compartment(info: ObjectInfo, use: enforcement.Use) -> Iterator[Enforcer]:
    """O2c.ko, with an empty compartment; what is not committed is gone at the end.  Its refusals are diagnostics (O2C0831)."""
    try:
        with Enforcer() as enforcer:
            enforcement.create(enforcer, info, use)
            yield enforcer
    except EnforcerError as problem:
        raise enforcement.refused(problem, prevents=use.prevents) from None


def hooks_at_functions(
    info: ObjectInfo, use: enforcement.Use, symbols: running_kernel.Symbols, served: Collection[str]
) -> Sequence[enforcement.PlacedHook]:
    """With breakpoints only: the hooks at functions that o2c.ko attaches, but those ``served`` already.  A kprobe of perf would keep the checks of what
    interrupts it from running."""
    if not use.strict:
        return ()
    try:
        with KernelText() as text:
            left = [hook for hook in info.hooks if hook.name not in served]
            return enforcement.place_hooks(left, symbols, text)
    except OSError:
        return ()  # refused soon (O2C0835)


def attach(
    enforcer: Enforcer,
    load: Load,
    programs: Mapping[str, Program],
    shadow: int,
    hooks: Sequence[enforcement.PlacedHook],
) -> enforcement.Enforced:
    """Attach every site, and switch all on.  ``shadow``: the id of the private heap's owner shadow, 0 without such a heap.

    Raises EnforcerError; DiagnosticError where the kernel's text cannot be read (O2C0835), and where a violation cannot be
    denied at some places and ``accept_gaps`` is not given (O2C0832).
    """
    private: enforcement.HeapRequest | None = None
    try:
        with KernelText() as text:
            ends = Ends.of(load.symbols.addresses) if load.use.strict else None
            placed = enforcement.place(
                load.data, load.info, load.planned.attachments, text, ends, prevents=load.use.prevents
            )
            if load.use.prevents and load.info.heap is not None:
                calls, lost = heap.place(load.info.heap, load.symbols, text)
                private = enforcement.HeapRequest(load.info.heap, shadow, calls, lost)
    except OSError:
        raise DiagnosticError(
            error(
                "O2C0835",
                "the kernel's text cannot be read",
                notes=("each instruction is compared with what it should be before it is probed",),
                help="it needs root, CONFIG_PROC_KCORE, and no lockdown `confidentiality`",
            )
        ) from None
    with running_kernel.KprobeOptimizationOff(keep=state.others_only_report(load.info.name)):
        outcome = enforcement.attach(enforcer, placed, programs, load.progress, private, hooks)
    gaps = (*outcome.observed, *outcome.failures, *load.planned.failures, *outcome.not_private)
    if load.use.prevents and gaps and not load.accept_gaps:
        raise DiagnosticError(
            error(
                "O2C0832",
                f"a violation cannot be denied at {len(gaps)} of {len(placed)} places",
                notes=listed(gaps),
                help="accept that by name: `--accept-gaps`; `o2c status` goes on showing them",
            )
        )
    enforcer.commit()
    return outcome

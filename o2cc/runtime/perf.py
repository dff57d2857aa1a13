# SPDX-License-Identifier: Apache-2.0
"""Attaches programs without o2c.ko: sites through perf, hooks as links of the kernel's; all pinned, so that they stay."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from o2cc.bpf.info import HookInfo
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import kernel_calls, running_kernel, state
from o2cc.runtime.libbpf import Program
from o2cc.runtime.plan import Attachment, failure, refusal_reason
from o2cc.runtime.progress import Progress

_REPORTED_EVERY = 50  # sites between two reports of progress


def attach_hook(hook: HookInfo, programs: Mapping[str, Program], symbols: running_kernel.Symbols) -> int:
    """The link of a hook.  Raises DiagnosticError (O2C0821)."""
    program = programs[hook.program]
    try:
        if hook.kind == "raw_tracepoint":
            return kernel_calls.open_raw_tracepoint(program.descriptor, hook.target)
        address = symbols.addresses.get(hook.target, 0)
        return _probe(program, address, on_return=hook.kind == "kretprobe", cookie=0)
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0821",
                f"`{hook.name}` cannot be attached to `{hook.target}`: {os.strerror(problem.errno or 0).lower()}",
            )
        ) from problem


def _probe(program: Program, address: int, *, on_return: bool, cookie: int) -> int:
    event = kernel_calls.kprobe_event(address, on_return=on_return)
    try:
        return kernel_calls.link_perf_event(program.descriptor, event, cookie)
    finally:
        os.close(event)


def attach_sites(
    attachments: Sequence[Attachment],
    programs: Mapping[str, Program],
    directory: Path,
    progress: Progress,
    optimize: bool,
) -> list[state.Failure]:
    """Attach every site, and pin its link under ``directory``; those that the kernel refuses.  ``optimize``: it may turn the
    probes into jumps."""
    failures: list[state.Failure] = []
    # Nothing but the setting for the whole kernel keeps a probe of perf from becoming a jump.
    keep = not optimize or any(attachment.site.keep_int3 for attachment in attachments)
    with running_kernel.KprobeOptimizationOff(keep=keep):
        for done, attachment in enumerate(attachments):
            site = attachment.site
            try:
                link = _probe(
                    programs[site.program],
                    attachment.address,
                    on_return=site.return_probe,
                    cookie=site.cookie or 0,
                )
                kernel_calls.pin(link, directory / "links" / str(site.number))
                os.close(link)
            except OSError as problem:
                message = os.strerror(problem.errno or 0).lower()
                failures.append(failure(site, refusal_reason(site, message)))
            if done % _REPORTED_EVERY == 0:
                progress("attach", done, len(attachments))
    progress("attach", len(attachments), len(attachments))
    return failures

# SPDX-License-Identifier: Apache-2.0
"""Loads an object into the running kernel and attaches every site by address.

`load` is all or nothing: what cannot be loaded, or a hook that cannot be attached, takes back everything.  Sites
that the kernel refuses are counted and named in the state, never passed over in silence.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from o2cc.bpf.info import HookInfo, ObjectInfo, SiteInfo
from o2cc.bpf.info import read as read_info
from o2cc.diagnostics import DiagnosticError, error
from o2cc.runtime import kernel_calls, running_kernel, state
from o2cc.runtime.libbpf import BpfObject, LoadError, Program

Progress = Callable[[str, int, int], None]  # stage, done, all

LOG_LINES = 12


@dataclass(frozen=True)
class Attachment:
    """One probe to be placed."""

    site: SiteInfo
    address: int


def silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


def verifier_diagnostic(problem: LoadError) -> DiagnosticError:
    """What libbpf or the verifier said, as our bug, with its last lines."""
    lines = [line for entry in problem.log for line in entry.splitlines() if line.strip()]
    return DiagnosticError(
        error(
            "O2C0820",
            f"the kernel refused the compiled policy: {problem}",
            notes=tuple(lines[-LOG_LINES:]),
            help="this is a bug of o2cc: please report it with the policy and the kernel's release",
        )
    )


def plan(
    info: ObjectInfo, wanted: Callable[[SiteInfo], bool]
) -> tuple[list[Attachment], list[state.Failure]]:
    """Addresses of the wanted sites; those whose function the running kernel does not have are failures."""
    module = info.identity.get("target") if info.identity.get("kind") == "module" else None
    symbols = running_kernel.read_symbols(module)
    attachments: list[Attachment] = []
    failures: list[state.Failure] = []
    for site in info.sites:
        if not wanted(site):
            continue
        address = symbols.addresses.get(site.function)
        if address is None:
            failures.append(_failure(site, "the running kernel has no function of that name"))
        elif address == 0:
            raise DiagnosticError(error("O2C0803", "kernel addresses are hidden", help="run as root"))
        elif site.function in symbols.ambiguous:
            failures.append(_failure(site, "several functions have that name"))
        else:
            attachments.append(Attachment(site, address + site.probe_offset))
    return attachments, failures


def _failure(site: SiteInfo, reason: str) -> state.Failure:
    return state.Failure(site.number, f"{site.function}+{site.offset:#x}", reason)


def load(
    data: bytes,
    *,
    path: str = "",
    wanted: Callable[[SiteInfo], bool] = lambda site: True,
    progress: Progress = silent,
) -> state.State:
    """Load an object for reporting, and pin it under the compartment's name.

    Raises DiagnosticError: another kernel (O2C0810, O2C0811), loaded already (O2C0804), refused by the verifier
    (O2C0820), a hook that cannot be attached (O2C0821), no bpffs (O2C0805).
    """
    info = read_info(data, path)
    mismatches = running_kernel.mismatches(info.identity)
    if mismatches:
        raise DiagnosticError(mismatches)
    directory = _claim(info.name)
    attachments, failures = plan(info, wanted)
    programs_wanted = {a.site.program for a in attachments} | {h.program for h in info.hooks}
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        with BpfObject(data) as loaded:
            progress("verify", 0, len(programs_wanted))
            try:
                loaded.load(lambda name: name in programs_wanted)
            except LoadError as problem:
                raise verifier_diagnostic(problem) from problem
            progress("verify", len(programs_wanted), len(programs_wanted))
            for name, descriptor in loaded.maps().items():
                kernel_calls.pin(descriptor, directory / "maps" / name.replace(".", "_"))
            programs = loaded.programs()
            for hook in info.hooks:
                _attach_hook(hook, programs, directory / "links")
            failures += _attach_sites(attachments, programs, directory, progress)
        result = state.State(
            name=info.name,
            loaded_at=time.time(),
            boot_id=state.boot_id(),
            attached=len(attachments) - sum(1 for f in failures if f.reason.startswith("refused")),
            failures=tuple(failures),
            enforced=False,
            degraded=None,
        )
        state.save(result, data)
        undo.pop_all()
    return result


def _claim(name: str) -> Path:
    """The pin directory of a compartment that is not loaded yet."""
    directory = state.pins(name)
    try:
        directory.parent.mkdir(exist_ok=True)
        if directory.exists() and name not in state.names():
            unload(name)  # left by a loader that was killed
        directory.mkdir()
        (directory / "maps").mkdir()
        (directory / "links").mkdir()
    except FileExistsError:
        raise DiagnosticError(
            error("O2C0804", f"the compartment `{name}` is loaded already", help=f"o2c unload {name}")
        ) from None
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0805",
                f"`{directory}` cannot be made: {os.strerror(problem.errno or 0).lower()}",
                help="run as root, with bpffs mounted: mount -t bpf bpf /sys/fs/bpf",
            )
        ) from None
    return directory


def _attach_hook(hook: HookInfo, programs: dict[str, Program], directory: Path) -> None:
    program = programs[hook.program]
    try:
        if hook.kind == "raw_tracepoint":
            link = kernel_calls.open_raw_tracepoint(program.descriptor, hook.target)
        else:
            address = running_kernel.read_symbols(None).addresses.get(hook.target, 0)
            event = kernel_calls.kprobe_event(address, on_return=hook.kind == "kretprobe")
            link = kernel_calls.link_perf_event(program.descriptor, event, 0)
            os.close(event)
        kernel_calls.pin(link, directory / hook.name)
        os.close(link)
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0821",
                f"`{hook.name}` cannot be attached to `{hook.target}`: {os.strerror(problem.errno or 0).lower()}",
            )
        ) from problem


def _attach_sites(
    attachments: Sequence[Attachment], programs: dict[str, Program], directory: Path, progress: Progress
) -> list[state.Failure]:
    failures: list[state.Failure] = []
    with running_kernel.KprobeOptimizationOff():
        for done, attachment in enumerate(attachments):
            site = attachment.site
            try:
                event = kernel_calls.kprobe_event(attachment.address, on_return=site.return_probe)
                try:
                    link = kernel_calls.link_perf_event(
                        programs[site.program].descriptor, event, site.cookie or 0
                    )
                finally:
                    os.close(event)
                kernel_calls.pin(link, directory / "links" / str(site.number))
                os.close(link)
            except OSError as problem:
                failures.append(_failure(site, f"refused: {os.strerror(problem.errno or 0).lower()}"))
            if done % 50 == 0:
                progress("attach", done, len(attachments))
    progress("attach", len(attachments), len(attachments))
    return failures


def unload(name: str, progress: Progress = silent) -> int:
    """Detach and forget a compartment; how many probes there were.  Hooks go last, so that what is tracked stays
    exact while checks run.  Raises DiagnosticError (O2C0802) when nothing of that name is there."""
    directory = state.pins(name)
    if not directory.exists():
        state.forget(name)
        raise DiagnosticError(state.not_loaded(name))
    links = sorted((directory / "links").iterdir(), key=lambda link: (not link.name.isdigit(), link.name))
    for done, link in enumerate(links):
        link.unlink()
        if done % 50 == 0:
            progress("detach", done, len(links))
    progress("detach", len(links), len(links))
    for pinned in (directory / "maps").iterdir():
        pinned.unlink()
    for sub in ("maps", "links"):
        (directory / sub).rmdir()
    directory.rmdir()
    state.forget(name)
    return len(links)

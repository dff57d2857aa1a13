# SPDX-License-Identifier: Apache-2.0
"""Loads an object into the running kernel and attaches every site by address; takes it out again.

`load` is all or nothing: what cannot be loaded, or a hook that cannot be attached, takes back everything.  Sites
that the kernel refuses are counted and named in the state, never passed over in silence.

The state is written last.  A loader that is killed leaves pins without a state (the next `load` or `unload` of that
name removes them), and with o2c.ko either nothing or, between its commit and the state, everything in force.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from o2cc.bpf.info import ObjectInfo, SiteInfo
from o2cc.bpf.info import read as read_info
from o2cc.diagnostics import Diagnostic, DiagnosticError, error, warning
from o2cc.runtime import (
    code_check,
    enforcement,
    heap,
    kernel_calls,
    module_load,
    notes,
    perf,
    phases,
    pins,
    running_kernel,
    state,
)
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import is_older
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.libbpf import BpfObject, LoadError
from o2cc.runtime.plan import Plan, listed, make_plan, tracking_sites
from o2cc.runtime.progress import Progress, silent

LOG_LINES = 12
DRAIN_PATIENCE = 10.0  # seconds
_AT_FUNCTIONS = ("kprobe", "kretprobe")  # hooks of these kinds are at a function of the kernel


@dataclass(frozen=True)
class LoadOptions:
    """``degrade``: do without o2c.ko though the policy asks for more (`report`; `kill` where it was compiled so).
    ``accept_gaps``: load although there are places where a violation cannot be denied.  ``optimize``: let the kernel
    turn the probes of a policy that only reports into jumps.  A soft interrupt inside such a probe then finds a BPF
    program active and its own probes are skipped (kernel/trace/bpf_trace.c trace_call_bpf, 6.1): what it allocates is
    not tracked, and proper use is reported.  Without it probe optimization is off in the whole kernel while such a
    policy is loaded, unless o2c.ko attaches them, which it does where it is loaded.  ``perf``: o2c.ko is not to.
    ``only`` is what ``wanted`` stands for, in words; who looks at the status is told.
    ``warn`` is told what the engineer should know."""

    wanted: Callable[[SiteInfo], bool] = lambda site: True
    degrade: str | None = None
    accept_gaps: bool = False
    optimize: bool = False
    perf: bool = False
    only: str | None = None
    warn: Callable[[Diagnostic], None] = lambda diagnostic: None


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


@dataclass(frozen=True)
class _Names:
    """Functions by name: of what is confined, and of the kernel itself (where a hook asks for them)."""

    target: running_kernel.Symbols
    kernel: running_kernel.Symbols


def _read_names(info: ObjectInfo, *, ends: bool) -> _Names:
    """The addresses of the running kernel, for ``ends`` of all its functions.  Raises DiagnosticError (O2C0803) when they
    are hidden."""
    text = running_kernel.read_kallsyms()
    module = info.identity.get("target") if info.identity.get("kind") == "module" else None
    target = running_kernel.symbols_in(text, module)
    if target.addresses and not any(target.addresses.values()):
        raise DiagnosticError(
            error(
                "O2C0803",
                "kernel addresses are hidden",
                help="run as root, with kernel.kptr_restrict below 2",
            )
        )
    if module is None:
        return _Names(target, target)
    hooked = [hook.target for hook in info.hooks if hook.kind in _AT_FUNCTIONS]
    return _Names(target, running_kernel.symbols_in(text, None, None if hooked and ends else hooked))


def load(
    data: bytes, *, path: str = "", options: LoadOptions | None = None, progress: Progress = silent
) -> state.State:
    """Load an object and pin it under the compartment's name; with o2c.ko where it says deny or more.

    Raises DiagnosticError: another kernel (O2C0810, O2C0811), loaded already (O2C0804), somebody is at it (O2C0806),
    refused by the verifier (O2C0820), a hook that cannot be attached (O2C0821), call targets that nothing tells
    (O2C0822, O2C0823), no right or no bpffs (O2C0805),
    o2c.ko missing or refusing (O2C0830, O2C0831), places that cannot be denied (O2C0832), what nothing enforces yet
    (O2C0833), nothing to attach (O2C0834), how much memory there is not known (O2C0838).
    """
    chosen = options if options is not None else LoadOptions()
    info = read_info(data, path)
    state.check_name(info.name)
    mismatches = running_kernel.mismatches(info.identity)
    if mismatches:
        raise DiagnosticError(mismatches)
    needs = enforcement.needs_of(info)
    if needs.missing and chosen.degrade is None:
        raise DiagnosticError(
            error(
                "O2C0833",
                f"this policy needs what cannot be enforced yet: {', '.join(sorted(needs.missing))}",
                help="leave the rule out, or accept less by name with `--degrade`",
            )
        )
    use: enforcement.Use | None = None
    if needs.module and chosen.degrade is None:
        enforcement.require_module(needs, info, unwanted=chosen.perf)
        use = enforcement.Use(needs, prevents=True)
    elif not chosen.perf and not chosen.optimize and enforcement.can_observe():
        use = enforcement.Use(needs, prevents=False)
    with state.locked(info.name):
        return _load(data, info, use, chosen, progress)


def _load(
    data: bytes,
    info: ObjectInfo,
    use: enforcement.Use | None,
    options: LoadOptions,
    progress: Progress,
) -> state.State:
    prevents = use is not None and use.prevents
    names = _read_names(info, ends=use is not None and use.strict)
    planned = make_plan(info, names.target, options.wanted)
    if not planned.attachments:
        raise _nothing_attached(info.name, planned.failures)
    _compare_code(info, planned, options)
    if use is not None and not use.strict:
        _warn_of_skipped_tracking(info, planned, options)
    private = info.heap if prevents else None
    image = data if private is None else heap.resized(data, info, heap.page_frames())
    directory = _claim(info.name)
    problems = _left_out(info, planned, options)
    programs_wanted = {a.site.program for a in planned.attachments} | {h.program for h in info.hooks}
    with ExitStack() as undo:
        undo.callback(pins.remove, directory, silent)
        # runs before that: what is taken back goes as slowly as at unloading
        undo.callback(_silence, info, directory / "maps")
        try:
            with BpfObject(image) as loaded, ExitStack() as meanwhile:
                progress("verify", 0, len(programs_wanted))
                loaded.load(lambda name: name in programs_wanted)
                progress("verify", len(programs_wanted), len(programs_wanted))
                _fill_call_targets(info, loaded, options)
                for name, descriptor in loaded.maps().items():
                    kernel_calls.pin(descriptor, directory / "maps" / name.replace(".", "_"))
                programs = loaded.programs()
                phases.hold(info, directory / "maps")
                enforcer: Enforcer | None = None
                at_functions: Sequence[enforcement.PlacedHook] = ()
                at_tracepoints: frozenset[str] = frozenset()
                if use is not None:
                    undo.callback(enforcement.remove, info.name)
                    enforcer = meanwhile.enter_context(module_load.compartment(info, use))
                    ids = {name: kernel_calls.map_id(number) for name, number in loaded.maps().items()}
                    at_tracepoints = enforcement.attach_tracepoints(enforcer, info, programs, ids)
                    if is_older(enforcer.features):
                        options.warn(enforcement.older_module())
                        problems.append(enforcement.OLDER_MODULE)
                    at_functions = module_load.hooks_at_functions(info, use, names.kernel, at_tracepoints)
                for hook in info.hooks:
                    if hook.kind != "syscall" and hook.name not in at_tracepoints:
                        link = perf.attach_hook(hook, programs, names.kernel)
                        if hook in [item.hook for item in at_functions]:
                            meanwhile.callback(os.close, link)  # until o2c.ko's own is in force
                        else:
                            kernel_calls.pin(link, directory / "links" / hook.name)
                            os.close(link)
                # whatever is noted, somebody sees the end of
                notes.take(info, programs)
                observed: tuple[state.Failure, ...] = ()
                not_private: tuple[state.Failure, ...] = ()
                if use is not None and enforcer is not None:
                    shadow = kernel_calls.map_id(loaded.maps()[heap.SHADOW_SECTION]) if private else 0
                    about = module_load.Load(
                        data, info, planned, names.target, use, options.accept_gaps, progress
                    )
                    outcome = module_load.attach(enforcer, about, programs, shadow, at_functions)
                    observed, refused = outcome.observed, outcome.failures
                    not_private = outcome.not_private
                else:
                    refused = tuple(
                        perf.attach_sites(
                            planned.attachments, programs, directory, progress, options.optimize
                        )
                    )
                if len(refused) == len(planned.attachments):
                    raise _nothing_attached(info.name, refused)
                # once more, for what came while the entries that tell of it were being attached
                if not notes.take(info, programs):
                    options.warn(notes.incomplete(info.name))
                    problems.append(notes.INCOMPLETE)
        except LoadError as problem:
            raise verifier_diagnostic(problem) from problem
        except OSError as problem:
            raise DiagnosticError(
                error(
                    "O2C0805",
                    f"`{directory}` cannot be filled: {os.strerror(problem.errno or 0).lower()}",
                    help="run as root, with bpffs mounted: mount -t bpf bpf /sys/fs/bpf",
                )
            ) from problem
        result = state.State(
            name=info.name,
            loaded_at=time.time(),
            boot_id=state.boot_id(),
            attached=len(planned.attachments) - len(refused),
            failures=(*planned.failures, *refused, *not_private),
            enforced=prevents,
            by_module=use is not None,
            degraded=options.degrade,
            observed=observed,
            problems=tuple(problems),
        )
        phases.begin(info, directory / "maps")
        state.save(result, data)
        undo.pop_all()
    return result


def _left_out(info: ObjectInfo, planned: Plan, options: LoadOptions) -> list[str]:
    every = sum(1 for site in info.sites if site.program)
    left_out = every - len(planned.attachments) - len(planned.failures)
    if options.only is None or not left_out:
        return []
    return [f"{left_out} of {every} sites are not checked: only `{options.only}` was asked for (`--only`)"]


def _compare_code(info: ObjectInfo, planned: Plan, options: LoadOptions) -> None:
    """Raises DiagnosticError (O2C0812) when the code that runs is not what was scanned."""
    try:
        with KernelText() as text:
            places = code_check.changed_places(planned.attachments, text, code_check.probed_addresses())
    except OSError:  # a policy that denies goes no further (O2C0835)
        options.warn(
            warning("O2C0813", "the kernel's text cannot be read: it is not compared with the description")
        )
        return
    if places:
        raise DiagnosticError(
            code_check.another_code(info.identity.get("target", info.name), places, len(planned.attachments))
        )


def _warn_of_skipped_tracking(info: ObjectInfo, planned: Plan, options: LoadOptions) -> None:
    tracking = tracking_sites(info)
    if any(attachment.site.number in tracking for attachment in planned.attachments):
        options.warn(
            warning(
                "O2C0843",
                "an interrupt inside a jump-optimized probe runs confined code without checks and without tracking",
                notes=(
                    "proper use of what such code allocates or is given can be denied later; "
                    "`o2c status` counts skipped checks as `missed`",
                ),
                help="`probes strict` in the policy: slower, and nothing is skipped",
            )
        )


def _fill_call_targets(info: ObjectInfo, loaded: BpfObject, options: LoadOptions) -> None:
    if info.ops_targets:
        from o2cc.runtime import call_targets  # late: few policies need the descriptions of other modules

        call_targets.fill(info, loaded.maps(), options.warn)


def _nothing_attached(name: str, failures: Sequence[state.Failure]) -> DiagnosticError:
    return DiagnosticError(
        error(
            "O2C0834",
            f"no site of `{name}` can be attached",
            notes=listed(failures),
            help="`o2c doctor` says what this kernel can do; with `--only`, look at its patterns",
        )
    )


def _claim(name: str) -> Path:
    """The pin directory of a compartment that is not loaded yet; leftovers of a killed loader are removed."""
    directory = state.pins(name)
    try:
        if name in state.names() and _same_boot(name):
            raise DiagnosticError(
                error("O2C0804", f"the compartment `{name}` is loaded already", help=f"o2c unload {name}")
            )
        enforcement.remove(name)
        if directory.exists():
            pins.remove(directory, silent)
        state.forget(name)
        directory.parent.mkdir(exist_ok=True)
        directory.mkdir()
        (directory / "maps").mkdir()
        (directory / "links").mkdir()
    except OSError as problem:
        raise DiagnosticError(
            error(
                "O2C0805",
                f"`{directory}` cannot be made: {os.strerror(problem.errno or 0).lower()}",
                help="run as root, with bpffs mounted: mount -t bpf bpf /sys/fs/bpf",
            )
        ) from None
    return directory


def _same_boot(name: str) -> bool:
    try:
        state.load(name)
    except DiagnosticError:
        return False
    return True


def _silence(info: ObjectInfo, maps: Path) -> None:
    with suppress(DiagnosticError):
        phases.end(info, maps)


def unload(
    name: str, progress: Progress = silent, *, force: bool = False, patience: float = DRAIN_PATIENCE
) -> int:
    """Detach and forget a compartment; how many probes there were.

    A private heap is drained first, for at most ``patience`` seconds, unless ``force``.  Checks go first and hooks last,
    so that what is tracked stays exact while checks run; and they say nothing any more, since a kernel takes minutes to take
    thousands of perf's probes away (6.12: each waits for a grace period of its own).

    Raises DiagnosticError: O2C0802 when nothing of that name is there, O2C0806 when another process is at it, O2C0839 when
    private objects are still in use.
    """
    state.check_name(name)
    directory = state.pins(name)
    with state.locked(name), ExitStack() as after:
        if not state.others_only_report(name):
            after.callback(running_kernel.restore_optimization)
        if not force:
            enforcement.drain(name, patience, progress)
        was_enforced = enforcement.remove(name)
        if not directory.exists():
            known = name in state.recorded()
            state.forget(name)
            if not known and not was_enforced:
                raise DiagnosticError(state.not_loaded(name))
            return 0
        try:
            saved, info = state.load(name)
            attached = saved.attached
            phases.end(info, directory / "maps")
        except DiagnosticError:
            attached = None
        # what was written down goes first: from here on it is a leftover, which `load` and `unload` take up again
        state.forget(name)
        links = pins.remove(directory, progress)
        return attached if attached is not None else links

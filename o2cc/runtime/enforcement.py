# SPDX-License-Identifier: Apache-2.0
"""Puts a compartment into the hands of o2c.ko: sites attached by address, all inert, then one commit.

What o2c.ko cannot deny is attached as a site that only reports, and named; the caller decides whether that will do.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from o2cc.bpf.info import HeapInfo, HookInfo, ObjectInfo, SiteInfo
from o2cc.diagnostics import Diagnostic, DiagnosticError, error, warning
from o2cc.ir.nodes import SiteKind
from o2cc.runtime import enforcer as kernel_module
from o2cc.runtime import heap
from o2cc.runtime.enforcer import Enforcer
from o2cc.runtime.enforcer_types import (
    Action,
    DrainState,
    EnforcerError,
    Feature,
    Kind,
    OnMissed,
    Site,
    is_older,
    reason_text,
)
from o2cc.runtime.entry_points import Ends, behind_entry
from o2cc.runtime.instructions import MAXIMUM_LENGTH, NotDeniable, Placed, enforced, observed
from o2cc.runtime.kernel_text import KernelText
from o2cc.runtime.libbpf import Program
from o2cc.runtime.plan import RESULT_NOTE, Attachment, failure
from o2cc.runtime.progress import Progress
from o2cc.runtime.running_kernel import Symbols
from o2cc.runtime.state import Failure
from o2cc.runtime.tables import initial_rows, table
from o2cc.runtime.tracepoints import tracepoints

NEEDS_MODULE = frozenset({"deny", "panic", "strict probes", "private heap"})
UNSUPPORTED = frozenset({"private stack", "on missed deny", "on missed panic"})
OLDER_MODULE = "this o2c.ko is older than `o2c`: hooks are links of the kernel's, and what an interrupt frees inside one goes `unseen`"
HOOK_COOKIE = 1 << 62
"""Cookies from here on are of hooks, not of sites."""
_BATCH = 256
_BEFORE_OTHERS = {SiteKind.RETURN: 1, SiteKind.ENTRY: 2}
_DRAIN_STEP = 0.1  # seconds
_UNKNOWN_HEIGHT = 0xFFFF
_UNKNOWN_RESULT = -errno.EFAULT & 0xFFFF


@dataclass(frozen=True)
class Needs:
    """What an object asks of the system that loads it, by the names in `o2cc.policy.features`."""

    features: frozenset[str]
    kill_on_missed: bool

    @property
    def module(self) -> frozenset[str]:
        """What only o2c.ko does."""
        also = frozenset({"on missed kill"}) if self.kill_on_missed else frozenset[str]()
        return self.features & NEEDS_MODULE | also

    @property
    def strict(self) -> bool:
        """No check is skipped because of what another probe does."""
        return "strict probes" in self.features

    @property
    def missing(self) -> frozenset[str]:
        """What nothing does yet."""
        return self.features & UNSUPPORTED


def needs_of(info: ObjectInfo) -> Needs:
    """What an object needs, as the compiler wrote it into the object's identity."""
    features = frozenset(filter(None, info.identity.get("needs", "").split(",")))
    on_missed = info.identity.get("on_missed", "report")
    return Needs(features | {f"on missed {on_missed}"} & UNSUPPORTED, on_missed == "kill")


@dataclass(frozen=True)
class Use:
    """What o2c.ko is used for: to prevent what the policy denies, or only to attach the checks of a policy that reports.

    It attaches faster than perf, counts what is skipped on every kernel, needs no setting for the whole system, and is
    through with detaching at once.
    """

    needs: Needs
    prevents: bool

    @property
    def strict(self) -> bool:
        """Breakpoints only.  Nothing that merely reports is worth that an interrupt inside a jump goes unchecked."""
        return self.needs.strict or not self.prevents


@dataclass(frozen=True)
class Enforced:
    """The outcome: how many sites deny, which only report, which are not checked at all, and which calls do not go to the
    private heap though they should."""

    denying: int
    observed: tuple[Failure, ...]
    failures: tuple[Failure, ...]
    not_private: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class HeapRequest:
    """A private heap to ask for: its owner shadow's id, the calls to redirect, and those that cannot be."""

    info: HeapInfo
    shadow: int
    calls: tuple[heap.Redirected, ...]
    lost: tuple[Failure, ...]


@dataclass(frozen=True)
class PlacedHook:
    """A hook with the address of the breakpoint that serves it."""

    hook: HookInfo
    address: int


def build_help() -> tuple[str, ...]:
    """How to get o2c.ko, for a diagnostic."""
    release = os.uname().release
    return (
        f"build it: apt-get install linux-headers-{release} && make -C bpf_runtime/module, then insmod o2c.ko",
        "or with DKMS, which follows kernel updates: cp -r bpf_runtime/module /usr/src/o2c-0.1.0 && "
        "dkms install o2c/0.1.0 && modprobe o2c",
    )


def older_module() -> Diagnostic:
    """Says that o2c.ko is of a build without hooks at tracepoints, and what that costs."""
    return warning(
        "O2C0846",
        OLDER_MODULE,
        notes=build_help(),
        help="build the one that belongs to this `o2c`, unload every policy, and load it in place of the old one (rmmod o2c)",
    )


def can_observe(device: Path = kernel_module.DEVICE) -> bool:
    """Whether o2c.ko can attach what only reports: it is there, of this version, and the kernel's text can be read."""
    if not kernel_module.available(device):
        return False
    try:
        with Enforcer(device), KernelText():
            return True
    except (EnforcerError, OSError):
        return False


def require_module(
    needs: Needs, info: ObjectInfo, device: Path = kernel_module.DEVICE, *, unwanted: bool = False
) -> None:
    """Raises DiagnosticError (O2C0830) when o2c.ko is needed and not there, or ``unwanted`` by name."""
    if needs.module and (unwanted or not kernel_module.available(device)):
        absent = "`--perf` goes without it" if unwanted else "it is not loaded"
        asked = ", ".join(f"`{name}`" for name in sorted(needs.module))
        place = () if info.heap is None else (f"`heap private` is at {info.heap.file}:{info.heap.line}",)
        weaker = "" if info.heap is None else ", and the heap is tracked"
        raise DiagnosticError(
            error(
                "O2C0830",
                f"this policy says {asked}, which takes the kernel module o2c.ko, and {absent}",
                notes=place if unwanted else (*place, *build_help()),
                help=f"or accept by name that violations are not prevented{weaker}: `--degrade report` or "
                "`--degrade kill`",
            )
        )


def action_of(site: SiteInfo, rule: int) -> Action:
    """What o2c.ko does with the verdict 1 of a site's program, which the program gives only where a rule says so.

    A requirement of a gate can have an action of its own, so that a call's site denies whatever its default is.
    """
    if rule in (Action.KILL, Action.PANIC):
        return Action(rule)
    if rule == Action.REPORT and site.kind not in (SiteKind.CALL, SiteKind.TAIL_CALL, SiteKind.ENTRY):
        return Action.REPORT
    return Action.DENY


def place(
    data: bytes,
    info: ObjectInfo,
    attachments: Sequence[Attachment],
    text: KernelText,
    ends: Ends | None = None,
    *,
    prevents: bool = True,
) -> list[Placed]:
    """The sites with what the object and the kernel's memory say of them.  With ``ends`` (`Use.strict`) breakpoints take
    the place of the probes at entries and returns where they can.  Unless it ``prevents``, all only report."""
    layout = table(info, "sites")
    rows: Sequence[Mapping[str, int]] = initial_rows(data, layout) if layout is not None else ()
    found = []
    for attachment in attachments:
        number = attachment.site.number
        row = rows[number] if number < len(rows) else {}
        rule = row.get("action", Action.DENY)
        action = action_of(attachment.site, rule) if prevents else Action.REPORT
        code = text.read(attachment.address, MAXIMUM_LENGTH)
        height = row.get("height", _UNKNOWN_HEIGHT)
        result = row.get("result", _UNKNOWN_RESULT)
        result -= (result & 0x8000) << 1  # signed
        behind = 0
        if ends is not None and attachment.site.kind in (SiteKind.ENTRY, SiteKind.RETURN):
            behind = _behind_entry(attachment.address, text, ends)
        found.append(Placed(attachment.site, attachment.address, code, action, height, result, behind))
    return found


def _behind_entry(address: int, text: KernelText, ends: Ends) -> int:
    return behind_entry(text.read(address, ends.size(address)))


def place_hooks(hooks: Sequence[HookInfo], symbols: Symbols, text: KernelText) -> list[PlacedHook]:
    """The hooks at functions of the kernel that o2c.ko is to attach, like entries; those that a breakpoint cannot serve are
    left out."""
    ends, found = Ends.of(symbols.addresses), []
    for hook in hooks:
        address = symbols.addresses.get(hook.target)
        if hook.kind != "kprobe" or address is None:
            continue
        behind = _behind_entry(address, text, ends)
        if behind:
            found.append(PlacedHook(hook, address + behind))
    return found


def describe(placed: Placed, program: int) -> tuple[Site, Failure | None]:
    """How o2c.ko is to attach a site, and why it only reports there (None: it denies, or has nothing to deny)."""
    site = placed.site
    records_only = (
        site.kind == SiteKind.RETURN
        or site.note.startswith(RESULT_NOTE)
        or (site.kind == SiteKind.ENTRY and not site.note)
    )
    if records_only or placed.action is Action.REPORT:
        return observed(placed, program), None
    try:
        return enforced(placed, program), None
    except NotDeniable as problem:
        return observed(placed, program), failure(site, str(problem))


def _programs(enforcer: Enforcer, names: Collection[str], programs: Mapping[str, Program]) -> dict[str, int]:
    return {name: enforcer.program(programs[name].descriptor) for name in sorted(names)}


def attach_tracepoints(
    enforcer: Enforcer, info: ObjectInfo, programs: Mapping[str, Program], maps: Mapping[str, int]
) -> frozenset[str]:
    """Put the hooks at tracepoints in force; their names.  None if o2c.ko is of a build that cannot.

    ``maps``: the ids of the object's maps by section.  Raises EnforcerError.
    """
    if is_older(enforcer.features):
        return frozenset()
    wanted = tracepoints(info)
    indices = _programs(enforcer, {item.hook.program for item in wanted}, programs)
    for at in wanted:
        number = maps[at.section] if at.section else 0
        enforcer.tracepoint(
            at.hook.target, indices[at.hook.program], map=number, offset=at.offset, value=at.value
        )
    return frozenset(item.hook.name for item in wanted)


def attach(
    enforcer: Enforcer,
    placed: Sequence[Placed],
    programs: Mapping[str, Program],
    progress: Progress,
    private: HeapRequest | None = None,
    hooks: Sequence[PlacedHook] = (),
) -> Enforced:
    """Attach every site, and the hooks at functions, inert.  Raises EnforcerError when o2c.ko takes no programs or no batch,
    or makes no heap, or does not attach a hook."""
    indices = _programs(enforcer, {item.site.program for item in placed}, programs)
    hook_indices = _programs(enforcer, {item.hook.program for item in hooks}, programs)
    if hooks:
        enforcer.attach(
            [
                Site(
                    item.address,
                    HOOK_COOKIE + number,
                    hook_indices[item.hook.program],
                    Kind.ENTRY,
                    Action.REPORT,
                )
                for number, item in enumerate(hooks)
            ]
        )
    not_private: tuple[Failure, ...] = ()
    if private is not None:
        refused_calls = heap.attach(enforcer, private.info, private.shadow, private.calls)
        not_private = (*private.lost, *refused_calls)
    only_observed: list[Failure] = []
    failures: list[Failure] = []
    denying = 0
    # Of several probes at one address kprobes runs the newest first (kernel/kprobes.c add_new_kprobe, 6.1 and 6.12).  What
    # an entry gives must be there when the first instruction is checked, and its return address be untouched.
    ordered = sorted(placed, key=lambda item: _BEFORE_OTHERS.get(SiteKind(item.site.kind), 0))
    for start in range(0, len(ordered), _BATCH):
        progress("attach", start, len(ordered))
        batch = ordered[start : start + _BATCH]
        described = [describe(item, indices[item.site.program]) for item in batch]
        results = enforcer.try_attach([site for site, _ in described])
        for item, (site, reason), result in zip(batch, described, results, strict=True):
            if result.index is not None:
                if reason is not None:
                    only_observed.append(reason)
                denying += site.action is not Action.REPORT
                continue
            refused = reason_text(result.reason)
            if item.behind:  # what can be observed at the function's start only
                at_start = observed(replace(item, behind=0), indices[item.site.program])
                again = enforcer.try_attach([at_start])[0]
                if again.index is not None:
                    if reason is not None:
                        only_observed.append(reason)
                    continue
            if site.action is not Action.REPORT:
                again = enforcer.try_attach([observed(item, indices[item.site.program])])[0]
                if again.index is not None:
                    only_observed.append(failure(item.site, refused))
                    continue
                refused = reason_text(again.reason)
            failures.append(failure(item.site, f"refused: {refused} ({os.strerror(result.errno).lower()})"))
    progress("attach", len(ordered), len(ordered))
    return Enforced(denying, tuple(only_observed), tuple(failures), not_private)


def create(enforcer: Enforcer, info: ObjectInfo, use: Use) -> None:
    """Make the compartment in o2c.ko; it outlives this process once it is committed.

    Raises DiagnosticError (O2C0804) when o2c.ko has one of that name, EnforcerError for the rest.
    """
    module = info.identity.get("target", "") if info.identity.get("kind") == "module" else ""
    enforcer.create(
        info.name,
        module=module,
        keep=True,
        strict=use.strict,
        on_missed=OnMissed.KILL if use.prevents and use.needs.kill_on_missed else OnMissed.REPORT,
    )


def remove(name: str, device: Path = kernel_module.DEVICE) -> bool:
    """Take a compartment out of o2c.ko; False when it has none of that name.  Raises DiagnosticError (O2C0831)."""
    if not kernel_module.available(device):
        return False
    try:
        with Enforcer(device) as enforcer:
            try:
                enforcer.open(name)
            except EnforcerError:
                return False
            enforcer.detach()
    except EnforcerError as problem:
        raise refused(problem) from None
    return True


def drain(name: str, patience: float, progress: Progress, device: Path = kernel_module.DEVICE) -> None:
    """Let the private heap of a compartment run empty: no new objects, while everything else stays in force.

    Nothing to do where there is no such compartment, no heap, or no object left.  Raises DiagnosticError (O2C0839) when
    after ``patience`` seconds objects are still in use; it goes on draining then.
    """
    if not kernel_module.available(device):
        return
    end = time.monotonic() + patience
    try:
        with Enforcer(device) as enforcer:
            enforcer.open(name)
            if Feature.DRAIN not in enforcer.features:
                return
            told = enforcer.drain(start=True)
            most = told.bytes
            while told.state is DrainState.GOING_ON and time.monotonic() < end:
                progress("drain", most - told.bytes, most)
                time.sleep(_DRAIN_STEP)
                told = enforcer.drain()
    except EnforcerError:
        return  # not there, or not committed: there is nothing to wait for
    if told.state is DrainState.GOING_ON:
        raise DiagnosticError(
            error(
                "O2C0839",
                f"`{name}` still has objects in its private heap: {-(-told.bytes >> 10)} KiB are in use",
                notes=("no new ones are made there, and everything stays enforced until they are gone",),
                help=f"`o2c unload {name}` again when they are freed, with `--wait SECONDS` to wait longer, or "
                "`--force` to give the protection up now",
            )
        )


def refused(problem: EnforcerError, *, prevents: bool = True) -> DiagnosticError:
    """A refusal of o2c.ko as a diagnostic (O2C0831); what it does not have to prevent, perf can attach."""
    return DiagnosticError(
        error(
            "O2C0831",
            f"o2c.ko refused: {problem}",
            help="`o2c doctor` says what this kernel can enforce"
            if prevents
            else "`o2c load --perf` attaches what only reports without it",
        )
    )

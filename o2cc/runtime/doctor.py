# SPDX-License-Identifier: Apache-2.0
"""What this machine can load and enforce: facts from /proc and /sys (`examine`), and what they mean (`judge`, pure)."""

from __future__ import annotations

import ctypes.util
import gzip
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from o2cc.runtime import enforcer, running_kernel
from o2cc.runtime.enforcer_types import EnforcerError, is_older
from o2cc.runtime.state import BPFFS

_NEEDED = (
    "CONFIG_BPF_SYSCALL",
    "CONFIG_KPROBES",
    "CONFIG_BPF_EVENTS",
    "CONFIG_PERF_EVENTS",
    "CONFIG_BPF_JIT",
)


_KFENCE = "/sys/module/kfence/parameters/sample_interval"


class Grade(StrEnum):
    """How a finding bears on what can be done."""

    GOOD = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Facts:
    """What was read of the machine.  None: it cannot be told."""

    release: str
    root: bool
    libbpf: bool
    config: Mapping[str, str] | None
    btf: bool
    bpffs: bool
    optimization: bool | None
    lockdown: str | None
    module_signing_enforced: bool | None
    module_loaded: bool
    module_built: str | None  # a path
    headers: bool
    addresses_shown: bool
    missed_counted: bool
    build_id: str
    description: str | None = None  # build id of the description's kernel
    ambiguous: tuple[str, ...] = ()
    target: str | None = None
    target_loaded: bool | None = None
    kcore: bool = True
    optimization_held: bool = False  # by a loaded policy
    kfence_interval: int = 0  # milliseconds between allocations that KFENCE takes; 0: it takes none
    slabs_debugged: bool | None = False
    module_older: bool | None = False  # o2c.ko is of a build before this `o2c`


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    grade: Grade
    subject: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Verdict:
    """What follows from the findings."""

    can_report: bool
    can_prevent: bool
    findings: tuple[Finding, ...]


def _findings(facts: Facts) -> Iterator[Finding]:
    good, note, bad = Grade.GOOD, Grade.NOTE, Grade.BAD
    yield Finding(
        good if facts.root else bad,
        "root",
        "yes" if facts.root else "no",
        "" if facts.root else "run as root",
    )
    yield (
        Finding(good, "libbpf", "installed")
        if facts.libbpf
        else Finding(bad, "libbpf", "not installed", "apt-get install libbpf1")
    )
    if facts.config is None:
        yield Finding(note, "kernel configuration", "cannot be read: assumed to be a distribution's")
    else:
        lacking = [name for name in _NEEDED if facts.config.get(name) != "y"]
        yield (
            Finding(bad, "kernel configuration", f"lacks {', '.join(lacking)}", "boot a kernel that has it")
            if lacking
            else Finding(good, "kernel configuration", "has BPF, its compiler, kprobes and perf events")
        )
    yield Finding(
        good if facts.btf else bad,
        "BTF",
        "there" if facts.btf else "not there",
        "" if facts.btf else "boot a kernel with CONFIG_DEBUG_INFO_BTF",
    )
    yield Finding(
        good if facts.bpffs else bad,
        "bpffs",
        "mounted" if facts.bpffs else "not mounted",
        "" if facts.bpffs else "mount -t bpf bpf /sys/fs/bpf",
    )
    yield Finding(
        good if facts.addresses_shown else bad,
        "kernel addresses",
        "shown" if facts.addresses_shown else "hidden",
        "" if facts.addresses_shown else "run as root, with kernel.kptr_restrict below 2",
    )
    if facts.optimization is None:
        yield Finding(note, "probe optimization", "not in this kernel: each check costs a breakpoint")
    elif not facts.optimization and facts.optimization_held:
        yield Finding(
            note, "probe optimization", "off while a policy is loaded that only reports, through perf"
        )
    elif not facts.optimization:
        yield Finding(
            note,
            "probe optimization",
            "switched off: each check costs a breakpoint",
            "sysctl debug.kprobes-optimization=1",
        )
    else:
        yield Finding(good, "probe optimization", "on")
    yield Finding(
        good if facts.missed_counted else note,
        "skipped checks",
        "counted"
        if facts.missed_counted
        else "not counted by this kernel for probes through perf (6.7 and newer do); o2c.ko counts them itself",
    )
    yield (
        Finding(
            note,
            "KFENCE",
            f"takes an allocation every {facts.kfence_interval} ms: stores to such objects look like violations, since "
            "nothing tells where in their page they lie",
            f"echo 0 > {_KFENCE}, and kfence.sample_interval=0 at the next boot",
        )
        if facts.kfence_interval
        else Finding(good, "KFENCE", "takes no allocations")
    )
    if facts.lockdown == "confidentiality":
        yield Finding(
            bad,
            "lockdown",
            "confidentiality: BPF may not read kernel memory",
            "boot with lockdown=integrity, or none",
        )
    else:
        yield Finding(good, "lockdown", facts.lockdown or "none")
    yield from _module_findings(facts)
    yield from _target_findings(facts)


def _module_findings(facts: Facts) -> Iterator[Finding]:
    if facts.module_signing_enforced:
        yield Finding(
            Grade.NOTE,
            "module signing",
            "required: o2c.ko must be signed with a key that this machine trusts",
            "DKMS signs with the machine owner's key: mokutil --import /var/lib/dkms/mok.pub, then reboot",
        )
    else:
        yield Finding(Grade.GOOD, "module signing", "not required")
    if facts.module_loaded and facts.module_older:
        yield Finding(
            Grade.NOTE,
            "o2c.ko",
            "loaded, but older than this `o2c`: hooks are links of the kernel's, and what an interrupt frees inside one goes `unseen`",
            "build it anew (make -C bpf_runtime/module, or dkms install), unload every policy, rmmod o2c, and load the new one",
        )
    elif facts.module_loaded:
        yield Finding(Grade.GOOD, "o2c.ko", "loaded")
    elif facts.module_built is not None:
        yield Finding(Grade.NOTE, "o2c.ko", f"built, not loaded: {facts.module_built}", "modprobe o2c")
    elif facts.headers:
        yield Finding(
            Grade.NOTE,
            "o2c.ko",
            "not built; the kernel's headers are there",
            "make -C bpf_runtime/module && insmod bpf_runtime/module/o2c.ko, or with DKMS: "
            "cp -r bpf_runtime/module /usr/src/o2c-0.1.0 && dkms install o2c/0.1.0",
        )
    else:
        yield Finding(
            Grade.NOTE,
            "o2c.ko",
            "not built; the kernel's headers are missing",
            f"apt-get install linux-headers-{facts.release}, then make -C bpf_runtime/module",
        )
    yield _heap_finding(facts.slabs_debugged)
    if not facts.kcore:
        yield Finding(
            Grade.NOTE,
            "kernel text",
            "/proc/kcore cannot be read, which enforcement needs",
            "boot without lockdown" if facts.lockdown else "boot a kernel that has CONFIG_PROC_KCORE",
        )


def _heap_finding(debugged: bool | None) -> Finding:
    if debugged:
        return Finding(
            Grade.NOTE,
            "private heap",
            "the kernel debugs its slab allocator: `heap private` is refused",
            "boot without slub_debug, or write `heap tracked`",
        )
    if debugged is None:
        return Finding(Grade.NOTE, "private heap", "cannot be told: /sys/kernel/slab cannot be read")
    return Finding(Grade.GOOD, "private heap", "the slab allocator can be used for one")


def _target_findings(facts: Facts) -> Iterator[Finding]:
    if facts.target is None:
        return
    if facts.target_loaded is False:
        yield Finding(
            Grade.BAD, "target", f"the module `{facts.target}` is not loaded", f"modprobe {facts.target}"
        )
    elif facts.target_loaded:
        yield Finding(Grade.GOOD, "target", f"the module `{facts.target}` is loaded")
    if facts.description is None:
        yield Finding(
            Grade.BAD,
            "description",
            f"there is none of `{facts.target}` for this kernel",
            f"o2c scan {facts.target}",
        )
    elif facts.description != facts.build_id:
        yield Finding(
            Grade.BAD,
            "description",
            "of another kernel build than the one that runs",
            f"o2c scan {facts.target}, then compile the policy again",
        )
    else:
        yield Finding(Grade.GOOD, "description", "of the kernel that runs")
    if facts.ambiguous:
        names = ", ".join(facts.ambiguous[:5]) + (", ..." if len(facts.ambiguous) > 5 else "")
        yield Finding(
            Grade.NOTE,
            "ambiguous functions",
            f"{len(facts.ambiguous)} names belong to several functions, which then are not checked: {names}",
        )
    else:
        yield Finding(Grade.GOOD, "ambiguous functions", "none")


def judge(facts: Facts) -> Verdict:
    """What the facts mean."""
    findings = tuple(_findings(facts))
    can_report = not any(finding.grade is Grade.BAD for finding in findings)
    return Verdict(can_report, can_report and facts.module_loaded and facts.kcore, findings)


# --- examining --------------------------------------------------------------------------------------------


def kernel_config(release: str) -> Mapping[str, str] | None:
    """The kernel's configuration, from /boot or /proc/config.gz; None when there is neither."""
    for path in (
        Path(f"/boot/config-{release}"),
        Path(f"/lib/modules/{release}/config"),
        Path("/proc/config.gz"),
    ):
        try:
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode(errors="replace")
        except (OSError, EOFError, gzip.BadGzipFile):
            continue
        return parse_config(text)
    return None


def parse_config(text: str) -> Mapping[str, str]:
    """The settings in the text of a kernel configuration."""
    return {m[1]: m[2].strip('"') for m in re.finditer(r"^(CONFIG_\w+)=(.*)$", text, re.MULTILINE)}


def parse_lockdown(text: str) -> str | None:
    """The chosen one of ``none [integrity] confidentiality``; None when lockdown is off or not there."""
    chosen = re.search(r"\[(\w+)\]", text)
    return None if chosen is None or chosen[1] == "none" else chosen[1]


def parse_number(text: str) -> int:
    """The number in the text of a setting; 0 when it is none, as of a kernel without that setting."""
    return int(text) if re.fullmatch(r"\s*\d+\s*", text) else 0


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return None


def _built_module(release: str) -> str | None:
    for directory in ("updates/dkms", "updates", "extra"):
        for suffix in ("ko", "ko.xz", "ko.zst"):
            path = Path(f"/lib/modules/{release}/{directory}/o2c.{suffix}")
            if path.exists():
                return str(path)
    return None


def _signing_enforced(config: Mapping[str, str] | None) -> bool | None:
    asked = _text("/sys/module/module/parameters/sig_enforce")
    if asked is not None:
        return asked.strip() == "Y" or bool(parse_lockdown(_text("/sys/kernel/security/lockdown") or ""))
    return config.get("CONFIG_MODULE_SIG_FORCE") == "y" if config is not None else None


def _module_older() -> bool | None:
    try:
        with enforcer.Enforcer() as module:
            return is_older(module.features)
    except EnforcerError:  # not there, or not for this user
        return None


def _slabs_debugged() -> bool | None:
    """Whether objects have red zones, poison or owners around them (Documentation/mm/slub.rst, 6.1); by one cache, since
    the setting is that of all but for exceptions that an engineer named."""
    told = [_text(f"/sys/kernel/slab/kmalloc-64/{name}") for name in ("red_zone", "poison", "store_user")]
    return None if None in told else any((text or "").strip() == "1" for text in told)


def examine() -> Facts:
    """Read the machine; nothing is changed, no root is needed (but tells more)."""
    release = os.uname().release
    config = kernel_config(release)
    optimization = _text("/proc/sys/debug/kprobes-optimization")
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    symbols = _text("/proc/kallsyms")
    shown = symbols is not None and any(
        line.split(" ", 1)[0].strip("0") for line in symbols[: 1 << 16].splitlines()[:200]
    )
    mounts = _text("/proc/mounts") or ""
    return Facts(
        release=release,
        root=os.geteuid() == 0,
        libbpf=ctypes.util.find_library("bpf") is not None,
        config=config,
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        bpffs=any(line.split()[1:3] == [str(BPFFS.parent), "bpf"] for line in mounts.splitlines()),
        optimization=None if optimization is None else optimization.strip() == "1",
        lockdown=parse_lockdown(_text("/sys/kernel/security/lockdown") or ""),
        module_signing_enforced=_signing_enforced(config),
        module_loaded=enforcer.available(),
        module_built=_built_module(release),
        headers=Path(f"/lib/modules/{release}/build/Makefile").exists(),
        addresses_shown=shown,
        missed_counted=version >= (6, 7),
        build_id=running_kernel.kernel_build_id(),
        kcore=os.access("/proc/kcore", os.R_OK),
        optimization_held=running_kernel.OPTIMIZATION_MARKER.exists(),
        kfence_interval=parse_number(_text(_KFENCE) or ""),
        slabs_debugged=_slabs_debugged(),
        module_older=_module_older(),
    )

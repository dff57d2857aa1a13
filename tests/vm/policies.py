# SPDX-License-Identifier: Apache-2.0
"""Policies of the victim module and of SCTP, compiled on the host for the kernel that will be booted.

Compiling in the guest works as well and takes half a minute under emulation.  The results lie beside the modules:
``<cache>/modules/<release>/policies/<variant>.<layout>.bpf.o``, with the description ``victim.o2k``; what is there
and newer than everything that it was made of is kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from o2cc.bpf.layout import Layout
from o2cc.compiler import Options, Stopwatch, emit
from o2cc.diagnostics import SourceFile
from o2cc.driver import compile_source
from o2cc.files import write_atomic
from o2cc.kernel import store
from o2cc.kernel.kernels import open_kernel
from o2cc.kernel.scan import scan_module
from o2cc.options import CompileOptions
from o2cc.policy.model import Action
from scripts.fetch_kernels import DEBUG, Kernel
from tests.vm.kbuild import PROJECT, modules_dir

POLICY = PROJECT / "tests/kernel/victim/victim.o2c"
SCTP_POLICY = PROJECT / "examples/sctp.o2c"
SCTP_OBJECT = "sctp.shape.bpf.o"
SCTP_DENY_OBJECT = "sctp-deny.shape.bpf.o"
SCTP_PRIVATE_OBJECT = "sctp-private.shape.bpf.o"
SCTP_AUDITION_OBJECT = "sctp-audition.shape.bpf.o"
SCTP_TREE = PROJECT / "examples/sctp.tree.json"
SCTP_QUIET = 8
"""Seconds without a touch of an old object after which the transition of the SCTP policy that denies ends."""
_REPORT = "on violation report"
# Jump-optimized probes lose some of what interrupts allocate, and proper use of it would be denied.
_DENY = "probes strict\n    on violation deny"
_TRACKED, _PRIVATE = "heap tracked", "heap private 1 MiB"
_AUDITION = """transition { until quiescent, at most 60 s }
    audition "victim.tree.json" at access, free {
        require confidence >= 0.9
        accept own { victim_object }
        accept payload "kmalloc-96"
    }
    """
VARIANTS: Mapping[str, str] = {
    "report": _REPORT,
    "deny": "on violation deny",
    "private": "on violation deny",
    "private-transition": "transition { until quiescent, at most 60 s }\n    on violation deny",
    "strict": "probes strict\n    on violation deny",
    "kill": "on violation kill",
    "missed-kill": "on missed kill\n    on violation deny",
    "strict-kill": "probes strict\n    on violation kill",
    "panic": "on violation panic",
    "transition": "transition { until quiescent, at most 60 s }\n    on violation report",
    "audition": _AUDITION + "on violation report",
    "audition-deny": _AUDITION + "on violation deny",
    "transition-deny": "transition { until quiescent, at most 60 s }\n    on violation deny",
}
OBJECTS = (
    *((variant, Layout.SHAPE) for variant in VARIANTS),
    ("report", Layout.SITE),
    ("deny", Layout.SITE),
)


def variant_text(variant: str) -> str:
    """The victim's policy with another rule of what a violation leads to; its lines stay where they are before it."""
    text = POLICY.read_text(encoding="utf-8")
    assert text.count(_REPORT) == 1
    assert text.count(_TRACKED) == 1
    text = text.replace(_REPORT, VARIANTS[variant])
    return text.replace(_TRACKED, _PRIVATE) if variant.startswith("private") else text


def guest_object(variant: str, layout: Layout = Layout.SHAPE) -> Path:
    """In the guest: an object that the host made for the running kernel."""
    return _directory(Path(os.environ["O2C_MODULES"]) / os.uname().release) / f"{variant}.{layout}.bpf.o"


def guest_description() -> Path:
    """In the guest: the description of the victim module."""
    return _directory(Path(os.environ["O2C_MODULES"]) / os.uname().release) / "victim.o2k"


def _directory(modules: Path) -> Path:
    return modules / "policies"


def prepare(kernel: Kernel) -> list[Path]:
    """Describe victim.ko and compile every variant, where something changed; the objects.

    The modules must be built.  Raises DiagnosticError.
    """
    modules = modules_dir(kernel)
    directory = _directory(modules)
    directory.mkdir(exist_ok=True)
    description = directory / "victim.o2k"
    newest = max(path.stat().st_mtime_ns for path in _inputs(modules))
    wanted = [directory / f"{variant}.{layout}.bpf.o" for variant, layout in OBJECTS]
    made = [description, *wanted]
    if all(path.exists() and path.stat().st_mtime_ns > newest for path in made):
        return wanted
    victim = scan_module(modules / "victim.ko", open_kernel(str(kernel.vmlinuz)))
    store.save(victim, description)
    for variant, layout in OBJECTS:
        source = SourceFile(str(POLICY.relative_to(PROJECT)), variant_text(variant))
        options = Options(layout=layout)
        watch = Stopwatch()
        compiled, _ = compile_source(
            source, CompileOptions(kernel=str(description), layout=layout), options, watch
        )
        write_atomic(directory / f"{variant}.{layout}.bpf.o", emit(compiled, options, watch).data)
    return wanted


def _inputs(modules: Path) -> Iterator[Path]:
    yield modules / "victim.ko"
    yield POLICY
    yield POLICY.with_suffix(".tree.json")
    for directory, pattern in (
        ("o2cc", "*.py"),
        ("o2cc", "*.ir"),
        ("stdlib", "*.o2c"),
        ("grammar", "*.lark"),
    ):
        yield from (PROJECT / directory).rglob(pattern)


def sctp_audition_text() -> str:
    """The SCTP policy, whose tree judges old objects, with `on violation deny`."""
    text = SCTP_POLICY.read_text(encoding="utf-8")
    assert text.count(_REPORT) == 1
    return text.replace(_REPORT, _DENY)


def sctp_text() -> str:
    """The SCTP policy in its final phase: an older object is not let through, and no content excuses it."""
    text = SCTP_POLICY.read_text(encoding="utf-8")
    assert text.count(_REPORT) == 1
    text, auditions = re.subn(r"^    audition .*?^    \}$", "", text, flags=re.MULTILINE | re.DOTALL)
    text, transitions = re.subn(r"^    transition \{.*\}$", "", text, flags=re.MULTILINE)
    assert (auditions, transitions) == (1, 1)
    return text


def sctp_deny_text() -> str:
    """The same with `on violation deny` and a transition that ends when no old object is in use any more."""
    text = sctp_text()
    transition = f"transition {{ until quiescent for {SCTP_QUIET} s, at most 900 s }}"
    return text.replace(_REPORT, f"{transition}\n    {_DENY}")


_SOCKET_WHOLE = "struct sctp_sock { whole, "
_POINTERS_OF_A_LOCK = ("rlock.owner", "dep_map.name", "rlock.dep_map.name")


def _for_kernel(text: str, kernel: Kernel) -> str:
    """The SCTP policy; for a kernel that checks locks with the names of the pointers that it keeps in them."""
    if kernel.series != DEBUG:
        return text
    assert text.count(_SOCKET_WHOLE) == 1
    named = "".join(f"pd_lobby.lock.{pointer}, " for pointer in _POINTERS_OF_A_LOCK)
    return text.replace(_SOCKET_WHOLE, _SOCKET_WHOLE + named)


def prepare_sctp(kernel: Kernel) -> list[Path]:
    """Describe the kernel's own sctp module and compile examples/sctp.o2c for it, reporting only and denying; the
    objects."""
    modules = modules_dir(kernel)
    directory = _directory(modules)
    directory.mkdir(exist_ok=True)
    description = directory / "sctp.o2k"
    wanted = [
        directory / name
        for name in (SCTP_OBJECT, SCTP_DENY_OBJECT, SCTP_PRIVATE_OBJECT, SCTP_AUDITION_OBJECT)
    ]
    newest = max(path.stat().st_mtime_ns for path in (*_inputs(modules), SCTP_POLICY, SCTP_TREE))
    if all(path.exists() and path.stat().st_mtime_ns > newest for path in (description, *wanted)):
        return wanted
    image = open_kernel(str(kernel.vmlinuz))
    store.save(scan_module(_module_file(kernel, "sctp"), image), description)
    deny = sctp_deny_text()
    private = re.sub(r"heap +tracked", "heap private 64 MiB", deny)
    assert private != deny
    texts = (sctp_text(), deny, private, sctp_audition_text())
    degrades = (Action.REPORT, None, None, None)
    for made, text, degrade in zip(wanted, texts, degrades, strict=True):
        source = SourceFile(str(SCTP_POLICY.relative_to(PROJECT)), _for_kernel(text, kernel))
        options = Options(layout=Layout.SHAPE, degrade=degrade)
        watch = Stopwatch()
        chosen = CompileOptions(kernel=str(description), layout=Layout.SHAPE)
        compiled, _ = compile_source(source, chosen, options, watch)
        write_atomic(made, emit(compiled, options, watch).data)
    return wanted


def _module_file(kernel: Kernel, name: str) -> Path:
    return next(path for path in kernel.modules_dir.rglob(f"{name}.ko*"))


def guest_sctp_object(name: str = SCTP_OBJECT) -> Path:
    """In the guest: the SCTP policy's object for the running kernel."""
    return _directory(Path(os.environ["O2C_MODULES"]) / os.uname().release) / name


def main() -> None:
    """Prepare both kernels (`python -m tests.vm.policies`)."""
    from scripts.fetch_kernels import SERIES, ensure

    for series in SERIES:
        for path in (*prepare(ensure(series)), *prepare_sctp(ensure(series))):
            print(path)


if __name__ == "__main__":
    main()

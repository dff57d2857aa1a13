# SPDX-License-Identifier: Apache-2.0
"""The example policies, compiled on the host for the kernel that will be booted.

The objects lie beside those of `tests.vm.policies`: ``<cache>/modules/<release>/policies/example-<name>.bpf.o``.  The
bundled description is taken where there is one for that very kernel; else the kernel is scanned.
"""

from __future__ import annotations

import os
from pathlib import Path

from o2cc.bpf.layout import Layout
from o2cc.compiler import Options, Stopwatch, emit
from o2cc.diagnostics import SourceFile
from o2cc.driver import compile_source
from o2cc.files import write_atomic
from o2cc.kernel import store
from o2cc.kernel.builtin import scan_builtin
from o2cc.kernel.description import Description
from o2cc.kernel.kernels import open_kernel
from o2cc.kernel.scan import scan_module
from o2cc.options import CompileOptions
from scripts.fetch_kernels import Kernel
from tests.vm.kbuild import PROJECT, modules_dir

EXAMPLES = ("cls_route", "nf_tables", "ip6_output")
_BUILT_IN = {"ip6_output": ("ip6_*", "__ip6_append_data*", "__ip6_make_skb*", "__ip6_flush_pending_frames*")}


def guest_object(name: str) -> Path:
    """In the guest: the object of an example, for the running kernel.  Raises RuntimeError when what it was made of has
    changed since: what an old object reports says nothing of the sources."""
    path = _object(Path(os.environ["O2C_MODULES"]) / os.uname().release, name)
    if path.stat().st_mtime_ns <= _newest_input(os.uname().release):
        raise RuntimeError(
            f"{path} is older than its sources: run `python -m tests.vm.examples` before the VM"
        )
    return path


def _object(modules: Path, name: str) -> Path:
    return modules / "policies" / f"example-{name}.bpf.o"


def prepare(kernel: Kernel) -> list[Path]:
    """Compile the examples where something changed; the objects.  Raises DiagnosticError."""
    modules = modules_dir(kernel)
    (modules / "policies").mkdir(parents=True, exist_ok=True)
    wanted = [_object(modules, name) for name in EXAMPLES]
    newest = _newest_input(kernel.release)
    if all(path.exists() and path.stat().st_mtime_ns > newest for path in wanted):
        return wanted
    for name, path in zip(EXAMPLES, wanted, strict=True):
        file = PROJECT / "examples" / f"{name}.o2c"
        source = SourceFile(str(file.relative_to(PROJECT)), file.read_text(encoding="utf-8"))
        described = _description(kernel, name, modules)
        options = Options(layout=Layout.SHAPE)
        watch = Stopwatch()
        compiled, _ = compile_source(
            source, CompileOptions(kernel=described, layout=Layout.SHAPE), options, watch
        )
        write_atomic(path, emit(compiled, options, watch).data)
    return wanted


def _description(kernel: Kernel, name: str, modules: Path) -> str:
    bundled = store.bundled(name, kernel.release)
    if bundled:
        return str(bundled[0])
    made = modules / "policies" / f"{name}.o2k"
    store.save(_scan(kernel, name), made)
    return str(made)


def _scan(kernel: Kernel, name: str) -> Description:
    image = open_kernel(str(kernel.vmlinuz))
    if name in _BUILT_IN:
        return scan_builtin(image, _BUILT_IN[name], name)
    return scan_module(image.find_module(name), image)


def _newest_input(release: str) -> int:
    """When the last of the files that the objects are made of was changed, in nanoseconds."""
    return max(path.stat().st_mtime_ns for path in _inputs(release))


def _inputs(release: str) -> list[Path]:
    found = [PROJECT / "examples" / f"{name}.o2c" for name in EXAMPLES]
    found += [path for name in EXAMPLES for path in store.bundled(name, release)]
    for directory, pattern in (
        ("o2cc", "*.py"),
        ("o2cc", "*.ir"),
        ("stdlib", "*.o2c"),
        ("grammar", "*.lark"),
    ):
        found += (PROJECT / directory).rglob(pattern)
    return found


def main() -> None:
    """Prepare both kernels (`python -m tests.vm.examples`)."""
    from scripts.fetch_kernels import SERIES, ensure

    for series in SERIES:
        for path in prepare(ensure(series)):
            print(path)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Compiles a policy for the command line: finds modules and the description of the target, and does the reading.

Codes: O2C0910 no description of the target, O2C0911 a compartment of several modules, O2C0912 an action that an
object by itself cannot carry out, O2C0913 a kernel that nobody asked for, O2C0914 a policy without a compartment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from o2cc.bpf.emit import ObjectFile, llvm_text
from o2cc.compiler import (
    Compiled,
    Options,
    Stopwatch,
    compile_module,
    emit,
    modules_of,
    parse_policy,
    statistics,
    tree_path_of,
)
from o2cc.diagnostics import Diagnostic, DiagnosticError, SourceFile, error, note, warning
from o2cc.files import require_distinct
from o2cc.ir.printer import print_module
from o2cc.kernel import store
from o2cc.kernel.description import Description
from o2cc.kernel.image import MODULE_SUFFIXES
from o2cc.options import Compiled as CompilationResult
from o2cc.options import CompileOptions, Emit
from o2cc.passes.manager import parse_pipeline
from o2cc.passes.registry import PASSES
from o2cc.policy.library import FileResolver
from o2cc.policy.model import Action, CheckedPolicy
from o2cc.policy.names import ParsedModule
from o2cc.syntax import nodes as syntax

if TYPE_CHECKING:
    from o2cc.kernel.module_file import ModuleFile

# What an eBPF object does without the enforcement module.
_WITHOUT_MODULE = frozenset({"report", "kill"})


def find_description(target: str, kernel: str | None, policy: SourceFile) -> Description:
    """The description that ``--kernel`` means.

    The path of a description is read, that of a module (``.ko``, also packed) scanned.  A release is looked for among
    the user's descriptions, then the bundled ones.  Without either the running kernel's is taken if there is one, else
    the newest bundled one.  Raises DiagnosticError: O2C0910, and what reading or scanning raises.
    """
    module = _module_file(kernel)
    if module is not None:
        description = _describe(module)
        with _keeping(module, description):
            return description
    if kernel is not None and os.sep in kernel and os.path.isdir(kernel):
        raise DiagnosticError(
            error(
                "O2C0910",
                f"`{kernel}` is a directory; this takes a release, a description, or a module's file",
                path=policy.name,
                help="make a description of an unpacked kernel package: "
                f"o2c scan {target} --kernel {kernel} -o {target}.o2k",
            )
        )
    if kernel is not None and (kernel.endswith(".o2k") or os.sep in kernel or os.path.isfile(kernel)):
        return store.load(kernel)
    release = kernel if kernel is not None else os.uname().release
    own = store.user_descriptions() / release / f"{target}.o2k"
    if own.is_file():
        return store.load(own)
    bundled = store.bundled(target, release)
    if bundled:
        return store.load(bundled[-1])
    known = store.bundled(target)
    if kernel is None and known:
        return store.load(known[0])
    raise DiagnosticError(
        error(
            "O2C0910",
            f"there is no description of `{target}`" + (f" in kernel `{kernel}`" if kernel else ""),
            path=policy.name,
            notes=tuple(f"known: {path.parent.name}" for path in known),
            help=f"make one: o2c scan {target}{f' --kernel {kernel}' if kernel else ''} -o {target}.o2k, "
            f"then give it with `--kernel {target}.o2k`",
        )
    )


def _module_file(kernel: str | None, caching: bool = True) -> ModuleFile | None:
    """The module that ``--kernel`` names, if it names one; unless its description is kept, its kernel is unpacked in the
    background from then on."""
    if kernel is None or not kernel.endswith(MODULE_SUFFIXES):
        return None
    from o2cc.kernel.module_file import open_module_file  # late: others have a description

    return open_module_file(kernel, caching=caching)


def _describe(module: ModuleFile) -> Description:
    description = module.describe()
    module.kernel.forget()
    return description


@contextmanager
def _keeping(module: ModuleFile | None, description: Description) -> Iterator[None]:
    """Keeps what a scan gave for the next time, whether or not the policy has errors; meanwhile it is encoded."""
    encoded = module.begin_to_keep(description) if module is not None else None
    try:
        yield
    except DiagnosticError:
        if module is not None:
            module.keep(encoded)
        raise
    if module is not None:
        module.keep(encoded)


def fallback_note(description: Description, kernel: str | None, policy: SourceFile) -> tuple[Diagnostic, ...]:
    """Says so where `find_description` took a kernel that is neither asked for nor running: nobody would expect it."""
    running = os.uname().release
    if kernel is not None or description.release == running:
        return ()
    return (
        note(
            "O2C0913",
            f"this is for kernel `{description.release}`, while this machine runs `{running}`",
            path=policy.name,
            help="say which kernel with `--kernel`; `o2c scan` describes others",
        ),
    )


def target_of(parsed: ParsedModule) -> str:
    """The name of the description that a policy needs: its module, or its compartment's name for built-in code.

    Raises DiagnosticError: O2C0911 for several modules, O2C0914 where there is no compartment.
    """
    modules = modules_of(parsed)
    if len(modules) > 1:
        raise DiagnosticError(
            error(
                "O2C0911",
                f"a compartment of several modules is not supported: {', '.join(f'`{m}`' for m in modules)}",
                path=parsed.source.name,
                help="write a policy for each module",
            )
        )
    if modules:
        return modules[0].replace("-", "_")
    for item in parsed.file.items:
        if isinstance(item, syntax.Compartment):
            return item.name.text
    raise DiagnosticError(
        error(
            "O2C0914",
            "the policy has no compartment",
            path=parsed.source.name,
            help='write `compartment NAME { code modules "NAME" ... }`',
        )
    )


def compile_source(
    source: SourceFile,
    options: CompileOptions,
    inner: Options,
    watch: Stopwatch,
    module: ModuleFile | None = None,
) -> tuple[Compiled, tuple[Diagnostic, ...]]:
    """Everything up to optimized IR, with the warnings.  ``module``: that which the options name, if it is open already.

    Raises DiagnosticError.
    """
    with watch.stage("description"):
        module = module or _module_file(options.kernel, options.caching)
    directory = Path(source.name).parent if not source.name.startswith("<") else None
    resolve = FileResolver(directory, further=tuple(map(Path, options.search_path)))
    with watch.stage("syntax"):
        parsed = parse_policy(source)
        resolve.read_used(parsed)
    tree_name = tree_path_of(parsed)
    tree_path = (directory or Path()) / tree_name if tree_name is not None else None
    inputs = (source.name, options.kernel, tree_path, *(used.name for used in resolve.sources))
    require_distinct(options.outputs, [path for path in inputs if path is not None])
    with watch.stage("description"):
        target = target_of(parsed)
        description = _describe(module) if module else find_description(target, options.kernel, source)
    with _keeping(module, description):
        if tree_path is not None:
            from o2cc.trees.file import read_tree  # late: few policies have one

            with watch.stage("tree"):
                inner = replace(inner, tree=read_tree(tree_path))
        compiled = compile_module(parsed, description, resolve, inner, watch)
    return compiled, (*fallback_note(description, options.kernel, source), *compiled.warnings)


def compile_policy(
    source: SourceFile, options: CompileOptions, *, module: ModuleFile | None = None
) -> CompilationResult:
    """What the command line asks for.  ``module``: as for `compile_source`.  Raises DiagnosticError."""
    watch = Stopwatch()
    passes = parse_pipeline(",".join(options.passes), PASSES) if options.passes is not None else None
    degrade = Action(str(options.degrade)) if options.degrade is not None else None
    ahead = options.figures or options.emit is Emit.OBJECT
    inner = Options(layout=options.layout, degrade=degrade, passes=passes, ahead=ahead)
    compiled, warnings = compile_source(source, options, inner, watch, module)
    diagnostics = (*warnings, *_enforcement_notes(compiled.policy, degrade))
    emitted: ObjectFile | None = None
    match options.emit:
        case Emit.CHECK:
            output = b""
        case Emit.IR:
            output = print_module(compiled.module).encode()
        case Emit.LLVM:
            output = llvm_text(compiled.module).encode()
        case _:
            emitted = emit(compiled, inner, watch)
            output = emitted.data
    if not options.figures:
        return CompilationResult(output, {}, diagnostics)
    if emitted is None:
        emitted = emit(compiled, inner, watch)
    return CompilationResult(output, statistics(compiled, emitted, watch), diagnostics)


def _enforcement_notes(policy: CheckedPolicy, degrade: Action | None) -> tuple[Diagnostic, ...]:
    """What the object by itself will not do, in words that cannot be overlooked."""
    found = []
    for feature in policy.required_features:
        weaker = {"deny": degrade, "panic": degrade, "private heap": "heap tracked"}.get(feature.name)
        if degrade is not None and weaker is not None:
            found.append(
                warning(
                    "O2C0912",
                    f"`{feature.name}` is weakened to `{weaker}`, as asked for",
                    feature.span,
                )
            )
        else:
            found.append(
                warning(
                    "O2C0912",
                    f"this policy needs more than the object itself: {feature.name}",
                    feature.span,
                    notes=(feature.reason,),
                    help=f"{feature.remedy}; `--degrade report` accepts less by name",
                )
            )
    return tuple(found)

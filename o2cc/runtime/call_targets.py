# SPDX-License-Identifier: Apache-2.0
"""Fills the map ``call_targets``: functions that stand in ops tables of other loaded modules.

Which functions these are is told by a description of the module where there is one of that very build, the user's own
before a bundled one, else by the module's file below /lib/modules and the BTF of the running kernel.
"""

from __future__ import annotations

import fnmatch
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from o2cc.bpf.info import ObjectInfo, OpsTargetsInfo
from o2cc.diagnostics import Diagnostic, DiagnosticError, error, warning
from o2cc.kernel import store
from o2cc.kernel.btf import Btf, read_btf
from o2cc.kernel.description import OpsTable, member_path
from o2cc.kernel.kernels import module_files, module_name, read_module
from o2cc.runtime import libbpf, running_kernel

MAP = "call_targets"

Tables = Callable[[str], Sequence[OpsTable]]  # of a loaded module by name; raises DiagnosticError
Addresses = Callable[[str, Iterable[str]], Mapping[str, tuple[int, ...]]]


def fill(info: ObjectInfo, maps: Mapping[str, int], warn: Callable[[Diagnostic], None]) -> int:
    """Look up the targets and put them into the loaded object's map; how many there are.

    Raises DiagnosticError (O2C0822) when a loaded module's tables cannot be told; OSError.
    """
    modules = running_kernel.loaded_modules()
    found, warnings = resolve(info, modules, tables_of, running_kernel.functions_of)
    for item in warnings:
        warn(item)
    for address, words in found.items():
        libbpf.update(maps[MAP], struct.pack("<Q", address), struct.pack("<QQ", *words))
    return len(found)


def resolve(
    info: ObjectInfo, modules: Sequence[str], tables: Tables, addresses: Addresses
) -> tuple[dict[int, tuple[int, int]], tuple[Diagnostic, ...]]:
    """Scope classes and gate (see `OpsTargetsInfo`) by address of the function, and what the engineer should know.  Of a
    function that stands in several members one that has a gate counts.

    Raises DiagnosticError (O2C0822) with one diagnostic for each module that stays unknown; O2C0823 when there are more
    targets than the map holds.
    """
    found: dict[int, tuple[int, int]] = {}
    problems: list[Diagnostic] = []
    notes: list[Diagnostic] = []
    known: dict[str, Sequence[OpsTable]] = {}
    for rule in info.ops_targets:
        matching = [name for name in modules if _matches(rule, name)]
        if not matching:
            notes.append(_none_loaded(rule))
        for name in matching:
            try:
                if name not in known:
                    known[name] = tables(name)
            except DiagnosticError as problem:
                problems.append(_unknown(rule, name, problem.diagnostics[0].message))
                known[name] = ()
            gates = dict(rule.gates)
            functions: dict[str, int] = {}
            for table in known[name]:
                for member, function in table.slots if table.type == rule.struct else ():
                    if function not in rule.excluded:
                        gate = gates.get(member_path(member), 0)
                        functions[function] = functions.get(function, 0) or gate
            places = addresses(name, functions)
            if lost := sorted(function for function in functions if not places.get(function)):
                problems.append(_unknown(rule, name, f"the kernel does not list `{lost[0]}`"))
            for function, gate in functions.items():
                for address in places.get(function, ()):
                    scopes, earlier = found.get(address, (0, 0))
                    found[address] = scopes | rule.scopes, earlier or gate
    if problems:
        raise DiagnosticError(tuple(problems))
    capacity = next((item.capacity for item in info.maps if item.name == MAP), 0)
    if len(found) > capacity:
        raise DiagnosticError(
            error(
                "O2C0823",
                f"{len(found)} functions may be called through tables of other modules; an object holds {capacity}",
                help="name fewer structs or modules in the `icall` rules",
            )
        )
    return found, tuple(notes)


def _matches(rule: OpsTargetsInfo, module: str) -> bool:
    return any(fnmatch.fnmatchcase(module, pattern.replace("-", "_")) for pattern in rule.modules)


def _none_loaded(rule: OpsTargetsInfo) -> Diagnostic:
    shown = ", ".join(f"`{pattern}`" for pattern in rule.modules)
    return warning(
        "O2C0824",
        f"no loaded module matches {shown}, so that no table of `struct {rule.struct}` may be called through",
        notes=(f"asked for at {rule.file}:{rule.line}",),
        help="modules that are loaded later stay unknown: load them first, then the policy",
    )


def _unknown(rule: OpsTargetsInfo, module: str, reason: str) -> Diagnostic:
    release = os.uname().release
    return error(
        "O2C0822",
        f"the tables of `struct {rule.struct}` in the module `{module}` cannot be told: {reason}",
        notes=(f"asked for at {rule.file}:{rule.line}",),
        help=f"describe the module: o2c scan {module} --kernel {release} "
        f"-o ~/.cache/o2c/descriptions/{release}/{module}.o2k",
    )


def tables_of(module: str) -> Sequence[OpsTable]:
    """The ops tables of a loaded module.  Raises DiagnosticError when nothing tells them."""
    release = os.uname().release
    running = running_kernel.module_build_id(module)
    own = store.user_descriptions() / release / f"{module}.o2k"
    for path in (*([own] if own.is_file() else []), *store.bundled(module, release)):
        description = store.load(path)
        if not running or description.target.build_id == running:
            return description.ops_tables
    from o2cc.kernel.module_ops import module_tables  # late: brings the decoder

    file = _module_file(module)
    if running and store.read_build_identity(file).build_id != running:
        raise DiagnosticError(
            error("O2C0811", f"the loaded module is another build than `{file}`", path=str(file))
        )
    return module_tables(read_module(file), str(file), _kernel_btf())


def _module_file(module: str) -> Path:
    directory = Path("/lib/modules") / os.uname().release
    found = next((path for path in module_files(directory) if module_name(path) == module), None)
    if found is None:
        raise DiagnosticError(error("O2C0421", f"there is no file of the module `{module}` in `{directory}`"))
    return found


@cache
def _kernel_btf() -> Btf:
    """The BTF of the running kernel.  Raises DiagnosticError (O2C0405)."""
    path = "/sys/kernel/btf/vmlinux"
    try:
        content = Path(path).read_bytes()
    except OSError as problem:
        raise DiagnosticError(
            error("O2C0405", "the running kernel does not give its types", path=path)
        ) from problem
    return read_btf(content, path)

# SPDX-License-Identifier: Apache-2.0
"""The pipeline from a policy's text to an object: syntax, policy, lowering, passes, object.

Pure but for the clock: sources, modules and the description come in as data, so that the command line, tests and
an editor share it.  `o2cc.cli` does the reading and writing.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from o2cc import lower as lowering
from o2cc.bpf.compiler import CompiledText
from o2cc.bpf.emit import Ahead, ObjectFile, compile_shared, emit_object
from o2cc.bpf.info import HeapCallInfo, HeapInfo, OpsTargetsInfo
from o2cc.bpf.layout import Layout
from o2cc.diagnostics import Diagnostic, SourceFile, Span
from o2cc.ir import nodes as ir
from o2cc.kernel.description import Description
from o2cc.lower.codes import breakpoints_of, codes_of
from o2cc.lower.context import Unchecked
from o2cc.lower.heap import PrivateHeap
from o2cc.lower.lower import LIBRARY, lower
from o2cc.lower.targets import OpsTables
from o2cc.passes.manager import Observer, Pass, PassContext, run_pipeline
from o2cc.passes.registry import CODE, default_pipeline
from o2cc.policy.checker import check
from o2cc.policy.model import (
    Action,
    CheckedPolicy,
    Gate,
    Grant,
    HeapKind,
    IndirectTargets,
    PernetGrant,
    ViolationKind,
)
from o2cc.policy.names import ParsedModule, Resolver
from o2cc.second_process import begin
from o2cc.syntax import nodes as syntax
from o2cc.syntax.parser import parse

if TYPE_CHECKING:
    from o2cc.trees.tree import IntegerTree


@dataclass
class Stopwatch:
    """Seconds by stage, in the order in which the stages ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what runs inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Options:
    """What the command line can ask for.

    ``degrade``: a weaker action that the engineer accepts by name where the policy's needs enforcement.
    ``passes``: instead of the default pipeline.  ``tree``: that of the policy's audition.  ``ahead``: an object will be
    made of the module, so that LLVM can begin with what passes over sites do not change.
    """

    layout: Layout = Layout.SITE
    tree: IntegerTree | None = None
    degrade: Action | None = None
    passes: Sequence[Pass] | None = None
    observe: Observer | None = None
    ahead: bool = False


@dataclass(frozen=True)
class Compiled:
    """A compiled policy and everything that it was made from."""

    policy: CheckedPolicy
    description: Description
    module: ir.Module
    unchecked: tuple[Unchecked, ...]
    sources: Mapping[str, str]
    warnings: tuple[Diagnostic, ...]
    total_sites: int
    ops_targets: tuple[OpsTables, ...]
    heap: PrivateHeap | None
    ahead: Ahead


def library_sources() -> dict[str, SourceFile]:
    """The texts of the runtime library by stem."""
    directory = Path(lowering.__file__).parent / "library"
    return {
        name: SourceFile(f"library/{name}.ir", (directory / f"{name}.ir").read_text(encoding="utf-8"))
        for name in LIBRARY
    }


def parse_policy(source: SourceFile) -> ParsedModule:
    """Syntax only.  Raises DiagnosticError with all syntax errors."""
    return ParsedModule("", source, parse(source))


def modules_of(parsed: ParsedModule) -> tuple[str, ...]:
    """The modules that the policy's compartments are about, to find their descriptions."""
    names: list[str] = []
    for item in parsed.file.items:
        if isinstance(item, syntax.Compartment):
            for rule in item.rules:
                if isinstance(rule, syntax.CodeModules):
                    names.extend(text.text for text in rule.modules)
    return tuple(dict.fromkeys(names))


def tree_path_of(parsed: ParsedModule) -> str | None:
    """The tree's file as the policy's audition names it, if it has one."""
    for item in parsed.file.items:
        if isinstance(item, syntax.Compartment):
            for rule in item.rules:
                if isinstance(rule, syntax.Audition):
                    return rule.tree.text
    return None


def _confined(description: Description, policy: CheckedPolicy) -> Description:
    """The description without functions that are not the compartment's code: those are the kernel's."""
    members = frozenset(policy.code.functions)
    functions = tuple(f for f in description.functions if (f.parent or f.name) in members)
    return (
        description
        if len(functions) == len(description.functions)
        else replace(description, functions=functions)
    )


def compile_module(
    parsed: ParsedModule, description: Description, resolve: Resolver, options: Options, watch: Stopwatch
) -> Compiled:
    """From a parsed policy to optimized IR.  Raises DiagnosticError."""
    with watch.stage("policy"):
        policy, warnings = check(parsed, description, resolve)
        if options.degrade is not None:
            policy = degraded(policy, options.degrade)
        description = _confined(description, policy)
    with watch.stage("lower"):
        library = library_sources()
        lowered = lower(policy, description, library, options.tree)
    early = options.ahead and options.passes is None
    ahead = Ahead(
        frozenset(function.name for function in lowered.module.functions),
        begin(partial(_shared_code, lowered.module)) if early else None,
    )
    with watch.stage("passes"):
        context = pass_context(policy, description)
        passes = options.passes if options.passes is not None else default_pipeline(context)
        module = run_pipeline(lowered.module, passes, context, options.observe)
    sources = {parsed.source.name: parsed.source.text}
    sources |= {source.name: source.text for source in library.values()}
    for name in policy.files:
        used = resolve(name)
        if used is not None:
            sources[used.source.name] = used.source.text
    return Compiled(
        policy,
        description,
        module,
        lowered.unchecked,
        sources,
        (*warnings, *lowered.warnings),
        len(lowered.module.sites) + len(lowered.module.discharged) + len(lowered.unchecked),
        lowered.ops_targets,
        lowered.heap,
        ahead,
    )


def _shared_code(module: ir.Module) -> CompiledText | None:
    """Passes and LLVM over shared functions and hooks, with every check that may stay."""
    for step in CODE:
        module = step.run(module, PassContext())
    return compile_shared(module)


def degraded(policy: CheckedPolicy, action: Action) -> CheckedPolicy:
    """The policy with every action that the enforcement module carries out replaced by a weaker one, and a tracked heap."""

    def weaker(given: Action) -> Action:
        return action if given in (Action.DENY, Action.PANIC) else given

    def degraded_gate(gate: Gate) -> Gate:
        requires = tuple(replace(r, action=weaker(r.action)) for r in gate.requires)
        return replace(gate, action=weaker(gate.action), requires=requires)

    def degraded_targets(targets: IndirectTargets) -> IndirectTargets:
        ops = tuple(replace(o, gates=tuple(degraded_gate(g) for g in o.gates)) for o in targets.ops)
        return replace(targets, action=weaker(targets.action), ops=ops)

    return replace(
        policy,
        heap=replace(policy.heap, kind=HeapKind.TRACKED, limit=None),
        on_violation=weaker(policy.on_violation),
        violation_rules=tuple(replace(r, action=weaker(r.action)) for r in policy.violation_rules),
        grants=tuple(replace(g, action=weaker(g.action)) for g in policy.grants),
        gates=tuple(degraded_gate(g) for g in policy.gates),
        entries=tuple(
            replace(
                e,
                action=weaker(e.action),
                requires=tuple(replace(r, action=weaker(r.action)) for r in e.requires),
            )
            for e in policy.entries
        ),
        calls=tuple(replace(c, action=weaker(c.action)) for c in policy.calls),
        indirect=degraded_targets(policy.indirect),
        scoped_indirect=tuple(degraded_targets(i) for i in policy.scoped_indirect),
    )


def pass_context(policy: CheckedPolicy, description: Description) -> PassContext:
    """What the passes may rely on.

    Control flow is kept where violations are not let through: a policy that only reports lets a hijacked call go
    on, and says so in its report.  Where stores are denied and such calls let go, proofs must not lean on them.
    """
    writes = _actions(policy, ViolationKind.WRITE)
    calls = _actions(policy, ViolationKind.ICALL)
    return PassContext(
        description=description,
        control_flow_kept=Action.REPORT not in calls or writes == {Action.REPORT},
        skips_violations=not writes.isdisjoint({Action.DENY, Action.KILL}),
        aiming_symbols=frozenset(
            grant.variable for grant in policy.grants if isinstance(grant, PernetGrant) and grant.allows
        ),
    )


def _actions(policy: CheckedPolicy, kind: ViolationKind) -> set[Action]:
    """What violations of a kind can lead to, by any rule."""
    return {policy.on_violation, *(rule.action for rule in policy.violation_rules if kind in rule.kinds)}


def emit(compiled: Compiled, options: Options, watch: Stopwatch) -> ObjectFile:
    """The object.  Raises DiagnosticError."""
    module = replace(compiled.module, identity=(*compiled.module.identity, *_needs(compiled.policy, options)))
    with watch.stage("object"):
        return emit_object(
            module,
            layout=options.layout,
            sources=compiled.sources,
            ops_targets=[_ops_targets(compiled, ops) for ops in compiled.ops_targets],
            heap=_heap(compiled),
            codes=codes_of(compiled.description),
            breakpoints=breakpoints_of(compiled.description),
            ahead=compiled.ahead,
        )


def _ops_targets(compiled: Compiled, ops: OpsTables) -> OpsTargetsInfo:
    line = _line(compiled, ops.span)
    return OpsTargetsInfo(ops.struct, ops.modules, ops.excluded, ops.scopes, ops.span.source, line, ops.gates)


def _heap(compiled: Compiled) -> HeapInfo | None:
    heap = compiled.heap
    if heap is None:
        return None
    return HeapInfo(
        limit=heap.limit,
        ctor_offset=heap.ctor_offset,
        flags_offset=heap.flags_offset,
        file=heap.span.source,
        line=_line(compiled, heap.span),
        calls=tuple(
            HeapCallInfo(
                c.function, c.offset, c.tail, c.called, str(c.operation), c.size or "", c.flags or ""
            )
            for c in heap.calls
        ),
    )


def _line(compiled: Compiled, span: Span) -> int:
    return SourceFile(span.source, compiled.sources.get(span.source, "")).position(span.start)[0]


def _needs(policy: CheckedPolicy, options: Options) -> tuple[tuple[str, str], ...]:
    """What the loader must bring beside the object, for its identity; nothing for a policy that only reports.

    An accepted weaker action takes what only the enforcement module does out of the list.
    """
    names = [feature.name for feature in policy.required_features]
    if options.degrade is not None:
        names = []
    found = [("needs", ",".join(names))] if names else []
    if policy.on_missed is not Action.REPORT:
        found.append(("on_missed", str(policy.on_missed)))
    return tuple(found)


def statistics(compiled: Compiled, emitted: ObjectFile, watch: Stopwatch) -> dict[str, object]:
    """What `o2cc --stats` writes."""
    probed = Counter(site.kind for site in compiled.module.sites if site.covered_by is None)
    covered = Counter(site.kind for site in compiled.module.sites if site.covered_by is not None)
    proved = Counter(item.kind for item in compiled.module.discharged)
    unchecked = Counter(item.kind for item in compiled.unchecked)
    stores = ir.SiteKind.STORE
    calls = (ir.SiteKind.CALL, ir.SiteKind.TAIL_CALL)
    indirect = (ir.SiteKind.INDIRECT_CALL, ir.SiteKind.INDIRECT_JUMP)
    entries = (ir.SiteKind.ENTRY, ir.SiteKind.RETURN)
    reasons = Counter(item.reason for item in compiled.module.discharged)
    return {
        "seconds": {**watch.seconds, "total": sum(watch.seconds.values())},
        "release": compiled.description.release,
        "target": compiled.description.target.name,
        "sites": compiled.total_sites,
        "stores": probed[stores] + covered[stores] + proved[stores] + unchecked[stores],
        "stores_discharged": proved[stores],
        "stores_probed": probed[stores],
        "stores_covered": covered[stores],
        "stores_unchecked": unchecked[stores],
        "indirect_calls": sum(probed[k] + proved[k] + unchecked[k] for k in indirect),
        "gate_calls": sum(probed[k] + proved[k] + unchecked[k] for k in calls),
        "entries": sum(probed[k] + proved[k] + unchecked[k] for k in entries),
        "unchecked": sum(unchecked.values()),
        "discharged_by": dict(sorted(reasons.items())),
        "checks": len(compiled.module.checks),
        "programs": emitted.statistics.programs,
        "subprograms": emitted.statistics.subprograms,
        "instructions": emitted.statistics.instructions,
        "object_bytes": emitted.statistics.bytes,
        "private_heap": _heap_figures(compiled),
        "grants": [_grant(compiled, grant) for grant in compiled.policy.grants],
    }


def _heap_figures(compiled: Compiled) -> dict[str, object] | None:
    """The limit in bytes, and how many calls are redirected, by operation."""
    if compiled.heap is None:
        return None
    operations = Counter(str(call.operation) for call in compiled.heap.calls)
    return {"limit": compiled.heap.limit, "calls": dict(sorted(operations.items()))}


def _grant(compiled: Compiled, grant: Grant) -> dict[str, object]:
    text = compiled.sources.get(grant.span.source, "")
    line = _line(compiled, grant.span)
    return {
        "rule": _rule(text, grant.span),
        "reason": grant.reason,
        "place": f"{grant.span.source}:{line}",
    }


def _rule(text: str, span: Span) -> str:
    """A grant as the policy writes it, on one line; a place of `write behind` with its rule around it."""
    rule = " ".join(text[span.start : span.end].split())
    if rule.startswith("write"):
        return rule
    heads = re.findall(r"^\s*(write\b[^{}]*\{)", text[: span.start], re.MULTILINE)
    return f"{' '.join(heads[-1].split())} {rule} }}" if heads else rule

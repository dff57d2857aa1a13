# SPDX-License-Identifier: Apache-2.0
"""IR -> LLVM assembly text.

Text, not a builder API: writing and parsing it is several times faster.  Every word is an ``i64``; an entry
handle is also kept as a pointer, a comparison also as an ``i1``.  Names of symbols carry a prefix that says
what they are (`SymbolKind`); each body goes into a section of its own, named like its symbol, so that the
reader of the compiled file finds code by name.

What the verifier needs and LLVM does not know, done here:

- A table index passes through an opaque copy before its bounds check, or LLVM drops checks that it can prove
  and the verifier cannot; and through a second one after it, or LLVM computes the address before the check.
- A block that tests an entry handle begins with an empty opaque statement, or LLVM merges two tests into one
  condition that the verifier cannot follow.
- Context loads use the intrinsic that keeps pointer and constant offset together, or LLVM may load through
  one of two modified context pointers.
- Parameters and kernel symbols are addresses of weak externals behind an opaque copy: LLVM knows nothing of
  them, and relocations say where they are.  (An offset folded into such an address would be lost at load.)
- Subprograms use every parameter, if only in an empty statement: else LLVM leaves a register that nobody reads
  unset at the call, and the verifier refuses what happens to be in it.
- An atomic addition whose result is used asks for more than `monotonic`: LLVM 22 then emits the fetching
  instruction; with `monotonic` it emits the plain one and takes the addend for the result.

Loads and stores of an entry's fields are volatile, which is to other processors what READ_ONCE and WRITE_ONCE are in the kernel: LLVM
keeps each, and their order, which readers rely on (library/ranges.ir).
"""

from __future__ import annotations

from collections.abc import Sequence

from o2cc.bpf.llvm_context import BodyError, Context, Role, Scope, SiteTable, Spans, SymbolKind, quote
from o2cc.bpf.llvm_instructions import HELPER_GET_ATTACH_COOKIE, InstructionWriter
from o2cc.ir import nodes
from o2cc.ir.walk import block_spans, operands, successors

MAXIMUM_PARAMETERS = 5
STACK_LIMIT = 448  # bytes of scratch; a BPF program has 512, and spilled registers need some


class ModuleText:
    """Collects bodies and gives the text of the LLVM module.  Its methods raise BodyError."""

    def __init__(self, scope: Scope, data_layout: str, spans: Spans) -> None:
        """``spans`` takes what the line numbers of the compiled code mean; modules can share it."""
        self._context = Context(scope, spans)
        self._data_layout = data_layout
        self._bodies: list[str] = []
        self._functions: set[str] = set()

    @property
    def largest(self) -> int:
        """Characters of the longest body."""
        return max(map(len, self._bodies), default=0)

    def add_function(self, function: nodes.Function) -> None:
        """Adds shared code."""
        if len(function.parameters) > MAXIMUM_PARAMETERS:
            message = f"`{function.name}` has {len(function.parameters)} parameters, BPF passes {MAXIMUM_PARAMETERS}"
            raise BodyError("O2C0600", message, function.span)
        symbol = SymbolKind.FUNCTION + function.name
        body = _Body(self._context, symbol, function.span, Role.FUNCTION, function.parameters)
        self._bodies.append(body.text(function.blocks, inline=function.inline))
        self._functions.add(function.name)

    def add_check(self, check: nodes.Check, table: SiteTable | None) -> None:
        """Adds a check; with a table its parameters come from there, else they are left to be patched."""
        body = _Body(self._context, SymbolKind.CHECK + check.name, check.span, Role.CHECK, sites=table)
        self._bodies.append(body.text(check.blocks))

    def add_hook(self, hook: nodes.Hook) -> None:
        """Adds a hook."""
        roles = {
            nodes.HookKind.KPROBE: Role.PROBE_HOOK,
            nodes.HookKind.KRETPROBE: Role.PROBE_HOOK,
            nodes.HookKind.RAW_TRACEPOINT: Role.TRACEPOINT_HOOK,
            nodes.HookKind.SYSCALL: Role.PLAIN_HOOK,
        }
        body = _Body(self._context, SymbolKind.HOOK + hook.name, hook.span, roles[hook.kind])
        self._bodies.append(body.text(hook.blocks))

    def text(self) -> str:
        """The module.  What it calls and does not have is in another."""
        elsewhere = {
            name: count for name, count in self._context.called.items() if name not in self._functions
        }
        return "\n".join(
            (
                f'target datalayout = "{self._data_layout}"',
                'target triple = "bpfel"',
                *self._context.declarations,
                *(
                    f"declare i64 {quote(SymbolKind.FUNCTION + name)}({', '.join(['i64'] * count)})"
                    for name, count in elsewhere.items()
                ),
                *self._bodies,
                *self._context.metadata.lines,
                "",
            )
        )


class _Body(InstructionWriter):
    """Writes one function."""

    def terminator(self, t: nodes.Terminator) -> None:
        """The end of a block."""
        match t:
            case nodes.Branch():
                bit = self.bit(t.condition)
                self.add(f"br i1 {bit}, label {self.target(t.if_true)}, label {self.target(t.if_false)}")
            case nodes.Jump():
                self.add(f"br label {self.target(t.target)}")
            case nodes.Return():
                self.add(f"ret i64 {self.word(t.value)}")
            case nodes.Decide():
                self.add(f"ret i64 {t.verdict.code}")

    def target(self, block: str) -> str:
        """The label of a block of the IR."""
        if block not in self.blocks:
            raise self.fail(f"there is no block `{block}`")
        return f"%b{self.blocks[block]}"

    def text(self, blocks: Sequence[nodes.Block], *, inline: bool = False) -> str:
        """The whole function."""
        self.blocks = {block.name: index for index, block in enumerate(blocks)}
        self.used = _used_values(blocks)
        self.locate(None)
        for block in _reverse_postorder(blocks):
            self.start(f"b{self.blocks[block.name]}")
            head = len(self.lines)
            for instruction, span in zip(block.instructions, block_spans(block), strict=True):
                self.locate(span)
                self.instruction(instruction)
            self.terminator(block.terminator)
            if isinstance(block.terminator, nodes.Branch) and self.tests_entry(block.terminator.condition):
                self.lines.insert(head, f'  call void asm sideeffect "", ""(){self.debug}')
        if 8 * self.scratch_words > STACK_LIMIT:
            raise BodyError(
                "O2C0607",
                f"`{self.symbol[2:]}` needs {8 * self.scratch_words} bytes of stack for one key or entry, "
                f"more than {STACK_LIMIT}",
                self.span,
            )
        return "\n".join((*self.head(inline), *self.entry(inline), *self.lines, "}"))

    def head(self, inline: bool) -> list[str]:
        """The function's first line."""
        parameters = "ptr %ctx"
        if self.role is Role.FUNCTION:
            parameters = ", ".join(f"i64 {name}" for name in self.words_of_parameters)
        linkage = "internal " if inline else ""
        attributes = "alwaysinline" if inline else "noinline"
        name = quote(self.symbol)
        return [
            f"define {linkage}i64 {name}({parameters}) {attributes} nounwind "
            f'section ".{self.symbol}" !dbg !{self.program} {{'
        ]

    def entry(self, inline: bool) -> list[str]:
        """The block before the first: stack slots, and the site's row in the `shape` layout."""
        body, self.lines = self.lines, ["entry:"]
        self.locate(None)
        if self.scratch_words:
            self.lines.append(f"  %scratch = alloca [{self.scratch_words} x i64], align 8")
        for name in self.variables.values():
            self.lines.append(f"  {name} = alloca i64, align 8")
        for name in self.variables.values():
            self.lines.append(f"  store i64 0, ptr {name}, align 8")
        if not inline:
            for name in self.words_of_parameters:
                self.add(f'call void asm sideeffect "", "r"(i64 {name})')
        if self.sites is not None:
            self.site_row(self.sites)
        self.add("br label %b0")
        head, self.lines = self.lines, body
        return head

    def site_row(self, sites: SiteTable) -> None:
        """Finds the site's row by the attach cookie; a cookie that is not of this check is counted, denied."""
        cookie = self.helper(HELPER_GET_ATTACH_COOKIE, "ptr %ctx")
        index = self.opaque(self.value(f"sub i64 {cookie}, {sites.first}"))
        condition = self.value(f"icmp ult i64 {index}, {sites.count}")
        self.add(f"br i1 {condition}, label %known, label %unknown")
        self.start("unknown")
        counter = quote(SymbolKind.TABLE + sites.counter)
        self.context.declare(f"{counter} = external global [8 x i8], align 8")
        self.value(f"atomicrmw add ptr {counter}, i64 1 monotonic, align 8")
        self.add(f"ret i64 {nodes.Verdict.DENY.code}")
        self.start("known")
        if sites.parameters:
            table = quote(SymbolKind.TABLE + sites.table)
            self.context.declare(f"{table} = external global [8 x i8], align 8")
            checked = self.opaque(index, fixed=True)
            row = self.value(f"mul nuw nsw i64 {checked}, {8 * len(sites.parameters)}")
            base = f"getelementptr (i8, ptr {table}, i64 {8 * sites.offset})"
            self.lines.append(f"  %row = getelementptr i8, ptr {base}, i64 {row}{self.debug}")


def _used_values(blocks: Sequence[nodes.Block]) -> frozenset[str]:
    """Names of the values that something reads."""
    return frozenset(
        operand.name
        for block in blocks
        for node in (*block.instructions, block.terminator)
        for operand in operands(node)
        if isinstance(operand, nodes.Value)
    )


def _reverse_postorder(blocks: Sequence[nodes.Block]) -> list[nodes.Block]:
    """The blocks that can be reached, each after all that dominate it."""
    by_name = {block.name: block for block in blocks}
    order: list[nodes.Block] = []
    seen = {blocks[0].name}
    work = [(blocks[0], iter(successors(blocks[0].terminator)))]
    while work:
        block, targets = work[-1]
        for target in targets:
            if target in by_name and target not in seen:
                seen.add(target)
                work.append((by_name[target], iter(successors(by_name[target].terminator))))
                break
        else:
            order.append(block)
            work.pop()
    return order[::-1]

# SPDX-License-Identifier: Apache-2.0
"""Control flow of a unit: a function, its ``.cold`` part, and code outside of functions that it jumps to.

Besides branches, control follows jump labels (both ways, whatever the file holds), replaced alternatives that
are jumps, faults with a fixup, and traps that are warnings. A place that is entered from elsewhere, or whose
address is taken, is an *external entry*: nothing is known of the registers there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from o2cc.kernel.instruction import CALLER_SAVED_MASK, RSP, Flow, Instruction
from o2cc.kernel.layout import FunctionRange, Layout
from o2cc.kernel.machine import FTRACE_ENTRIES, decode
from o2cc.kernel.patches import Patches

# Functions that do not return (objtool's list, ``tools/objtool/noreturns.h``, 6.1 and 6.12, as far as modules and
# networking code call them).
NO_RETURN = frozenset({
    "__stack_chk_fail", "panic", "do_exit", "make_task_dead", "rewind_stack_and_make_dead", "fortify_panic",
    "__fortify_panic", "usercopy_abort", "__module_put_and_kthread_exit", "kthread_exit",
    "kthread_complete_and_exit", "do_group_exit", "do_task_dead", "__reiserfs_panic", "nmi_panic_self_stop",
    "panic_smp_self_stop", "stop_this_cpu", "snp_abort", "machine_real_restart", "cpu_startup_entry",
    "ex_handler_msr_mce", "hlt_play_dead", "btrfs_assertfail", "bch2_trans_in_restart_error",
    "bch2_trans_restart_error", "bch2_trans_unlocked_error", "lbug_with_loc", "rust_begin_unwind",
    "__ubsan_handle_builtin_unreachable", "xen_start_kernel", "sev_es_terminate", "arch_cpu_idle_dead",
})  # fmt: skip

_CHUNK_LIMIT = 256
# Sections of the kernel in which everything belongs to some symbol, chosen or not.
_COVERED_SECTIONS = frozenset({".text", ".init.text", ".exit.text"})


@dataclass
class Part:
    """Decoded code of one function symbol; ``function`` is None for code that no symbol covers."""

    function: FunctionRange | None
    start: int
    end: int
    instructions: list[Instruction]
    undecodable: int | None


@dataclass
class BasicBlock:
    """A block by addresses. ``faults`` are (index of the instruction, address of the fixup's block)."""

    start: int
    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)
    outside: list[int] = field(default_factory=list)
    faults: list[tuple[int, int]] = field(default_factory=list)
    external: bool = False
    indirect: bool = False

    @property
    def end(self) -> int:
        return self.instructions[-1].end

    @property
    def is_padding(self) -> bool:
        """Whether it does nothing: what fills the space between aligned blocks, if nothing leads to it."""
        return all(item.is_nop or item.mnemonic == "int3" for item in self.instructions)


@dataclass
class Unit:
    """What is analysed together. ``clobbers``: registers that a replaced alternative may change, by the address
    of the instruction after which that shows."""

    parts: list[Part]
    blocks: dict[int, BasicBlock] = field(default_factory=dict)
    clobbers: dict[int, int] = field(default_factory=dict)
    problems: list[tuple[int, str]] = field(default_factory=list)

    @property
    def entry(self) -> int:
        return self.parts[0].start


def decode_functions(layout: Layout) -> dict[int, Part]:
    """Every function of the layout, decoded, by its start."""
    codes = {section.name: layout.code(section) for section in layout.sections if section.executable}
    parts: dict[int, Part] = {}
    for function in layout.functions:
        instructions, bad = decode(codes[function.section], function.start, function.end, layout)
        parts[function.start] = Part(function, function.start, function.end, instructions, bad)
    return parts


def group(parts: Mapping[int, Part], layout: Layout) -> list[Unit]:
    """Put each ``.cold`` part to the function that jumps into it, in order of the functions' addresses."""
    jumps: dict[int, set[int]] = {}
    for part in parts.values():
        for instruction in part.instructions:
            target = instruction.target
            if target is not None and instruction.flow in (Flow.JUMP, Flow.CONDITIONAL):
                if part.start <= target < part.end:
                    continue
                found = layout.function_at(target)
                if found is not None and is_cold(found.name):
                    jumps.setdefault(found.start, set()).add(part.start)
    by_name: dict[str, list[int]] = {}
    for part in parts.values():
        if part.function is not None:
            by_name.setdefault(part.function.name, []).append(part.start)
    parents: dict[int, int] = {}
    for part in parts.values():
        function = part.function
        if function is None or not is_cold(function.name):
            continue
        base = function.name.rpartition(".cold")[0]
        callers = sorted(jumps.get(part.start, set()))
        named = [start for start in callers if _name(parts[start]) == base]
        candidates = named or by_name.get(base, [])
        if len(candidates) == 1 and not is_cold(_name(parts[candidates[0]])):
            parents[part.start] = candidates[0]
    units: dict[int, Unit] = {}
    for start, part in parts.items():
        if start not in parents:
            units[start] = Unit([part])
    for start, parent in parents.items():
        units[parent].parts.append(parts[start])
    return list(units.values())


def is_cold(name: str) -> bool:
    """Whether this is the name of a function's split-off part."""
    return name.endswith(".cold") or ".cold." in name


def build_blocks(
    unit: Unit, layout: Layout, patches: Patches, taken: Iterable[int], entered: Iterable[int] = ()
) -> None:
    """Fill in ``unit.blocks``. ``taken`` are addresses in the middle of the unit's functions that code or data holds
    as numbers, ``entered`` such that other units jump to. A taken address is where control can go only if the unit
    has an indirect jump: otherwise it is a position for reports (``_THIS_IP_``), and calls go to functions' starts.
    """
    _add_chunks(unit, layout)
    by_address = {item.address: item for part in unit.parts for item in part.instructions}
    extra = _alternative_effects(unit, layout, patches, by_address)
    leaders: set[int] = {part.start for part in unit.parts if part.instructions}
    external: set[int] = {unit.entry}
    indirect = any(item.flow == Flow.INDIRECT_JUMP for part in unit.parts for item in part.instructions)
    for address in (*taken, *entered) if indirect else entered:
        leaders.add(address)
        external.add(address)
    for part in unit.parts:
        for item in part.instructions:
            targets = extra.get(item.address, ())
            if item.target is not None and item.flow in (Flow.JUMP, Flow.CONDITIONAL):
                leaders.add(item.target)
            if targets:
                leaders.update(targets)
            if targets or ends_block(item, patches):
                leaders.add(item.end)
            fixup = patches.fixups.get(item.address)
            if fixup is not None:
                leaders.add(fixup)
    for address in sorted(leaders):
        if address not in by_address and any(part.start <= address < part.end for part in unit.parts):
            unit.problems.append((address, "a jump leads into the middle of an instruction"))
    for part in unit.parts:
        _cut(unit, part, leaders, by_address, extra, patches)
    for address in external:
        if address in unit.blocks:
            unit.blocks[address].external = True


def ends_block(item: Instruction, patches: Patches) -> bool:
    """Whether control need not go on at the following instruction."""
    flow = item.flow
    if flow == Flow.NEXT:
        return item.mnemonic == "int3"
    if flow == Flow.CALL:
        return item.symbol in NO_RETURN
    if flow == Flow.STOP:
        return not patches.bugs.get(item.address, False)
    return flow != Flow.INDIRECT_CALL


def _cut(
    unit: Unit,
    part: Part,
    leaders: set[int],
    by_address: Mapping[int, Instruction],
    extra: Mapping[int, tuple[int, ...]],
    patches: Patches,
) -> None:
    block: BasicBlock | None = None
    for item in part.instructions:
        if block is None or item.address in leaders:
            if block is not None:
                _link(block, item.address, by_address)
            block = BasicBlock(item.address, [])
            unit.blocks[item.address] = block
        block.instructions.append(item)
        fixup = patches.fixups.get(item.address)
        if fixup is not None and fixup in by_address:
            block.faults.append((len(block.instructions) - 1, fixup))
        targets = extra.get(item.address, ())
        for target in targets:
            _link(block, target, by_address)
        if item.flow in (Flow.JUMP, Flow.CONDITIONAL):
            if item.target is not None:
                _link(block, item.target, by_address)
            elif item.flow == Flow.JUMP and item.symbol is None:
                block.indirect = True
        if item.flow == Flow.INDIRECT_JUMP:
            block.indirect = True
        if ends_block(item, patches):
            conditional = item.flow == Flow.CONDITIONAL
            if conditional or (targets and item.flow == Flow.JUMP):
                _link(block, item.end, by_address)
            block = None
        elif targets:
            _link(block, item.end, by_address)
            block = None
    if block is not None and part.undecodable is None and not _may_end(block):
        _link(block, part.end, by_address)
        if part.end not in by_address:
            unit.problems.append((block.start, "control runs past the end of the function"))


def _may_end(block: BasicBlock) -> bool:
    """A call that is the last instruction of a function does not return; padding does not matter."""
    last = next(
        (item for item in reversed(block.instructions) if not item.is_nop and item.mnemonic != "int3"), None
    )
    return last is None or last.flow in (Flow.CALL, Flow.INDIRECT_CALL, Flow.STOP)


def _link(block: BasicBlock, address: int, by_address: Mapping[int, Instruction]) -> None:
    into = block.successors if address in by_address else block.outside
    if address not in into:
        into.append(address)


def _add_chunks(unit: Unit, layout: Layout) -> None:
    """Decode code without a function symbol that the unit jumps to (``.altinstr_aux``, ``.fixup``)."""
    pending = [item.target for part in unit.parts for item in part.instructions if _leaves(item, unit)]
    while pending:
        target = pending.pop()
        if target is None or any(part.start <= target < part.end for part in unit.parts):
            continue
        section = layout.section_at(target)
        if section is None or not section.executable or layout.function_at(target) is not None:
            continue
        if layout.kernel_symbols is not None and section.name in _COVERED_SECTIONS:
            continue
        limit = min(section.end, target + _CHUNK_LIMIT)
        instructions, bad = decode(layout.code(section), target, limit, layout)
        kept: list[Instruction] = []
        for item in instructions:
            kept.append(item)
            if item.flow in (Flow.JUMP, Flow.RETURN, Flow.STOP, Flow.INDIRECT_JUMP):
                bad = None
                break
        if not kept:
            continue
        part = Part(None, target, kept[-1].end, kept, bad)
        unit.parts.append(part)
        pending.extend(item.target for item in kept if _leaves(item, unit))


def _leaves(item: Instruction, unit: Unit) -> bool:
    if item.target is None or item.flow not in (Flow.JUMP, Flow.CONDITIONAL):
        return False
    target = item.target
    return not any(part.start <= target < part.end for part in unit.parts)


def _alternative_effects(
    unit: Unit, layout: Layout, patches: Patches, by_address: Mapping[int, Instruction]
) -> dict[int, tuple[int, ...]]:
    """Further jump targets by instruction; fills in ``unit.clobbers`` and problems of replaced code."""
    targets: dict[int, tuple[int, ...]] = {}
    for part in unit.parts:
        for item in part.instructions:
            target = patches.jump_labels.get(item.address)
            if target is not None:
                targets[item.address] = (target,)
    for start, length, other, other_length in patches.replacements:
        if start not in by_address or other_length == 0:
            continue
        section = layout.section_at(other)
        if section is None:
            continue
        last = start
        writes = False
        while last in by_address and by_address[last].end < start + length:
            writes = writes or by_address[last].write is not None
            last = by_address[last].end
        if last not in by_address:
            unit.problems.append((start, "an alternative does not end with an instruction"))
            continue
        writes = writes or by_address[last].write is not None
        written = 0
        instructions, bad = decode(layout.code(section), other, other + other_length, layout)
        if bad is not None:
            unit.problems.append((start, "an alternative's replacement cannot be decoded"))
        for item in instructions:
            if item.flow in (Flow.JUMP, Flow.CONDITIONAL) and item.target is not None:
                targets[last] = (*targets.get(last, ()), item.target)
            if item.flow in (Flow.CALL, Flow.INDIRECT_CALL):
                written |= CALLER_SAVED_MASK
            if item.write is not None and not writes:
                unit.problems.append(
                    (start, f"an alternative's replacement writes memory (`{item.mnemonic}`)")
                )
            # Pushes and pops in replacements (of saved flags) are paired.
            written |= item.written & ~(1 << RSP)
        unit.clobbers[last] = unit.clobbers.get(last, 0) | written
    return targets


def is_ftrace_entry(item: Instruction) -> bool:
    """Whether this is the call that ftrace replaces, which preserves all registers."""
    return item.flow == Flow.CALL and item.symbol in FTRACE_ENTRIES


def _name(part: Part) -> str:
    return part.function.name if part.function is not None else ""

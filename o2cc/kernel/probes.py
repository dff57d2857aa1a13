# SPDX-License-Identifier: Apache-2.0
"""Where kprobes can go, and which the kernel can replace by jumps.

Sources (6.1 and 6.12). A place is refused (``check_kprobe_address_safe`` in ``kernel/kprobes.c``,
``arch_prepare_kprobe`` and ``prepare_emulation`` in ``arch/x86/kernel/kprobes/core.c``): not the start of an
instruction; inside the ftrace entry; in a jump label, static call or trap of the bug table; in sections without
kprobes (``.noinstr.text``, ``.kprobes.text``, ``.entry.text``) or functions on the blacklist; calls and jumps
through memory; initialization code, once it is freed. We refuse direct calls behind a prefix (``cs call
__x86_indirect_thunk_r8``): the kernel emulates them, and ``int3_emulate_call`` (``asm/text-patching.h``) pushes the
address five bytes on, whatever the length, so that the callee returns into the instruction. Jump optimization (``can_optimize`` and
``copy_optimized_instructions`` in ``arch/x86/kernel/kprobes/opt.c``) needs five bytes inside the symbol, no jump
of the same symbol to bytes 1 to 5, no exception-table entry anywhere in the symbol, displaced instructions
that can be boosted, and no patch site among them. It decodes the symbol to its end in kallsyms, which for the last
function of a module's text lies past the last instruction: such functions are left alone.

The kernel looks at jumps inside the same symbol only: jumps from a ``.cold`` part, jump labels and taken labels
into the five bytes are hazards that we see and it does not (``Probe.keep_int3``).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from o2cc.kernel.boost import Boost, is_prefixed_call
from o2cc.kernel.description import PatchKind, Probe
from o2cc.kernel.flow import BasicBlock, Part, Unit
from o2cc.kernel.instruction import Flow, Instruction
from o2cc.kernel.patches import Patches

JUMP_SIZE = 5
WALK_LIMIT = 48
UNPROBED_SECTIONS = frozenset(
    {".noinstr.text", ".kprobes.text", ".entry.text", ".static_call.text", ".init.text"}
)
_SECTION_REASONS = {
    ".init.text": "its code is freed after initialization",
    ".static_call.text": "a static call's trampoline is rewritten at run time",
}
RETURN_BEHIND = "the kernel makes of the return behind it what the machine needs"
_KEPT = frozenset({"retpoline", "return", "call_thunk", "lock", "endbr"})


@dataclass
class ProbeContext:
    """What is the same for all places of one part. ``entries``: sorted addresses that control enters from
    places that the kernel does not look at; ``jumps``: those that it does."""

    part: Part
    patches: Patches
    sorted_sites: list[int]
    group_boost: bool
    refusal: str | None
    no_optimization: str | None
    jumps: list[int]
    entries: list[int]
    by_address: Mapping[int, Instruction]
    cache: dict[int, Probe] = field(default_factory=dict)

    def patch_in(self, start: int, end: int, but: str = "") -> tuple[int, PatchKind, int] | None:
        """The first patch site not of kind ``but`` that overlaps ``[start, end)``: (address, kind, length)."""
        position = max(0, bisect_left(self.sorted_sites, start - 16))
        while position < len(self.sorted_sites) and self.sorted_sites[position] < end:
            address = self.sorted_sites[position]
            kind, length = self.patches.sites[address]
            if length == 0:
                instruction = self.by_address.get(address)
                length = instruction.length if instruction is not None else JUMP_SIZE
            if address + length > start and length and kind != but:
                return address, kind, length
            position += 1
        return None


def context_for(
    unit: Unit, part: Part, patches: Patches, sorted_sites: list[int], release: str, last: bool
) -> ProbeContext:
    """Gather what the places of ``part`` have in common; ``last``: nothing follows it in the module's text."""
    function = part.function
    refusal = None
    if function is None:
        refusal = "no symbol covers this code"
    elif function.section in UNPROBED_SECTIONS:
        refusal = _SECTION_REASONS.get(function.section, "kprobes are refused in this section")
    elif function.start in patches.refused:
        refusal = "the function is on the kprobe blacklist"
    elif last:
        refusal = "the last function of the text: the kernel would decode past its end"
    inside = {item.address for item in part.instructions}
    no_optimization = None
    if any(address in inside for address in patches.fixups):
        no_optimization = "the function has exception-table entries"
    elif part.undecodable is not None:
        no_optimization = "the function cannot be decoded to its end"
    jumps, entries = _entries(unit, part, patches)
    if any(item.flow == Flow.INDIRECT_JUMP and item.symbol is None for item in part.instructions):
        no_optimization = no_optimization or "the function has indirect jumps without a thunk"
    by_address = {item.address: item for item in part.instructions}
    return ProbeContext(
        part,
        patches,
        sorted_sites,
        _has_group_boost(release),
        refusal,
        no_optimization,
        jumps,
        entries,
        by_address,
    )


def _entries(unit: Unit, part: Part, patches: Patches) -> tuple[list[int], list[int]]:
    seen: set[int] = set()
    unseen: set[int] = set()
    for other in unit.parts:
        for item in other.instructions:
            if item.target is not None and item.flow in (Flow.JUMP, Flow.CONDITIONAL):
                (seen if other is part else unseen).add(item.target)
            target = patches.jump_labels.get(item.address)
            if target is not None:
                unseen.add(target)
    for block in unit.blocks.values():
        if block.external:
            unseen.add(block.start)
        unseen.update(fixup for _, fixup in block.faults)
        for successor in block.successors:
            if successor != block.end and successor not in seen:
                unseen.add(successor)
    return sorted(seen), sorted(unseen)


def probe_at(context: ProbeContext, item: Instruction) -> Probe:
    """The probe exactly at ``item``: refused (offset None), or with what the kernel makes of it."""
    found = context.cache.get(item.address)
    if found is None:
        found = context.cache[item.address] = _probe_at(context, item)
    return found


def _probe_at(context: ProbeContext, item: Instruction) -> Probe:
    reason = context.refusal or _refusal(context, item)
    if reason is not None:
        return Probe(None, False, reason)
    start = item.address
    patch = context.patch_in(start, item.end)
    bytes_change = patch is not None and patch[1] in ("retpoline", "return", "lock", "endbr")
    obstacle, reach = _obstacle(context, item)
    position = bisect_right(context.entries, start)
    hazard = (
        obstacle is None and position < len(context.entries) and context.entries[position] < start + reach
    )
    if hazard:
        obstacle = "control enters the five bytes in a way that the kernel does not see"
    return Probe(
        offset=start - context.part.start,
        jump_optimizable=obstacle is None,
        reason=obstacle,
        length=item.length,
        code_hash=item.hash,
        bytes_change=bytes_change,
        keep_int3=hazard,
    )


def _refusal(context: ProbeContext, item: Instruction) -> str | None:
    if context.part.undecodable is not None and item.address >= context.part.undecodable:
        return "the code before it cannot be decoded"
    if item.flow in (Flow.INDIRECT_CALL, Flow.INDIRECT_JUMP) and not isinstance(item.operand, int):
        return "kprobes refuse calls and jumps through memory"
    if is_prefixed_call(item.body):
        return "kprobes return wrongly from a call behind a prefix"
    if item.address in context.patches.bugs:
        return "kprobes refuse traps of the bug table"
    if item.flow == Flow.STOP or item.mnemonic == "int3":
        return "a trap"
    patch = context.patch_in(item.address, item.end)
    if patch is None:
        return None
    address, kind, _ = patch
    if kind in ("jump_label", "static_call", "ftrace"):
        return f"the kernel rewrites this instruction ({kind.replace('_', ' ')})"
    if kind not in _KEPT:
        return f"the kernel replaces this instruction at load ({kind})"
    if kind != "lock" and address != item.address:
        return f"inside of a place that the kernel rewrites ({kind.replace('_', ' ')})"
    return None


def _obstacle(context: ProbeContext, item: Instruction) -> tuple[str | None, int]:
    """Why the kernel will not optimize a probe there (None: it will), and how many bytes it would displace."""
    if context.no_optimization is not None:
        return context.no_optimization, 0
    start = item.address
    function = context.part.function
    assert function is not None
    if function.extent_end - start < JUMP_SIZE:
        return "fewer than five bytes to the end of the function", 0
    position = bisect_right(context.jumps, start)
    if position < len(context.jumps) and context.jumps[position] <= start + JUMP_SIZE:
        return "a jump leads into the five bytes", 0
    reach = 0
    current: Instruction | None = item
    while reach < JUMP_SIZE:
        if current is None:
            return "the displaced bytes pass the end of the decoded code", 0
        if current.flow == Flow.RETURN and current.address != start:
            # It becomes a `ret`, which can be displaced, or a jump to some thunk, which cannot.
            return RETURN_BEHIND, 0
        if current.boost == Boost.NEVER or (current.boost == Boost.SINCE_6_9 and not context.group_boost):
            return f"`{current.mnemonic}` cannot be displaced", 0
        reach += current.length
        current = context.by_address.get(start + reach)
    # Lock prefixes are reserved only on machines that booted with one processor (``alternatives_smp_module_add``).
    patch = context.patch_in(start, start + reach, but="lock")
    if patch is not None:
        return f"the kernel rewrites displaced code ({patch[1].replace('_', ' ')})", 0
    return None, reach


def choose(
    context: ProbeContext, block: BasicBlock, index: int, needed: int, clobbers: Mapping[int, int]
) -> tuple[Probe, Probe | None]:
    """The probe for the site at ``index`` of ``block``, and an earlier one that is optimizable if it is not.

    ``needed`` is the mask of registers that must hold the same at the place as at the site.
    """
    here = probe_at(context, block.instructions[index])
    if here.offset is not None and here.jump_optimizable:
        return here, None
    fallback: Probe | None = None
    for position in range(index - 1, max(-1, index - 1 - WALK_LIMIT), -1):
        item = block.instructions[position]
        changed = item.written | clobbers.get(item.address, 0)
        if changed & needed or item.flow in (Flow.CALL, Flow.INDIRECT_CALL):
            break
        # A probe sees rsp as it is there; what moves it was caught above if the operand needs it.
        probe = probe_at(context, item)
        if probe.offset is None or probe.keep_int3:
            continue
        if probe.jump_optimizable:
            moved = _moved(probe, here)
            return (here, moved) if here.offset is not None else (moved, None)
        if fallback is None and not probe.bytes_change:
            fallback = _moved(probe, here)
    if here.offset is None and fallback is not None:
        return fallback, None
    return here, None


def _moved(probe: Probe, here: Probe) -> Probe:
    return Probe(
        probe.offset,
        probe.jump_optimizable,
        f"before the site: {here.reason}",
        probe.length,
        probe.code_hash,
        probe.bytes_change,
        probe.keep_int3,
    )


def register_mask(registers: Iterable[int]) -> int:
    """The bit mask of register numbers, negative ones (no register) left out."""
    mask = 0
    for register in registers:
        if register >= 0:
            mask |= 1 << register
    return mask


def _has_group_boost(release: str) -> bool:
    numbers = release.split("-")[0].split("+")[0].split(".")
    try:
        return (int(numbers[0]), int(numbers[1])) >= (6, 9)
    except (ValueError, IndexError):
        return False

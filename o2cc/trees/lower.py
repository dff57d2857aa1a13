# SPDX-License-Identifier: Apache-2.0
"""Tree -> IR: functions that a compartment's checks call to classify an object in kernel memory.

    TREE(address, size, cache_flags)    the outcome of the tree for an object; a large tree has further parts
    word_class(address, size, index)    class of a word, by the list of `o2cc.trees.features`
    resolve_areas(unused)               fills the table `areas` once

All are plain IR: the verifier, the interpreter and the back end treat them as any other function.  A feature
is read where a path first needs it, and again only where paths join that have not all read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from o2cc.diagnostics import DiagnosticError, error
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.trees.compile import SLOTS_OF_TEST, compile_tree, cut_nodes, nesting, optimize
from o2cc.trees.features import (
    ASCII_CARRY,
    ASCII_HIGH_BITS,
    ASCII_LOW_BYTES,
    ASCII_PRINTABLE,
    ERROR_START,
    HALF_CAP,
    LAYOUT_FIELDS,
    LIST_POISONS,
    MODULES_END,
    MODULES_START,
    OWN_FIELDS,
    PAGE_BYTES,
    SMALL_END,
    STRUCT_PAGE_BYTES,
    WordClass,
)
from o2cc.trees.graph import Choice, DecisionGraph, Outcome, class_outcome
from o2cc.trees.tree import MISSING_WORD, Feature, FeatureKind, IntegerTree, Leaf

AREAS = "areas"
PARAMETERS = ("address", "size", "cache_flags")

PART_SLOTS = 8000
"""Size of one function as `cut_nodes` counts it: 1,000 to 2,000 tests.  A test takes up to 15 instructions
where its feature is read, so that jumps of 32,767 instructions reach."""

DEEPEST_PARTS = 3
"""Functions of one tree that may call one another: the kernel allows 8 frames in all (MAX_CALL_FRAMES,
include/linux/bpf_verifier.h, 6.1), of which the check that auditions and the classes of words need the others."""
B = ir.BinaryOperator


@dataclass(frozen=True)
class LoweredTree:
    """What to add to a module; `steps` say what the passes did."""

    functions: tuple[ir.Function, ...]
    tables: tuple[ir.Table, ...]
    steps: tuple[str, ...]


OwnBounds = Callable[[Builder], Mapping[str, ir.Operand]]
"""Emits what computes the bounds of `OWN_FIELDS`."""


def lower_tree(
    tree: IntegerTree,
    *,
    name: str = "tree",
    outcome: Callable[[Leaf], int] = class_outcome,
    own: OwnBounds = lambda code: {},
) -> LoweredTree:
    """The functions of a tree.  `outcome` says what each leaf returns, a number below 2**31.

    ``own`` gives the bounds of the compartment's module; those that it leaves out are 0.
    """
    graph, steps = optimize(tree, outcome)
    cuts = cut_nodes(graph, PART_SLOTS) if len(graph.nodes) * SLOTS_OF_TEST > PART_SLOTS else []
    if nesting(graph, cuts) > DEEPEST_PARTS:
        raise DiagnosticError(
            error(
                "O2C0714",
                f"the tree is too deep and too large for a policy: its parts would nest {nesting(graph, cuts)} deep, "
                f"the limit is {DEEPEST_PARTS}",
                help="train with a smaller --budget",
            )
        )
    parts = {number: f"{name}_part{number}" for number in cuts}
    if parts:
        steps.append(f"{len(parts) + 1} functions, since jumps reach 32,767 instructions")
    bodies = [_tree_function(graph, tree.features, name, graph.root, parts)]
    bodies += [_tree_function(graph, tree.features, part, number, parts) for number, part in parts.items()]
    needs_classes = any(
        isinstance(node, Choice) and tree.features[node.feature].kind is FeatureKind.WORD_CLASS
        for node in graph.nodes
    )
    if not needs_classes:
        return LoweredTree(tuple(bodies), (), tuple(steps))
    table = ir.Table(AREAS, tuple((field, 8) for field in LAYOUT_FIELDS), (), 1, writable=True)
    return LoweredTree((*bodies, word_class(), resolve_areas(own)), (table,), tuple(steps))


CLASSES_COST = 130
READ_COST = 9
"""BPF instructions of `word_class` with `resolve_areas`, and of one place that reads a word or calls for its class,
as the back end compiles them (measured on trees of 40 to 600 tests)."""


def estimated_instructions(tree: IntegerTree) -> int:
    """BPF instructions of a tree in a policy, reading its features included; no back end is asked."""
    lowered = lower_tree(tree)
    reads = sum(
        isinstance(instruction, ir.Read)
        or (isinstance(instruction, ir.Call) and instruction.function == "word_class")
        for function in lowered.functions
        if function.parameters == PARAMETERS
        for block in function.blocks
        for instruction in block.instructions
    )
    return compile_tree(tree).instruction_count + READ_COST * reads + (CLASSES_COST if lowered.tables else 0)


def _tree_function(
    graph: DecisionGraph, features: tuple[Feature, ...], name: str, root: int, parts: Mapping[int, str]
) -> ir.Function:
    """Everything that `root` leads to, up to the nodes that are functions of their own."""
    code = Builder()
    known: dict[int, dict[int, ir.Operand]] = {root: {}}
    for number in range(root, -1, -1):
        node, here = graph.nodes[number], known.pop(number, None)
        if here is None:
            continue
        if number != root:
            code.start(f"node{number}")
        if number != root and number in parts:
            code.give_back(code.call(parts[number], *map(ir.Value, PARAMETERS)))
            continue
        if isinstance(node, Outcome):
            code.give_back(node.value)
            continue
        if node.feature not in here:
            here = {**here, node.feature: _feature(code, features[node.feature])}
        passes = code.binary(B.ULE, here[node.feature], node.threshold)
        code.branch(passes, f"node{node.low}", f"node{node.high}")
        for child in (node.low, node.high):
            before = known.get(child)
            # A value that all paths to a join have under one name was made before they parted.
            known[child] = here if before is None else dict(before.items() & here.items())
    return ir.Function(name, PARAMETERS, code.finish())


def _feature(code: Builder, feature: Feature) -> ir.Operand:
    """Read one feature of the object."""
    address, size = ir.Value("address"), ir.Value("size")
    if feature.kind is FeatureKind.SIZE:
        return size
    if feature.kind is FeatureKind.CACHE_FLAGS:
        return ir.Value("cache_flags")
    if feature.kind is FeatureKind.WORD_CLASS:
        return code.call("word_class", address, size, feature.index)
    if feature.kind is FeatureKind.SELF_OFFSET:
        return _self_offset(code, address, size, feature.index)
    word = code.read(8, code.add(address, 8 * feature.index))
    present = code.binary(B.UGE, size, 8 * feature.index + 8)
    known = code.select(present, word, MISSING_WORD)
    if feature.kind is FeatureKind.WORD:
        return known
    low = feature.kind is FeatureKind.LOW
    half = code.binary(B.AND, known, 2**32 - 1) if low else code.binary(B.LSHR, known, 32)
    return code.select(code.binary(B.ULT, half, HALF_CAP), half, HALF_CAP)


def _self_offset(code: Builder, address: ir.Operand, size: ir.Operand, index: int) -> ir.Operand:
    """1 + the place in the object that a word points to, else 0."""
    word = code.read(8, code.add(address, 8 * index))
    present = code.binary(B.UGE, size, 8 * index + 8)
    distance = code.binary(B.SUB, word, address)
    inside = code.binary(B.ULT, distance, size)
    return code.select(code.binary(B.AND, present, inside), code.add(distance, 1), 0)


def word_class() -> ir.Function:
    """``word_class(address, size, index)``: the class of a word of an object, as a number of `WordClass`."""
    code = Builder()
    address, size, index = ir.Value("address"), ir.Value("size"), ir.Value("index")

    def decide(condition: ir.Operand, kind: WordClass) -> None:
        found, following = code.label(kind.name.lower()), code.label("next")
        code.branch(condition, found, following)
        code.start(found)
        code.give_back(int(kind))
        code.start(following)

    def within(word: ir.Operand, low: ir.Operand, high: ir.Operand) -> ir.Operand:
        above, below = code.binary(B.UGE, word, low), code.binary(B.ULT, word, high)
        return code.binary(B.AND, above, below)

    offset = code.binary(B.SHL, index, 3)
    end = code.add(offset, 8)
    decide(code.binary(B.UGT, end, size), WordClass.MISSING)
    word = code.read(8, code.add(address, offset))
    decide(code.binary(B.EQ, word, 0), WordClass.ZERO)
    decide(code.binary(B.ULT, word, SMALL_END), WordClass.SMALL)
    decide(code.binary(B.UGE, word, ERROR_START), WordClass.ERROR)
    first, second = (code.binary(B.EQ, word, poison) for poison in LIST_POISONS)
    decide(code.binary(B.OR, first, second), WordClass.POISON)
    distance = code.binary(B.SUB, word, address)
    from_start, inside = code.binary(B.UGE, word, address), code.binary(B.ULT, distance, size)
    decide(code.binary(B.AND, from_start, inside), WordClass.SELF)
    text = code.load(AREAS, 0, "kernel_text")
    ready, resolve = code.label("ready"), code.label("resolve")
    code.branch(text, ready, resolve)
    code.start(resolve)
    code.call("resolve_areas", 0)
    code.jump(ready)
    code.start(ready)
    for low, high, kind in (
        ("kernel_text", "kernel_text_end", WordClass.KERNEL_TEXT),
        ("kernel_text_end", "kernel_end", WordClass.KERNEL_DATA),
        ("own_text", "own_text_end", WordClass.OWN_TEXT),
        ("own_constants", "own_constants_end", WordClass.OWN_CONSTANT),
        ("own_data", "own_data_end", WordClass.OWN_DATA),
        ("modules", "modules_end", WordClass.MODULE),
        ("direct_map", "direct_map_end", WordClass.DIRECT_MAP),
        ("vmalloc", "vmalloc_end", WordClass.VMALLOC),
        ("vmemmap", "vmemmap_end", WordClass.VMEMMAP),
    ):
        decide(within(word, code.load(AREAS, 0, low), code.load(AREAS, 0, high)), kind)
    high_bits = code.binary(B.AND, word, ASCII_HIGH_BITS)
    plain = code.binary(B.EQ, high_bits, 0)
    carried = code.add(code.binary(B.AND, word, ASCII_LOW_BYTES), ASCII_CARRY)
    printable = code.binary(B.EQ, code.binary(B.AND, carried, ASCII_PRINTABLE), ASCII_PRINTABLE)
    decide(code.binary(B.AND, plain, printable), WordClass.ASCII)
    code.give_back(int(WordClass.OTHER))
    return ir.Function("word_class", ("address", "size", "index"), code.finish())


def resolve_areas(own: OwnBounds = lambda code: {}) -> ir.Function:
    """``resolve_areas(unused)``: bounds of the areas in this boot, as `Layout.of_kernel` computes them, and of the
    compartment's module.

    Idempotent; `kernel_text` is written last, since it says that the rest is there.  Inline: a store's check, an
    audition and its tree leave no frame for it.
    """
    code = Builder()
    page_offset = code.read(8, code.symbol("page_offset_base"))
    vmalloc = code.read(8, code.symbol("vmalloc_base"))
    vmemmap = code.read(8, code.symbol("vmemmap_base"))
    frames = code.read(8, code.symbol("max_pfn"))
    direct_bytes = code.binary(B.MUL, frames, PAGE_BYTES)
    map_bytes = code.binary(B.MUL, frames, STRUCT_PAGE_BYTES)
    values: dict[str, ir.Operand | int] = {
        "kernel_text_end": code.symbol("_etext"),
        "kernel_end": code.symbol("_end"),
        "modules": MODULES_START,
        "modules_end": MODULES_END,
        "direct_map": page_offset,
        "direct_map_end": code.add(page_offset, direct_bytes),
        "vmalloc": vmalloc,
        "vmalloc_end": vmemmap,
        "vmemmap": vmemmap,
        "vmemmap_end": code.add(vmemmap, map_bytes),
        **dict.fromkeys(OWN_FIELDS, 0),
        **own(code),
        "kernel_text": code.symbol("_stext"),
    }
    assert set(values) == set(LAYOUT_FIELDS)
    for field, value in values.items():
        code.store(AREAS, 0, field, value)
    code.give_back(1)
    return ir.Function("resolve_areas", ("unused",), code.finish(), inline=True)

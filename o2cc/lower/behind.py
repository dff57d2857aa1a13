# SPDX-License-Identifier: Apache-2.0
"""What pointers in the kernel's own objects lead to: grants `behind` a struct, and areas of network namespaces.

Objects that have a name (``init_net``) are followed at the check.  What lies behind others is held from when they come in as
the argument of an entry.  Network namespaces, which every container has, are met one and all when the policy is loaded, then
one by one when the kernel hands a new one to the compartment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder
from o2cc.lower.caches import CACHE_STRUCTS, INSTANCE_POINTERS, INSTANCES, name_words
from o2cc.lower.context import Lowering
from o2cc.lower.expressions import Expressions, Place
from o2cc.lower.gates import FLAG_HELD, FLAG_PER_CPU
from o2cc.lower.places import symbol_address
from o2cc.policy import model

Grant = model.BehindGrant | model.PernetGrant

NAMESPACE = "net"
NAMESPACE_CACHE = next(cache for cache, struct in CACHE_STRUCTS.items() if struct == NAMESPACE)
NAMESPACES = "net_namespace_list"  # net/core/net_namespace.c, 6.1 and 6.12; linked by net.list
FLAG_MET = 64
"""In map `objects`: a namespace whose pointers were followed."""
NAMESPACE_LIMIT = 4096
"""Namespaces that are met at loading; the verifier wants a limit."""
AT_END, ONWARDS, IN_MOTION = range(3)
"""Where the walk over the namespaces is: through, at one, or at a node that is being taken out of the list."""
NAMESPACE_RANGES = 131_072
"""Rows of map `ranges` (18 MiB) where counters of namespaces are tracked by 32 bytes: some 20 for SCTP's of each."""


def grants_of(lowering: Lowering, struct: str | None = None) -> Iterator[tuple[int, Grant]]:
    """The grants of this kind, with their numbers: all, or those of objects of one struct."""
    for index, grant in enumerate(lowering.policy.grants):
        if isinstance(grant, Grant) and grant.allows and struct in (None, _outer(grant)):
            yield index, grant


def behind_parts(lowering: Lowering) -> tuple[tuple[ir.Function, ...], tuple[ir.Hook, ...]]:
    """The functions `in_behind`, `aims_grant`, `meet_namespace`, `visit_namespace`, and the hook that the loader runs."""
    functions = (_in_behind(lowering), _aims_grant(lowering), _meet(lowering))
    place = lowering.description.types.find_field(NAMESPACE, "list")
    if place is None or not any(_of_namespaces(lowering)):
        return functions, ()
    return (*functions, _visit(lowering, place.offset)), (_met_at_loading(),)


def with_room(lowering: Lowering, maps: Iterable[ir.Map]) -> Iterator[ir.Map]:
    """The maps, with room for what namespaces lead to where a policy has them followed."""
    followed = any(_of_namespaces(lowering))
    for item in maps:
        yield replace(item, capacity=NAMESPACE_RANGES) if followed and item.name == "ranges" else item


def _outer(grant: Grant) -> str:
    return grant.struct if isinstance(grant, model.BehindGrant) else NAMESPACE


def _expressions(lowering: Lowering, code: Builder) -> Expressions:
    place = Place(lambda index: ir.Constant(0), None, ir.Constant(0), ir.Constant(0), ir.Constant(0))
    return Expressions(code, place, lowering.policy, lowering.description, lowering.types)


def emit_held(lowering: Lowering, expressions: Expressions, struct: str, base: ir.Operand) -> None:
    """What grants say lies behind pointers in an object of this struct is held from now on."""
    code = expressions.code
    if struct == NAMESPACE:
        if any(_of_namespaces(lowering)):
            code.call("meet_namespace", base)
        return
    for _, grant in grants_of(lowering, struct):
        assert isinstance(grant, model.BehindGrant)
        code.span = grant.span
        start, length = _behind(expressions, grant, base)
        code.call("gain", start, length, FLAG_HELD, lowering.types.mask(grant.pointee))


# --- network namespaces ------------------------------------------------------------------------------------


def _meet(lowering: Lowering) -> ir.Function:
    """``meet_namespace(base)``: holds what a namespace leads to.  Counters lie in per-CPU memory.

    Each namespace is met once, before the compartment has had it in its hands: later it may have written the pointers.  The
    initial one lies in no slab; it has a name, and `in_behind` and `aims_grant` look after it.
    """
    code = Builder()
    base = ir.Value("base")
    expressions = _expressions(lowering, code)
    code.call("mark", base, lowering.types.mask(NAMESPACE))
    known, first, done = code.label("known"), code.label("first"), code.label("done")
    entry = code.lookup("objects", base)
    code.branch(entry, known, done)
    code.start(known)
    flags = code.entry_load(entry, "objects", "flags")
    code.branch(code.binary(ir.BinaryOperator.AND, flags, FLAG_MET), done, first)
    code.start(first)
    code.entry_store(entry, "objects", "flags", code.binary(ir.BinaryOperator.OR, flags, FLAG_MET))
    for outer, grant, place in _of_namespaces(lowering):
        code.span = grant.span
        area = _area(
            lowering, expressions, grant, base if place is None else code.read(8, code.add(base, place))
        )
        if area is None:
            continue
        start, length = area
        struct = grant.pointee if isinstance(grant, model.BehindGrant) else grant.struct
        held = FLAG_HELD | (FLAG_PER_CPU if outer == NAMESPACE else 0)
        code.call("gain", start, length, held, lowering.types.mask(struct))
    code.jump(done)
    code.start(done)
    code.give_back(0)
    return ir.Function("meet_namespace", ("base",), code.finish())


def _of_namespaces(lowering: Lowering) -> Iterator[tuple[str, Grant, int | None]]:
    """Struct and grant of what namespaces lead to; for objects that a namespace's own field points to, the field's offset."""
    for _, grant in grants_of(lowering):
        outer = _outer(grant)
        if outer == NAMESPACE:
            yield outer, grant, None
        for _, holder, path in INSTANCE_POINTERS.get(outer, ()):
            place = lowering.description.types.find_field(holder, path)
            if holder == NAMESPACE and place is not None:
                yield outer, grant, place.offset


def _visit(lowering: Lowering, place: int) -> ir.Function:
    """``visit_namespace(node)``: meets the namespace with that node (`place`: of its field) of the list of all, and says how the
    walk goes on: AT_END, ONWARDS or IN_MOTION.

    Nothing keeps a namespace from ending meanwhile.  So a node is followed while its neighbour leads to it: one that was taken out
    has no neighbour behind it (include/linux/list.h list_del_rcu).  For a moment the same is true of the one behind it, whose
    neighbour is written first (__list_del): who walks cannot tell the two, and has to begin anew.  And only a slot of the
    namespaces' own cache is met: what was freed and given to somebody else leads nowhere.
    """
    code = Builder()
    node = ir.Value("node")
    inner, linked, slab, met, onwards, in_motion, at_end = map(
        code.label, ("inner", "linked", "slab", "met", "onwards", "in_motion", "at_end")
    )
    code.branch(code.binary(ir.BinaryOperator.EQ, node, code.symbol(NAMESPACES)), at_end, inner)
    code.start(inner)
    back = code.read(8, code.read(8, code.add(node, 8)))  # list_head.prev, and what follows there
    known = code.binary(ir.BinaryOperator.NE, node, 0)
    fits = code.binary(ir.BinaryOperator.EQ, back, node)
    code.branch(code.binary(ir.BinaryOperator.AND, known, fits), linked, in_motion)
    code.start(linked)
    base = code.binary(ir.BinaryOperator.SUB, node, place)
    page = code.call("page_head", base)
    code.branch(page, slab, onwards)
    code.start(slab)
    own = code.binary(ir.BinaryOperator.AND, code.call("is_slab", page), _in_cache(lowering, code, page))
    code.branch(own, met, onwards)
    code.start(met)
    code.call("meet_namespace", base)
    code.jump(onwards)
    for label, answer in ((onwards, ONWARDS), (in_motion, IN_MOTION), (at_end, AT_END)):
        code.start(label)
        code.give_back(answer)
    return ir.Function("visit_namespace", ("node",), code.finish())


def _met_at_loading() -> ir.Hook:
    """``o2c_namespaces``: meets all namespaces that there are; run by the loader, again when all checks are in place.  0 when it
    came to the end of the list; else the loader runs it again (o2cc/runtime/notes.py), which meets nothing twice.

    One branch a step that the verifier cannot decide: it takes 8,192 of them in a program's path (BPF_COMPLEXITY_LIMIT_JMP_SEQ,
    kernel/bpf/verifier.c, 6.1 and 6.12).
    """
    code = Builder()
    node = code.assign("node", code.read(8, code.symbol(NAMESPACES)))
    step = code.assign("step", 0)
    answer = code.assign("answer", ONWARDS)
    following, inspect, onwards, done = map(code.label, ("next", "inspect", "onwards", "done"))
    code.jump(following)
    code.start(following)
    code.branch(code.binary(ir.BinaryOperator.ULT, step, NAMESPACE_LIMIT), inspect, done)
    code.start(inspect)
    code.assign("answer", code.call("visit_namespace", node))
    code.branch(code.binary(ir.BinaryOperator.EQ, answer, ONWARDS), onwards, done)
    code.start(onwards)
    code.assign("node", code.read(8, node))
    code.assign("step", code.add(step, 1))
    code.jump(following)
    code.start(done)
    code.give_back(answer)
    return ir.Hook("o2c_namespaces", ir.HookKind.SYSCALL, "", code.finish())


def _in_cache(lowering: Lowering, code: Builder, page: ir.Operand) -> ir.Operand:
    """1 when the slab of that head page is of the cache of network namespaces, by its name."""
    fields = lowering.description.kernel.fields
    cache = code.read(8, code.add(page, fields["slab.slab_cache"].offset))
    name = code.read(8, code.add(cache, fields["kmem_cache.name"].offset))
    same: ir.Operand = ir.Constant(1)
    words = name_words(NAMESPACE_CACHE)
    for number in range(3):
        mask, wanted = words[2 * number : 2 * number + 2]
        word = code.binary(ir.BinaryOperator.AND, code.read(8, code.add(name, 8 * number)), mask)
        same = code.binary(ir.BinaryOperator.AND, same, code.binary(ir.BinaryOperator.EQ, word, wanted))
    return same


# --- objects that have names -------------------------------------------------------------------------------


def _in_behind(lowering: Lowering) -> ir.Function:
    """``in_behind(address, size, scopes)``: memory that a pointer in a kernel object with a name (``init_net``) leads to."""
    code = Builder()
    address, size, scopes = (ir.Value(name) for name in ("address", "size", "scopes"))
    last = code.add(address, size)
    expressions = _expressions(lowering, code)
    for index, grant in grants_of(lowering):
        code.span = grant.span
        for base in _named_objects(lowering, code, _outer(grant)):
            area = _area(lowering, expressions, grant, base)
            if area is None:
                continue
            start, length = area
            classes = lowering.scopes.mask_of_rule(("grant", index), grant.scope)
            applies = code.binary(ir.BinaryOperator.AND, scopes, classes)
            applies = code.binary(ir.BinaryOperator.NE, applies, 0)
            present = code.binary(ir.BinaryOperator.NE, start, 0)
            low = code.binary(ir.BinaryOperator.UGE, address, start)
            high = code.binary(ir.BinaryOperator.ULE, last, code.add(start, length))
            inside = code.binary(ir.BinaryOperator.AND, low, high)
            known = code.binary(ir.BinaryOperator.AND, applies, present)
            _true_if(code, code.binary(ir.BinaryOperator.AND, inside, known))
    code.give_back(0)
    return ir.Function("in_behind", ("address", "size", "scopes"), code.finish())


def _aims_grant(lowering: Lowering) -> ir.Function:
    """``aims_grant(address, size)``: 1 when the range touches what says where, or how far, `in_behind` reaches.

    These pointers and lengths lie in own data, or in granted fields.  A compartment that may write them could let the
    grant end anywhere.  They are set before a policy is loaded, or by the kernel.
    """
    code = Builder()
    address, size = ir.Value("address"), ir.Value("size")
    last = code.add(address, size)
    expressions = _expressions(lowering, code)
    for _, grant in grants_of(lowering):
        code.span = grant.span
        for slot, length in _aiming(lowering, expressions, grant):
            low = code.binary(ir.BinaryOperator.ULT, address, code.add(slot, length))
            high = code.binary(ir.BinaryOperator.UGT, last, slot)
            _true_if(code, code.binary(ir.BinaryOperator.AND, low, high))
    code.give_back(0)
    return ir.Function("aims_grant", ("address", "size"), code.finish())


def _true_if(code: Builder, condition: ir.Operand) -> None:
    """The function's answer is 1 where the condition holds; it goes on otherwise."""
    yes, following = code.label("yes"), code.label("next")
    code.branch(condition, yes, following)
    code.start(yes)
    code.give_back(1)
    code.start(following)


def _aiming(lowering: Lowering, expressions: Expressions, grant: Grant) -> Iterator[tuple[ir.Operand, int]]:
    """Start and size of each word that the area of a grant hangs on."""
    code = expressions.code
    if isinstance(grant, model.PernetGrant):
        variable = symbol_address(code, lowering.description, grant.variable)
        if variable is not None:
            yield variable, 4
        return
    for name, outer, path in INSTANCE_POINTERS.get(grant.struct, ()):
        place = lowering.description.types.find_field(outer, path)
        if place is not None:
            yield code.add(code.symbol(name), place.offset), 8
    for base in _named_objects(lowering, code, grant.struct):
        yield code.add(base, grant.offset), 8
        inner = expressions.at(base)
        for field in (*_fields(grant.start), *_fields(grant.length)):
            yield code.add(inner.value(field.base), field.offset), field.size


def _fields(expression: model.Expr) -> Iterator[model.LoadField]:
    """The fields that an expression reads."""
    match expression:
        case model.LoadField():
            yield expression
            yield from _fields(expression.base)
        case model.AddressOfField():
            yield from _fields(expression.base)
        case model.UnaryExpr():
            yield from _fields(expression.operand)
        case model.BinaryExpr():
            yield from _fields(expression.left)
            yield from _fields(expression.right)
        case model.Predicate():
            for operand in expression.operands:
                yield from _fields(operand)


def _named_objects(lowering: Lowering, code: Builder, struct: str) -> Iterator[ir.Operand]:
    """Addresses of the objects of this struct that have a name, or that a field of such a one points to."""
    for name in INSTANCES.get(struct, ()):
        yield code.symbol(name)
    for name, outer, path in INSTANCE_POINTERS.get(struct, ()):
        place = lowering.description.types.find_field(outer, path)
        if place is not None:
            yield code.read(8, code.add(code.symbol(name), place.offset))


def _behind(
    expressions: Expressions, grant: model.BehindGrant, base: ir.Operand
) -> tuple[ir.Operand, ir.Operand]:
    """Where what is granted behind a pointer in an object begins (0 where the pointer is NULL), and its length."""
    code = expressions.code
    pointer = code.read(8, code.add(base, grant.offset))
    inner = expressions.at(base)
    start = code.binary(ir.BinaryOperator.ADD, pointer, inner.value(grant.start))
    present = code.binary(ir.BinaryOperator.NE, pointer, 0)
    return code.select(present, start, 0), inner.value(grant.length)


def _area(
    lowering: Lowering,
    expressions: Expressions,
    grant: Grant,
    base: ir.Operand,
) -> tuple[ir.Operand, ir.Operand] | None:
    """Where the area of a grant begins and how long it is; None where the description does not tell."""
    code = expressions.code
    if isinstance(grant, model.BehindGrant):
        return _behind(expressions, grant, base)
    # include/net/netns/generic.h net_generic, 6.1: net->gen->ptr[id]
    fields = lowering.description.types
    generic = fields.find_field("net", "gen")
    array = fields.find_field("net_generic", "ptr")
    variable = symbol_address(code, lowering.description, grant.variable)
    if generic is None or array is None or variable is None or len(grant.ranges) != 1:
        return None
    number = code.read(4, variable)
    table = code.read(8, code.add(base, generic.offset))
    slot = code.add(table, code.binary(ir.BinaryOperator.SHL, number, 3))
    area = code.read(8, code.add(slot, array.offset))
    first, last = grant.ranges[0]
    if grant.struct is None:
        return area, code.call("size_of_object", area)
    return code.add(area, first), ir.Constant(last - first)

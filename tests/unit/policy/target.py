# SPDX-License-Identifier: Apache-2.0
"""A small made-up module, described by hand, to check policies against."""

from __future__ import annotations

from o2cc.kernel.description import (
    Argument,
    Description,
    Function,
    KernelFacts,
    OpsTable,
    Probe,
    Section,
    Site,
    StaticAddress,
    Symbol,
    Target,
    ValueSource,
)
from o2cc.kernel.type_table import Enum, Member, Parameter, Prototype, Struct, TypeReference, TypeTable

INT = TypeReference("int", "int", 4, signed=True)
UNSIGNED = TypeReference("int", "unsigned int", 4)
SIZE = TypeReference("int", "size_t", 8)
BYTE = TypeReference("int", "unsigned char", 1)
VOID = TypeReference("void")


def pointer(element: TypeReference) -> TypeReference:
    return TypeReference("pointer", size=8, element=element)


def struct(name: str, size: int) -> TypeReference:
    return TypeReference("struct", name, size)


FUNCTION = pointer(TypeReference("function"))
BUFFER = pointer(BYTE)

SIZES = {
    "list_head": 16,
    "counter": 4,
    "demo_ops": 16,
    "demo_inner": 16,
    "demo_object": 96,
    "sock": 24,
    "demo_sock": 32,
    "sk_buff": 32,
    "net": 64,
    "timer_list": 24,
}


def by_name(name: str) -> TypeReference:
    return struct(name, SIZES[name])


def _struct(name: str, *members: tuple[str, int, TypeReference]) -> Struct:
    return Struct(
        name, "struct", SIZES[name], tuple(Member(n, offset * 8, type_) for n, offset, type_ in members)
    )


STRUCTS = (
    _struct(
        "list_head", ("next", 0, pointer(by_name("list_head"))), ("prev", 8, pointer(by_name("list_head")))
    ),
    _struct("counter", ("value", 0, INT)),
    _struct("demo_ops", ("open", 0, FUNCTION), ("close", 8, FUNCTION)),
    _struct("demo_inner", ("first", 0, SIZE), ("second", 8, SIZE)),
    Struct(
        "demo_object",
        "struct",
        SIZES["demo_object"],
        (
            Member("list", 0, by_name("list_head")),
            Member("size", 16 * 8, INT),
            Member("", 20 * 8, TypeReference("union", "demo_object__anonymous", 4)),
            Member("data", 24 * 8, BUFFER),
            Member("ops", 32 * 8, pointer(by_name("demo_ops"))),
            Member("notify", 40 * 8, FUNCTION),
            Member("flag", 48 * 8, UNSIGNED, 1),
            Member("kind", 48 * 8 + 1, UNSIGNED, 3),
            Member("state", 52 * 8, BYTE),
            Member("inner", 56 * 8, by_name("demo_inner")),
            Member("owner", 72 * 8, pointer(by_name("demo_sock"))),
            Member("name", 80 * 8, TypeReference("array", size=16, element=BYTE, count=16)),
        ),
    ),
    Struct(
        "demo_object__anonymous",
        "union",
        4,
        (Member("hash", 0, UNSIGNED), Member("count", 0, INT)),
    ),
    _struct(
        "sock",
        ("sk_err", 0, INT),
        ("sk_queued", 4, INT),
        ("sk_prot", 8, pointer(by_name("demo_ops"))),
        ("sk_net", 16, pointer(by_name("net"))),
    ),
    _struct("demo_sock", ("sk", 0, by_name("sock")), ("extra", 24, SIZE)),
    _struct(
        "sk_buff",
        ("len", 0, UNSIGNED),
        ("end", 4, UNSIGNED),
        ("head", 8, BUFFER),
        ("users", 16, by_name("counter")),
    ),
    _struct("net", ("count", 0, INT), ("demo", 8, by_name("demo_inner"))),
    _struct("timer_list", ("expires", 0, SIZE), ("function", 8, FUNCTION), ("flags", 16, UNSIGNED)),
)


def prototype(
    name: str, returns: TypeReference, *parameters: tuple[str, TypeReference], variadic: bool = False
) -> Prototype:
    return Prototype(name, tuple(Parameter(n, t) for n, t in parameters), returns, variadic)


PROTOTYPES = (
    prototype("kfree", VOID, ("object", pointer(VOID))),
    prototype("__kmalloc", pointer(VOID), ("size", SIZE), ("flags", UNSIGNED)),
    prototype("memcpy", VOID),
    prototype("kfree_skb", VOID, ("skb", pointer(by_name("sk_buff")))),
    prototype("alloc_skb", pointer(by_name("sk_buff")), ("size", UNSIGNED)),
    prototype("send", INT, ("sk", pointer(by_name("sock"))), ("skb", pointer(by_name("sk_buff")))),
    prototype(
        "mystery",
        INT,
        ("object", pointer(by_name("demo_object"))),
        ("net", pointer(by_name("net"))),
        ("callback", FUNCTION),
        ("buffer", pointer(VOID)),
        ("n", SIZE),
    ),
    prototype(
        "init_timer_key",
        VOID,
        ("timer", pointer(by_name("timer_list"))),
        ("func", FUNCTION),
        ("flags", UNSIGNED),
    ),
    prototype("mod_timer", INT, ("timer", pointer(by_name("timer_list"))), ("expires", SIZE)),
    prototype("kernel_write", SIZE, ("file", pointer(VOID)), ("buffer", pointer(VOID)), ("count", SIZE)),
    prototype("printk", INT, ("format", BUFFER), variadic=True),
)

_NO_PROBE = Probe(0, True)


def call(
    offset: int, target: str, *, tail: bool = False, arguments: tuple[Argument | None, ...] = ()
) -> Site:
    return Site(
        offset=offset,
        length=5,
        kind="tail_call" if tail else "call",
        mnemonic="jmp" if tail else "call",
        operand=None,
        size=0,
        rep=False,
        target=target,
        stack_height=0,
        frame_offset=None,
        value=None,
        value_offset=0,
        value_source=None,
        code_hash=0,
        relocated=(),
        probe=_NO_PROBE,
        arguments=arguments,
    )


def function(
    name: str,
    offset: int,
    parameters: tuple[tuple[str, TypeReference], ...],
    *sites: Site,
    address_taken: bool = False,
    parent: str | None = None,
) -> Function:
    return Function(
        name=name,
        section=".text",
        offset=offset,
        size=0x100,
        ambiguous=False,
        address_taken=address_taken,
        exported=False,
        prototype=None if parent else prototype(name, INT, *parameters),
        blocks=(),
        sites=sites,
        frame=0,
        problems=(),
        parent=parent,
    )


def _function_address(offset: int) -> Argument:
    address = StaticAddress(".text", None, offset)
    return Argument(0, 0, ValueSource("static", address=address))


FUNCTIONS = (
    function(
        "demo_open",
        0x000,
        (("sk", pointer(by_name("sock"))),),
        call(0x10, "__kmalloc"),
        call(0x20, "init_timer_key", arguments=(None, _function_address(0x300))),
        call(0x30, "demo_walk"),
        call(0x40, "__x86_return_thunk", tail=True),
        address_taken=True,
    ),
    function(
        "demo_close",
        0x100,
        (("sk", pointer(by_name("sock"))),),
        call(0x10, "kfree", tail=True),
        address_taken=True,
    ),
    function(
        "demo_rcv",
        0x200,
        (("skb", pointer(by_name("sk_buff"))),),
        call(0x10, "kfree_skb"),
        call(0x20, "alloc_skb"),
        call(0x30, "send"),
        call(0x40, "printk"),
        address_taken=True,
    ),
    function(
        "demo_timer",
        0x300,
        (("t", pointer(by_name("timer_list"))),),
        call(0x10, "mod_timer"),
        address_taken=True,
    ),
    function(
        "demo_write",
        0x400,
        (("o", pointer(by_name("demo_object"))),),
        call(0x10, "memcpy"),
        call(0x20, "mystery"),
    ),
    function("demo_walk", 0x500, ()),
    function(
        "demo_walk.cold",
        0x600,
        (),
        call(0x10, "kernel_write"),
        call(0x20, "helper.isra.0"),
        parent="demo_walk",
    ),
)

DATA = StaticAddress(".data", None, 0)


def section(name: str, *, writable: bool = True, after_init: bool = False) -> Section:
    return Section(name, 0x1000, writable, name == ".text", after_init, False, None, 0)


def describe(*, kind: str = "module") -> Description:
    """The description of module `demo`, or of the same code as built-in functions."""
    return Description(
        release="6.1.0-test",
        target=Target("demo", "module" if kind == "module" else "builtin", "", "", ""),
        sections=(
            section(".text", writable=False),
            section(".data"),
            section(".rodata", writable=False),
            section(".data..ro_after_init", after_init=True),
        ),
        functions=FUNCTIONS,
        imports=(*(item.name for item in PROTOTYPES), "jiffies"),
        exports=(),
        symbols=(
            Symbol("demo_table", ".data", 0, 96, True, by_name("demo_object")),
            Symbol("demo_count", ".data", 96, 4, True, INT),
            Symbol("demo_net_id", ".data", 100, 4, True, UNSIGNED),
            Symbol("demo_names", ".rodata", 0, 64, True),
            Symbol("demo_cache", ".data..ro_after_init", 0, 8, True),
        ),
        ops_tables=(
            OpsTable(
                "demo_prot", ".data", 0x200, "demo_ops", (("open", "demo_open"), ("close", "demo_close"))
            ),
        ),
        types=TypeTable(STRUCTS, (Enum("demo_state", (("DEMO_IDLE", 0), ("DEMO_BUSY", 1))),), PROTOTYPES),
        kernel=KernelFacts(),
    )

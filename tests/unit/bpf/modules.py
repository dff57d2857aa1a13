# SPDX-License-Identifier: Apache-2.0
"""Small modules that several tests use."""

from __future__ import annotations

from dataclasses import replace

from o2cc.diagnostics import Span
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder

POLICY = "compartment sctp {\n    write struct sock { sk_err }\n    call imports\n}\n"
SOURCES = {"sctp.o2c": POLICY}
WRITE = Span("sctp.o2c", POLICY.index("write"), POLICY.index("write") + 5)
CALL = Span("sctp.o2c", POLICY.index("call"), POLICY.index("call") + 4)


def store_check(name: str, register: str) -> ir.Check:
    """Owner shadow, then shared code."""
    code = Builder()
    base = code.register(register)
    address = code.add(base, code.parameter("displacement"))
    page = code.binary(ir.BinaryOperator.LSHR, address, 12)
    owner = code.load("owners", page, "owner")
    code.branch(code.binary(ir.BinaryOperator.EQ, owner, 1), "allow", "slow")
    code.start("allow")
    code.decide(ir.Verdict.ALLOW)
    code.start("slow")
    code.give_back(code.call("decide", address, code.parameter("size"), code.parameter("site")))
    return ir.Check(name, code.finish())


def shared() -> ir.Function:
    """Looks an object up; reports what is unknown."""
    code = Builder(WRITE)
    address, size, site = ir.Value("address"), ir.Value("size"), ir.Value("site")
    entry = code.lookup("objects", code.binary(ir.BinaryOperator.AND, address, ~0xFFF))
    code.branch(entry, "known", "unknown")
    code.start("known")
    code.span = CALL
    last = code.binary(ir.BinaryOperator.ADD, address, size)
    code.branch(
        code.binary(ir.BinaryOperator.ULE, last, code.entry_load(entry, "objects", "end")), "yes", "unknown"
    )
    code.start("yes")
    code.decide(ir.Verdict.ALLOW)
    code.start("unknown")
    code.fetch_add("counters", site, "denied", 1)
    code.emit("events", code.helper(ir.HelperKind.NOW), site, address)
    code.decide(ir.Verdict.DENY)
    return ir.Function("decide", ("address", "size", "site"), code.finish(), WRITE)


def hooks() -> tuple[ir.Hook, ...]:
    """One hook of each kind."""
    free, leave, made, run = Builder(), Builder(), Builder(), Builder()
    free.delete("objects", free.register("rdi"))
    free.give_back(0)
    leave.update("objects", (leave.register("rax"),), (0,))
    leave.give_back(0)
    made.update("objects", (made.argument(1),), (made.argument(2),))
    made.give_back(0)
    run.give_back(run.call("decide", 4096, 8, 1))
    return (
        ir.Hook("on_free", ir.HookKind.KPROBE, "kfree", free.finish(), CALL),
        ir.Hook("on_return", ir.HookKind.KRETPROBE, "__kmalloc", leave.finish()),
        ir.Hook("on_kmalloc", ir.HookKind.RAW_TRACEPOINT, "kmalloc", made.finish()),
        ir.Hook("on_request", ir.HookKind.SYSCALL, "", run.finish()),
    )


def site(number: int, check: str, function: str, offset: int, displacement: int = 8) -> ir.Site:
    """A store."""
    parameters = (("displacement", displacement % 2**64), ("size", 8), ("site", number))
    return ir.Site(number, function, offset, ir.SiteKind.STORE, check, parameters, WRITE)


def module() -> ir.Module:
    """Two checks, five sites (two of them at one place), one hook of each kind."""
    sites = (
        site(0, "store_rbx", "sctp_outq_tail", 0x2C),
        site(1, "store_rdi", "sctp_outq_tail", 0x40, -16),
        site(2, "store_rbx", "sctp_rcv.isra.0", 0x8B, -(1 << 31)),
        replace(site(3, "store_rdi", "sctp_rcv.isra.0", 0x93), probe_offset=0x8B, note="before a call"),
        replace(site(4, "store_rdi", "sctp_init", 0), kind=ir.SiteKind.RETURN, span=CALL),
    )
    discharged = (
        ir.Discharged("sctp_rcv", 4, ir.SiteKind.STORE, "own-frame", "in its own frame"),
        ir.Discharged("sctp_rcv", 8, ir.SiteKind.STORE, "own-frame", "in its own frame"),
    )
    return ir.Module(
        "sctp",
        (("release", "6.1.0-57-amd64"), ("target", "sctp"), ("build_id", "abc")),
        (
            ir.Map("objects", ir.MapKind.HASH, ("base",), ("end",), 1024),
            ir.Map("events", ir.MapKind.RING_BUFFER, (), ("time", "site", "address"), 65536),
        ),
        (
            ir.Table("owners", (("owner", 1),), (), 4096, writable=True),
            ir.Table("counters", (("denied", 8), ("small", 2)), ((0, 7),), 16, writable=True),
            ir.Table("sizes", (("index", 2), ("size", 4)), ((1, 8), (2, 16)), 3),
        ),
        (shared(), ir.Function("unused", (), (ir.Block("entry", (), ir.Return(ir.Constant(0))),))),
        (store_check("store_rbx", "rbx"), store_check("store_rdi", "rdi"), store_check("nobody", "rax")),
        sites,
        hooks(),
        discharged,
    )

# SPDX-License-Identifier: Apache-2.0
"""Random but valid IR modules, for comparing the compiled code with the reference interpreter.

Everything that a check can do is in them except what differs from run to run (time, task, CPU).  Each check
leaves its 64-bit result in ``results``, at the row of its site, since a test run only gives 32 bits back.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from o2cc.bpf.layout import REGISTER_OFFSETS
from o2cc.diagnostics import Span
from o2cc.ir import nodes as ir
from o2cc.ir.builder import Builder

BANNER = "linux_banner"  # a kernel string whose first bytes every test can know
SOURCE = "generated.o2c"
SOURCE_TEXT = "".join(f"rule {number} {{ write }}\n" for number in range(100))
REGISTERS = tuple(name for name in REGISTER_OFFSETS if name not in ("orig_rax", "cs", "ss"))
PARAMETERS = ("displacement", "size", "mask", "wide")

_WORDS = (
    *(0, 1, 2, 3, 7, 8, 63, 64, 255, 256, 4095, 4096, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32),
    *(1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 2, (1 << 64) - 1),
)

MAPS = (
    ir.Map("objects", ir.MapKind.HASH, ("base",), ("size", "owner", "count"), 512),
    ir.Map("pairs", ir.MapKind.HASH, ("left", "right"), ("word",), 512),
    ir.Map("recent", ir.MapKind.LRU_HASH, ("key",), ("value",), 4096),
    ir.Map("events", ir.MapKind.RING_BUFFER, (), ("a", "b", "c"), 1 << 20),
)
_ROWS = tuple(
    (n, n * 77 % 256, n * 7919 % 65536, n * 104729 + 5, n * 0x9E3779B97F4A7C15 % 2**64) for n in range(13)
)
_COLUMNS = (("n", 1), ("byte", 1), ("half", 2), ("word", 4), ("quad", 8))
TABLES = (
    ir.Table("constants", _COLUMNS, _ROWS, 16),
    ir.Table("settings", _COLUMNS, _ROWS[:4], 9, writable=True),
    ir.Table("zeros", (("small", 4), ("big", 8), ("byte", 1)), (), 32, writable=True),
    ir.Table("results", (("word", 8),), (), 256, writable=True),
)


def word(random_: random.Random) -> int:
    """A word that is likely to be at an edge."""
    match random_.randrange(4):
        case 0:
            return random_.getrandbits(64)
        case 1:
            return random_.randrange(40)
        case _:
            return random_.choice(_WORDS)


class _Generator:
    """Writes one body."""

    def __init__(self, random_: random.Random, functions: Sequence[ir.Function], *, check: bool) -> None:
        self.random, self.functions, self.check = random_, functions, check
        self.code = Builder(self.span())
        self.loops = 0

    def span(self) -> Span:
        start = self.random.randrange(len(SOURCE_TEXT) - 4)
        return Span(SOURCE, start, start + 3)

    def operand(self, values: list[ir.Operand]) -> ir.Operand:
        if self.random.random() < 0.3:
            return ir.Constant(word(self.random))
        return self.random.choice(values)

    def index(self, values: list[ir.Operand], length: int) -> ir.Operand:
        """Often in bounds, sometimes a constant."""
        match self.random.randrange(4):
            case 0:
                return ir.Constant(self.random.randrange(length + 2))
            case 1:
                return self.code.binary(ir.BinaryOperator.AND, self.operand(values), 2 * length - 1)
            case 2:
                return self.code.binary(ir.BinaryOperator.UMOD, self.operand(values), length + 1)
            case _:
                return self.operand(values)

    def key(self, values: list[ir.Operand]) -> ir.Operand:
        """From a small range, so that entries are found."""
        return self.code.binary(ir.BinaryOperator.AND, self.operand(values), 7)

    def statement(self, values: list[ir.Operand]) -> None:
        """One instruction or a few; results that stay visible are added to ``values``."""
        code, choose = self.code, self.random.choice
        code.span = self.span() if self.random.random() < 0.5 else code.span
        one, two = self.operand(values), self.operand(values)
        match self.random.randrange(20):
            case 0 | 1 | 2 | 3:
                values.append(code.binary(choose(list(ir.BinaryOperator)), one, two))
            case 4:
                values.append(code.select(self.operand(values), one, two))
            case 5:
                values.append(code.assign(choose(("x", "y", "z")), one))
            case 6 if self.check:
                values.append(code.register(choose(REGISTERS)))
            case 7 if self.check:
                values.append(code.parameter(choose(PARAMETERS)))
            case 8:
                values.append(code.read(choose((1, 2, 4, 8)), choose((0, 1, 4095, 1 << 63, 0xDEAD << 48))))
            case 9:
                banner = code.symbol(BANNER)
                address = code.binary(ir.BinaryOperator.ADD, banner, self.random.randrange(6))
                values.append(code.read(choose((1, 2, 4, 8)), address))
            case 10:
                table = choose(TABLES[:3])
                values.append(
                    code.load(table.name, self.index(values, table.length), choose(table.columns)[0])
                )
            case 11:
                table = choose(TABLES[1:3])
                index = self.index(values, table.length)
                code.store(table.name, index, choose(table.columns)[0], one)
            case 12:
                table = choose(TABLES[1:3])
                column = choose([name for name, size in table.columns if size >= 4])
                old = code.fetch_add(table.name, self.index(values, table.length), column, one)
                if self.random.random() < 0.5:
                    values.append(old)
            case 13:
                self.entry(values)
            case 14:
                values.append(code.update("recent", (self.key(values),), (one,)))
                values.append(code.update("pairs", (self.key(values), self.key(values)), (two,)))
            case 15:
                values.append(code.emit("events", one, two, self.operand(values)))
            case 16 if self.functions:
                function = choose(self.functions)
                values.append(code.call(function.name, *(self.operand(values) for _ in function.parameters)))
            case 17:
                values.append(code.delete("recent", self.key(values)))
            case 18:
                wide = [(t.name, t.length, c) for t in TABLES[1:3] for c, size in t.columns if size == 8]
                name, length, column = choose(wide)
                values.append(code.compare_exchange(name, self.index(values, length), column, one, two))
            case _:
                values.append(code.add(one, two))

    def entry(self, values: list[ir.Operand]) -> None:
        """Looks entries up and uses or makes them; also two at once, which LLVM likes to merge."""
        code = self.code
        key = self.key(values)
        found = code.lookup("objects", key)
        present, absent, end = code.label("present"), code.label("absent"), code.label("end")
        if self.random.random() < 0.5:
            pair = code.lookup("pairs", self.key(values), self.key(values))
            both = code.label("both")
            code.branch(found, both, absent)
            code.start(both)
            code.branch(code.binary(ir.BinaryOperator.NE, pair, 0), present, absent)
            code.start(present)
            code.assign("x", code.entry_load(pair, "pairs", "word"))
        else:
            code.branch(code.binary(ir.BinaryOperator.EQ, found, 0), absent, present)
            code.start(present)
        inner = list(values)
        inner.append(code.entry_load(found, "objects", "owner"))
        match self.random.randrange(4):
            case 0:
                code.entry_store(found, "objects", "owner", self.operand(inner))
            case 1:
                inner.append(code.entry_fetch_add(found, "objects", "count", self.operand(inner)))
            case 2:
                old = code.entry_compare_exchange(
                    found, "objects", "size", self.operand(inner), self.operand(inner)
                )
                inner.append(old)
            case 3:
                code.entry_fetch_add(found, "objects", "count", self.operand(inner))
        code.assign("y", self.operand(inner))
        code.jump(end)
        code.start(absent)
        fields = [self.operand(values) for _ in range(3)]
        code.assign("z", code.update("objects", (key,), fields))
        code.jump(end)
        code.start(end)
        values.extend(ir.Variable(name) for name in ("x", "y", "z"))

    def sequence(self, values: list[ir.Operand], depth: int) -> None:
        """Statements, branches and loops; values made inside a branch stay there."""
        code = self.code
        for _ in range(self.random.randrange(2, 6)):
            self.statement(values)
        if depth == 0:
            return
        if self.random.random() < 0.75:
            then, other, end = code.label("then"), code.label("else"), code.label("join")
            code.branch(self.operand(values), then, other)
            for name in (then, other):
                code.start(name)
                inner = list(values)
                self.sequence(inner, depth - 1)
                code.assign(self.random.choice(("x", "y")), self.operand(inner))
                code.jump(end)
            code.start(end)
        elif self.random.random() < 0.7:
            self.loop(values)
        values.append(ir.Variable("x"))
        self.sequence(values, depth - 1)

    def loop(self, values: list[ir.Operand]) -> None:
        """A loop of a few rounds."""
        code = self.code
        counter = f"i{self.loops}"
        self.loops += 1
        head, body, end = code.label("head"), code.label("body"), code.label("out")
        code.assign(counter, 0)
        code.jump(head)
        code.start(head)
        limit = self.random.randrange(1, 6)
        code.branch(code.binary(ir.BinaryOperator.ULT, ir.Variable(counter), limit), body, end)
        code.start(body)
        inner = [*values, ir.Variable(counter)]
        for _ in range(self.random.randrange(1, 4)):
            self.statement(inner)
        code.assign("z", code.binary(ir.BinaryOperator.ADD, self.operand(inner), ir.Variable("z")))
        code.assign(counter, code.binary(ir.BinaryOperator.ADD, ir.Variable(counter), 1))
        code.jump(head)
        code.start(end)

    def result(self, values: list[ir.Operand]) -> ir.Value:
        """A word that depends on most of what was computed."""
        mixed: ir.Operand = ir.Constant(0)
        for value in [*values[-6:], ir.Variable("x"), ir.Variable("y"), ir.Variable("z")]:
            product = self.code.binary(ir.BinaryOperator.MUL, mixed, 0x100000001B3)
            mixed = self.code.binary(ir.BinaryOperator.XOR, product, value)
        assert isinstance(mixed, ir.Value)
        return mixed


def _function(
    random_: random.Random, number: int, functions: Sequence[ir.Function], *, inline: bool
) -> ir.Function:
    parameters = tuple(f"p{n}" for n in range(random_.randrange(1, 6)))
    generator = _Generator(random_, functions, check=False)
    values: list[ir.Operand] = [ir.Value(name) for name in parameters]
    generator.sequence(values, 1)
    generator.code.give_back(generator.result(values))
    return ir.Function(f"shared_{number}", parameters, generator.code.finish(), generator.span(), inline)


def _check(random_: random.Random, number: int, functions: Sequence[ir.Function]) -> ir.Check:
    generator = _Generator(random_, functions, check=True)
    code = generator.code
    address = code.add(code.register("rbx"), code.parameter("displacement"))  # as checks of stores begin
    values: list[ir.Operand] = [address, code.register("rdi"), code.parameter("mask")]
    generator.sequence(values, 2)
    result = generator.result(values)
    code.store("results", code.parameter("site"), "word", result)
    code.give_back(result)
    return ir.Check(f"check_{number}", code.finish(), generator.span())


def generate(seed: int, checks: int, sites_each: int = 1) -> ir.Module:
    """A module of random checks with their sites."""
    random_ = random.Random(seed)
    functions: list[ir.Function] = []
    for number in range(3):
        functions.append(_function(random_, number, functions, inline=number == 1))
    made = [_check(random_, number, functions) for number in range(checks)]
    sites: list[ir.Site] = []
    for check in made:
        for _ in range(sites_each):
            number = len(sites)
            start = random_.randrange(len(SOURCE_TEXT) - 4)
            values = {
                "displacement": random_.randrange(-4096, 4096) % 2**64,
                "size": random_.choice((1, 2, 4, 8)),
                "mask": random_.getrandbits(32),
                "wide": random_.getrandbits(64),
                "site": number,
            }
            sites.append(
                ir.Site(
                    number,
                    f"function_{number // 3}",
                    4 * number,
                    ir.SiteKind.STORE,
                    check.name,
                    tuple(values.items()),
                    Span(SOURCE, start, start + 3),
                )
            )
    return ir.Module(
        f"generated_{seed}",
        (("release", "test"), ("target", "generated"), ("build_id", "00")),
        MAPS,
        TABLES,
        tuple(functions),
        tuple(made),
        tuple(sites),
    )


def registers(random_: random.Random) -> dict[str, int]:
    """Values for all registers."""
    return {name: word(random_) for name in REGISTERS}
